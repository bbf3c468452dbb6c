//! Who may talk to whom, as tables of nftables. Pure: what is loaded is decided here.
//!
//! Two tables named `zone`. That of the bridges looks at each frame that comes out of a port, before anything else does:
//! it must have the hardware address of the port's VM and, unless the port is for any address, its IPv4 address. That of
//! the host decides what of the host a network reaches, and what goes out by the uplink. Neither has an IPv6: there is none.
//!
//! Rules go and the tables stay (decision 0050): the sets tell which VM is behind which port, and VMs outlive whoever loads
//! this.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use protocol::boot::MacAddr;
use serde::Deserialize;
use serde_json::Value;

use super::{Bridge, Group, InterfaceName, Neighbours, Port, Service};

/// Frames from these ports may have any IPv4 address, or be no IPv4 at all.
const ANY: &str = "any";
/// Which hardware address is behind a port.
const MACS: &str = "macs";
/// The same with IPv4 addresses.
const ADDRESSES: &str = "addresses";

/// A script for the whole: it works on what an earlier one has left, and keeps the sets' elements.
pub(super) fn script(bridges: &[Bridge], uplink: &InterfaceName) -> String {
    let groups = groups(bridges);
    let mut script = declare(&groups);
    script.push_str("flush table bridge zone\nflush table inet zone\n");
    script.push_str(&bridge_table(&groups));
    script.push_str(&host_table(bridges, &groups, uplink));
    script
}

/// What flush needs to be there.
fn declare(groups: &BTreeSet<Group>) -> String {
    let mut text = format!(
        "table bridge zone {{\n\
         \x20 set {MACS} {{ type ifname . ether_addr; }}\n\
         \x20 set {ADDRESSES} {{ type ifname . ether_addr . ipv4_addr; }}\n\
         \x20 set {ANY} {{ type ifname; }}\n"
    );
    for group in groups {
        let _ = writeln!(text, "  set {} {{ type ifname; }}", set_of(*group));
    }
    text.push_str("}\ntable inet zone {}\n");
    text
}

/// Port by port. The order of priorities: before the bridge learns who is where.
fn bridge_table(groups: &BTreeSet<Group>) -> String {
    let mut marks = String::new();
    for group in groups {
        let bit = bit_of(*group);
        let _ = writeln!(
            marks,
            "    iifname @{} meta mark set meta mark or {bit:#x}",
            set_of(*group)
        );
    }
    format!(
        "table bridge zone {{\n\
         \x20 chain prerouting {{\n\
         \x20   type filter hook prerouting priority -300; policy drop;\n\
         \x20   iifname . ether saddr != @{MACS} counter drop\n\
         {marks}\
         \x20   iifname @{ANY} accept\n\
         \x20   iifname . ether saddr . ip saddr @{ADDRESSES} accept\n\
         \x20   ether type arp iifname . arp saddr ether . arp saddr ip @{ADDRESSES} accept\n\
         \x20   # Whoever looks whether its address is free has none yet: RFC 5227.\n\
         \x20   ether type arp arp operation request arp saddr ip 0.0.0.0 accept\n\
         \x20   counter drop\n\
         \x20 }}\n\
         }}\n"
    )
}

