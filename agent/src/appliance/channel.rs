//! Where boot arguments come from, besides the file that hosts write through the guest agent (that one is in
//! [`line`](super::line)).
//!
//! In this order; the first that has a line wins:
//!
//! | channel | where | § |
//! |---|---|---|
//! | a file that the operator named | `--cmdline-file` | 3.6 |
//! | `/mnt/cmdline` | | 3.6 |
//! | kernel command line | words from a `type=` that CloudStack knows on | 3.3 |
//! | fw_cfg | `opt/org.cloudstack/cmdline`, `opt/cloudstack/cmdline` | 3.6 |
//! | SMBIOS | an OEM string that starts with `cloudstack-cmdline:` or `cmdline:` | 3.6 |
//! | the hypervisor's own: xenstore, `machine.id`, KVP | only on that hypervisor | 3.3–3.5 |
//! | CD | label `cloudstack` or `config-2`, file `cmdline` | – |
//!
//! Nobody has these by accident, so they go before the guest agent's file, which may be an old one.

use std::fmt;
use std::path::PathBuf;

use platform::exec::ExecError;
use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};

use super::hypervisor::Hypervisor;
use super::root::Root;

mod fw_cfg;
mod hyperv;
mod iso;
mod kernel;
mod smbios;
mod vmware;
mod xenstore;

pub use hyperv::BadPool;
pub use iso::BadIso;
pub use smbios::BadStructure;

/// Bytes of a line, as much as [`protocol::boot::BootArgs`] takes.
pub const MAX_LINE: u64 = 256 * 1024;
/// A file there replaces every other source (§3.6).
const OVERRIDE: &str = "/mnt/cmdline";

/// Where a line came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// The guest agent, or whoever else writes [`LINE`](super::root::LINE).
    GuestAgent,
    /// A file that was named on our command line, or [`OVERRIDE`].
    File(PathBuf),
    /// The kernel's command line.
    Kernel,
    /// QEMU's fw_cfg, under this name.
    FwCfg(String),
    /// An OEM string of the firmware.
    Smbios,
    /// Xen.
    Xenstore,
    /// VMware's `machine.id`.
    MachineId,
    /// Hyper-V's key-value pairs.
    KeyValuePair,
    /// A CD.
    Cd,
}

/// A line as it came, secrets included; always one that other programs can read, with spaces between words.
#[derive(Clone, PartialEq, Eq)]
pub struct Line {
    /// The bytes.
    pub text: Vec<u8>,
    /// Where they are from.
    pub channel: Channel,
}

/// Why a channel that is there could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A file, also one of the kernel's.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that must be there.
    #[error("{0} does not exist; give the file with the boot arguments")]
    NoFile(PathBuf),
    /// A tool.
    #[error(transparent)]
    Tool(#[from] ExecError),
    /// What firmware wrote.
    #[error("cannot read the firmware's OEM strings")]
    Smbios(#[from] BadStructure),
    /// What Hyper-V's daemon wrote.
    #[error("cannot read {path}")]
    Pool {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BadPool,
    },
    /// A CD.
    #[error("cannot read the CD in {drive}")]
    Iso {
        /// The drive.
        drive: PathBuf,
        /// Why.
        source: BadIso,
    },
    /// More than anybody sends.
    #[error("{channel} has {length} bytes, more than the {MAX_LINE} that boot arguments may have")]
    TooLong {
        /// Which.
        channel: Channel,
        /// Bytes.
        length: usize,
    },
}

/// One channel, as it is now.
#[derive(Debug)]
pub struct Look {
    /// Which.
    pub channel: Channel,
    /// Its line; `None` when there is none.
    pub line: Result<Option<Line>, ChannelError>,
}

/// What a look at all channels found.
#[derive(Debug, Default)]
pub struct Found {
    /// The line of the first channel that has one.
    pub line: Option<Line>,
    /// Channels before it that are there and cannot be read.
    pub problems: Vec<ChannelError>,
}

/// The first channel that has a line. One that is known to make no sense does not count.
pub async fn first(
    root: &Root,
    hypervisor: Hypervisor,
    named: Option<&PathBuf>,
    is_refused: impl Fn(&[u8]) -> bool,
) -> Found {
    let mut found = Found::default();
    for look in all(root, hypervisor, named).await {
        match look.line {
            Ok(Some(line)) if !is_refused(&line.text) => {
                found.line = Some(line);
                break;
            }
            Ok(_) => {}
            Err(problem) => found.problems.push(problem),
        }
    }
    found
}

/// All channels that this machine may have, in their order. Who names a file wants no other.
pub async fn all(root: &Root, hypervisor: Hypervisor, named: Option<&PathBuf>) -> Vec<Look> {
    if let Some(path) = named {
        let text = files::read_limited(path, MAX_LINE).map_err(ChannelError::from);
        let text = text.and_then(|text| text.ok_or_else(|| ChannelError::NoFile(path.clone())));
        return vec![look(Channel::File(path.clone()), text.map(Some))];
    }
    let mounted = files::read_limited(root.path(OVERRIDE), MAX_LINE).map_err(ChannelError::from);
    let mut looks = vec![
        look(Channel::File(OVERRIDE.into()), mounted),
        look(Channel::Kernel, kernel::read(root, hypervisor)),
    ];
    looks.extend(fw_cfg::NAMES.map(|name| look(Channel::FwCfg(name.to_owned()), fw_cfg::read(root, name))));
    looks.push(look(Channel::Smbios, smbios::read(root)));
    match hypervisor {
        Hypervisor::Xen => looks.push(look(Channel::Xenstore, xenstore::read().await)),
        Hypervisor::Vmware => looks.push(look(Channel::MachineId, vmware::read().await)),
        Hypervisor::HyperV => looks.push(look(Channel::KeyValuePair, hyperv::read(root))),
        Hypervisor::Kvm | Hypervisor::Other => {}
    }
    looks.push(look(Channel::Cd, iso::read(root)));
    looks
}

fn look(channel: Channel, read: Result<Option<Vec<u8>>, ChannelError>) -> Look {
    let is_long = |text: &Vec<u8>| u64::try_from(text.len()).is_ok_and(|length| length > MAX_LINE);
    let line = match read.map(|text| text.filter(|text| !is_blank(text))) {
        Ok(Some(text)) if is_long(&text) => Err(ChannelError::TooLong {
            channel: channel.clone(),
            length: text.len(),
        }),
        Ok(text) => Ok(text.map(|text| Line {
            text,
            channel: channel.clone(),
        })),
        Err(error) => Err(error),
    };
    Look { channel, line }
}

impl Channel {
    /// Whether each boot finds the same line there, unless somebody changed it on purpose: no reason to wait for a newer one.
    pub fn is_fixed(&self) -> bool {
        !matches!(self, Self::GuestAgent)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestAgent => f.write_str("the guest agent's file"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Kernel => f.write_str("the kernel command line"),
            Self::FwCfg(name) => write!(f, "fw_cfg {name}"),
            Self::Smbios => f.write_str("an SMBIOS OEM string"),
            Self::Xenstore => f.write_str("xenstore"),
            Self::MachineId => f.write_str("VMware's machine.id"),
            Self::KeyValuePair => f.write_str("a Hyper-V key-value pair"),
            Self::Cd => f.write_str("a CD"),
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({} bytes from {})", self.text.len(), self.channel)
    }
}

/// Whether nothing but white space (or NULs, the padding of Hyper-V's records) is there.
pub(super) fn is_blank(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

#[cfg(test)]
mod tests;
