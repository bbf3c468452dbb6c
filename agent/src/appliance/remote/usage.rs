//! `netusage.sh` and `vpc_netusage.sh`: how many bytes a public NIC has carried (router.md §4.15).
//!
//! Named counters in a table of their own: they go on when the firewall is replaced, and end with the machine. Only IPv4
//! counts, as in the original. Each NIC has its own chains, so that adding one touches no other.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::Ipv4Net;
use platform::exec::{Cmd, ExecError};
use platform::logging::chain;
use serde::Deserialize;

use super::nics::{self, Eth};
use super::{Reply, options};

const TABLE: &str = "inet sysvm_usage";
/// As the original scripts say it.
const USAGE: u8 = 2;
/// Where a router's guests are.
const GUEST: &str = "eth0";
/// The first public NIC: meant when none is named.
const PUBLIC: &str = "eth2";
/// In the order of the answer: sent, received, sent and received by the router itself.
const COUNTERS: [&str; 4] = ["sent", "received", "own_sent", "own_received"];

/// What belongs to the inside.
#[derive(Debug, Clone, Copy)]
enum Inside {
    /// What is behind [`GUEST`].
    Guests,
    /// The network of the VPC.
    Vpc(Ipv4Net),
}

/// `netusage.sh -c|-r|-a ethN|-d ethN|-g [-l ADDRESS]`.
pub(super) async fn isolated(args: &[String]) -> Reply {
    let options = match options::read(args, "cgrna:d:l:v:") {
        Ok(options) => options,
        Err(why) => return Reply::failed(USAGE, why),
    };
    let nic = match options::value(&options, 'l') {
        Some(address) => match nic_of(address) {
            Ok(nic) => nic,
            Err(why) => return Reply::failed(USAGE, why),
        },
        None => Some(PUBLIC.parse().expect("a NIC")),
    };
    let named = |letter| options::value(&options, letter).map(str::parse::<Eth>);
    let is = |letter| options::value(&options, letter).is_some();
    let done = match (named('a'), named('d')) {
        (Some(Err(why)), _) | (_, Some(Err(why))) => return Reply::failed(USAGE, why),
        (Some(Ok(nic)), _) => load(&count(&nic, Inside::Guests)).await,
        (_, Some(Ok(nic))) => load(&forget(&nic)).await,
        _ if is('c') => load(&count(&PUBLIC.parse().expect("a NIC"), Inside::Guests)).await,
        _ if is('r') => reset(None).await,
        _ if is('g') => return get(nic).await,
        _ if is('n') => Ok(()),
        _ => return Reply::failed(USAGE, "one of -c, -g, -r, -a ethN, -d ethN is needed"),
    };
    reply(done)
}

/// `vpc_netusage.sh -l ADDRESS -c -v CIDR|-r|-g|-n|-d`.
pub(super) async fn vpc(args: &[String]) -> Reply {
    let options = match options::read(args, "cgrndl:v:") {
        Ok(options) => options,
        Err(why) => return Reply::failed(USAGE, why),
    };
    let is = |letter| options::value(&options, letter).is_some();
    if is('n') {
        return Reply::default(); // VPN traffic has no counters, in the original neither
    }
    let address = options::value(&options, 'l').unwrap_or_default();
    let nic = match nic_of(address) {
        Ok(nic) => nic,
        Err(why) => return Reply::failed(USAGE, why),
    };
    let done = match (options::value(&options, 'c'), nic) {
        (Some(_), Some(nic)) => match options::value(&options, 'v').unwrap_or_default().parse::<Ipv4Net>() {
            Ok(vpc) => load(&count(&nic, Inside::Vpc(vpc.trunc()))).await,
            Err(_) => return Reply::failed(USAGE, "-c needs the VPC's network, such as -v 10.10.0.0/16"),
        },
        (Some(_), None) => return Reply::failed(1, format!("no NIC has the address {address}")),
        (None, nic) if is('g') => return get(nic).await,
        (None, Some(nic)) if is('d') => load(&forget(&nic)).await,
        (None, Some(nic)) if is('r') => reset(Some(&nic)).await,
        (None, None) if is('d') || is('r') => Ok(()),
        _ => return Reply::failed(USAGE, "one of -c -v CIDR, -g, -r, -n, -d is needed"),
    };
    reply(done)
}

fn reply(done: Result<(), ExecError>) -> Reply {
    match done {
        Ok(()) => Reply::default(),
        Err(error) => Reply::failed(1, chain(&error).to_string()),
    }
}

fn nic_of(address: &str) -> Result<Option<Eth>, String> {
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is no IP address; write -l 203.0.113.31"))?;
    Ok(nics::with_address(address).and_then(|name| name.parse().ok()))
}

