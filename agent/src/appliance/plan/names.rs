//! What the machine knows of names: its own, and whom to ask for others. Facts: appliance.md §5.1.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use indexmap::IndexSet;
use protocol::boot::{Machine, Role, SystemVm};

use super::network::{Link, Network};

/// What guests' programs call the server of their user data (§5.1).
const DATA_SERVER: &str = "data-server";
/// What the image calls itnetwork.
const NAMELESS: &str = "sysvm";

/// `/etc/hosts` (§5.1).
pub(super) fn hosts(vm: &SystemVm, network: &Network) -> String {
    let own = match vm.role {
        Role::SecondaryStorage(_) | Role::ConsoleProxy(_) => network.public().and_then(Link::address),
        Role::VpcRouter(_) => None,
        _ => network.usable(0).and_then(Link::address),
    };
    let name = vm.machine.name.as_ref().map_or(NAMELESS, |name| name.as_str());
    let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let address = own.unwrap_or(Ipv4Addr::LOCALHOST);
    writeln!(hosts, "{address}\t{name}").expect("a String takes everything");
    if let (Role::Router(_) | Role::DhcpServer(_), Some(own)) = (&vm.role, own) {
        writeln!(hosts, "{own}\t{DATA_SERVER}").expect("a String takes everything");
    }
    hosts
}

/// Internal first (§5.1); none twice.
pub(super) fn name_servers(vm: &SystemVm) -> Vec<IpAddr> {
    let Machine {
        internal_dns,
        dns,
        dns6,
        ..
    } = &vm.machine;
    let ipv4 = internal_dns.iter().chain(dns).copied().map(IpAddr::V4);
    let ipv6 = dns6.iter().copied().map(IpAddr::V6);
    ipv4.chain(ipv6).collect::<IndexSet<_>>().into_iter().collect()
}

pub(super) fn resolv_conf(vm: &SystemVm) -> String {
    let mut text = String::from("# From the boot arguments, by `agent boot`.\n");
    for server in name_servers(vm) {
        writeln!(text, "nameserver {server}").expect("a String takes everything");
    }
    text
}
