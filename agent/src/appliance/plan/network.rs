//! NICs, addresses, routes, rules, names. Facts: appliance.md §2.3 and §5.1.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use protocol::boot::{BootProtocol, InterfaceName, Machine, Role, SecondaryStorage, SystemVm, VirtualRouter};
use serde::Serialize;

use super::super::hypervisor::Hypervisor;

/// Where guests' programs look for the name of their router's data server (§5.1).
const DATA_SERVER: &str = "data-server";
/// Routing tables of a VPC router (§5.1), by number.
pub(super) const VPC_TABLES: [(u32, &str); 2] = [(251, "static_route_back"), (252, "static_route")];
/// Of the first rule; the other one follows it. Before the kernel's own for `main`, 32766.
const RULE_PRIORITY: u32 = 1000;
/// Networks nobody routes on the Internet, as §5.1 lists them.
const PRIVATE: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// What a NIC is for (§2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// Between host and VM.
    Control,
    /// The pod's.
    Management,
    /// The world.
    Public,
    /// The VMs of users.
    Guest,
    /// Secondary storage.
    Storage,
    /// Decided later, by commands to the router.
    Later,
}

/// A NIC and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// `eth0`.
    pub name: InterfaceName,
    /// In device order.
    pub index: u8,
    /// What it is for.
    pub traffic: Traffic,
    /// One that is not up gets no addresses either.
    pub up: bool,
    /// Bytes; `None` keeps what the hypervisor offers.
    pub mtu: Option<u16>,
    /// The address it has when it is up.
    pub ipv4: Option<Ipv4Net>,
    /// The address it has when it is up.
    pub ipv6: Option<Ipv6Net>,
    /// Its IPv4 address, and what goes with it, comes from a DHCP server.
    pub dhcp: bool,
}

impl Link {
    /// The address to reach it at.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.ipv4.filter(|_| self.up).map(|net| net.addr())
    }

    fn has_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.is_some_and(|net| net.contains(&address)),
            IpAddr::V6(address) => self.ipv6.is_some_and(|net| net.contains(&address)),
        }
    }

    fn is_network(&self, net: IpNet) -> bool {
        self.up
            && match net {
                IpNet::V4(net) => self.ipv4.is_some_and(|own| own.trunc() == net),
                IpNet::V6(net) => self.ipv6.is_some_and(|own| own.trunc() == net),
            }
    }
}

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

/// The NICs, and what can be asked of all of them.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) links: Vec<Link>,
    pub(super) problems: Vec<String>,
}

impl Network {
    pub(super) fn of(vm: &SystemVm, hypervisor: Hypervisor) -> Self {
        let machine = &vm.machine;
        let mut links: BTreeMap<u8, Link> = machine
            .nics
            .iter()
            .map(|(index, nic)| {
                let dhcp = *index != 0 && has_agent(vm) && machine.boot_protocol == BootProtocol::Dhcp;
                let link = Link {
                    ipv4: nic.ipv4.filter(|_| !dhcp),
                    ipv6: nic.ipv6,
                    up: dhcp || nic.ipv4.is_some() || nic.ipv6.is_some(),
                    dhcp,
                    ..idle(vm, *index)
                };
                (*index, link)
            })
            .collect();
        if let Role::SecondaryStorage(storage) = &vm.role {
            add_storage(&mut links, vm, storage);
        }
        if let Some(routing) = routing(vm) {
            for (index, link) in &mut links {
                link.mtu = mtu(vm, routing, *index);
                // VRRP decides which of two routers has the public address.
                link.up &= !(routing.redundancy.is_some() && link.traffic == Traffic::Public);
            }
            let next = links.keys().max().map_or(0, |last| last.saturating_add(1));
            let extra = next..next.saturating_add(routing.extra_public_nics);
            links.extend(extra.map(|index| (index, idle(vm, index))));
        }
        let mut network = Self {
            links: links.into_values().collect(),
            problems: Vec::new(),
        };
        network.problems = network.judge(vm, hypervisor);
        network
    }