/// Counters stay what they are when they are there already; rules are made anew.
fn count(nic: &Eth, inside: Inside) -> String {
    let nic = nic.as_str();
    let mut batch = make(nic);
    let mut rule = |hook: &str, what: &str, counter: &str| {
        writeln!(
            batch,
            "add rule {TABLE} {nic}_{hook} meta nfproto ipv4 {what} counter name \"{nic}_{counter}\""
        )
        .expect("a String takes everything");
    };
    let (out, into) = (format!("oifname \"{nic}\""), format!("iifname \"{nic}\""));
    match inside {
        Inside::Guests => {
            rule("forward", &format!("iifname \"{GUEST}\" {out}"), "sent");
            rule("forward", &format!("oifname \"{GUEST}\" {into}"), "received");
            rule(
                "forward",
                &format!("iifname != \"{GUEST}\" {out} meta l4proto tcp"),
                "own_sent",
            );
            rule("output", &format!("{out} meta l4proto tcp"), "own_sent");
            rule(
                "forward",
                &format!("oifname != \"{GUEST}\" {into} meta l4proto tcp"),
                "own_received",
            );
            rule("input", &format!("{into} meta l4proto tcp"), "own_received");
        }
        Inside::Vpc(vpc) => {
            for hook in ["forward", "output"] {
                rule(hook, &format!("{out} ip saddr {vpc}"), "sent");
                rule(hook, &format!("{out} ip saddr != {vpc} meta l4proto tcp"), "own_sent");
            }
            for hook in ["forward", "input"] {
                rule(hook, &format!("{into} ip daddr {vpc}"), "received");
                rule(
                    hook,
                    &format!("{into} ip daddr != {vpc} meta l4proto tcp"),
                    "own_received",
                );
            }
        }
    }
    batch
}

/// Table, chains and counters of a NIC, and no rules.
fn make(nic: &str) -> String {
    let mut batch = format!("add table {TABLE}\n");
    for hook in ["forward", "input", "output"] {
        // Before the filters: what they drop was carried, too.
        writeln!(
            batch,
            "add chain {TABLE} {nic}_{hook} {{ type filter hook {hook} priority filter - 10; }}\n\
             flush chain {TABLE} {nic}_{hook}"
        )
        .expect("a String takes everything");
    }
    for counter in COUNTERS {
        writeln!(batch, "add counter {TABLE} {nic}_{counter}").expect("a String takes everything");
    }
    batch
}

fn forget(nic: &Eth) -> String {
    let nic = nic.as_str();
    // What is not there cannot be deleted: make it first.
    let mut batch = make(nic);
    for hook in ["forward", "input", "output"] {
        writeln!(batch, "delete chain {TABLE} {nic}_{hook}").expect("a String takes everything");
    }
    for counter in COUNTERS {
        writeln!(batch, "delete counter {TABLE} {nic}_{counter}").expect("a String takes everything");
    }
    batch
}

async fn load(batch: &str) -> Result<(), ExecError> {
    Cmd::new("nft").args(["-f", "-"]).stdin(batch).run().await.map(drop)
}

async fn reset(nic: Option<&Eth>) -> Result<(), ExecError> {
    let Some(nic) = nic else {
        if counters().await.is_empty() {
            return Ok(());
        }
        let reset = Cmd::new("nft")
            .args(["reset", "counters", "table"])
            .args(TABLE.split(' '));
        return reset.run().await.map(drop);
    };
    let nic = nic.as_str();
    if counters()
        .await
        .iter()
        .all(|counter| !counter.name.starts_with(&format!("{nic}_")))
    {
        return Ok(());
    }
    let batch = COUNTERS.iter().fold(String::new(), |mut batch, counter| {
        writeln!(batch, "reset counter {TABLE} {nic}_{counter}").expect("a String takes everything");
        batch
    });
    load(&batch).await
}

async fn get(nic: Option<Eth>) -> Reply {
    let Some(nic) = nic else {
        return Reply::default();
    };
    let counters = counters().await;
    let bytes = |counter: &str| {
        let name = format!("{}_{counter}", nic.as_str());
        counters
            .iter()
            .find(|found| found.name == name)
            .map(|found| found.bytes)
    };
    let values: Option<Vec<_>> = COUNTERS.iter().map(|counter| bytes(counter)).collect();
    let values = values.unwrap_or_default();
    Reply::ok(
        values
            .iter()
            .fold(String::new(), |text, bytes| text + &format!("{bytes}:")),
    )
}

#[derive(Debug, Deserialize)]
struct Counter {
    name: String,
    bytes: u64,
}

/// All of the table; none when there is no table.
async fn counters() -> Vec<Counter> {
    let list = Cmd::new("nft")
        .args(["-j", "list", "counters", "table"])
        .args(TABLE.split(' '));
    match list.run().await {
        Ok(output) => read(&output.stdout),
        Err(_) => Vec::new(),
    }
}

fn read(json: &[u8]) -> Vec<Counter> {
    #[derive(Deserialize)]
    struct Listed {
        nftables: Vec<Object>,
    }
    #[derive(Deserialize)]
    struct Object {
        counter: Option<Counter>,
    }
    let listed = serde_json::from_slice::<Listed>(json).map(|listed| listed.nftables);
    listed
        .unwrap_or_default()
        .into_iter()
        .filter_map(|object| object.counter)
        .collect()
}
