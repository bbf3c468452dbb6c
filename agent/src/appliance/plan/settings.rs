//! Kernel settings, services and small files of each type. Facts: appliance.md §5.3, §5.4, §6.

use std::collections::BTreeMap;

use protocol::boot::{Role, SystemVm};
use serde::Serialize;

use super::super::hypervisor::Hypervisor;
use super::names;
use super::network::{self, Link, Traffic};

/// Every unit that some type runs and the image does not start by itself.
const MANAGED: [&str; 9] = [
    CHRONY,
    "conntrackd.service",
    CONSOLE_PROXY,
    SSVM,
    DNSMASQ,
    "frr.service",
    HAPROXY,
    KEEPALIVED,
    "radvd.service",
];
const CHRONY: &str = "chrony.service";
const CONSOLE_PROXY: &str = "cs-console-proxy.service";
const DNSMASQ: &str = "dnsmasq.service";
const HAPROXY: &str = "haproxy.service";
const KEEPALIVED: &str = "keepalived.service";
const SSVM: &str = "cs-ssvm.service";

/// What runs and what does not, by systemd's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Services {
    /// To be enabled and started, in this order.
    pub enable: Vec<&'static str>,
    /// To be disabled and stopped, if they are not already.
    pub disable: Vec<&'static str>,
}

impl Services {
    /// §6.
    pub(super) fn of(vm: &SystemVm, hypervisor: Hypervisor) -> Self {
        let mut enable = Vec::new();
        // §5.3: on an SSVM always, elsewhere when servers are named, and not where the host's clock is the guest's.
        let wants_time = matches!(vm.role, Role::SecondaryStorage(_)) || !vm.machine.ntp_servers.is_empty();
        if wants_time && !hypervisor.keeps_time() {
            enable.push(CHRONY);
        }
        enable.extend(match &vm.role {
            Role::SecondaryStorage(_) => &[SSVM][..],
            Role::ConsoleProxy(_) => &[CONSOLE_PROXY],
            // The one of two routers that serves starts dnsmasq, when VRRP has decided.
            Role::Router(_) | Role::VpcRouter(_) if network::is_redundant(vm) => &[HAPROXY, KEEPALIVED],
            Role::Router(_) | Role::VpcRouter(_) => &[DNSMASQ, HAPROXY],
            Role::DhcpServer(_) => &[DNSMASQ],
            Role::InternalLb(_) | Role::ElasticLb(_) => &[HAPROXY],
            Role::CksNode | Role::SharedFs => &[],
        });
        let disable = MANAGED.into_iter().filter(|unit| !enable.contains(unit)).collect();
        Self { enable, disable }
    }
}

/// What the boot arguments decide; the rest is the image's.
pub(super) fn sysctl(vm: &SystemVm, links: &[Link]) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |name: String, value: bool| settings.insert(name, u8::from(value).to_string());
    let is_router = matches!(vm.role, Role::Router(_) | Role::VpcRouter(_));
    set("net.ipv4.ip_forward".to_owned(), is_router);

    // The kernel takes the larger one of `all` and the interface's own.
    let filters = matches!(vm.role, Role::Router(_));
    set("net.ipv4.conf.all.rp_filter".to_owned(), false);
    set("net.ipv4.conf.default.rp_filter".to_owned(), filters);
    for link in links {
        let is_let_off = link.traffic == Traffic::Public && vm.machine.disable_rp_filter;
        set(format!("net.ipv4.conf.{}.rp_filter", link.name), filters && !is_let_off);
    }

    let is_v6_gateway = network::routing(vm)
        .and_then(|routing| routing.redundancy.as_ref())
        .is_some_and(|redundancy| redundancy.guest_gateway6.is_some());
    let has_v6 = |link: &Link| link.ipv6.is_some() || (is_v6_gateway && link.traffic == Traffic::Guest);
    let is_v6 = links.iter().any(has_v6);
    // `all` is written first and sets every interface; those without an address of ours are taken out again.
    set("net.ipv6.conf.all.disable_ipv6".to_owned(), !is_v6);
    set("net.ipv6.conf.default.disable_ipv6".to_owned(), true);
    set("net.ipv6.conf.lo.disable_ipv6".to_owned(), false);
    set("net.ipv6.conf.all.forwarding".to_owned(), is_v6 && is_router);
    for link in links {
        set(format!("net.ipv6.conf.{}.disable_ipv6", link.name), !has_v6(link));
    }
    settings
}

/// §5.4.
pub(super) fn files(vm: &SystemVm) -> BTreeMap<&'static str, String> {
    let mut files = BTreeMap::new();
    if let Role::ConsoleProxy(proxy) = &vm.role {
        files.insert("/root/vncport", format!("{}\n", proxy.console_port));
    }
    if network::routing(vm).is_some() {
        files.insert("/etc/dnsmasq-resolv.conf", names::resolv_conf(vm));
    }
    files
}
