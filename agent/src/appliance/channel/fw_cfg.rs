//! QEMU's fw_cfg: files that the host gives to firmware, for those who start QEMU themselves.

use platform::files;

use super::{Channel, ChannelError, MAX_LINE, is_blank};
use crate::appliance::root::Root;

/// Ours, and the shorter one of §3.6.
const NAMES: [&str; 2] = ["opt/org.cloudstack/cmdline", "opt/cloudstack/cmdline"];

/// The kernel's driver for it is loaded by udev, a moment after the start.
pub(super) fn read(root: &Root) -> Result<Option<(Vec<u8>, Channel)>, ChannelError> {
    for name in NAMES {
        let path = root.path(format!("/sys/firmware/qemu_fw_cfg/by_name/{name}/raw"));
        if let Some(text) = files::read_limited(path, MAX_LINE)?.filter(|text| !is_blank(text)) {
            return Ok(Some((text, Channel::FwCfg(name.to_owned()))));
        }
    }
    Ok(None)
}
