//! Where system VMs live: the zone's networks and their address ranges (management.md §4).

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;

use crate::driver::Traffic;
use crate::store::id::{PodId, ZoneId};

/// Where system VMs live and whom they talk to.
#[derive(Clone, Debug)]
pub struct Place {
    /// The zone.
    pub zone: ZoneId,
    /// Its pod.
    pub pod: PodId,
    /// Management servers as agents reach them.
    pub servers: Vec<String>,
    /// Their port for agents.
    pub port: u16,
    /// Where browsers find the first console proxy; further ones take the next ports.
    pub console: SocketAddr,
    /// Public key of this server for ssh, one line; `None` where nobody comes by ssh.
    pub authorized_key: Option<String>,
    /// `None`: system VMs are programs and have this machine's addresses.
    pub networks: Option<Networks>,
}

/// The networks of a zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Networks {
    /// Link-local.
    pub control: Network,
    /// The pod's.
    pub management: Network,
    /// With the default route.
    pub public: Network,
    /// Without one SSVMs reach stores by their management NIC.
    pub storage: Option<Network>,
    /// Name servers that the VM itself asks.
    pub internal_dns: Vec<Ipv4Addr>,
    /// Name servers for its work.
    pub dns: Vec<Ipv4Addr>,
}

/// One network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// All its addresses.
    pub subnet: Ipv4Net,
    /// Its gateway: on one machine the host's own address.
    pub gateway: Ipv4Addr,
    /// What VMs may get.
    pub ranges: Vec<AddressRange>,
}

/// Addresses of a network, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressRange {
    /// The lowest.
    pub first: Ipv4Addr,
    /// The highest.
    pub last: Ipv4Addr,
    /// Flag "for system VMs": they take from these first.
    pub is_for_system_vms: bool,
}

/// The zone's addresses do not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is too small for a zone: it needs a prefix of at most 22, such as 172.31.0.0/16")]
pub struct BadZoneCidr(Ipv4Net);

impl Networks {
    /// Those of a zone on one machine: in `cidr` the third byte is 1 for management, 2 for public, 3 for storage; the
    /// host is .1, VMs are .10 to .199. The name server is the host.
    ///
    /// # Errors
    /// There is no room for these three.
    pub fn of_zone(cidr: Ipv4Net) -> Result<Self, BadZoneCidr> {
        if cidr.prefix_len() > 22 {
            return Err(BadZoneCidr(cidr));
        }
        let base = u32::from(cidr.network());
        let at = |third: u32, last: u32| Ipv4Addr::from(base | third << 8 | last);
        let network = |third| Network {
            subnet: Ipv4Net::new_assert(at(third, 0), 24),
            gateway: at(third, 1),
            ranges: vec![AddressRange {
                first: at(third, 10),
                last: at(third, 199),
                is_for_system_vms: true,
            }],
        };
        let control = Network {
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
            gateway: Ipv4Addr::new(169, 254, 0, 1),
            ranges: vec![AddressRange {
                first: Ipv4Addr::new(169, 254, 0, 10),
                last: Ipv4Addr::new(169, 254, 255, 254),
                is_for_system_vms: true,
            }],
        };
        Ok(Self {
            control,
            management: network(1),
            public: network(2),
            storage: Some(network(3)),
            internal_dns: vec![at(1, 1)],
            dns: vec![at(1, 1)],
        })
    }

    /// The one of this traffic, if system VMs have NICs in it.
    pub fn network(&self, traffic: Traffic) -> Option<&Network> {
        match traffic {
            Traffic::Control => Some(&self.control),
            Traffic::Management => Some(&self.management),
            Traffic::Public => Some(&self.public),
            Traffic::Storage => self.storage.as_ref(),
            Traffic::Guest => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_lies_where_it_is_told_to() {
        let zone = Networks::of_zone("10.7.0.0/16".parse().unwrap()).unwrap();
        assert_eq!(zone.management.gateway, Ipv4Addr::new(10, 7, 1, 1));
        assert_eq!(zone.public.subnet, "10.7.2.0/24".parse().unwrap());
        let storage = zone.network(Traffic::Storage).unwrap();
        assert_eq!(storage.ranges[0].last, Ipv4Addr::new(10, 7, 3, 199));
        let error = Networks::of_zone("10.7.0.0/24".parse().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("10.7.0.0/24 is too small"), "{error}");
    }
}