    /// What the boot arguments ask for and cannot work.
    fn judge(&self, vm: &SystemVm, hypervisor: Hypervisor) -> Vec<String> {
        let mut problems = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            let same = |other: &&Link| other.ipv4.is_some() && other.address() == link.address();
            if let Some(other) = self.links[..at].iter().find(same) {
                problems.push(format!(
                    "{} and {} have the same address {}: what comes for it arrives on either",
                    other.name,
                    link.name,
                    link.address().unwrap_or(Ipv4Addr::UNSPECIFIED)
                ));
            }
        }
        if let Some(gateway) = vm.machine.gateway
            && !is_redundant(vm)
            && !matches!(vm.role, Role::VpcRouter(_))
            && !self.links.iter().any(|link| link.dhcp)
            && self.default_link(vm).is_none()
        {
            problems.push(format!(
                "gateway={gateway}: no NIC with an address leads there, so there is no default route"
            ));
        }
        if !vm.machine.nic_macs.is_empty() && hypervisor == Hypervisor::Kvm {
            // Servers send this for VMware and Hyper-V only; it is done all the same.
            problems.push("nic_macs: not expected on KVM, where the order of the NICs is right".to_owned());
        }
        problems
    }

    pub(super) fn link(&self, index: u8) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The NIC that is up with an IPv4 address.
    pub(super) fn usable(&self, index: u8) -> Option<&Link> {
        self.link(index)
            .filter(|link| link.up && (link.ipv4.is_some() || link.dhcp))
    }

    /// The NIC to the world of an agent's VM: `eth2`, or `eth1` in zones without (§5.1).
    pub(super) fn public(&self) -> Option<&Link> {
        self.usable(2).or_else(|| self.usable(1))
    }

    /// All routes, none twice.
    pub(super) fn routes(&self, vm: &SystemVm) -> Vec<Route> {
        let machine = &vm.machine;
        let mut routes = Vec::new();
        let mut add = |to: IpNet, via: IpAddr, link: &Link, why: &'static str| {
            // The kernel has one route for a network. That to neighbours is there already, and better.
            let is_there = self.links.iter().any(|link| link.is_network(to));
            let is_planned = routes.iter().any(|route: &Route| route.to == to);
            if is_there || is_planned || !link.up || link.dhcp {
                return;
            }
            routes.push(Route {
                to,
                via,
                link: link.name.clone(),
                onlink: !link.has_on_link(via) && !is_link_local(via),
                why,
            });
        };
        if !is_redundant(vm)
            && !matches!(vm.role, Role::VpcRouter(_))
            && let Some(link) = self.default_link(vm)
        {
            if let Some(gateway) = machine.gateway.filter(|_| link.ipv4.is_some()) {
                add(Ipv4Net::default().into(), gateway.into(), link, "default");
            }
            if let Some(gateway) = machine.gateway6.filter(|_| link.ipv6.is_some()) {
                add(Ipv6Net::default().into(), gateway.into(), link, "default");
            }
        }
        let by_pod = if matches!(vm.role, Role::VpcRouter(_)) { 0 } else { 1 };
        if let Some((gateway, link)) = machine.local_gateway.zip(self.usable(by_pod)) {
            for net in &machine.management_nets {
                add(net.trunc().into(), gateway.into(), link, "management");
            }
            if has_agent(vm)
                && self
                    .public()
                    .and_then(Link::address)
                    .is_some_and(|own| !is_private(own))
            {
                for (address, len) in PRIVATE {
                    let net = Ipv4Net::new(address, len).expect("a prefix length of IPv4");
                    add(net.into(), gateway.into(), link, "private networks");
                }
            }
        }
        if let Role::SecondaryStorage(storage) = &vm.role
            && let Some((gateway, link)) = self.storage(storage)
        {
            for store in addresses(&storage.stores) {
                if !self.is_neighbour(store) {
                    add(Ipv4Net::from(store).into(), gateway.into(), link, "storage");
                }
            }
        }
        self.add_internal(vm, &mut routes);
        routes
    }

    /// Single addresses inside: stock's agent adds these when it starts (§5.1). What a route of ours or a neighbour's
    /// covers needs none.
    fn add_internal(&self, vm: &SystemVm, routes: &mut Vec<Route>) {
        let agent = match &vm.role {
            Role::SecondaryStorage(storage) => &storage.agent,
            Role::ConsoleProxy(proxy) => &proxy.agent,
            _ => return,
        };
        let Some((gateway, link)) = vm
            .machine
            .local_gateway
            .zip(self.usable(1))
            .filter(|(_, link)| !link.dhcp)
        else {
            return;
        };
        let servers = addresses(&agent.hosts.hosts).map(|address| (address, "management server"));
        let resolvers = vm.machine.internal_dns.iter().map(|address| (*address, "internal DNS"));
        for (address, why) in servers.chain(resolvers) {
            let is_routed = |route: &Route| route.to.prefix_len() != 0 && route.to.contains(&IpAddr::V4(address));
            if self.is_neighbour(address) || address.is_loopback() || routes.iter().any(is_routed) {
                continue;
            }
            routes.push(Route {
                to: Ipv4Net::from(address).into(),
                via: gateway.into(),
                link: link.name.clone(),
                onlink: !link.has_on_link(gateway.into()),
                why,
            });
        }
    }

    fn is_neighbour(&self, address: Ipv4Addr) -> bool {
        self.links
            .iter()
            .any(|link| link.up && link.has_on_link(address.into()))
    }

    fn storage(&self, storage: &SecondaryStorage) -> Option<(Ipv4Addr, &Link)> {
        let nic = storage.storage.as_ref()?;
        let link = self
            .links
            .iter()
            .find(|link| link.address() == Some(nic.address.addr()))?;
        Some((nic.gateway?, link))
    }

    /// Where the default route leaves (§5.1): `eth2` if the type has one, else `eth0`. If that has no address, the NIC
    /// that has the gateway as its neighbour.
    fn default_link(&self, vm: &SystemVm) -> Option<&Link> {
        let index = match vm.role {
            Role::SecondaryStorage(_) | Role::ConsoleProxy(_) | Role::Router(_) => 2,
            _ => 0,
        };
        let usual = self.link(index).filter(|link| link.up);
        usual.or_else(|| {
            let gateway = vm.machine.gateway?;
            self.links
                .iter()
                .find(|link| link.up && link.has_on_link(gateway.into()))
        })
    }

    /// `/etc/hosts` (§5.1).
    pub(super) fn hosts(&self, vm: &SystemVm) -> String {
        let own = match vm.role {
            Role::SecondaryStorage(_) | Role::ConsoleProxy(_) => self.public().and_then(Link::address),
            Role::VpcRouter(_) => None,
            _ => self.usable(0).and_then(Link::address),
        };
        let name = vm.machine.name.as_ref().map_or("sysvm", |name| name.as_str());
        let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        let address = own.unwrap_or(Ipv4Addr::LOCALHOST);
        writeln!(hosts, "{address}\t{name}").expect("a String takes everything");
        if let (Role::Router(_) | Role::DhcpServer(_), Some(own)) = (&vm.role, own) {
            writeln!(hosts, "{own}\t{DATA_SERVER}").expect("a String takes everything");
        }
        hosts
    }

    pub(super) fn gratuitous_arp(&self) -> Vec<(InterfaceName, Ipv4Addr)> {
        let own = |link: &Link| Some((link.name.clone(), link.address()?));
        self.links.iter().filter_map(own).collect()
    }
}

