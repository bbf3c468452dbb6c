//! Which addresses a user's URL may lead to (ssvm.md §8.3): a download must not become a way into the zone's own
//! networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;

/// What this VM knows of the networks around it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// `secstorage.allowed.internal.sites`.
    pub allowed_sites: Vec<IpNet>,
    /// Nobody's business but ours: the control network, management servers, store hosts.
    pub reserved: Vec<IpNet>,
    /// Address of the public NIC: what is reached through it is public, whatever it looks like.
    pub public: Option<IpAddr>,
}

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Of no use for anybody.
    #[error("an address that no server can have")]
    Unusable,
    /// This machine.
    #[error("an address of the secondary storage VM itself")]
    Own,
    /// 169.254/16, fe80::/10: the control network and metadata services.
    #[error("a link-local address")]
    LinkLocal,
    /// The zone's own machines.
    #[error("an address of the zone's own infrastructure")]
    Reserved,
    /// Not reached by the public network.
    #[error("a private address; an administrator can add it to secstorage.allowed.internal.sites")]
    Private,
}

impl Reach {
    /// Judges one address. Every address of a name must pass.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, address: IpAddr) -> Result<(), Refused> {
        self.judge_with(address, is_own, |address| {
            self.public.is_some() && source_address(address) == self.public
        })
    }

    fn judge_with(
        &self,
        address: IpAddr,
        is_own: impl Fn(IpAddr) -> bool,
        is_public_route: impl Fn(IpAddr) -> bool,
    ) -> Result<(), Refused> {
        let address = embedded(address);
        if is_unusable(address) {
            return Err(Refused::Unusable);
        }
        if is_link_local(address) {
            return Err(Refused::LinkLocal);
        }
        // A wide network such as 10.0.0.0/8 in the list does not mean our own machines in it, and 0.0.0.0/0 does not
        // mean loopback: those must be named.
        let named = self.allowed_sites.iter().filter(|net| net.contains(&address));
        let (is_listed, is_named) = named.fold((false, false), |(_, is_named), net| {
            let is_host = net.prefix_len() == net.max_prefix_len();
            (true, is_named || is_host || is_loopback(net.network()))
        });
        if is_named {
            return Ok(());
        }
        if is_loopback(address) || is_own(address) {
            return Err(Refused::Own);
        }
        if self.reserved.iter().any(|net| net.contains(&address)) {
            return Err(Refused::Reserved);
        }
        if is_private(address) && !is_listed && !is_public_route(address) {
            return Err(Refused::Private);
        }
        Ok(())
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, translated (RFC 6052), 6to4 (RFC 3056), or the old
/// compatible form.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let segments = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([one, two], [three, four]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(one, two, three, four))
    };
    match segments {
        _ if v6 == Ipv6Addr::LOCALHOST || v6 == Ipv6Addr::UNSPECIFIED => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4(high, low)
        }
        _ => address,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_unusable(address: IpAddr) -> bool {
    let v4_net = |net: [u8; 4], length| Ipv4Net::new_assert(Ipv4Addr::from(net), length);
    match address {
        IpAddr::V4(v4) => {
            // "this network", multicast, reserved with broadcast, IETF protocol assignments, benchmarking
            let nets = [
                v4_net([0, 0, 0, 0], 8),
                v4_net([224, 0, 0, 0], 4),
                v4_net([240, 0, 0, 0], 4),
                v4_net([192, 0, 0, 0], 24),
                v4_net([198, 18, 0, 0], 15),
            ];
            nets.iter().any(|net| net.contains(&v4))
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        // with the shared space of RFC 6598
        IpAddr::V4(v4) => v4.is_private() || Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10).contains(&v4),
        // with the deprecated site-local fec0::/10
        IpAddr::V6(v6) => {
            v6.is_unique_local() || Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10).contains(&v6)
        }
    }
}

