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

/// What a look at all channels found.
#[derive(Debug, Default)]
pub struct Found {
    /// The line of the first channel that has one.
    pub line: Option<Line>,
    /// Channels before it that are there and cannot be read.
    pub problems: Vec<ChannelError>,
}

/// Looks at the channels in their order.
pub async fn look(root: &Root, hypervisor: Hypervisor, named: Option<&PathBuf>) -> Found {
    let mut found = Found::default();
    if let Some(path) = named {
        let line = files::read_limited(path, MAX_LINE).map_err(ChannelError::from);
        let line = line.and_then(|line| line.ok_or_else(|| ChannelError::NoFile(path.clone())));
        found.take(line.map(Some), || Channel::File(path.clone()));
        return found; // who names a file wants no other
    }
    let mounted = files::read_limited(root.path(OVERRIDE), MAX_LINE).map_err(ChannelError::from);
    let _ = found.take(mounted, || Channel::File(OVERRIDE.into()))
        || found.take(kernel::read(root, hypervisor), || Channel::Kernel)
        || found.take_named(fw_cfg::read(root))
        || found.take(smbios::read(root), || Channel::Smbios)
        || match hypervisor {
            Hypervisor::Xen => found.take(xenstore::read().await, || Channel::Xenstore),
            Hypervisor::Vmware => found.take(vmware::read().await, || Channel::MachineId),
            Hypervisor::HyperV => found.take(hyperv::read(root), || Channel::KeyValuePair),
            Hypervisor::Kvm | Hypervisor::Other => false,
        }
        || found.take(iso::read(root), || Channel::Cd);
    found
}

impl Found {
    /// Whether there is a line now.
    fn take(&mut self, read: Result<Option<Vec<u8>>, ChannelError>, channel: impl FnOnce() -> Channel) -> bool {
        self.take_named(read.map(|text| text.map(|text| (text, channel()))))
    }

    fn take_named(&mut self, read: Result<Option<(Vec<u8>, Channel)>, ChannelError>) -> bool {
        match read {
            Ok(Some((text, channel))) if text.len() > usize::try_from(MAX_LINE).unwrap_or(usize::MAX) => {
                self.problems.push(ChannelError::TooLong {
                    channel,
                    length: text.len(),
                });
            }
            Ok(Some((text, channel))) if !is_blank(&text) => self.line = Some(Line { text, channel }),
            Ok(_) => {}
            Err(problem) => self.problems.push(problem),
        }
        self.line.is_some()
    }
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
