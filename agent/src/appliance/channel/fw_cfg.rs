//! QEMU's fw_cfg: files that the host gives to firmware, for those who start QEMU themselves.

use platform::files;

use super::{ChannelError, MAX_LINE};
use crate::appliance::root::Root;

/// Ours, and the shorter one of §3.6.
pub(super) const NAMES: [&str; 2] = ["opt/org.cloudstack/cmdline", "opt/cloudstack/cmdline"];

/// The kernel's driver for it is loaded by udev, a moment after the start.
pub(super) fn read(root: &Root, name: &str) -> Result<Option<Vec<u8>>, ChannelError> {
    let path = root.path(format!("/sys/firmware/qemu_fw_cfg/by_name/{name}/raw"));
    Ok(files::read_limited(path, MAX_LINE)?)
}
