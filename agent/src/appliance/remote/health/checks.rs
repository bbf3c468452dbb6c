//! The checks, by the names of the original's scripts.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use platform::exec::Cmd;
use platform::files;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Verdict::{Failed, Success, Unknown};
use super::data::{Data, Record};
use super::{Outcome, Verdict};
use crate::appliance::patch;
use crate::appliance::root::{RELEASE, Root};

pub(super) const BASIC: [&str; 5] = [
    "cpu_usage_check.py",
    "disk_space_check.py",
    "gateways_check.py",
    "memory_usage_check.py",
    "router_version_check.py",
];
pub(super) const ADVANCED: [&str; 4] = ["dhcp_check.py", "dns_check.py", "haproxy_check.py", "iptables_check.py"];

const MAX_FILE: u64 = 32 << 20;
/// Between two looks at how busy the processors are.
const CPU_TIME: Duration = Duration::from_secs(1);
/// As the original: five times five packets.
const PING_ROUNDS: usize = 5;
const PING_LIMIT: Duration = Duration::from_secs(12);

pub(super) async fn run(root: &Root, data: &Data, name: &str) -> Outcome {
    match name {
        "cpu_usage_check.py" => cpu(root, data).await,
        "disk_space_check.py" => disk(root, data),
        "gateways_check.py" => gateways(root, data).await,
        "memory_usage_check.py" => memory(root, data),
        "router_version_check.py" => version(root, data),
        "dhcp_check.py" => dhcp(data, &read(root, "/etc/dhcphosts.txt")),
        "dns_check.py" => dns(data, &read(root, "/etc/hosts")),
        "haproxy_check.py" => haproxy(data, &read(root, "/etc/haproxy/haproxy.cfg")),
        "iptables_check.py" => port_forwarding(data),
        other => Outcome::of(Unknown, format!("there is no check {other}")),
    }
}

fn read(root: &Root, path: &str) -> String {
    let bytes = files::read_limited(root.path(path), MAX_FILE).ok().flatten();
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

fn threshold(data: &Data, field: &str) -> Option<f64> {
    data.field("systemThresholds", field)?.parse().ok()
}

fn at_most(what: &str, percent: Option<f64>, limit: f64) -> Outcome {
    match percent {
        None => Outcome::of(Unknown, format!("cannot read the {what} usage")),
        Some(percent) if percent > limit => {
            Outcome::of(Failed, format!("{what} usage is {percent:.2} %, more than {limit} %"))
        }
        Some(percent) => Outcome::of(
            Success,
            format!("{what} usage is {percent:.2} %, at most {limit} % are allowed"),
        ),
    }
}

async fn cpu(root: &Root, data: &Data) -> Outcome {
    let Some(limit) = threshold(data, "maxCpuUsage") else {
        return Outcome::of(Unknown, "no limit for the CPU usage was sent");
    };
    let before = read(root, "/proc/stat");
    sleep(CPU_TIME).await;
    at_most("CPU", busy(&before, &read(root, "/proc/stat")), limit)
}

/// Per cent, between two states of `/proc/stat`: proc(5).
fn busy(before: &str, after: &str) -> Option<f64> {
    let ticks = |stat: &str| {
        let all = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u32> = all
            .split_ascii_whitespace()
            .filter_map(|word| word.parse::<u64>().ok())
            .map(|ticks| u32::try_from(ticks % (1 << 32)).expect("less than 2^32"))
            .collect();
        // user nice system idle iowait irq softirq steal; what follows is part of the first two
        (ticks.len() >= 8).then(|| ticks[..8].to_vec())
    };
    let (before, after) = (ticks(before)?, ticks(after)?);
    let spent: Vec<_> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.wrapping_sub(*before))
        .collect();
    let all: f64 = spent.iter().copied().map(f64::from).sum();
    let idle = f64::from(spent[3]) + f64::from(spent[4]);
    Some(if all > 0.0 { 100.0 * (all - idle) / all } else { 0.0 })
}

fn memory(root: &Root, data: &Data) -> Outcome {
    let Some(limit) = threshold(data, "maxMemoryUsage") else {
        return Outcome::of(Success, "no limit for the memory usage was sent");
    };
    at_most("memory", used(&read(root, "/proc/meminfo")), limit)
}

/// Per cent of the memory that programs cannot have: proc(5).
fn used(meminfo: &str) -> Option<f64> {
    let kib = |name: &str| {
        let line = meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse::<u32>().ok().map(f64::from)
    };
    let (total, available) = (kib("MemTotal")?, kib("MemAvailable")?);
    (total > 0.0).then(|| 100.0 * (total - available) / total)
}

