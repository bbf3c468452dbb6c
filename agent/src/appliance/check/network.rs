//! NICs, gateways, name servers, management servers, and what listens.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use platform::exec::Cmd;
use protocol::boot::{Role, VmType};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::dns::{self, Answer};
use super::look::Look;
use super::{ASK_LIMIT, Finding, Outcome};
use crate::appliance::addresses::{self, Interface};

/// Peers that are asked at the same time; lists in boot arguments are short.
const MAX_PEERS: usize = 16;

pub(super) fn nics(look: &Look) -> Vec<Finding> {
    let Some(vm) = look.vm() else { return Vec::new() };
    let found = match addresses::interfaces(&look.root) {
        Ok(found) => found,
        Err(error) => {
            return vec![Finding::error(
                "nics",
                format!("the kernel does not tell: {error}"),
                "restart this VM",
            )];
        }
    };
    let nics = vm
        .machine
        .nics
        .iter()
        .filter(|(_, nic)| nic.ipv4.is_some() || nic.ipv6.is_some());
    nics.map(|(index, nic)| {
        let name = format!("eth{index}");
        let wanted = nic.ipv4.map(|net| IpAddr::from(net.addr()));
        let wanted = wanted.into_iter().chain(nic.ipv6.map(|net| IpAddr::from(net.addr())));
        let interface = found.iter().find(|interface| interface.name == name);
        judge(interface, &wanted.collect::<Vec<_>>()).about(name)
    })
    .collect()
}

fn judge(interface: Option<&Interface>, wanted: &[IpAddr]) -> Finding {
    let Some(interface) = interface else {
        let todo = "the boot arguments speak of it, but the host has not plugged it in";
        return Finding::error("nics", "is not there", todo);
    };
    let addresses = list(wanted);
    if !interface.is_up {
        let todo = "is its cable plugged in at the host? See `ip link` and `systemctl status cs-preinit`";
        return Finding::error("nics", format!("is down ({addresses})"), todo);
    }
    let missing: Vec<IpAddr> = wanted
        .iter()
        .filter(|ip| !interface.addresses.contains(ip))
        .copied()
        .collect();
    if missing.is_empty() {
        return Finding::ok("nics", addresses);
    }
    let has = list(&interface.addresses);
    let what = format!(
        "has not {}, but {}",
        list(&missing),
        if has.is_empty() { "no address" } else { &has }
    );
    Finding::error(
        "nics",
        what,
        "`systemctl restart cs-preinit` sets it; the log of that unit says what went wrong",
    )
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) async fn gateways(look: &Look) -> Vec<Finding> {
    let Some(vm) = look.vm() else { return Vec::new() };
    let mut gateways: Vec<(IpAddr, &str)> = Vec::new();
    gateways.extend(vm.machine.gateway.map(|ip| (ip.into(), "the default gateway")));
    gateways.extend(vm.machine.local_gateway.map(|ip| (ip.into(), "the pod's gateway")));
    if let Role::SecondaryStorage(ssvm) = &vm.role {
        let gateway = ssvm.storage.as_ref().and_then(|storage| storage.gateway);
        gateways.extend(gateway.map(|ip| (ip.into(), "the storage network's gateway")));
    }
    let mut asked = JoinSet::new();
    for (ip, kind) in gateways {
        let look = look.clone();
        asked.spawn(async move { gateway(&look, ip, kind).await });
    }
    asked.join_all().await
}

async fn gateway(look: &Look, ip: IpAddr, kind: &str) -> Finding {
    let finding = if answers_ping(ip).await {
        Finding::ok("gateway", format!("{kind} answers pings"))
    } else if answers_arp(&look.proc("/proc/net/arp"), ip) {
        Finding::ok("gateway", format!("{kind} does not answer pings, but is there (ARP)"))
    } else {
        let todo =
            "is the NIC in the right network (VLAN)? Compare `ip address`, `ip route` and `ip neigh` with the zone";
        Finding::error("gateway", format!("{kind} is not there"), todo)
    };
    finding.about(ip)
}