/// Whether a NIC of this machine has it.
fn is_own(address: IpAddr) -> bool {
    let Ok(interfaces) = getifaddrs() else {
        return true; // it cannot be known, so it is refused
    };
    let mut own = interfaces.filter_map(|interface| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    own.any(|own| own == address)
}

/// The address that the kernel would send from; asks the routing table, sends nothing.
fn source_address(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use Refused::{LinkLocal, Own, Private, Reserved, Unusable};

    use super::*;

    fn judge(reach: &Reach, address: &str) -> Result<(), Refused> {
        let own: IpAddr = "203.0.113.20".parse().unwrap();
        reach.judge_with(address.parse().unwrap(), |address| address == own, |_| false)
    }

    fn reach(allowed: &[&str]) -> Reach {
        Reach {
            allowed_sites: allowed.iter().map(|net| net.parse().unwrap()).collect(),
            reserved: vec!["10.1.0.11/32".parse().unwrap(), "192.0.2.7/32".parse().unwrap()],
            public: None,
        }
    }

    #[test]
    fn addresses_inside_are_refused_in_every_spelling() {
        let reach = reach(&[]);
        let cases = [
            ("203.0.113.9", Ok(())),
            ("2001:db8::1", Ok(())),
            ("127.0.0.1", Err(Own)),
            ("127.9.9.9", Err(Own)),
            ("::1", Err(Own)),
            ("::ffff:127.0.0.1", Err(Own)),
            ("64:ff9b::7f00:1", Err(Own)),
            ("::127.0.0.1", Err(Own)),
            ("2002:7f00:1::", Err(Own)),
            ("203.0.113.20", Err(Own)),
            ("169.254.169.254", Err(LinkLocal)),
            ("::ffff:169.254.169.254", Err(LinkLocal)),
            ("fe80::1", Err(LinkLocal)),
            ("0.0.0.0", Err(Unusable)),
            ("::", Err(Unusable)),
            ("224.0.0.1", Err(Unusable)),
            ("ff02::1", Err(Unusable)),
            ("255.255.255.255", Err(Unusable)),
            ("192.0.0.8", Err(Unusable)),
            ("198.19.0.1", Err(Unusable)),
            ("10.0.0.7", Err(Private)),
            ("100.64.3.4", Err(Private)),
            ("172.31.0.1", Err(Private)),
            ("192.168.0.1", Err(Private)),
            ("fd00::1", Err(Private)),
            ("::ffff:10.0.0.7", Err(Private)),
            ("192.0.2.7", Err(Reserved)),
        ];
        for (address, expected) in cases {
            assert_eq!(judge(&reach, address), expected, "{address}");
        }
    }

    #[test]
    fn an_allowed_site_opens_what_it_names_and_no_more() {
        let wide = reach(&["10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(judge(&wide, "10.0.0.7"), Ok(()));
        assert_eq!(
            judge(&wide, "10.1.0.11"),
            Err(Reserved),
            "a management server in an allowed network"
        );
        assert_eq!(judge(&wide, "127.0.0.1"), Err(Own), "everything is not loopback");
        assert_eq!(judge(&wide, "169.254.169.254"), Err(LinkLocal));
        assert_eq!(judge(&wide, "0.0.0.0"), Err(Unusable));
        let named = reach(&["127.0.0.1/32", "10.1.0.11/32", "203.0.113.20/32", "169.254.169.254/32"]);
        for address in ["127.0.0.1", "10.1.0.11", "203.0.113.20", "::ffff:127.0.0.1"] {
            assert_eq!(judge(&named, address), Ok(()), "{address}");
        }
        assert_eq!(judge(&named, "127.0.0.2"), Err(Own));
        assert_eq!(
            judge(&named, "169.254.169.254"),
            Err(LinkLocal),
            "never, even when named"
        );
        assert_eq!(judge(&reach(&["127.0.0.0/8"]), "127.3.2.1"), Ok(()));
    }

    #[test]
    fn private_addresses_behind_the_public_nic_are_public() {
        let reach = reach(&[]);
        let behind = |address: &str| reach.judge_with(address.parse().unwrap(), |_| false, |_| true);
        assert_eq!(behind("192.168.0.1"), Ok(()));
        assert_eq!(behind("127.0.0.1"), Err(Own));
        assert_eq!(behind("10.1.0.11"), Err(Reserved));
    }

    #[test]
    fn the_kernel_is_asked_for_routes_and_own_addresses() {
        assert_eq!(
            source_address(Ipv4Addr::LOCALHOST.into()),
            Some(Ipv4Addr::LOCALHOST.into())
        );
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own("203.0.113.9".parse().unwrap()));
    }
}
