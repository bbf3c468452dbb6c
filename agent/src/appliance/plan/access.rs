//! Where sshd listens, and whose keys it takes. Facts: appliance.md §4.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use protocol::boot::{InterfaceName, Role, SystemVm};
use serde::Serialize;

use super::super::hypervisor::Hypervisor;
use super::network::Network;

/// Every command of a host comes here (§4.2).
const PORT: u16 = 3922;
/// Of VMs that are not CloudStack's to command: Kubernetes nodes and shared file systems (§4.3).
const USUAL_PORT: u16 = 22;

/// The drop-in for sshd, below `/etc/ssh/sshd_config.d`.
pub const DROP_IN: &str = "/etc/ssh/sshd_config.d/20-address.conf";

/// Where sshd listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SshAccess {
    /// TCP.
    pub port: u16,
    /// Addresses; empty means all that the machine has.
    pub addresses: Vec<Ipv4Addr>,
    /// The only NIC that the firewall lets in; `None` means all.
    pub link: Option<InterfaceName>,
}

impl SshAccess {
    /// The content of [`DROP_IN`].
    pub fn sshd_config(&self) -> String {
        let mut text = String::from("# From the boot arguments, by `agent boot`.\n");
        let mut listen = |address: SocketAddr| {
            writeln!(text, "ListenAddress {address}").expect("a String takes everything");
        };
        if self.addresses.is_empty() {
            listen((Ipv4Addr::UNSPECIFIED, self.port).into());
            if self.link.is_none() {
                listen((Ipv6Addr::UNSPECIFIED, self.port).into());
            }
        }
        for address in &self.addresses {
            listen((*address, self.port).into());
        }
        text
    }
}

pub(super) fn of(vm: &SystemVm, hypervisor: Hypervisor, network: &Network) -> Option<SshAccess> {
    if is_not_ours(vm) {
        return Some(SshAccess {
            port: USUAL_PORT,
            addresses: Vec::new(),
            link: None,
        });
    }
    let link = control(vm, hypervisor)
        .into_iter()
        .find_map(|index| network.usable(index))?;
    Some(SshAccess {
        port: PORT,
        addresses: link.address().into_iter().collect(),
        link: Some(link.name.clone()),
    })
}

/// The NICs that may be the way in, the best first (§4.3).
fn control(vm: &SystemVm, hypervisor: Hypervisor) -> Vec<u8> {
    match &vm.role {
        Role::SecondaryStorage(_) | Role::ConsoleProxy(_) if hypervisor.is_without_control_network() => vec![1, 0],
        // On a hypervisor that we do not know: servers give the control NIC no address where it is not used.
        Role::SecondaryStorage(_) | Role::ConsoleProxy(_) => vec![0, 1],
        Role::VpcRouter(_) => vec![0],
        Role::DhcpServer(router) if router.ssh_on_guest => vec![0],
        Role::ElasticLb(balancer) if balancer.ssh_on_guest => vec![0],
        Role::Router(_) | Role::DhcpServer(_) | Role::InternalLb(_) | Role::ElasticLb(_) => vec![1],
        Role::CksNode | Role::SharedFs => Vec::new(),
    }
}

/// Said when there is no way in.
pub(super) fn no_address(vm: &SystemVm, hypervisor: Hypervisor) -> String {
    let names: Vec<String> = control(vm, hypervisor)
        .iter()
        .map(|index| format!("eth{index}ip"))
        .collect();
    format!(
        "{}: no address, so sshd does not listen and no host can command this VM",
        names.join(" or ")
    )
}

/// Where services of the host's own commands are offered: the control NIC.
pub(super) const fn is_not_ours(vm: &SystemVm) -> bool {
    matches!(vm.role, Role::CksNode | Role::SharedFs)
}

/// One key; none for VMs whose users bring their own by cloud-init (§4.3).
pub(super) fn authorized_keys(vm: &SystemVm) -> Option<String> {
    if is_not_ours(vm) {
        return Some(String::new());
    }
    vm.machine.authorized_key.as_ref().map(|key| format!("{key}\n"))
}
