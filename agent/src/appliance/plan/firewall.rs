//! What may come into the machine and through it, before anything else is configured: appliance.md §5.2.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use protocol::boot::{InterfaceName, Role, Router, SystemVm};
use serde::Serialize;

use super::access::SshAccess;
use super::network::{Link, Network};

/// VRRP, RFC 5798 §5.1.1.2.
const VRRP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where two conntrackd tell each other their connections.
const CONNTRACKD: Ipv4Addr = Ipv4Addr::new(225, 0, 0, 50);
/// The console proxy's status and metrics.
const COMMAND_PORT: u16 = 8001;

/// The table `inet sysvm`. Nothing comes in but answers, ICMP, what is open here, and what programs put into the set
/// `services`; nothing goes through but what is forwarded here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// What may come in.
    pub open: Vec<Opening>,
    /// What may go through.
    pub forward: Vec<Forward>,
    /// Packets get their connection's mark before they are routed.
    pub restores_marks: bool,
}

/// Packets that may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Opening {
    /// Where they arrive; `None` is anywhere.
    pub link: Option<InterfaceName>,
    /// What they are for.
    pub to: Target,
    /// Where they come from; `None` is anywhere.
    pub from: Option<Ipv4Net>,
    /// What for; a comment in the rules.
    pub why: &'static str,
}

/// What a packet is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Ports.
    Tcp(BTreeSet<u16>),
    /// Ports.
    Udp(BTreeSet<u16>),
    /// A multicast group.
    Group(Ipv4Addr),
}

/// Packets that may go through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// Where they arrive.
    pub from: InterfaceName,
    /// Where they leave.
    pub to: InterfaceName,
    /// Which of them.
    pub which: Which,
}

/// Which packets are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// Answers.
    Established,
    /// Answers and new connections.
    All,
    /// Answers, and new connections that the egress rules let out; at first that is all of them.
    Egress,
}

impl Firewall {
    pub(super) fn of(vm: &SystemVm, network: &Network, sshd: Option<&SshAccess>) -> Self {
        let mut open: Vec<_> = sshd
            .into_iter()
            .map(|sshd| Opening {
                link: sshd.link.clone(),
                to: tcp([sshd.port]),
                from: None,
                why: "ssh",
            })
            .collect();
        for link in network.links.iter().filter(|link| link.dhcp) {
            // The first answers come before there is an address, some of them to everybody.
            open.push(on(&link.name, udp([68]), "answers of the DHCP server"));
        }
        match &vm.role {
            Role::ConsoleProxy(proxy) => {
                let inside = network.links.iter().filter(|link| link.index < 2 && link.up);
                open.extend(inside.map(|link| on(&link.name, tcp([COMMAND_PORT]), "status")));
                let ports = tcp([80, 443, proxy.console_port.get()]);
                open.extend(network.public().map(|link| on(&link.name, ports, "consoles")));
            }
            Role::Router(router) | Role::DhcpServer(router) => {
                open.extend(network.link(0).into_iter().flat_map(|guest| for_guests(guest, router)));
                open.extend(for_the_other_router());
            }
            Role::VpcRouter(_) => open.extend(for_the_other_router()),
            Role::SecondaryStorage(_) | Role::InternalLb(_) | Role::ElasticLb(_) | Role::CksNode | Role::SharedFs => {}
        }
        let is_router = matches!(vm.role, Role::Router(_) | Role::DhcpServer(_));
        Self {
            open,
            forward: if is_router { forwards() } else { Vec::new() },
            restores_marks: is_router || matches!(vm.role, Role::VpcRouter(_)),
        }
    }

    /// The script for `nft -f -`: one transaction, whether or not there is a table, and the same bytes for the same
    /// firewall.
    ///
    /// Rules are replaced; connections, and ports that programs have put into `services`, stay. For that the table is
    /// emptied of rules rather than deleted, so hook, priority and types of what has a name here must never change.
    pub fn render(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        for opening in &self.open {
            writeln!(f, "\t\t{opening}")?;
        }
        f.write_str(SERVICES)?;
        for forward in &self.forward {
            writeln!(f, "\t\t{forward}")?;
        }
        f.write_str("\t}\n")?;
        if self.forward.iter().any(|forward| forward.which == Which::Egress) {
            f.write_str(EGRESS)?;
        }
        if self.restores_marks {
            f.write_str(MARKS)?;
        }
        f.write_str("}\n")
    }
}

