//! The VMs that only balance load: internal and elastic load balancers.

use super::{DnsName, Reader};

/// `type=ilbvm` and `type=elbvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    /// The network's domain.
    pub domain: DnsName,
    /// Whether sshd listens on `eth0` instead of `eth1`.
    pub ssh_on_guest: bool,
}

impl LoadBalancer {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self {
            domain: read.domain(),
            ssh_on_guest: read.flag("sshonguest", false),
        }
    }
}

impl Reader<'_> {
    pub(super) fn domain(&mut self) -> DnsName {
        self.optional("domain", "a domain such as cs1.internal")
            .unwrap_or_else(DnsName::default_domain)
    }
}