fn host_table(bridges: &[Bridge], groups: &BTreeSet<Group>, uplink: &InterfaceName) -> String {
    let mut openings = String::new();
    for bridge in bridges {
        for opening in &bridge.openings {
            let mark = match opening.group.filter(|group| groups.contains(group)) {
                Some(group) => format!("meta mark and {0:#x} == {0:#x} ", bit_of(group)),
                None => String::new(),
            };
            let service = match &opening.service {
                Service::Ping => "icmp type echo-request limit rate 100/second".to_owned(),
                Service::Tcp(ports) => format!("tcp dport {}-{}", ports.start(), ports.end()),
                Service::Udp(ports) => format!("udp dport {}-{}", ports.start(), ports.end()),
            };
            let _ = writeln!(
                openings,
                "    iifname \"{}\" ip daddr {} {mark}{service} accept",
                bridge.name, opening.to
            );
        }
    }
    // What `br_netfilter` shows us, if it is loaded after we have switched it off.
    let mut between = String::new();
    for Bridge { name, .. } in bridges
        .iter()
        .filter(|bridge| bridge.neighbours == Neighbours::Together)
    {
        let _ = writeln!(between, "    iifname \"{name}\" oifname \"{name}\" accept");
    }
    let mut outward = String::new();
    for bridge in bridges.iter().filter(|bridge| bridge.may_leave) {
        let _ = writeln!(outward, "    iifname \"{}\" oifname \"{uplink}\" accept", bridge.name);
    }
    format!(
        "table inet zone {{\n\
         \x20 chain input {{\n\
         \x20   type filter hook input priority filter; policy drop;\n\
         \x20   iifname \"lo\" accept\n\
         \x20   ct state established,related accept\n\
         \x20   ct state invalid drop\n\
         {openings}\
         \x20   counter drop\n\
         \x20 }}\n\
         \x20 chain forward {{\n\
         \x20   type filter hook forward priority filter; policy drop;\n\
         {between}\
         \x20   ct state established,related accept\n\
         \x20   ct state invalid drop\n\
         {outward}\
         \x20   counter drop\n\
         \x20 }}\n\
         \x20 chain postrouting {{\n\
         \x20   type nat hook postrouting priority srcnat;\n\
         \x20   oifname \"{uplink}\" masquerade\n\
         \x20 }}\n\
         }}\n"
    )
}

fn groups(bridges: &[Bridge]) -> BTreeSet<Group> {
    let openings = bridges.iter().flat_map(|bridge| &bridge.openings);
    openings.filter_map(|opening| opening.group).collect()
}

fn set_of(group: Group) -> String {
    format!("group{}", group.0)
}

/// The bridges' table says by a mark on the packet what the host's table cannot see: the port.
fn bit_of(group: Group) -> u32 {
    1 << (u32::from(group.0) % 32)
}

/// The elements that a port has in the sets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Element {
    set: String,
    /// As nft prints them, the port's name first.
    words: Vec<String>,
}

impl Element {
    fn new(set: impl Into<String>, words: impl IntoIterator<Item = String>) -> Self {
        Self {
            set: set.into(),
            words: words.into_iter().collect(),
        }
    }

    pub(super) fn port(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }
}

/// What lets the frames of this port through.
pub(super) fn elements(port: &Port, name: &InterfaceName) -> BTreeSet<Element> {
    let (name, mac): (String, MacAddr) = (name.to_string(), port.mac);
    let mut elements = BTreeSet::from([Element::new(MACS, [name.clone(), mac.to_string()])]);
    if port.addresses.is_empty() {
        elements.insert(Element::new(ANY, [name.clone()]));
    }
    for address in &port.addresses {
        let words = [name.clone(), mac.to_string(), address.to_string()];
        elements.insert(Element::new(ADDRESSES, words));
    }
    for group in &port.groups {
        elements.insert(Element::new(set_of(*group), [name.clone()]));
    }
    elements
}

/// A script that takes some away and adds others, in one go.
pub(super) fn change(gone: &[&Element], new: &[&Element]) -> String {
    let mut script = String::new();
    for (verb, elements) in [("delete", gone), ("add", new)] {
        for Element { set, words } in elements {
            let (name, rest) = words.split_first().expect("an element begins with a port's name");
            let mut all = vec![format!("\"{name}\"")];
            all.extend_from_slice(rest);
            let _ = writeln!(script, "{verb} element bridge zone {set} {{ {} }}", all.join(" . "));
        }
    }
    script
}

/// The elements that are there, from `nft -j list table bridge zone`. What nobody of us has put there is left out.
pub(super) fn there(json: &[u8]) -> Result<BTreeSet<Element>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        set: Option<Set>,
    }
    #[derive(Deserialize)]
    struct Set {
        name: String,
        #[serde(default)]
        elem: Vec<Value>,
    }
    let listing: Listing = serde_json::from_slice(json)?;
    let sets = listing.nftables.into_iter().filter_map(|item| item.set);
    let elements = sets.flat_map(|set| {
        let words = set.elem.into_iter().filter_map(|element| words(&element));
        let elements: Vec<_> = words.map(|words| Element::new(set.name.clone(), words)).collect();
        elements
    });
    Ok(elements.collect())
}

