//! The virtual routers: of an isolated or shared network, DHCP only, of a VPC.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::nic::PrefixLen;
use super::{BadValue, DhcpRange, DnsName, HostList, LogRotation, Machine, Reader};
use crate::secret::Secret;

/// What all virtual routers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualRouter {
    /// How guests find names.
    pub guest_dns: GuestDns,
    /// IPv4 is routed: no source NAT.
    pub is_routed: bool,
    /// The network offering supports IPv6.
    pub has_ipv6_firewall: bool,
    /// Bytes; guest NICs.
    pub guest_mtu: Option<u16>,
    /// Bytes; public NICs.
    pub public_mtu: Option<u16>,
    /// How often logs rotate.
    pub log_rotation: LogRotation,
    /// `None` when there is no second router.
    pub redundancy: Option<Redundancy>,
    /// NICs created ahead for public addresses that come later (Hyper-V).
    pub extra_public_nics: u8,
    /// Whom to tell that a bare-metal host was provisioned.
    pub bare_metal: Option<BareMetal>,
}

/// How guests find names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDns {
    /// The network's domain.
    pub domain: DnsName,
    /// DHCP options 15 and 119.
    pub search: Vec<DnsName>,
    /// Guests get the external resolvers, and the router resolves nothing.
    pub is_external: bool,
    /// Guests get the router's own address as their only resolver.
    pub is_router_only: bool,
    /// DNS and DHCP are open on the public NIC, too.
    pub is_exposed: bool,
}

/// One of two routers that share a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redundancy {
    /// The management server's guess; VRRP decides.
    pub first_state: Option<RedundantState>,
    /// VRRP.
    pub advert_interval: Duration,
    /// The VPC's id in the database. VRRP has room for 255; the server does not reduce it.
    pub router_id: u64,
    /// VRRP; `None` means derive it from `eth2ip` or the VPC's network, and the router id.
    pub password: Option<Secret<String>>,
    /// The guest network's virtual address.
    pub guest_gateway: Option<Ipv4Net>,
    /// The guest network's virtual IPv6 address.
    pub guest_gateway6: Option<Ipv6Net>,
    /// The guest network's broadcast address.
    pub guest_broadcast: Option<Ipv4Addr>,
}

/// Which of two routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedundantState {
    /// Serves.
    Primary,
    /// Waits.
    Backup,
}

impl std::str::FromStr for RedundantState {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "PRIMARY" => Ok(Self::Primary),
            "BACKUP" => Ok(Self::Backup),
            _ => Err(BadValue::new(text, "PRIMARY or BACKUP")),
        }
    }
}

/// The call back to the management server after a bare-metal host was provisioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareMetal {
    /// Management servers.
    pub hosts: HostList,
    /// Their notification port.
    pub port: NonZeroU16,
    /// API key of the account that calls.
    pub api_key: Secret<String>,
    /// Secret key of the account that calls.
    pub security_key: Secret<String>,
}

impl VirtualRouter {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            guest_dns: GuestDns::read(read),
            is_routed: read.flag("is_routed", false),
            has_ipv6_firewall: read.flag("ip6firewall", false),
            guest_mtu: read.mtu("privateMtu"),
            public_mtu: read.mtu("publicMtu"),
            log_rotation: read
                .optional("logrotatefrequency", "hourly, daily, monthly or a time such as *:00:00")
                .unwrap_or_default(),
            redundancy: Redundancy::read(read),
            extra_public_nics: read.optional("extra_pubnics", "a number of NICs").unwrap_or(0),
            bare_metal: BareMetal::read(read),
        }
    }
}

impl GuestDns {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            domain: read.domain(),
            search: read.list("dnssearchorder", "a domain such as corp.example"),
            is_external: read.flag("useextdns", false),
            is_router_only: read.flag("userouteripresolver", false),
            is_exposed: read.flag("exposedns", false),
        }
    }
}

impl Redundancy {
    fn read(read: &mut Reader<'_>) -> Option<Self> {
        let seconds = read
            .optional("advert_int", "seconds from 1 to 65535")
            .map_or(1, NonZeroU16::get);
        let redundancy = Self {
            first_state: read.optional("redundant_state", "PRIMARY or BACKUP"),
            advert_interval: Duration::from_secs(seconds.into()),
            router_id: read.optional("router_id", "a VPC id").unwrap_or(1),
            password: read.optional("router_password", "a password"),
            guest_gateway: read.ipv4_net("guestgw", "guestcidrsize"),
            guest_gateway6: read.ipv6_net("guestgw6", "guestcidr6size"),
            guest_broadcast: read.optional("guestbrd", "the IPv4 broadcast address of the guest network"),
        };
        read.flag("redundant_router", false).then_some(redundancy)
    }
}

impl BareMetal {
    const KEYS: [&str; 2] = ["baremetalnotificationapikey", "baremetalnotificationsecuritykey"];

    fn read(read: &mut Reader<'_>) -> Option<Self> {
        let is_sent = Self::KEYS.into_iter().any(|key| read.has(key));
        let [api_key, security_key] = Self::KEYS.map(|key| read.required_if(is_sent, key, "an API key"));
        let hosts = read.required_if(is_sent, "host", "the management servers, such as 192.0.2.10,192.0.2.11");
        let port = read.required_if(is_sent, "port", "a port number");
        Some(Self {
            hosts: hosts?,
            port: port?,
            api_key: api_key?,
            security_key: security_key?,
        })
    }
}

/// `type=router` (guest network on `eth0`, public on `eth2`) and `type=dhcpsrvr` (guest network only).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// The part that all virtual routers share.
    pub routing: VirtualRouter,
    /// Prefix length of the guest network.
    pub guest_prefix_len: Option<u8>,
    /// What guests get; when absent, from the address of `eth0`.
    pub dhcp_range: Option<DhcpRange>,
    /// Whether sshd listens on `eth0` instead of `eth1`.
    pub ssh_on_guest: bool,
}

impl Router {
    pub(super) fn read(read: &mut Reader<'_>, machine: &Machine) -> Self {
        let own_address = machine.nics.get(&0).and_then(|nic| nic.ipv4).map(|net| net.addr());
        let dhcp_range = read.optional("dhcprange", "a DHCP range such as 10.1.1.1");
        let guest_prefix_len: Option<PrefixLen<32>> = read.optional("cidrsize", "a prefix length from 0 to 32");
        Self {
            routing: VirtualRouter::read(read),
            guest_prefix_len: guest_prefix_len.map(|len| len.0),
            dhcp_range: dhcp_range.or_else(|| own_address.map(|first| DhcpRange { first, last: None })),
            ssh_on_guest: read.flag("sshonguest", false),
        }
    }
}

/// `type=vpcrouter`: only the control NIC exists at boot, tiers and public addresses are plugged later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcRouter {
    /// The part that all virtual routers share.
    pub routing: VirtualRouter,
    /// The network that holds all tiers.
    pub vpc_net: Option<Ipv4Net>,
    /// `false`: an external device does NAT.
    pub has_public_network: bool,
    /// The VPC offering has the firewall service.
    pub has_firewall: bool,
    /// The source NAT address.
    pub source_nat: Option<Ipv4Addr>,
}

impl VpcRouter {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self {
            routing: VirtualRouter::read(read),
            vpc_net: read.optional("vpccidr", "a network such as 10.10.0.0/16"),
            has_public_network: read.flag("has_public_network", true),
            has_firewall: read.flag("vpc_firewall_enabled", false),
            source_nat: read.optional("source_nat_ip", "the IPv4 address for source NAT"),
        }
    }
}