/// Whether a host answers one of two pings.
pub(super) async fn answers_ping(ip: IpAddr) -> bool {
    let deadline = ASK_LIMIT.as_secs().to_string();
    let words = ["-c", "1", "-n", "-q", "-w", &deadline, "--", &ip.to_string()].map(str::to_owned);
    let ping = Cmd::new("ping")
        .args(words)
        .time_limit(ASK_LIMIT + Duration::from_secs(2));
    ping.run().await.is_ok()
}

/// Whether the kernel knows who has the address: flag 2 is ATF_COM, proc_net(5).
fn answers_arp(table: &str, ip: IpAddr) -> bool {
    let ip = ip.to_string();
    table.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some(&ip) && words.nth(1) == Some("0x2")
    })
}

/// What a name server says, or why it says nothing.
pub(super) async fn ask_name_servers(look: &Look) -> Vec<(IpAddr, Result<Answer, String>)> {
    let mut asked = JoinSet::new();
    for (place, server) in look.name_servers().into_iter().take(MAX_PEERS).enumerate() {
        asked.spawn(async move {
            let answer = dns::ask(server, ASK_LIMIT).await.map_err(|error| error.to_string());
            (place, server, answer)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(place, ..)| *place);
    answers
        .into_iter()
        .map(|(_, server, answer)| (server, answer))
        .collect()
}

pub(super) async fn name_servers(look: &Look) -> Vec<Finding> {
    let answers = ask_name_servers(look).await;
    if answers.is_empty() {
        let todo = "the boot arguments have no dns1 or internaldns1: set the zone's DNS";
        return vec![Finding::warning(
            "dns",
            "there is no name server in /etc/resolv.conf",
            todo,
        )];
    }
    let is_any_alive = answers.iter().any(|(_, answer)| answer.is_ok());
    let name = dns::NAME;
    let judge = |(server, answer): (IpAddr, Result<Answer, String>)| {
        let finding = match answer {
            Ok(Answer::Found) => Finding::ok("dns", format!("resolves {name}")),
            // A closed cloud.
            Ok(Answer::NotFound(code @ (0 | 3))) => {
                Finding::ok("dns", format!("answers, but has no {name}: {}", dns::meaning(code)))
            }
            Ok(Answer::NotFound(code)) => Finding::warning(
                "dns",
                format!("does not resolve {name}: {}", dns::meaning(code)),
                "downloads by name will not work; see the settings of that server",
            ),
            Err(error) => Finding {
                outcome: if is_any_alive { Outcome::Warning } else { Outcome::Error },
                ..Finding::warning(
                    "dns",
                    error,
                    "is it the right address, and is there a route to it (`ip route get`)?",
                )
            },
        };
        finding.about(server)
    };
    answers.into_iter().map(judge).collect()
}

/// Whether a TCP port answers, in the order of the list.
pub(super) async fn connect(hosts: &[String], port: u16) -> Vec<(String, Result<SocketAddr, String>)> {
    let mut asked = JoinSet::new();
    for (place, host) in hosts.iter().take(MAX_PEERS).cloned().enumerate() {
        asked.spawn(async move {
            let connected = timeout(ASK_LIMIT, connect_one(host.clone(), port)).await;
            let answer = connected.unwrap_or_else(|_| Err(format!("no answer within {ASK_LIMIT:?}")));
            (place, host, answer)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(place, ..)| *place);
    answers.into_iter().map(|(_, host, answer)| (host, answer)).collect()
}

async fn connect_one(host: String, port: u16) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let name = host.clone();
    let resolved = on_thread(move || (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    let addresses = resolved
        .await
        .map_err(|error| format!("{host} cannot be resolved: {error}"))?;
    let mut why = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(address),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// Work that may hang in the kernel or in the resolver, on a thread of its own: nobody waits for it at the end of the program,
/// as tokio does for its threads.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("check".into()).spawn(move || {
        let _ = tell.send(work());
    })?;
    told.await
        .unwrap_or_else(|_| Err(std::io::Error::other("the check's thread has ended")))
}

pub(super) async fn management_servers(look: &Look) -> Vec<Finding> {
    let Some(agent) = look.agent() else { return Vec::new() };
    let port = agent.port.get();
    let answers = connect(&agent.hosts.hosts, port).await;
    let is_any_there = answers.iter().any(|(_, answer)| answer.is_ok());
    let judge = |(host, answer): (String, Result<SocketAddr, String>)| {
        let finding = match answer {
            Ok(_) => Finding::ok("management-server", "listens"),
            Err(error) => Finding {
                outcome: if is_any_there { Outcome::Warning } else { Outcome::Error },
                ..Finding::warning(
                    "management-server",
                    error,
                    "is it running, does its firewall allow this VM, and is the setting `host` right?",
                )
            },
        };
        finding.about(format_args!("{host}:{port}"))
    };
    answers.into_iter().map(judge).collect()
}

pub(super) fn listening(look: &Look) -> Vec<Finding> {
    let Some(vm) = look.vm() else { return Vec::new() };
    let (tcp, udp) = (look.tcp_listeners(), look.udp_sockets());
    let ssh = match vm.vm_type() {
        VmType::CksNode | VmType::SharedFs => 22,
        _ => 3922,
    };
    let mut findings = vec![listens(&tcp, "TCP", ssh, "ssh")];
    match &vm.role {
        Role::ConsoleProxy(proxy) => findings.push(listens(&tcp, "TCP", proxy.console_port.get(), "consoles")),
        Role::Router(router) | Role::DhcpServer(router) if router.routing.redundancy.is_none() => {
            findings.push(listens(&udp, "UDP", 67, "DHCP"));
            findings.push(listens(&udp, "UDP", 53, "DNS"));
        }
        _ => {}
    }
    findings
}

fn listens(sockets: &[SocketAddr], protocol: &str, port: u16, what: &str) -> Finding {
    let found: Vec<IpAddr> = sockets
        .iter()
        .filter(|socket| socket.port() == port)
        .map(SocketAddr::ip)
        .collect();
    let finding = if found.is_empty() {
        let todo = format!("`systemctl --failed` and `journalctl -b` say why; nothing serves {what}");
        Finding::error("listening", format!("nobody listens for {what}"), todo)
    } else {
        Finding::ok("listening", format!("{what} on {}", list(&found)))
    };
    finding.about(format_args!("{protocol} {port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_is_good_when_it_is_up_with_its_addresses() {
        let wanted: Vec<IpAddr> = vec!["192.0.2.21".parse().unwrap()];
        let outcome = |interface: Option<&Interface>| judge(interface, &wanted).what;
        assert_eq!(outcome(None), "is not there");
        let mut eth1 = Interface::default();
        assert_eq!(outcome(Some(&eth1)), "is down (192.0.2.21)");
        eth1.is_up = true;
        assert_eq!(outcome(Some(&eth1)), "has not 192.0.2.21, but no address");
        eth1.addresses = vec!["192.0.2.22".parse().unwrap()];
        assert_eq!(outcome(Some(&eth1)), "has not 192.0.2.21, but 192.0.2.22");
        eth1.addresses.extend(&wanted);
        assert_eq!(judge(Some(&eth1), &wanted).outcome, Outcome::Ok);
    }

    #[test]
    fn a_gateway_that_only_answers_arp_is_there() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     192.0.2.1        0x1         0x2         02:00:00:00:00:01     *        eth1\n\
                     192.0.2.9        0x1         0x0         00:00:00:00:00:00     *        eth1\n";
        assert!(answers_arp(table, "192.0.2.1".parse().unwrap()));
        assert!(!answers_arp(table, "192.0.2.9".parse().unwrap()));
        assert!(!answers_arp(table, "192.0.2.2".parse().unwrap()));
    }

    #[tokio::test]
    async fn servers_that_listen_are_told_from_those_that_do_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hosts = ["127.0.0.1", "127.0.0.2", "name.invalid"].map(str::to_owned);
        let answers = connect(&hosts, port).await;
        assert!(answers[0].1.is_ok());
        assert!(answers[1].1.as_ref().unwrap_err().contains("refused"), "{answers:?}");
        assert!(answers[2].1.is_err());
        assert_eq!(answers[2].0, "name.invalid");
    }

    #[tokio::test]
    async fn this_machine_answers_its_own_ping() {
        assert!(answers_ping("127.0.0.1".parse().unwrap()).await);
    }
}
