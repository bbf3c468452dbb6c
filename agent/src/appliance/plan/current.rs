//! What a machine's network is now, as ip(8) tells.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use platform::exec::Cmd;
use protocol::boot::MacAddr;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Asks for links with addresses, routes of both families, and rules, in this order: one program for all three.
const QUESTIONS: &str = "address show\nroute show table all\nrule show\n";
/// As numbers, because names are a matter of files: rtnetlink(7) `RTPROT_STATIC`, `RT_TABLE_MAIN`, `RTN_UNICAST`.
const STATIC: &str = "4";
const MAIN: &str = "254";
const UNICAST: &str = "1";

/// The network as far as plans are about it: links called `eth…`, addresses but the kernel's own `fe80::…`, routes of
/// the main table that were set by hand or by us, rules that choose a table by source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// NICs in the kernel's order.
    pub links: Vec<CurrentLink>,
    /// Routes with `proto static`.
    pub routes: Vec<CurrentRoute>,
    /// Rules that say nothing but a source and a table.
    pub rules: Vec<super::Rule>,
}

/// A NIC that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentLink {
    /// `eth0`.
    pub name: String,
    /// Hardware address; `None` when it is none of six bytes.
    pub mac: Option<MacAddr>,
    /// Whether it was told to be up; a cable may be missing all the same.
    pub is_up: bool,
    /// Bytes.
    pub mtu: u32,
    /// IPv4 addresses; one that is secondary may go when the first of its network goes.
    pub ipv4: Vec<(Ipv4Net, Order)>,
    /// IPv6 addresses that are not link-local.
    pub ipv6: Vec<Ipv6Net>,
}

/// The kernel's difference between the addresses of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The first one.
    Primary,
    /// Any further one.
    Secondary,
}

/// A route that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentRoute {
    /// Where to.
    pub to: IpNet,
    /// `None`: neighbours.
    pub via: Option<IpAddr>,
    /// The NIC.
    pub link: String,
    /// `None`: the family's default.
    pub metric: Option<u32>,
}

