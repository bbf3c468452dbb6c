//! The interfaces that are there, and what has to be done for those that shall be. Pure: `ip` is asked and told elsewhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;

use super::Bridge;

/// An interface, as `ip -j -d address show` tells of it.
#[derive(Deserialize, Debug)]
pub(super) struct Link {
    pub(super) ifname: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    linkinfo: LinkInfo,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Deserialize, Default, Debug)]
struct LinkInfo {
    info_kind: Option<String>,
}

#[derive(Deserialize, Debug)]
struct Address {
    family: String,
    local: Option<String>,
    prefixlen: Option<u8>,
}

impl Link {
    /// Its IPv4 addresses.
    fn addresses(&self) -> BTreeSet<Ipv4Net> {
        let ipv4 = self.addr_info.iter().filter(|address| address.family == "inet");
        let nets = ipv4.filter_map(|address| {
            let local: Ipv4Addr = address.local.as_deref()?.parse().ok()?;
            Ipv4Net::new(local, address.prefixlen?).ok()
        });
        nets.collect()
    }

    fn is_bridge(&self) -> bool {
        self.linkinfo.info_kind.as_deref() == Some("bridge")
    }

    fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }
}

/// The lines for `ip -batch` after which the bridges are as they shall be. None for those that are so already: VMs go on.
pub(super) fn bridges(wanted: &[Bridge], there: &[Link]) -> String {
    let mut batch = String::new();
    let is_wanted = |link: &Link| wanted.iter().any(|bridge| bridge.name.as_str() == link.ifname);
    for link in there.iter().filter(|link| link.is_bridge() && !is_wanted(link)) {
        let _ = writeln!(batch, "link delete {}", link.ifname);
    }
    for (index, bridge) in wanted.iter().enumerate() {
        let name = &bridge.name;
        let found = there.iter().find(|link| link.ifname == name.as_str());
        let (found, is_other) = match found {
            Some(link) if link.is_bridge() => (Some(link), false),
            other => (None, other.is_some()),
        };
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(batch, "{text}");
        };
        if is_other {
            line(format_args!("link delete {name}"));
        }
        if found.is_none() {
            // An own hardware address: a bridge takes that of one of its ports otherwise, and changes it with them, so that
            // VMs would lose the host. Without spanning tree a port forwards from the first moment.
            line(format_args!(
                "link add {name} address {} type bridge stp_state 0 forward_delay 0",
                mac(index)
            ));
        }
        let has = found.map(Link::addresses).unwrap_or_default();
        let wants: BTreeSet<_> = bridge.addresses.iter().copied().collect();
        for address in has.difference(&wants) {
            line(format_args!("address delete {address} dev {name}"));
        }
        // In the order of the plan: the first one is the source of what the host sends.
        for address in bridge.addresses.iter().filter(|address| !has.contains(address)) {
            line(format_args!(
                "address add {address} broadcast {} dev {name}",
                address.broadcast()
            ));
        }
        if !found.is_some_and(Link::is_up) {
            line(format_args!("link set {name} up"));
        }
    }
    batch
}

/// Locally administered, and in no range that VMs' addresses come from (management.md §4).
fn mac(index: usize) -> String {
    format!("fe:73:76:00:{:02x}:{:02x}", index / 256 % 256, index % 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(name: &str, addresses: &[&str]) -> Bridge {
        Bridge {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Bridge::new(name.parse().unwrap())
        }
    }

    fn links(json: &str) -> Vec<Link> {
        serde_json::from_str(json).unwrap()
    }

    /// As iproute2 6.1 prints it, shortened.
    const THERE: &str = r#"[
        {"ifindex":1,"ifname":"lo","flags":["LOOPBACK","UP","LOWER_UP"],"addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
        {"ifindex":2,"ifname":"storage","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"],"address":"fe:73:76:00:00:00",
         "linkinfo":{"info_kind":"bridge","info_data":{"forward_delay":0}},
         "addr_info":[{"family":"inet","local":"172.31.3.1","prefixlen":24},{"family":"inet","local":"172.31.3.5","prefixlen":24},
                      {"family":"inet6","local":"fe80::1","prefixlen":64}]}]"#;

    #[test]
    fn what_is_there_and_right_is_left_alone() {
        let wanted = [bridge("storage", &["172.31.3.1/24", "172.31.3.5/24"])];
        assert_eq!(bridges(&wanted, &links(THERE)), "");
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_too_much_goes() {
        let wanted = [bridge("storage", &["172.31.3.1/24"]), bridge("guest", &[])];
        assert_eq!(
            bridges(&wanted, &links(THERE)),
            "address delete 172.31.3.5/24 dev storage\n\
             link add guest address fe:73:76:00:00:01 type bridge stp_state 0 forward_delay 0\n\
             link set guest up\n"
        );
    }

    #[test]
    fn a_bridge_that_nobody_wants_goes_and_other_interfaces_stay() {
        assert_eq!(bridges(&[], &links(THERE)), "link delete storage\n");
    }

    #[test]
    fn something_else_of_that_name_makes_room() {
        let there = r#"[{"ifname":"guest","flags":["UP"],"linkinfo":{"info_kind":"dummy"}}]"#;
        assert_eq!(
            bridges(&[bridge("guest", &["10.1.1.1/24"])], &links(there)),
            "link delete guest\n\
             link add guest address fe:73:76:00:00:00 type bridge stp_state 0 forward_delay 0\n\
             address add 10.1.1.1/24 broadcast 10.1.1.255 dev guest\n\
             link set guest up\n"
        );
    }
}
