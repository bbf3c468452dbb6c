//! What can be asked of `image-builder`: one file for each command.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use platform::files;

pub(crate) mod check_signature;
pub(crate) mod diff;
pub(crate) mod inspect;
pub(crate) mod sbom;
pub(crate) mod sign;
pub(crate) mod verify;

/// Bytes of a lock file; ours has 150 thousand.
const MAX_LOCK: u64 = 16 << 20;

/// Prints what was asked for. That nobody reads on (`| head`) is no error.
fn print(text: impl Display) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}

/// Puts a text into a file, or on standard output where none is named.
fn deliver(text: &str, file: Option<&PathBuf>) -> anyhow::Result<()> {
    match file {
        Some(file) => Ok(files::replace(file, text, 0o644).map(drop)?),
        None => print(text),
    }
}

/// Reads a file that must be there.
fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    files::read_limited(path, limit)?.with_context(|| format!("{} does not exist", path.display()))
}

/// Reads a text that must be there.
fn read_text(path: &Path, limit: u64) -> anyhow::Result<String> {
    String::from_utf8(read(path, limit)?).with_context(|| format!("{} is not text", path.display()))
}

/// A lock file by its path.
fn read_lock(path: &Path) -> anyhow::Result<image_builder::lock::Lock> {
    let text = read_text(path, MAX_LOCK)?;
    image_builder::lock::Lock::parse(&text).with_context(|| format!("{} is no lock file", path.display()))
}

/// Work that reads whole disks, away from the thread that answers ctrl-C.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the work panicked")
}
