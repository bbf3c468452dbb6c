//! All that the boot arguments make of a machine, decided before anything is done. Pure: no files, no programs, no clock.
//!
//! | module | decides |
//! |---|---|
//! | [`network`] | NICs and their addresses (§2.3, §5.1) |
//! | [`routes`] | routes and rules (§5.1) |
//! | `names` | name servers and `/etc/hosts` (§5.1) |
//! | [`firewall`] | what may come in and through, as one table of nftables (§5.2) |
//! | [`access`] | where sshd listens (§4.3) |
//! | [`settings`] | kernel settings and services of each type (§5.3, §6) |
//! | [`current`] | what a machine has, as `ip -json` says |
//! | [`changes`] | the commands that make that what it should be |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use protocol::boot::{InterfaceName, MacAddr, SystemVm, VmType};
use protocol::secret::Secret;
use serde::{Serialize, Serializer};

use super::hypervisor::Hypervisor;

pub mod access;
pub mod changes;
pub mod current;
pub mod firewall;
mod names;
pub mod network;
pub mod routes;
pub mod settings;

pub use access::SshAccess;
pub use firewall::Firewall;
pub use network::Link;
pub use routes::{Route, Rule};
pub use settings::Services;

use network::Network;

/// What a machine becomes. The same arguments give the same plan, and the same plan gives the same bytes.
///
/// As JSON it shows `***` for secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What it is for.
    pub vm_type: VmType,
    /// Where it runs.
    pub hypervisor: Hypervisor,
    /// What in the arguments will not work, for people: each says what is wrong and what follows.
    pub problems: Vec<String>,
    /// `None` keeps the image's.
    pub hostname: Option<String>,
    /// The first of these MAC addresses is to be `eth0`, and so on; empty means the kernel's order is right.
    pub nic_macs: Vec<MacAddr>,
    /// NICs by index. Those of a machine that are not here are to be down and without addresses.
    pub links: Vec<Link>,
    /// Routes beyond those that addresses bring.
    pub routes: Vec<Route>,
    /// Policy routing.
    pub rules: Vec<Rule>,
    /// Names for tables of `rules`: `/etc/iproute2/rt_tables.d/sysvm.conf`.
    pub route_tables: BTreeMap<u32, &'static str>,
    /// Name servers, in the order to ask.
    pub name_servers: Vec<IpAddr>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// `/etc/hosts`.
    pub hosts: String,
    /// Kernel settings that depend on the arguments, on top of the image's own `/etc/sysctl.d/60-sysvm.conf`. Those of
    /// `net.ipv6` and `net.ipv4.conf` belong before the links come up, in this order.
    pub sysctl: BTreeMap<String, String>,
    /// What may come in and through.
    pub firewall: Firewall,
    /// Where sshd listens; `None` when no address is left for it: then sshd is not to be started.
    pub sshd: Option<SshAccess>,
    /// Content of `/root/.ssh/authorized_keys`; `None` keeps the file.
    pub authorized_keys: Option<String>,
    /// `None` keeps the image's, which lets nobody in.
    #[serde(serialize_with = "hidden")]
    pub root_password: Option<Secret<String>>,
    /// Time servers; empty keeps the image's.
    pub ntp_servers: Vec<String>,
    /// What runs.
    pub services: Services,
    /// Small files for other programs, by path; everybody may read them.
    pub files: BTreeMap<&'static str, String>,
    /// cloud-init user data as sent, usually gzip.
    #[serde(serialize_with = "hidden")]
    pub user_data: Option<Secret<Vec<u8>>>,
    /// Addresses to tell the neighbours (ARP) when they are set.
    pub gratuitous_arp: Vec<(InterfaceName, Ipv4Addr)>,
    /// Where to send a ping or three, so that the switch learns our addresses; answers do not matter (§3.4).
    pub keep_alive_ping: Vec<Ipv4Addr>,
}

impl Plan {
    /// Decides.
    pub fn of(vm: &SystemVm, hypervisor: Hypervisor) -> Self {
        let network = Network::of(vm);
        let sshd = access::of(vm, hypervisor, &network);
        let mut problems = network.problems.clone();
        if sshd.is_none() {
            problems.push(access::no_address(vm, hypervisor));
        }
        Self {
            vm_type: vm.vm_type(),
            hypervisor,
            problems,
            hostname: vm.machine.name.as_ref().map(ToString::to_string),
            nic_macs: vm.machine.nic_macs.clone(),
            routes: routes::routes(vm, &network),
            rules: routes::rules(vm),
            route_tables: routes::route_tables(vm),
            name_servers: names::name_servers(vm),
            resolv_conf: names::resolv_conf(vm),
            hosts: names::hosts(vm, &network),
            sysctl: settings::sysctl(vm, &network.links),
            firewall: Firewall::of(vm, &network, sshd.as_ref()),
            authorized_keys: access::authorized_keys(vm),
            sshd,
            root_password: vm.machine.vm_password.clone(),
            ntp_servers: vm.machine.ntp_servers.clone(),
            services: Services::of(vm, hypervisor),
            files: settings::files(vm),
            user_data: vm.machine.user_data.clone(),
            gratuitous_arp: network.gratuitous_arp(),
            keep_alive_ping: network::keep_alive_ping(vm, hypervisor),
            links: network.links,
        }
    }

