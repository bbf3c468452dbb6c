//! What is remembered of the last good line, without its secrets.

use std::fmt::Write as _;

use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::appliance::channel::Channel;
use crate::appliance::root::Root;

const FILE: &str = "/var/lib/sysvm/line.json";
/// Of a record, or of an id.
const MAX_FILE: u64 = 16 * 1024;

/// The last good line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of its bytes, in hex.
    pub(super) sha256: String,
    /// The boot in which it was taken: another one has started since, or not.
    pub(super) boot_id: String,
    /// Where it came from.
    pub(super) channel: Channel,
}

/// `None` also for one that makes no sense: then there was no line.
pub(super) fn read(root: &Root) -> Option<Record> {
    let bytes = files::read_limited(root.path(FILE), MAX_FILE).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

pub(super) fn write(root: &Root, record: &Record) -> Result<(), FileError> {
    let bytes = serde_json::to_vec(record).expect("plain data");
    files::replace(root.path(FILE), bytes, 0o600).map(|_change| ())
}

/// Of the running kernel: another one after each start.
pub(super) fn boot_id(root: &Root) -> String {
    let bytes = files::read_limited(root.path("/proc/sys/kernel/random/boot_id"), MAX_FILE)
        .ok()
        .flatten();
    String::from_utf8_lossy(&bytes.unwrap_or_default()).trim().to_owned()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}