/// What `ip` printed is not what this version of ours knows.
#[derive(Debug, thiserror::Error)]
#[error("`ip -json` printed something unexpected; does its version fit?")]
pub struct BadAnswer(#[from] serde_json::Error);

impl Current {
    /// The command that prints what [`Current::read`] reads.
    pub fn question() -> Cmd {
        Cmd::new("ip").args(["-json", "-N", "-batch", "-"]).stdin(QUESTIONS)
    }

    /// Reads its output. What is not understood inside of it is of a kind that no plan is about.
    pub fn read(printed: &[u8]) -> Result<Self, BadAnswer> {
        let mut answers = serde_json::Deserializer::from_slice(printed);
        let links = Vec::<Value>::deserialize(&mut answers)?;
        let routes = Vec::<Value>::deserialize(&mut answers)?;
        let rules = Vec::<Value>::deserialize(&mut answers)?;
        answers.end()?;
        Ok(Self {
            links: known(links).filter_map(RawLink::read).collect(),
            routes: known(routes).filter_map(RawRoute::read).collect(),
            rules: known(rules).filter_map(RawRule::read).collect(),
        })
    }

    /// A link by its name.
    pub fn link(&self, name: &str) -> Option<&CurrentLink> {
        self.links.iter().find(|link| link.name == name)
    }
}

fn known<T: DeserializeOwned>(values: Vec<Value>) -> impl Iterator<Item = T> {
    values
        .into_iter()
        .filter_map(|value| serde_json::from_value(value).ok())
}

/// `eth0`, `eth1`, …: the names of NICs in system VMs.
fn is_ours(name: &str) -> bool {
    name.strip_prefix("eth")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[derive(Deserialize)]
struct RawLink {
    ifname: String,
    #[serde(default)]
    flags: Vec<String>,
    mtu: u32,
    address: Option<String>,
    #[serde(default)]
    addr_info: Vec<Value>,
}

#[derive(Deserialize)]
struct RawAddress {
    local: IpAddr,
    prefixlen: u8,
    #[serde(default)]
    secondary: bool,
}

impl RawLink {
    fn read(self) -> Option<CurrentLink> {
        if !is_ours(&self.ifname) {
            return None;
        }
        let mut link = CurrentLink {
            name: self.ifname,
            mac: self.address.and_then(|address| address.parse().ok()),
            is_up: self.flags.iter().any(|flag| flag == "UP"),
            mtu: self.mtu,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
        };
        for address in known::<RawAddress>(self.addr_info) {
            match IpNet::new(address.local, address.prefixlen) {
                Ok(IpNet::V4(net)) if address.secondary => link.ipv4.push((net, Order::Secondary)),
                Ok(IpNet::V4(net)) => link.ipv4.push((net, Order::Primary)),
                Ok(IpNet::V6(net)) if !net.addr().is_unicast_link_local() => link.ipv6.push(net),
                _ => {}
            }
        }
        Some(link)
    }
}

#[derive(Deserialize)]
struct RawRoute {
    dst: String,
    gateway: Option<IpAddr>,
    dev: String,
    protocol: String,
    table: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    metric: Option<u32>,
}

impl RawRoute {
    fn read(self) -> Option<CurrentRoute> {
        let is_main = self.table.is_none_or(|table| table == MAIN);
        let is_unicast = self.kind.is_none_or(|kind| kind == UNICAST);
        if !is_main || !is_unicast || self.protocol != STATIC || !is_ours(&self.dev) {
            return None;
        }
        let to = match (self.dst.as_str(), self.gateway) {
            // Without a gateway the family cannot be told, and a default route of ours has one.
            ("default", gateway) => match gateway? {
                IpAddr::V4(_) => Ipv4Net::default().into(),
                IpAddr::V6(_) => Ipv6Net::default().into(),
            },
            (net, _) => net.parse().or_else(|_| net.parse::<IpAddr>().map(IpNet::from)).ok()?,
        };
        Some(CurrentRoute {
            to,
            via: self.gateway,
            link: self.dev,
            metric: self.metric,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    priority: u32,
    src: Ipv4Addr,
    srclen: Option<u8>,
    table: String,
    #[serde(default, rename = "protocol")]
    _protocol: Option<Value>,
}

impl RawRule {
    fn read(self) -> Option<super::Rule> {
        Some(super::Rule {
            priority: self.priority,
            from: Ipv4Net::new(self.src, self.srclen.unwrap_or(32)).ok()?,
            table: self.table.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_plans_are_about_is_taken_over() {
        let printed = include_bytes!("current.json");
        let link = |name: &str, mac: &str, mtu| CurrentLink {
            name: name.to_owned(),
            mac: mac.parse().ok(),
            is_up: true,
            mtu,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
        };
        let route = |to: &str, via: &str, link: &str, metric| CurrentRoute {
            to: to.parse().unwrap(),
            via: via.parse().ok(),
            link: link.to_owned(),
            metric,
        };
        let expected = Current {
            links: vec![
                CurrentLink {
                    ipv4: vec![("169.254.14.87/16".parse().unwrap(), Order::Primary)],
                    ipv6: vec!["2001:db8::5/64".parse().unwrap()],
                    ..link("eth0", "0e:05:56:ea:f2:cc", 1400)
                },
                CurrentLink {
                    ipv4: vec![
                        ("203.0.113.21/24".parse().unwrap(), Order::Primary),
                        ("203.0.113.22/24".parse().unwrap(), Order::Secondary),
                    ],
                    ..link("eth2", "ba:d8:1e:ff:b7:20", 1500)
                },
            ],
            routes: vec![
                route("0.0.0.0/0", "203.0.113.1", "eth2", None),
                route("10.0.0.0/8", "169.254.1.1", "eth0", None),
                route("198.51.100.5/32", "169.254.1.1", "eth0", None),
                route("::/0", "2001:db8::1", "eth0", Some(1024)),
            ],
            rules: vec![super::super::Rule {
                priority: 1000,
                from: "10.10.0.0/16".parse().unwrap(),
                table: 252,
            }],
        };
        assert_eq!(Current::read(printed).unwrap(), expected);
    }

    #[test]
    fn half_an_answer_is_an_error() {
        for printed in ["", "[]", "[]\n[]", "[] [] [] x", "{} [] []"] {
            assert!(Current::read(printed.as_bytes()).is_err(), "{printed}");
        }
        assert_eq!(Current::read(b"[{}]\n[{}]\n[{}]\n").unwrap(), Current::default());
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused_without_a_panic(printed in "[\\[\\]{}\":,a-z0-9./ ]{0,80}") {
            let _ = Current::read(printed.as_bytes());
        }
    }
}