/// `"tap"`, or `{"concat": ["tap", "02:…"]}`.
fn words(element: &Value) -> Option<Vec<String>> {
    let list = match element {
        Value::String(word) => return Some(vec![word.clone()]),
        other => other.get("concat")?.as_array()?,
    };
    list.iter().map(|word| word.as_str().map(ToOwned::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::network::Opening;

    fn port(addresses: &[Ipv4Addr], groups: &[Group]) -> Port {
        Port {
            vm: "v-2-VM".to_owned(),
            device: 1,
            bridge: "management".parse().unwrap(),
            mac: "02:00:00:00:00:0a".parse().unwrap(),
            addresses: addresses.to_vec(),
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn a_group_is_a_set_a_mark_and_a_condition() {
        let mut management = Bridge::new("management".parse().unwrap());
        let to = Ipv4Addr::new(172, 31, 1, 1);
        management.openings = vec![
            Opening::to(to, Service::Ping),
            Opening::to(to, Service::Tcp(8250..=8250)),
            Opening::to(to, Service::Tcp(5900..=5999)).only_for(Group(1)),
        ];
        let script = script(&[management], &"uplink".parse().unwrap());
        assert!(script.contains("  set group1 { type ifname; }\n"), "{script}");
        assert!(
            script.contains("    iifname @group1 meta mark set meta mark or 0x2\n"),
            "{script}"
        );
        let rules: Vec<_> = script
            .lines()
            .filter(|line| line.contains("daddr"))
            .map(str::trim)
            .collect();
        assert_eq!(
            rules,
            [
                r#"iifname "management" ip daddr 172.31.1.1 icmp type echo-request limit rate 100/second accept"#,
                r#"iifname "management" ip daddr 172.31.1.1 tcp dport 8250-8250 accept"#,
                r#"iifname "management" ip daddr 172.31.1.1 meta mark and 0x2 == 0x2 tcp dport 5900-5999 accept"#,
            ]
        );
    }

    #[test]
    fn a_port_is_changed_in_one_go() {
        let name: InterfaceName = "v-2-VM.1".parse().unwrap();
        let old = elements(&port(&[], &[]), &name);
        let new = elements(&port(&[Ipv4Addr::new(172, 31, 1, 22)], &[Group(0)]), &name);
        let gone: Vec<_> = old.difference(&new).collect();
        let added: Vec<_> = new.difference(&old).collect();
        assert_eq!(
            change(&gone, &added),
            "delete element bridge zone any { \"v-2-VM.1\" }\n\
             add element bridge zone addresses { \"v-2-VM.1\" . 02:00:00:00:00:0a . 172.31.1.22 }\n\
             add element bridge zone group0 { \"v-2-VM.1\" }\n"
        );
    }

    #[test]
    fn what_nft_lists_is_what_was_added() {
        // nft 1.0.6.
        let listed = br#"{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
            {"table": {"family": "bridge", "name": "zone", "handle": 1}},
            {"set": {"family": "bridge", "name": "macs", "table": "zone", "type": ["ifname", "ether_addr"], "handle": 1,
                     "elem": [{"concat": ["v-2-VM.1", "02:00:00:00:00:0a"]}]}},
            {"set": {"family": "bridge", "name": "any", "table": "zone", "type": "ifname", "handle": 3, "elem": ["v-2-VM.1"]}},
            {"chain": {"family": "bridge", "table": "zone", "name": "prerouting", "handle": 4, "type": "filter", "hook": "prerouting", "prio": -300, "policy": "drop"}}]}"#;
        let name: InterfaceName = "v-2-VM.1".parse().unwrap();
        let there = there(listed).unwrap();
        assert_eq!(there, elements(&port(&[], &[]), &name));
        assert!(there.iter().all(|element| element.port() == "v-2-VM.1"));
    }
}
