//! The NICs of this machine, as the kernel names them.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::str::FromStr;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};

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

fn addresses() -> impl Iterator<Item = (String, IpAddr)> {
    getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|found: InterfaceAddress| {
            let address = found.address?;
            let ip = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let ip = ip.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
            Some((found.interface_name, ip?))
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
    fn loopback_has_its_address() {
        let local = Ipv4Addr::LOCALHOST;
        assert_eq!(with_address(local.into()).as_deref(), Some("lo"));
        assert_eq!(towards(local).as_deref(), Some("lo"));
        assert_eq!(with_address("192.0.2.99".parse().unwrap()), None);
        assert_eq!(ipv4_count("nothing"), 0);
    }
}