fn disk(root: &Root, data: &Data) -> Outcome {
    let Some(needed) = threshold(data, "minDiskNeeded") else {
        return Outcome::of(Unknown, "no limit for the free disk space was sent");
    };
    let free = statvfs(&root.path("/")).map(|found| {
        let kib = u128::from(found.blocks_available()) * u128::from(found.fragment_size()) / 1024;
        f64::from(u32::try_from(kib / 1024).unwrap_or(u32::MAX))
    });
    match free {
        Err(error) => Outcome::of(Unknown, format!("cannot read the free disk space: {error}")),
        Ok(free) if free < needed => {
            Outcome::of(Failed, format!("{free} MB are free on /, and {needed} MB are needed"))
        }
        Ok(free) => Outcome::of(Success, format!("{free} MB are free on /")),
    }
}

async fn gateways(root: &Root, data: &Data) -> Outcome {
    let Some(gateways) = data.field("gateways", "gatewaysIps") else {
        return Outcome::of(Success, "no gateways were sent");
    };
    // A backup's public side is down, as it should be; the server's list of exclusions may be older than that.
    if super::super::redundancy::is_backup(root) {
        return Outcome::of(Success, "skipped: this router is the backup");
    }
    let mut pings = JoinSet::new();
    for gateway in gateways.split_ascii_whitespace().collect::<BTreeSet<_>>() {
        let gateway = gateway.to_owned();
        if gateway.parse::<std::net::IpAddr>().is_err() {
            return Outcome::of(Unknown, format!("{gateway:?} is no IP address"));
        }
        pings.spawn(async move {
            let ping = Cmd::new("ping").args(["-c", "5", "-w", "10", "-n", "-q", &gateway]);
            let ping = ping.time_limit(PING_LIMIT);
            for _ in 0..PING_ROUNDS {
                if ping.run().await.is_ok() {
                    return (gateway, true);
                }
            }
            (gateway, false)
        });
    }
    let mut silent: Vec<_> = pings
        .join_all()
        .await
        .into_iter()
        .filter(|(_, answers)| !answers)
        .collect();
    silent.sort();
    if silent.is_empty() {
        return Outcome::of(Success, format!("all gateways answer: {gateways}"));
    }
    let names: Vec<_> = silent.into_iter().map(|(gateway, _)| gateway).collect();
    Outcome::of(Failed, format!("gateways that do not answer: {}", names.join(" ")))
}

fn version(root: &Root, data: &Data) -> Outcome {
    let (Some(template), Some(scripts)) = (
        data.field("routerVersion", "templateVersion"),
        data.field("routerVersion", "scriptsVersion"),
    ) else {
        return Outcome::of(Success, "no version was sent");
    };
    let release = read(root, RELEASE);
    let release = release.lines().next().unwrap_or_default().trim();
    let signature = match patch::signature(root) {
        Ok(signature) => signature,
        Err(error) => return Outcome::of(Unknown, error.to_string()),
    };
    if release != template {
        return Outcome::of(Failed, format!("the image is {release:?}, and {template:?} is wanted"));
    }
    if signature != scripts {
        return Outcome::of(Failed, format!("the scripts are {signature}, and {scripts} are wanted"));
    }
    Outcome::of(Success, "image and scripts have the wanted versions")
}

/// The records that are for this check.
fn wanted<'a>(data: &'a Data, service: &str) -> Vec<&'a Record> {
    let vms = data.records("virtualMachines").iter();
    vms.filter(|vm| vm.get(service).is_none_or(|wanted| wanted != "false"))
        .collect()
}

fn field<'a>(record: &'a Record, name: &str) -> &'a str {
    record.get(name).map_or("", String::as_str)
}

fn all_found(missing: &[String], found: &str, lacks: &str) -> Outcome {
    if missing.is_empty() {
        return Outcome::of(Success, found);
    }
    Outcome::of(Failed, format!("{lacks} {}", missing.join(", ")))
}

fn dhcp(data: &Data, hosts: &str) -> Outcome {
    if data.records("virtualMachines").is_empty() {
        return Outcome::of(Unknown, "no VMs were sent");
    }
    let lines: BTreeSet<Vec<&str>> = hosts
        .lines()
        .map(|line| line.split(',').map(str::trim).collect())
        .collect();
    let has = |vm: &&Record| {
        let (mac, ip, name) = (field(vm, "macAddress"), field(vm, "ip"), field(vm, "vmName"));
        let tag = format!("set:{}", ip.replace('.', "_"));
        lines
            .iter()
            .any(|line| line.starts_with(&[mac, ip, name]) || line.starts_with(&[mac, &tag, ip, name]))
    };
    let missing = wanted(data, "dhcp").into_iter().filter(|vm| !has(vm));
    let missing: Vec<_> = missing.map(|vm| field(vm, "vmName").to_owned()).collect();
    all_found(&missing, "all VMs have their DHCP entry", "no DHCP entry for")
}

