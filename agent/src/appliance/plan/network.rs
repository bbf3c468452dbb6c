//! NICs and their addresses. Facts: appliance.md §2.3 and §5.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use indexmap::IndexSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use protocol::boot::{BootProtocol, InterfaceName, Role, SecondaryStorage, SystemVm, VirtualRouter};
use serde::Serialize;

use super::super::hypervisor::Hypervisor;
use super::routes;

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

    pub(super) fn has_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.is_some_and(|net| net.contains(&address)),
            IpAddr::V6(address) => self.ipv6.is_some_and(|net| net.contains(&address)),
        }
    }

    pub(super) fn is_network(&self, net: IpNet) -> bool {
        self.up
            && match net {
                IpNet::V4(net) => self.ipv4.is_some_and(|own| own.trunc() == net),
                IpNet::V6(net) => self.ipv6.is_some_and(|own| own.trunc() == net),
            }
    }
}

/// The NICs, and what can be asked of all of them.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) links: Vec<Link>,
    pub(super) problems: Vec<String>,
}

impl Network {
    pub(super) fn of(vm: &SystemVm) -> Self {
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
        network.problems = network.judge(vm);
        network
    }

    /// What the boot arguments ask for and cannot work.
    fn judge(&self, vm: &SystemVm) -> Vec<String> {
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
        let waits = |link: &Link| link.dhcp || !link.up && link.ipv4.is_some();
        if let Some(gateway) = vm.machine.gateway
            && !matches!(vm.role, Role::VpcRouter(_))
            && !self.links.iter().any(waits)
            && routes::default_link(vm, self).is_none()
        {
            problems.push(format!(
                "gateway={gateway}: no NIC with an address leads there, so there is no default route"
            ));
        }
        if let Some(gateway) = vm.machine.gateway.filter(|gateway| self.is_own((*gateway).into())) {
            problems.push(format!(
                "gateway={gateway}: this is an address of the VM itself, so there is no default route"
            ));
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

    /// Whether a NIC that is up has the address in its network.
    pub(super) fn is_neighbour(&self, address: Ipv4Addr) -> bool {
        self.links
            .iter()
            .any(|link| link.up && link.has_on_link(address.into()))
    }

    /// Whether it is an address of ours.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        let has = |link: &Link| {
            link.ipv4.map(|net| IpAddr::V4(net.addr())) == Some(address)
                || link.ipv6.map(|net| IpAddr::V6(net.addr())) == Some(address)
        };
        self.links.iter().any(has)
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

/// §3.4: both gateways, and the first address of each management network.
pub(super) fn keep_alive_ping(vm: &SystemVm, hypervisor: Hypervisor) -> Vec<Ipv4Addr> {
    if !hypervisor.needs_ping() {
        return Vec::new();
    }
    let machine = &vm.machine;
    let first = |net: &Ipv4Net| net.hosts().next();
    let gateways = machine.gateway.into_iter().chain(machine.local_gateway);
    let peers = gateways.chain(machine.management_nets.iter().filter_map(first));
    peers.collect::<IndexSet<_>>().into_iter().collect()
}
