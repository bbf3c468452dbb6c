//! What every type of system VM is told: its name, its network, its keys.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;

use super::host_list::Host;
use super::{BadValue, DnsName, MacAddr, Nic, Reader, encoded};
use crate::secret::Secret;

/// The part of the boot arguments that has the same meaning for every type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Host name, such as `r-4-VM`; `None` keeps the image's.
    pub name: Option<DnsName>,
    /// Constant `domP`; says nothing.
    pub template: Option<String>,
    /// By index: `0` is `eth0`.
    pub nics: BTreeMap<u8, Nic>,
    /// Hardware addresses in device order: the first belongs to `eth0`. Empty means the kernel's order is right.
    pub nic_macs: Vec<MacAddr>,
    /// How NICs other than `eth0` get their addresses.
    pub boot_protocol: BootProtocol,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 default route.
    pub gateway6: Option<Ipv6Addr>,
    /// The pod's gateway, the way to `management_nets`.
    pub local_gateway: Option<Ipv4Addr>,
    /// Management networks.
    pub management_nets: Vec<Ipv4Net>,
    /// The zone's resolvers for CloudStack itself; they go first.
    pub internal_dns: Vec<Ipv4Addr>,
    /// The zone's or network's public resolvers.
    pub dns: Vec<Ipv4Addr>,
    /// The same over IPv6.
    pub dns6: Vec<Ipv6Addr>,
    /// Time servers; empty keeps the image's.
    pub ntp_servers: Vec<String>,
    /// Whether packets may arrive on a NIC that the route back does not use.
    pub disable_rp_filter: bool,
    /// Content for `authorized_keys`, without the trailing newline; `None` keeps the file.
    pub authorized_key: Option<String>,
    /// root's password; `None` keeps the image's.
    pub vm_password: Option<Secret<String>>,
    /// cloud-init user data as sent: usually gzip. May hold passwords.
    pub user_data: Option<Secret<Vec<u8>>>,
    /// Keys of older servers.
    pub historic: Historic,
}

/// Where addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// From the boot arguments.
    Static,
    /// From a DHCP server: the zone's external IP allocator is on.
    Dhcp,
}

impl FromStr for BootProtocol {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "static" => Ok(Self::Static),
            "dhcp" => Ok(Self::Dhcp),
            _ => Err(BadValue::new(text, "static or dhcp")),
        }
    }
}

/// Keys the stock image still parses although no current server sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Historic {
    /// PEM.
    pub certificate: Option<String>,
    /// PEM.
    pub ca_certificate: Option<String>,
    /// PEM.
    pub private_key: Option<Secret<String>>,
    /// How long the certificate is good for; its unit is not documented.
    pub validity: Option<String>,
    /// Storage network.
    pub storage_net: Option<Ipv4Net>,
    /// Meaning not documented.
    pub default_route: Option<String>,
    /// Meaning not documented.
    pub router_pr: Option<String>,
}

impl Machine {
    /// Nothing here is required, so only the problems left in `read` tell a bad machine from a good one.
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self {
            name: read.optional("name", "a host name such as v-2-VM"),
            template: read.optional("template", "a word"),
            nics: Nic::read_all(read),
            nic_macs: read.list_separated_by('|', "nic_macs", "a MAC address such as 02:00:4c:9f:00:05"),
            boot_protocol: read
                .optional("bootproto", "static or dhcp")
                .unwrap_or(BootProtocol::Static),
            gateway: read.optional("gateway", "the IPv4 address of the default gateway"),
            gateway6: read.optional("ip6gateway", "the IPv6 address of the default gateway"),
            local_gateway: read.optional("localgw", "the IPv4 address of the pod's gateway"),
            management_nets: read.list("mgmtcidr", "a network such as 192.0.2.0/24"),
            internal_dns: read.each(["internaldns1", "internaldns2"], "the IPv4 address of a DNS server"),
            dns: read.each(["dns1", "dns2"], "the IPv4 address of a DNS server"),
            dns6: read.each(["ip6dns1", "ip6dns2"], "the IPv6 address of a DNS server"),
            ntp_servers: read.hosts("ntpserverlist"),
            disable_rp_filter: read.flag("disable_rp_filter", false),
            authorized_key: read
                .parsed("authorized_key", "base64 of an SSH public key", encoded::text)
                .map(|key| key.trim_end().to_owned()),
            vm_password: read.optional("vmpassword", "a password"),
            user_data: read
                .parsed("userdata", &user_data_wanted(), encoded::bytes)
                .map(Secret::new),
            historic: Historic::read(read),
        }
    }
}

impl Historic {
    fn read(read: &mut Reader<'_>) -> Self {
        const PEM: &str = "base64 of PEM text with ^ for newlines and ~ for spaces";
        Self {
            certificate: read.parsed("certificate", PEM, encoded::armoured_text),
            ca_certificate: read.parsed("cacertificate", PEM, encoded::armoured_text),
            private_key: read.parsed("privatekey", PEM, encoded::armoured_text).map(Secret::new),
            validity: read.optional("validity", "a word"),
            storage_net: read.optional("storagecidr", "a network such as 192.0.2.0/24"),
            default_route: read.optional("defaultroute", "a word"),
            router_pr: read.optional("router_pr", "a word"),
        }
    }
}

impl Reader<'_> {
    /// Keys with one meaning, in order.
    fn each<T: FromStr>(&mut self, keys: [&str; 2], expected: &str) -> Vec<T> {
        keys.into_iter()
            .filter_map(|key| self.optional(key, expected))
            .collect()
    }

    /// Addresses or names separated by commas.
    pub(super) fn hosts(&mut self, key: &str) -> Vec<String> {
        self.list::<Host>(key, "an address or a DNS name")
            .into_iter()
            .map(|host| host.0)
            .collect()
    }

    /// Bytes of a packet that fit a link; the minimum is IPv4's, RFC 791.
    pub(super) fn mtu(&mut self, key: &str) -> Option<u16> {
        self.parsed(key, "an MTU from 68 to 65535", |text| {
            text.parse().ok().filter(|mtu| *mtu >= 68)
        })
    }
}

fn user_data_wanted() -> String {
    format!("base64 of at most {} bytes", encoded::DECODED_LIMIT)
}