/// A NIC without address.
fn idle(vm: &SystemVm, index: u8) -> Link {
    Link {
        name: InterfaceName::eth(index),
        index,
        traffic: traffic(vm, index),
        up: false,
        mtu: None,
        ipv4: None,
        ipv6: None,
        dhcp: false,
    }
}

/// §2.3.
const fn traffic(vm: &SystemVm, index: u8) -> Traffic {
    match (&vm.role, index) {
        (Role::SecondaryStorage(_) | Role::ConsoleProxy(_) | Role::VpcRouter(_), 0)
        | (Role::Router(_) | Role::DhcpServer(_) | Role::InternalLb(_) | Role::ElasticLb(_), 1) => Traffic::Control,
        (Role::SecondaryStorage(_) | Role::ConsoleProxy(_), 1) => Traffic::Management,
        (Role::SecondaryStorage(_) | Role::ConsoleProxy(_), 2) | (Role::Router(_), 2..) => Traffic::Public,
        (Role::SecondaryStorage(_), 3) => Traffic::Storage,
        (
            Role::Router(_)
            | Role::DhcpServer(_)
            | Role::InternalLb(_)
            | Role::ElasticLb(_)
            | Role::CksNode
            | Role::SharedFs,
            0,
        ) => Traffic::Guest,
        _ => Traffic::Later,
    }
}

