//! What services of Debian are told at the start of a VM: whole files, from the boot arguments alone. Pure.
//!
//! They make dnsmasq and haproxy run and answer nobody wrongly (§6, router.md §4.8 and §4.11); what guests get comes with
//! the configuration that a management server sends afterwards.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use ipnet::Ipv4Net;
use protocol::boot::{Machine, Role, Router, SystemVm, VpcRouter};

/// Path in the VM → contents. All are for everybody to read: no secret is in them.
pub type Files = BTreeMap<&'static str, String>;

const DNSMASQ: &str = "/etc/dnsmasq.conf";
const DNSMASQ_NETWORK: &str = "/etc/dnsmasq.d/cloud.conf";
const DNSMASQ_RESOLVERS: &str = "/etc/dnsmasq-resolv.conf";
const HAPROXY: &str = "/etc/haproxy/haproxy.cfg";
const CHRONY: &str = "/etc/chrony/chrony.conf";
/// More than a guest network has addresses.
const LEASES: u32 = 65_536;

/// The files for this VM. `clock` is a device that knows the host's time.
pub fn files(vm: &SystemVm, clock: Option<&Path>) -> Files {
    let mut files = Files::new();
    match &vm.role {
        Role::Router(router) | Role::DhcpServer(router) => {
            files.extend(dnsmasq(dns_and_dhcp(&vm.machine, router)));
        }
        Role::VpcRouter(router) => files.extend(dnsmasq(before_tiers(router))),
        Role::SecondaryStorage(_)
        | Role::ConsoleProxy(_)
        | Role::InternalLb(_)
        | Role::ElasticLb(_)
        | Role::CksNode
        | Role::SharedFs => {}
    }
    if matches!(
        vm.role,
        Role::Router(_) | Role::VpcRouter(_) | Role::InternalLb(_) | Role::ElasticLb(_)
    ) {
        files.insert(HAPROXY, haproxy());
    }
    files.insert(CHRONY, chrony(&vm.machine, clock));
    files
}

fn dnsmasq(network: String) -> Files {
    Files::from([(DNSMASQ, dnsmasq_for_all()), (DNSMASQ_NETWORK, network)])
}

/// What does not depend on the VM.
fn dnsmasq_for_all() -> String {
    format!(
        "# Made by `agent setup`. What belongs to the networks is in dnsmasq.d/cloud.conf.\n\
         conf-dir=/etc/dnsmasq.d/,*.conf\n\
         user=dnsmasq\n\
         # Interfaces come and go. Nobody is answered on one that is not named.\n\
         bind-dynamic\n\
         except-interface=lo\n\
         \n\
         resolv-file={DNSMASQ_RESOLVERS}\n\
         # Names without a dot, and private addresses, are nobody's business outside.\n\
         domain-needed\n\
         bogus-priv\n\
         expand-hosts\n\
         localise-queries\n\
         \n\
         # Whom DHCP knows.\n\
         dhcp-hostsfile=/etc/dhcphosts.txt\n\
         dhcp-optsfile=/etc/dhcpopts.txt\n\
         dhcp-leasefile=/var/lib/misc/dnsmasq.leases\n\
         dhcp-lease-max={LEASES}\n\
         dhcp-authoritative\n\
         # Windows: no NetBIOS.\n\
         dhcp-option=vendor:MSFT,2,1i\n"
    )
}

/// Router and DHCP server: names and addresses on `eth0`.
fn dns_and_dhcp(machine: &Machine, router: &Router) -> String {
    const NIC: &str = "eth0";
    let mut text = "# Made by `agent setup` from the boot arguments.\n".to_owned();
    let mut line = |args: std::fmt::Arguments<'_>| writeln!(text, "{args}").expect("a String takes everything");
    let dns = &router.routing.guest_dns;
    let own = machine.nics.get(&0).and_then(|nic| nic.ipv4);
    // A redundant router's guests know it by the address that both share.
    let shared = router
        .routing
        .redundancy
        .as_ref()
        .and_then(|redundancy| redundancy.guest_gateway);
    let Some(net) = shared.or(own) else {
        line(format_args!("# {NIC} has no address yet.\nport=0"));
        return text;
    };
    line(format_args!("interface={NIC}"));
    if dns.is_external {
        line(format_args!("# Guests ask others.\nport=0"));
    }
    line(format_args!("domain={0}\nlocal=/{0}/", dns.domain));
    if let Some(range) = &router.dhcp_range {
        let mask = router
            .guest_prefix_len
            .and_then(|len| Ipv4Net::new(net.addr(), len).ok())
            .unwrap_or(net)
            .netmask();
        // Only those who are in the hosts file get an address.
        line(format_args!("dhcp-range=set:{NIC},{},static,{mask}", range.first));
        for option in dhcp_options(machine, router, net) {
            line(format_args!("dhcp-option=tag:{NIC},{option}"));
        }
        if !dns.search.is_empty() {
            // Also to those who do not ask.
            let domains = joined(&dns.search, ",");
            line(format_args!(
                "dhcp-option-force=tag:{NIC},option:domain-search,{domains}"
            ));
        }
    }
    text
}

