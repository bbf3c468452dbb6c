//! Routes and rules beyond those that addresses bring. Facts: appliance.md §5.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use protocol::boot::{InterfaceName, Role, SecondaryStorage, SystemVm};
use serde::Serialize;

use super::network::{self, Link, Network};

/// Routing tables of a VPC router (§5.1), by number.
pub(super) const VPC_TABLES: [(u32, &str); 2] = [(251, "static_route_back"), (252, "static_route")];
/// Of the first rule; the other one follows it. Before the kernel's own for `main`, 32766.
const RULE_PRIORITY: u32 = 1000;
/// Networks nobody routes on the Internet, as §5.1 lists them.
const PRIVATE: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// A network of prefix length 0 is the default route.
    pub to: IpNet,
    /// The gateway.
    pub via: IpAddr,
    /// The NIC.
    pub link: InterfaceName,
    /// The gateway is in none of the NIC's networks, and is to be believed a neighbour all the same.
    pub onlink: bool,
    /// What for.
    pub why: &'static str,
}

/// A rule of policy routing: what comes from a network is looked up in a table of its own first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its place among the rules.
    pub priority: u32,
    /// Source addresses.
    pub from: Ipv4Net,
    /// The table's number.
    pub table: u32,
}

/// All routes, none twice; the first of two for the same network counts.
pub(super) fn routes(vm: &SystemVm, network: &Network) -> Vec<Route> {
    let machine = &vm.machine;
    let mut routes = Routes {
        network,
        chosen: Vec::new(),
    };
    if let Some(link) = default_link(vm, network) {
        if let Some(gateway) = machine.gateway.filter(|_| link.ipv4.is_some()) {
            routes.add(Ipv4Net::default(), gateway, link, "default");
        }
        if let Some(gateway) = machine.gateway6.filter(|_| link.ipv6.is_some()) {
            routes.add(Ipv6Net::default(), gateway, link, "default");
        }
    }
    // On a VPC router the pod's gateway is reached by the control NIC, the only one at boot.
    let pod = match vm.role {
        Role::VpcRouter(_) => network.usable(0),
        _ => network.usable(1),
    };
    if let Some((gateway, link)) = machine.local_gateway.zip(pod) {
        for net in &machine.management_nets {
            routes.add(net.trunc(), gateway, link, "management");
        }
        if network::has_agent(vm)
            && network
                .public()
                .and_then(Link::address)
                .is_some_and(|own| !is_private(own))
        {
            for net in PRIVATE {
                routes.add(net, gateway, link, "private networks");
            }
        }
        for (address, why) in inside(vm) {
            if !routes.reaches(address) {
                routes.add(Ipv4Net::from(address), gateway, link, why);
            }
        }
    }
    if let Role::SecondaryStorage(storage) = &vm.role
        && let Some((gateway, link)) = storage_way(storage, network)
    {
        for store in addresses(&storage.stores).filter(|store| !network.is_neighbour(*store)) {
            routes.add(Ipv4Net::from(store), gateway, link, "storage");
        }
    }
    routes.chosen
}

struct Routes<'a> {
    network: &'a Network,
    chosen: Vec<Route>,
}

impl Routes<'_> {
    fn add(&mut self, to: impl Into<IpNet>, via: impl Into<IpAddr>, link: &Link, why: &'static str) {
        let (to, via) = (to.into(), via.into());
        // The kernel has one route for a network. That to neighbours is there already, and better.
        let is_there = self.network.links.iter().any(|link| link.is_network(to));
        let is_chosen = self.chosen.iter().any(|route| route.to == to);
        // Of a NIC with DHCP nothing is known yet; the kernel refuses ourselves as a gateway.
        let is_usable = link.up && !link.dhcp && !self.network.is_own(via);
        if is_usable && !is_there && !is_chosen {
            self.chosen.push(Route {
                to,
                via,
                link: link.name.clone(),
                onlink: !link.has_on_link(via) && !is_link_local(via),
                why,
            });
        }
    }

    /// Whether a neighbour's network or a route that is not the default one leads to the address.
    fn reaches(&self, address: Ipv4Addr) -> bool {
        let leads = |route: &Route| route.to.prefix_len() != 0 && route.to.contains(&IpAddr::V4(address));
        self.network.is_neighbour(address) || self.chosen.iter().any(leads)
    }
}

/// Single addresses inside that stock's agent adds routes to when it starts (§5.1).
fn inside(vm: &SystemVm) -> impl Iterator<Item = (Ipv4Addr, &'static str)> {
    let agent = match &vm.role {
        Role::SecondaryStorage(storage) => Some(&storage.agent),
        Role::ConsoleProxy(proxy) => Some(&proxy.agent),
        _ => None,
    };
    let servers = agent.into_iter().flat_map(|agent| addresses(&agent.hosts.hosts));
    let resolvers = vm.machine.internal_dns.iter().filter(move |_| agent.is_some());
    servers
        .map(|address| (address, "management server"))
        .chain(resolvers.map(|address| (*address, "internal DNS")))
        .filter(|(address, _why)| !address.is_loopback())
}

/// Where the default route leaves (§5.1): `eth2` if the type has one, else `eth0`. If that has no address, the NIC that
/// has the gateway as its neighbour. None where VRRP or later commands decide.
pub(super) fn default_link<'a>(vm: &SystemVm, network: &'a Network) -> Option<&'a Link> {
    let index = match vm.role {
        Role::VpcRouter(_) => return None,
        _ if network::is_redundant(vm) => return None,
        Role::SecondaryStorage(_) | Role::ConsoleProxy(_) | Role::Router(_) => 2,
        _ => 0,
    };
    let usual = network.link(index).filter(|link| link.up);
    usual.or_else(|| {
        let gateway = IpAddr::V4(vm.machine.gateway?);
        network.links.iter().find(|link| link.up && link.has_on_link(gateway))
    })
}

fn storage_way<'a>(storage: &SecondaryStorage, network: &'a Network) -> Option<(Ipv4Addr, &'a Link)> {
    let nic = storage.storage.as_ref()?;
    let link = network
        .links
        .iter()
        .find(|link| link.address() == Some(nic.address.addr()))?;
    Some((nic.gateway?, link))
}

/// A VPC router looks into the tables of its static routes first (§5.1).
pub(super) fn rules(vm: &SystemVm) -> Vec<Rule> {
    let Role::VpcRouter(router) = &vm.role else {
        return Vec::new();
    };
    let from = router.vpc_net.map(|net| net.trunc());
    let rules = VPC_TABLES
        .iter()
        .zip(RULE_PRIORITY..)
        .map(|((table, _name), priority)| (priority, *table));
    from.into_iter()
        .flat_map(|from| {
            rules
                .clone()
                .map(move |(priority, table)| Rule { priority, from, table })
        })
        .collect()
}

pub(super) fn route_tables(vm: &SystemVm) -> BTreeMap<u32, &'static str> {
    match vm.role {
        Role::VpcRouter(_) => BTreeMap::from(VPC_TABLES),
        _ => BTreeMap::new(),
    }
}

/// As §5.1 means it.
fn is_private(address: Ipv4Addr) -> bool {
    address.is_private() || address.is_loopback()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Those of a list of hosts that are addresses: names are resolved by whoever connects.
fn addresses(hosts: &[String]) -> impl Iterator<Item = Ipv4Addr> {
    hosts.iter().filter_map(|host| host.parse().ok())
}
