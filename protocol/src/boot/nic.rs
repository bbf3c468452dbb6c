//! The NICs that exist when the VM starts, and the addresses they get.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::Reader;

/// The addresses of one NIC. A NIC that is present without any waits for DHCP or for a later command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nic {
    /// The NIC's own address with its prefix length; `None` was sent as `0.0.0.0`.
    pub ipv4: Option<Ipv4Net>,
    /// The NIC's own address with its prefix length.
    pub ipv6: Option<Ipv6Net>,
}

impl Nic {
    /// All NICs of the line by their index: `0` is `eth0`.
    pub(super) fn read_all(read: &mut Reader<'_>) -> BTreeMap<u8, Self> {
        let indices: BTreeSet<u8> = read.keys().filter_map(index).collect();
        let nics = indices.into_iter().filter_map(|index| {
            let (ip, ip6) = (format!("eth{index}ip"), format!("eth{index}ip6"));
            let ipv4 = read.ipv4_net(&ip, &format!("eth{index}mask"));
            let ipv6 = read.ipv6_net(&ip6, &format!("{ip6}prelen"));
            (read.has(&ip) || read.has(&ip6)).then_some((index, Self { ipv4, ipv6 }))
        });
        nics.collect()
    }
}

impl Reader<'_> {
    /// An IPv4 address whose netmask (or prefix length) has a key of its own; `0.0.0.0` is none.
    pub(super) fn ipv4_net(&mut self, key: &str, mask_key: &str) -> Option<Ipv4Net> {
        let ip: Option<Ipv4Addr> = self.optional(key, "an IPv4 address");
        let is_given = self.has(key) && ip != Some(Ipv4Addr::UNSPECIFIED);
        let mask: Option<Netmask> = self.required_if(is_given, mask_key, "a netmask such as 255.255.255.0 or 24");
        Ipv4Net::new(ip.filter(|_| is_given)?, mask?.0).ok()
    }

    /// An IPv6 address whose prefix length has a key of its own.
    pub(super) fn ipv6_net(&mut self, key: &str, len_key: &str) -> Option<Ipv6Net> {
        let ip = self.optional(key, "an IPv6 address");
        let len: Option<PrefixLen<128>> = self.required_if(self.has(key), len_key, "a prefix length from 0 to 128");
        Ipv6Net::new(ip?, len?.0).ok()
    }
}

/// The prefix length of `255.255.255.0`, or of `24`.
struct Netmask(u8);

impl FromStr for Netmask {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.parse() {
            Ok(mask) => ipnet::ipv4_mask_to_prefix(mask).map(Self).map_err(|_| ()),
            Err(_) => text.parse::<PrefixLen<32>>().map(|len| Self(len.0)),
        }
    }
}

/// A number of bits, at most `MAX`.
pub(super) struct PrefixLen<const MAX: u8>(pub(super) u8);

impl<const MAX: u8> FromStr for PrefixLen<MAX> {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().filter(|len| *len <= MAX).map(Self).ok_or(())
    }
}

/// The index in `eth<index><suffix>`, for the suffixes that make a NIC.
fn index(key: &str) -> Option<u8> {
    let rest = key.strip_prefix("eth")?;
    let digits = rest.strip_suffix("ip").or_else(|| rest.strip_suffix("ip6"))?;
    let index: u8 = digits.parse().ok()?;
    (digits == index.to_string()).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::BootArgs;

    fn read(line: &str) -> Result<BTreeMap<u8, Nic>, Vec<String>> {
        let args = BootArgs::parse(line).unwrap();
        let mut reader = Reader::new(&args);
        let nics = Nic::read_all(&mut reader);
        reader.finish(|| Some(nics)).map_err(|error| error.problems().to_vec())
    }

    #[test]
    fn a_nic_has_an_address_of_either_family_or_none_at_all() {
        let nics = read(
            "eth0ip=0.0.0.0 eth1ip=192.0.2.21 eth1mask=255.255.255.0 eth2ip6=2001:db8::5 eth2ip6prelen=64 eth3ip=null \
             eth10ip=10.0.0.1 eth10mask=8 eth4mask=255.0.0.0",
        );
        let nic = |ipv4: &str, ipv6: &str| Nic {
            ipv4: ipv4.parse().ok(),
            ipv6: ipv6.parse().ok(),
        };
        let expected = BTreeMap::from([
            (0, nic("", "")),
            (1, nic("192.0.2.21/24", "")),
            (2, nic("", "2001:db8::5/64")),
            (10, nic("10.0.0.1/8", "")),
        ]);
        assert_eq!(read("eth01ip=x eth256ip=x ethip=x ethernet=x"), Ok(BTreeMap::new()));
        assert_eq!(nics, Ok(expected));
    }

    #[test]
    fn an_address_needs_a_good_netmask() {
        assert_eq!(
            read("eth0ip=10.0.0.1 eth1ip=10.0.0.256 eth1mask=255.0.255.0 eth2ip6=::1 eth2ip6prelen=129").unwrap_err(),
            [
                "eth0mask: missing, expected a netmask such as 255.255.255.0 or 24",
                r#"eth1ip="10.0.0.256": expected an IPv4 address"#,
                r#"eth1mask="255.0.255.0": expected a netmask such as 255.255.255.0 or 24"#,
                r#"eth2ip6prelen="129": expected a prefix length from 0 to 128"#,
            ]
        );
    }
}
