//! The NICs of this machine, as the kernel names them.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::str::FromStr;

use crate::appliance::addresses::interfaces;
use crate::appliance::root::Root;

/// `ethN`: the only names there are for NICs of a system VM (appliance.md §3.4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Eth(String);

impl Eth {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Eth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("eth").unwrap_or_default();
        let is_number = (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
        if is_number {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is no NIC; write eth and a number"))
        }
    }
}

/// Which NIC has this address.
pub(super) fn with_address(wanted: IpAddr) -> Option<String> {
    addresses()
        .find(|(_, address)| *address == wanted)
        .map(|(name, _)| name)
}

/// How many IPv4 addresses a NIC has.
pub(super) fn ipv4_count(name: &str) -> usize {
    let of_nic = addresses().filter(|(found, address)| found == name && address.is_ipv4());
    of_nic.count()
}

/// Through which NIC packets to this address leave.
pub(super) fn towards(address: Ipv4Addr) -> Option<String> {
    // A datagram socket that is connected has asked the routing table, and sent nothing.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((address, 9)).ok()?;
    with_address(socket.local_addr().ok()?.ip())
}

/// Without those of loopback.
fn addresses() -> impl Iterator<Item = (String, IpAddr)> {
    interfaces(&Root::default()).into_iter().flatten().flat_map(|nic| {
        let name = nic.name;
        nic.addresses.into_iter().map(move |address| (name.clone(), address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_nics_are_nics() {
        for good in ["eth0", "eth12", "eth123"] {
            assert_eq!(good.parse::<Eth>().unwrap().as_str(), good);
        }
        for bad in ["", "eth", "eth1234", "eth-1", "lo", "eth0 ", "ETH0", "eth1;"] {
            assert!(bad.parse::<Eth>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_has_an_address_that_is_for_documentation() {
        assert_eq!(with_address("192.0.2.99".parse().unwrap()), None);
        assert_eq!(ipv4_count("nothing"), 0);
        assert_eq!(towards(Ipv4Addr::LOCALHOST), None);
    }
}