/// router.md §4.8.2 and §4.8.4.
fn dhcp_options(machine: &Machine, router: &Router, net: Ipv4Net) -> Vec<String> {
    let dns = &router.routing.guest_dns;
    let gateway = if machine.nics.contains_key(&2) {
        Some(net.addr())
    } else {
        machine.gateway // a DHCP server is not the way out
    };
    let servers = (!dns.is_external).then_some(net.addr()).into_iter();
    let servers = servers.chain(machine.dns.iter().copied().filter(|_| !dns.is_router_only));
    let mut options = Vec::new();
    options.extend(gateway.map(|address| format!("option:router,{address}")));
    // Without a value it keeps dnsmasq from naming itself.
    let words = std::iter::once("option:dns-server".to_owned()).chain(servers.map(|address| address.to_string()));
    options.push(joined(words, ","));
    let domains = if dns.search.is_empty() {
        dns.domain.to_string()
    } else {
        joined(&dns.search, " ")
    };
    options.push(format!("option:domain-name,{domains}"));
    options.extend(router.routing.guest_mtu.map(|mtu| format!("option:mtu,{mtu}")));
    options
}

/// A VPC's networks are plugged later: until then there is nobody to answer.
fn before_tiers(router: &VpcRouter) -> String {
    let domain = &router.routing.guest_dns.domain;
    format!("# Made by `agent setup`: no network is plugged yet.\nport=0\ndomain={domain}\nlocal=/{domain}/\n")
}

/// No listener but the socket that the router asks for counters.
fn haproxy() -> String {
    "# Made by `agent setup`: nothing to balance yet.\n\
     global\n\
     \tlog /dev/log local0 warning\n\
     \tmaxconn 4096\n\
     \tchroot /var/lib/haproxy\n\
     \tuser haproxy\n\
     \tgroup haproxy\n\
     \tstats socket /run/haproxy/admin.sock mode 600 level admin expose-fd listeners\n\
     \n\
     defaults\n\
     \tlog global\n\
     \tmode tcp\n\
     \toption dontlognull\n\
     \tretries 3\n\
     \toption redispatch\n\
     \ttimeout connect 5000\n\
     \ttimeout client 50000\n\
     \ttimeout server 50000\n"
        .to_owned()
}

/// Sources in the order of trust: what the administrator named, the host's clock, Debian's pool when there is neither.
fn chrony(machine: &Machine, clock: Option<&Path>) -> String {
    let servers = machine.ntp_servers.iter();
    let mut sources: Vec<String> = servers.map(|server| format!("server {server} iburst")).collect();
    sources.extend(clock.map(|device| format!("refclock PHC {} poll 3 dpoll 0 stratum 2", device.display())));
    if sources.is_empty() {
        sources.push("pool 2.debian.pool.ntp.org iburst".to_owned());
    }
    format!(
        "# Made by `agent setup` from the boot arguments.\n\
         {}\n\
         \n\
         driftfile /var/lib/chrony/chrony.drift\n\
         # A VM that slept or moved may be far off, at any time.\n\
         makestep 1 -1\n\
         rtcsync\n\
         # Nobody asks this VM for the time, nor its daemon over the network.\n\
         port 0\n\
         cmdport 0\n",
        sources.join("\n")
    )
}

fn joined<T: std::fmt::Display>(items: impl IntoIterator<Item = T>, by: &str) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(by)
}

#[cfg(test)]
mod tests;