    /// The lines for `ip -batch -` that make a machine's network, as `current` found it, what it should be. Empty when
    /// there is nothing to do.
    ///
    /// Links must have their names, and the settings of `sysctl` that are about IPv6 must be in force.
    pub fn ip_batch(&self, current: &current::Current) -> String {
        changes::ip_batch(self, current)
    }
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn hidden<T, S: Serializer>(secret: &Option<Secret<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|_secret| "***").serialize(serializer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::boot::BootArgs;

    use super::current::{Current, CurrentLink};
    use super::*;

    /// Values that most keys take, good and odd.
    fn value() -> impl Strategy<Value = String> {
        let words = [
            "0.0.0.0",
            "10.1.1.1",
            "10.1.1.254",
            "169.254.3.7",
            "203.0.113.1",
            "255.255.255.255",
            "224.0.0.1",
            "127.0.0.1",
            "255.255.255.0",
            "0",
            "8",
            "32",
            "128",
            "true",
            "false",
            "dhcp",
            "2001:db8::1",
            "fe80::1",
            "::",
            "1500",
            "65535",
            "192.0.2.0/24",
            "0.0.0.0/0",
            "10.0.0.0/8,192.0.2.0/24",
            "ms1.example",
            "eth1",
            "PRIMARY",
            "255",
            "hourly",
        ];
        prop_oneof![
            Just(String::new()),
            prop::sample::select(words.to_vec()).prop_map(str::to_owned)
        ]
    }

    proptest! {
        #[test]
        fn every_line_that_makes_sense_has_a_plan_whose_scripts_are_one_command_a_line(
            vm_type in prop::sample::select(VmType::ALL.to_vec()),
            hypervisor in prop::sample::select(Hypervisor::ALL.to_vec()),
            values in prop::collection::vec(value(), 100),
        ) {
            let mut keys = SystemVm::known_keys(vm_type);
            keys.extend(["eth1ip", "eth1mask", "eth2ip", "eth2mask", "eth3ip", "eth3mask"].map(str::to_owned));
            let args: Vec<_> = keys.iter().zip(&values).filter(|(key, _)| *key != "type").collect();
            // Without what is wrong, so that most lines make sense.
            let is_good = |(key, value): &&(&String, &String)| {
                let line = format!("type={vm_type} host=ms1 guid=x eth0ip=0.0.0.0 {key}={value}");
                BootArgs::parse(line).is_ok_and(|args| SystemVm::parse(&args).is_ok())
            };
            let words: Vec<_> = args.iter().filter(is_good).map(|(key, value)| format!("{key}={value}")).collect();
            let line = format!("host=ms1 guid=x type={vm_type} {}", words.join(" "));
            let Ok(vm) = SystemVm::parse(&BootArgs::parse(&line).unwrap()) else { return Ok(()) };
            let plan = Plan::of(&vm, hypervisor);
            prop_assert_eq!(&plan, &Plan::of(&vm, hypervisor));
            let links = (0..4).map(|index| CurrentLink {
                name: format!("eth{index}"),
                mac: None,
                is_up: index % 2 == 0,
                mtu: 1500,
                ipv4: Vec::new(),
                ipv6: Vec::new(),
            });
            let batch = plan.ip_batch(&Current { links: links.collect(), ..Current::default() });
            for line in batch.lines() {
                let first = line.split(' ').next().unwrap();
                prop_assert!(["address", "link", "route", "rule"].contains(&first), "{}", line);
            }
            for route in &plan.routes {
                prop_assert!(plan.links.iter().any(|link| link.name == route.link && link.up && !link.dhcp), "{:?}", route);
                prop_assert_eq!(route.to, route.to.trunc());
            }
            prop_assert_eq!(plan.firewall.render().matches("policy drop").count(), 2);
            prop_assert_eq!(plan.sshd.is_none(), plan.problems.iter().any(|problem| problem.contains("sshd")));
        }
    }
}