fn dns(data: &Data, hosts: &str) -> Outcome {
    if data.records("virtualMachines").is_empty() {
        return Outcome::of(Success, "no VMs were sent");
    }
    let lines: BTreeSet<&str> = hosts.lines().map(str::trim_end).collect();
    let missing = wanted(data, "dns")
        .into_iter()
        .filter(|vm| !lines.contains(format!("{}\t{}", field(vm, "ip"), field(vm, "vmName")).as_str()));
    let missing: Vec<_> = missing.map(|vm| field(vm, "vmName").to_owned()).collect();
    all_found(&missing, "all VMs have their name", "no name for")
}

fn haproxy(data: &Data, config: &str) -> Outcome {
    let rules = data.records("haproxyData");
    if rules.is_empty() {
        return Outcome::of(Success, "no load-balancing rules were sent");
    }
    let mut problems = Vec::new();
    for rule in rules {
        let (address, port) = (field(rule, "sourceIp"), field(rule, "sourcePortStart"));
        let pool = format!("{}-{port}", address.replace('.', "_"));
        let mut lacks = |what: String| problems.push(format!("{pool} lacks {what}"));
        let common = [section(config, "global"), section(config, "defaults")].concat();
        if !common.contains(&format!("maxconn {}", field(rule, "maxconn"))) {
            lacks(format!("maxconn {}", field(rule, "maxconn")));
        }
        let idle = field(rule, "idletimeout");
        for side in ["client", "server"] {
            let line = format!("timeout {side} {idle}");
            if !["", "0"].contains(&idle) && !common.contains(&line) {
                lacks(line);
            }
        }
        let listen = section(config, &format!("listen {pool}"));
        let has_start = |wanted: &str| {
            let mut words = listen.iter().map(|line| format!("{line} "));
            words.any(|line| line.starts_with(&format!("{wanted} ")))
        };
        for wanted in [
            format!("bind {address}:{port}"),
            format!("balance {}", field(rule, "algorithm")),
        ] {
            if !has_start(&wanted) {
                lacks(wanted);
            }
        }
        let has_server = |server: &str| {
            let mut servers = listen.iter().filter(|line| line.starts_with("server "));
            servers.any(|line| line.split_ascii_whitespace().nth(2) == Some(server))
        };
        for vm in field(rule, "vmIps").split_ascii_whitespace() {
            let server = format!("{vm}:{}", field(rule, "destPortStart"));
            if !has_server(&server) {
                lacks(format!("server {server}"));
            }
        }
    }
    all_found(
        &problems,
        "all load-balancing rules are configured",
        "haproxy's configuration:",
    )
}

/// The lines of a section, with single blanks, without comments.
fn section(config: &str, name: &str) -> Vec<String> {
    let starts = [
        "global",
        "defaults",
        "listen",
        "frontend",
        "backend",
        "peers",
        "userlist",
        "resolvers",
    ];
    let lines = config.lines().map(|line| {
        let words: Vec<_> = line
            .split_ascii_whitespace()
            .take_while(|word| !word.starts_with('#'))
            .collect();
        words.join(" ")
    });
    let after = lines.skip_while(|line| line != name).skip(1);
    after
        .take_while(|line| !line.split(' ').next().is_some_and(|word| starts.contains(&word)))
        .collect()
}