fn add_storage(links: &mut BTreeMap<u8, Link>, vm: &SystemVm, storage: &SecondaryStorage) {
    let Some(nic) = &storage.storage else { return };
    let has_it = |link: &&mut Link| link.ipv4.is_some_and(|net| net.addr() == nic.address.addr());
    if let Some(link) = links.values_mut().find(has_it) {
        if link.index > 2 {
            link.ipv4 = Some(nic.address);
            link.traffic = Traffic::Storage;
            link.mtu = storage.mtu;
        }
        return;
    }
    let link = links.entry(3).or_insert_with(|| idle(vm, 3));
    link.ipv4 = Some(nic.address);
    link.mtu = storage.mtu;
    link.up = true;
    link.dhcp = false;
}

fn mtu(vm: &SystemVm, routing: &VirtualRouter, index: u8) -> Option<u16> {
    match traffic(vm, index) {
        Traffic::Guest => routing.guest_mtu,
        Traffic::Public => routing.public_mtu,
        _ => None,
    }
}

/// What a virtual router is told, if this is one.
pub(super) const fn routing(vm: &SystemVm) -> Option<&VirtualRouter> {
    match &vm.role {
        Role::Router(router) | Role::DhcpServer(router) => Some(&router.routing),
        Role::VpcRouter(router) => Some(&router.routing),
        _ => None,
    }
}

pub(super) const fn has_agent(vm: &SystemVm) -> bool {
    matches!(vm.role, Role::SecondaryStorage(_) | Role::ConsoleProxy(_))
}

pub(super) fn is_redundant(vm: &SystemVm) -> bool {
    routing(vm).is_some_and(|routing| routing.redundancy.is_some())
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

/// Internal first (§5.1); none twice.
pub(super) fn name_servers(vm: &SystemVm) -> Vec<IpAddr> {
    let Machine {
        internal_dns,
        dns,
        dns6,
        ..
    } = &vm.machine;
    let ipv4 = internal_dns.iter().chain(dns).copied().map(IpAddr::V4);
    let ipv6 = dns6.iter().copied().map(|address: Ipv6Addr| IpAddr::V6(address));
    let mut servers = Vec::new();
    for server in ipv4.chain(ipv6) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

pub(super) fn resolv_conf(vm: &SystemVm) -> String {
    let mut text = String::from("# From the boot arguments, by `agent boot`.\n");
    for server in name_servers(vm) {
        writeln!(text, "nameserver {server}").expect("a String takes everything");
    }
    text
}

/// §3.4: both gateways, and the first address of each management network.
pub(super) fn keep_alive_ping(vm: &SystemVm, hypervisor: Hypervisor) -> Vec<Ipv4Addr> {
    if !hypervisor.needs_ping() {
        return Vec::new();
    }
    let machine = &vm.machine;
    let first = |net: &Ipv4Net| net.hosts().next();
    let mut peers: Vec<_> = machine.gateway.into_iter().chain(machine.local_gateway).collect();
    peers.extend(machine.management_nets.iter().filter_map(first));
    let mut seen = Vec::new();
    peers.retain(|peer| {
        !seen.contains(peer) && {
            seen.push(*peer);
            true
        }
    });
    peers
}
