//! Which machine a VM runs on: it decides how the boot arguments arrive, and a little of what they mean (§3).

use serde::{Deserialize, Serialize};

pub mod detect;

/// What the VM runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// KVM under libvirt, or QEMU by itself.
    Kvm,
    /// XenServer, XCP-ng.
    Xen,
    /// ESXi.
    Vmware,
    /// Windows Server.
    HyperV,
    /// None that we know, or no VM at all.
    Other,
}

impl Hypervisor {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Kvm, Self::Xen, Self::Vmware, Self::HyperV, Self::Other];

    /// One word, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Xen => "xen",
            Self::Vmware => "vmware",
            Self::HyperV => "hyperv",
            Self::Other => "other",
        }
    }

    /// Whether agents' VMs are reached on their management NIC, because there is no control network (§4.3).
    pub const fn is_without_control_network(self) -> bool {
        matches!(self, Self::Vmware | Self::HyperV)
    }

    /// Whether the switch learns an address only when the VM sends something that is answered (§3.4).
    pub const fn needs_ping(self) -> bool {
        matches!(self, Self::Vmware)
    }

    /// Whether the guest's clock follows the host's without a time server (§5.3).
    pub const fn keeps_time(self) -> bool {
        matches!(self, Self::Xen | Self::Vmware)
    }
}

impl std::str::FromStr for Hypervisor {
    type Err = UnknownHypervisor;

    fn from_str(text: &str) -> Result<Self, UnknownHypervisor> {
        let found = Self::ALL.into_iter().find(|known| known.name() == text);
        found.ok_or_else(|| UnknownHypervisor(text.to_owned()))
    }
}

impl std::fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names none.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a hypervisor; write kvm, xen, vmware, hyperv or other")]
pub struct UnknownHypervisor(String);