const HEAD: &str = r#"table inet sysvm {}
flush table inet sysvm
table inet sysvm {
	set services {
		type ifname . inet_service
	}

	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		icmp type timestamp-request drop comment "nobody needs the clock"
		ct state vmap { established : accept, related : accept, invalid : drop }
		meta l4proto { icmp, ipv6-icmp } accept comment "hosts ping before each command"
"#;
const SERVICES: &str = r#"		iifname . tcp dport @services accept comment "what programs have opened"
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
"#;
const EGRESS: &str = r#"
	chain fw_outbound {
		ct state established,related accept
		jump fw_egress_rules
	}

	chain fw_egress_rules {
		accept comment "until rules come"
	}
"#;
const MARKS: &str = r"
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		meta mark set ct mark
	}
";

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(link) = &self.link {
            write!(f, "iifname \"{link}\" ")?;
        }
        if let Some(from) = &self.from {
            write!(f, "ip saddr {from} ")?;
        }
        match &self.to {
            Target::Tcp(ports) => write!(f, "tcp dport {}", Ports(ports))?,
            Target::Udp(ports) => write!(f, "udp dport {}", Ports(ports))?,
            Target::Group(address) => write!(f, "ip daddr {address}")?,
        }
        write!(f, " accept comment \"{}\"", self.why)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iifname \"{}\" oifname \"{}\" ", self.from, self.to)?;
        f.write_str(match self.which {
            Which::Established => "ct state established,related accept",
            Which::All => "ct state new,established,related accept",
            Which::Egress => "jump fw_outbound",
        })
    }
}

struct Ports<'a>(&'a BTreeSet<u16>);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = String::new();
        for (at, port) in self.0.iter().enumerate() {
            write!(numbers, "{}{port}", if at == 0 { "" } else { ", " })?;
        }
        if self.0.len() == 1 {
            f.write_str(&numbers)
        } else {
            write!(f, "{{ {numbers} }}")
        }
    }
}

fn on(link: &InterfaceName, to: Target, why: &'static str) -> Opening {
    Opening {
        link: Some(link.clone()),
        to,
        from: None,
        why,
    }
}

fn tcp<const N: usize>(ports: [u16; N]) -> Target {
    Target::Tcp(BTreeSet::from(ports))
}

fn udp<const N: usize>(ports: [u16; N]) -> Target {
    Target::Udp(BTreeSet::from(ports))
}

/// DHCP, names, and the data server. Names are for the network's own guests only.
fn for_guests(guest: &Link, router: &Router) -> Vec<Opening> {
    let own = guest.ipv4.map(|net| net.prefix_len());
    let from = router.dhcp_range.and_then(|range| {
        let len = router.guest_prefix_len.or(own)?;
        Some(Ipv4Net::new(range.first, len).ok()?.trunc())
    });
    let names = |to| Opening {
        from,
        ..on(&guest.name, to, "DNS")
    };
    vec![
        on(&guest.name, udp([67]), "DHCP"),
        names(udp([53])),
        names(tcp([53])),
        on(&guest.name, tcp([80]), "user data"),
    ]
}

fn for_the_other_router() -> [Opening; 2] {
    [(VRRP, "VRRP"), (CONNTRACKD, "conntrackd")].map(|(group, why)| Opening {
        link: None,
        to: Target::Group(group),
        from: None,
        why,
    })
}

fn forwards() -> Vec<Forward> {
    let forward = |from, to, which| Forward {
        from: InterfaceName::eth(from),
        to: InterfaceName::eth(to),
        which,
    };
    vec![
        forward(0, 1, Which::Established),
        forward(2, 0, Which::Established),
        forward(0, 0, Which::All),
        forward(0, 2, Which::Egress),
    ]
}