/// Port forwarding is part of the router's configuration, which this image cannot do yet.
fn port_forwarding(data: &Data) -> Outcome {
    let verdict: Verdict = if data.records("portForwarding").is_empty() {
        Success
    } else {
        Unknown
    };
    Outcome::of(
        verdict,
        match verdict {
            Success => "no port forwarding rules were sent",
            _ => "port forwarding cannot be checked by this version",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(key: &str, text: &str) -> Data {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        std::fs::create_dir(root.path("root")).unwrap();
        let json = serde_json::json!({"health_checks_enabled": true, "health_checks_config": {key: text}});
        let _ = files::replace(root.path("/root/health_checks_data.json"), json.to_string(), 0o600).unwrap();
        Data::read(&root)
    }

    #[test]
    fn usage_is_a_share_of_what_there_is() {
        let (before, after) = (
            "cpu  10 0 10 100 0 0 0 0 0 0\n",
            "cpu  20 0 20 170 10 0 0 0 0 0\ncpu0 1\n",
        );
        assert_eq!(busy(before, after), Some(20.0));
        assert_eq!(busy(before, before), Some(0.0));
        assert_eq!(busy("", after), None);
        assert_eq!(
            used("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n"),
            Some(75.0)
        );
        assert_eq!(used(""), None);
        assert_eq!(at_most("CPU", Some(20.0), 20.0).verdict, Success);
        assert_eq!(at_most("CPU", Some(20.1), 20.0).verdict, Failed);
    }

    #[test]
    fn each_vm_needs_its_lease_and_its_name() {
        let vms = data(
            "virtualMachines",
            "vmName=web-1,macAddress=02:01:00:cc:00:11,ip=10.1.1.11,dhcp=true,dns=true;\
             vmName=app-1,macAddress=02:01:00:cc:00:12,ip=10.1.1.12,dhcp=true,dns=false;\
             vmName=old-1,macAddress=02:01:00:cc:00:13,ip=10.1.1.13,dhcp=false,dns=false;",
        );
        let both =
            "02:01:00:cc:00:11,10.1.1.11,web-1,infinite\n02:01:00:cc:00:12,set:10_1_1_12,10.1.1.12,app-1,infinite\n";
        assert_eq!(dhcp(&vms, both).verdict, Success);
        let one = dhcp(
            &vms,
            "02:01:00:cc:00:11,10.1.1.11,web-1,infinite\n02:01:00:cc:00:12,10.1.1.12,app-10,infinite\n",
        );
        assert_eq!(one, Outcome::of(Failed, "no DHCP entry for app-1"));
        assert_eq!(dhcp(&Data::default(), both).verdict, Unknown);

        assert_eq!(dns(&vms, "10.1.1.11\tweb-1\n").verdict, Success);
        assert_eq!(
            dns(&vms, "10.1.1.11\tweb-10\n"),
            Outcome::of(Failed, "no name for web-1")
        );
        assert_eq!(dns(&Data::default(), "").verdict, Success);
    }

    #[test]
    fn each_load_balancing_rule_is_looked_for() {
        let rules = data(
            "haproxyData",
            "maxconn=4096,idletimeout=50000,sourcePortStart=80,sourcePortEnd=80,sourceIp=203.0.113.13,destPortStart=8080,\
             destPortEnd=8080,algorithm=roundrobin,protocol=tcp,stickiness=None,keepAliveEnabled=false,\
             vmIps=10.1.1.11 10.1.1.12;",
        );
        let config = "global\n\tmaxconn 4096\ndefaults\n\ttimeout client 50000\n\ttimeout server 50000\n\
                      listen 203_0_113_13-80\n\tbind 203.0.113.13:80\n\tbalance roundrobin\n\
                      \tserver a 10.1.1.11:8080 check\n\tserver b 10.1.1.12:8080 check\nlisten x\n\tserver c 10.1.1.13:8080\n";
        assert_eq!(
            haproxy(&rules, config).verdict,
            Success,
            "{:?}",
            haproxy(&rules, config)
        );
        assert_eq!(
            haproxy(&rules, &config.replace("10.1.1.12", "10.1.1.14")),
            Outcome::of(
                Failed,
                "haproxy's configuration: 203_0_113_13-80 lacks server 10.1.1.12:8080"
            )
        );
        assert_eq!(
            haproxy(&rules, &config.replace("maxconn 4096", "maxconn 40960")).verdict,
            Failed
        );
        assert_eq!(haproxy(&rules, "").verdict, Failed);
        assert_eq!(haproxy(&Data::default(), "").verdict, Success);
    }

    #[tokio::test]
    async fn gateways_are_asked() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let near = data("gateways", "gatewaysIps=127.0.0.1 127.0.0.2");
        assert_eq!(gateways(&root, &near).await.verdict, Success);
        let name = data("gateways", "gatewaysIps=-f");
        assert_eq!(gateways(&root, &name).await.verdict, Unknown);
        assert_eq!(gateways(&root, &Data::default()).await.verdict, Success);
    }

    #[test]
    fn versions_must_be_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for directory in ["etc", "var/cache/cloud"] {
            std::fs::create_dir_all(root.path(directory)).unwrap();
        }
        let _ = files::replace(root.path(RELEASE), "Cloudstack Release 4.22.0 today\n", 0o644).unwrap();
        let signature = patch::signature(&root).unwrap();
        let ask = |template: &str, scripts: &str| {
            let text = format!("templateVersion={template},scriptsVersion={scripts}");
            version(&root, &data("routerVersion", &text)).verdict
        };
        assert_eq!(ask("Cloudstack Release 4.22.0 today", &signature), Success);
        assert_eq!(ask("Cloudstack Release 4.23.0 today", &signature), Failed);
        assert_eq!(ask("Cloudstack Release 4.22.0 today", "0123abcd"), Failed);
        assert_eq!(version(&root, &Data::default()).verdict, Success);
    }
}
