//! The commands that make a machine's network what a plan wants: what goes first, then what comes.

use std::collections::BTreeSet;

use ipnet::IpNet;
use platform::exec::Cmd;
use protocol::boot::InterfaceName;

use super::current::{Current, CurrentLink, CurrentRoute, Order};
use super::routes::VPC_TABLES;
use super::{Link, Plan, Route, Rule};

/// A prefix longer than this has no broadcast address: RFC 3021.
const LONGEST_WITH_BROADCAST: u8 = 30;

pub(super) fn ip_batch(plan: &Plan, current: &Current) -> String {
    let mut batch = Batch::default();
    for rule in current
        .rules
        .iter()
        .filter(|rule| is_ours(rule) && !plan.rules.contains(rule))
    {
        batch.line(format!("rule del {}", rule_text(rule)));
    }
    // Before links and addresses, which take routes with them: what is gone cannot be deleted.
    for route in current
        .routes
        .iter()
        .filter(|route| !plan.routes.iter().any(|wanted| is_same(wanted, route)))
    {
        batch.line(format!("route del {}", current_route_text(route)));
    }
    for link in &current.links {
        let wanted = plan.links.iter().find(|wanted| wanted.name.as_str() == link.name);
        batch.link(link, wanted);
    }
    for route in &plan.routes {
        let is_there = current.routes.iter().any(|there| is_same(route, there));
        let can_be = current.link(route.link.as_str()).is_some();
        if can_be && (!is_there || batch.changed.contains(route.link.as_str())) {
            batch.line(format!("route replace {}", route_text(route)));
        }
    }
    for rule in plan.rules.iter().filter(|rule| !current.rules.contains(rule)) {
        batch.line(format!("rule add {}", rule_text(rule)));
    }
    batch.lines
}

/// Carries out what [`Plan::ip_batch`] says. A line that fails does not keep the others from being tried.
pub fn command(batch: String) -> Cmd {
    Cmd::new("ip").args(["-force", "-batch", "-"]).stdin(batch)
}

impl Plan {
    /// NICs that the plan gives an address and that the machine does not have (yet).
    pub fn missing<'a>(&'a self, current: &Current) -> Vec<&'a InterfaceName> {
        let is_missing = |link: &&Link| link.up && current.link(link.name.as_str()).is_none();
        self.links.iter().filter(is_missing).map(|link| &link.name).collect()
    }
}

#[derive(Default)]
struct Batch {
    lines: String,
    /// Links whose routes the kernel may have dropped meanwhile.
    changed: BTreeSet<String>,
}

impl Batch {
    fn line(&mut self, line: impl AsRef<str>) {
        self.lines.push_str(line.as_ref());
        self.lines.push('\n');
    }

    fn link(&mut self, link: &CurrentLink, wanted: Option<&Link>) {
        let name = &link.name;
        let mtu = wanted.and_then(|wanted| wanted.mtu);
        let wanted = wanted.filter(|wanted| wanted.up);
        let ipv4 = wanted.and_then(|wanted| wanted.ipv4);
        let ipv6 = wanted.and_then(|wanted| wanted.ipv6);
        let has_stale = link.ipv4.iter().any(|(net, _order)| Some(*net) != ipv4);
        // A secondary address may vanish together with its primary one, depending on a kernel setting.
        let keeps = |net, order| Some(net) == ipv4 && !(has_stale && order == Order::Secondary);
        let is_dhcp = wanted.is_some_and(|wanted| wanted.dhcp);
        let (mut stale, mut has_ipv4) = (Vec::new(), false);
        for (net, order) in link.ipv4.iter().filter(|_| !is_dhcp) {
            if keeps(*net, *order) {
                has_ipv4 = true;
            } else {
                stale.push((*order == Order::Primary, IpNet::V4(*net)));
            }
        }
        stale.extend(
            link.ipv6
                .iter()
                .filter(|net| Some(**net) != ipv6)
                .map(|net| (true, IpNet::V6(*net))),
        );
        stale.sort_by_key(|(is_primary, _net)| *is_primary);
        for (_is_primary, net) in stale {
            self.line(format!("address del {net} dev {name}"));
            self.changed.insert(name.clone());
        }
        if let Some(mtu) = mtu.filter(|mtu| u32::from(*mtu) != link.mtu) {
            self.line(format!("link set dev {name} mtu {mtu}"));
        }
        if wanted.is_none() {
            if link.is_up {
                self.line(format!("link set dev {name} down"));
            }
            return;
        }
        if let Some(net) = ipv4.filter(|_| !has_ipv4 && !is_dhcp) {
            let broadcast = if net.prefix_len() <= LONGEST_WITH_BROADCAST {
                " broadcast +"
            } else {
                ""
            };
            self.line(format!("address add {net}{broadcast} dev {name}"));
        }
        if let Some(net) = ipv6.filter(|net| !link.ipv6.contains(net)) {
            self.line(format!("address add {net} dev {name}"));
        }
        if !link.is_up {
            self.line(format!("link set dev {name} up"));
            self.changed.insert(name.clone());
        }
    }
}

fn is_ours(rule: &Rule) -> bool {
    VPC_TABLES.iter().any(|(table, _name)| *table == rule.table)
}

fn is_same(wanted: &Route, there: &CurrentRoute) -> bool {
    wanted.to == there.to && Some(wanted.via) == there.via && wanted.link.as_str() == there.link
}

fn route_text(route: &Route) -> String {
    let Route {
        to, via, link, onlink, ..
    } = route;
    let onlink = if *onlink { " onlink" } else { "" };
    format!("{to} via {via} dev {link}{onlink} proto static")
}

fn current_route_text(route: &CurrentRoute) -> String {
    let CurrentRoute { to, via, link, metric } = route;
    let via = via.map(|via| format!(" via {via}")).unwrap_or_default();
    let metric = metric.map(|metric| format!(" metric {metric}")).unwrap_or_default();
    format!("{to}{via} dev {link} proto static{metric}")
}

fn rule_text(rule: &Rule) -> String {
    let Rule { priority, from, table } = rule;
    format!("priority {priority} from {from} table {table}")
}
