//! What somebody sees who looks for open ports: nmap, from inside the test's network.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::{Context, ensure};
use platform::exec::Cmd;

use super::network::Net;

/// For all ports of a few addresses. A guest under emulation drops some thousand packets in a second.
const LIMIT: Duration = Duration::from_mins(5);
/// TCP connections tried in a second: what one emulated processor can drop. Each once: a second try of all that are silent
/// would double the time, and a rate that loses packets would be seen, since ports that must be open are looked for.
const TCP_RATE: &str = "4000";
/// Of the UDP ports that most machines have open, as nmap knows them. Each that is silent costs a second try.
const UDP_TOP: &str = "50";

/// A port that something answered at, even if only to say that nobody listens there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port {
    /// Whose.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its number.
    pub number: u16,
    /// `open` or `closed`; what is silent is not in the list. Without a number: how many more there are of a kind.
    pub state: String,
}

impl Display for Port {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            protocol,
            number,
            state,
        } = self;
        write!(f, "{address} {protocol}/{number} {state}")
    }
}

/// All TCP ports and the usual UDP ports of these addresses that do not just swallow what is sent to them.
///
/// # Errors
/// `nmap` fails, or says something that we do not understand.
pub async fn ports(net: &Net, addresses: &[&str]) -> anyhow::Result<BTreeSet<Port>> {
    let nmap = |options: &[&str]| {
        let fixed = ["-n", "-Pn", "--disable-arp-ping", "-T4", "-oG", "-"];
        let nmap = Cmd::new("nmap")
            .args(fixed)
            .args(options)
            .args(addresses)
            .time_limit(LIMIT);
        net.run(nmap)
    };
    let tcp = nmap(&["-sS", "-p-", "--min-rate", TCP_RATE, "--max-retries", "0"]).await?;
    let udp = nmap(&["-sU", "--top-ports", UDP_TOP, "--max-retries", "1", "--min-rate", "100"]).await?;
    let mut found = BTreeSet::new();
    for printed in [tcp.text(), udp.text()] {
        let lines = printed.lines().filter(|line| line.contains("Ports: "));
        for line in lines {
            found.extend(parse(line)?);
        }
        ensure!(printed.contains("Nmap done"), "nmap has not finished: {printed}");
    }
    Ok(found)
}

/// One line of `-oG`, whose fields have tabs between them:
/// `Host: 192.0.2.21 ()`, `Ports: 3922/open/tcp//ssh///, 80/closed/tcp//http///`, `Ignored State: …`.
fn parse(line: &str) -> anyhow::Result<Vec<Port>> {
    let read = || {
        let address = line.strip_prefix("Host: ")?.split(' ').next()?;
        let ports = line.split_once("Ports: ")?.1.split('\t').next()?;
        let mut found = Vec::new();
        // Most are of one kind, which is only counted. That must be silence.
        if let Some((_, ignored)) = line.split_once("Ignored State: ")
            && !ignored.starts_with("filtered")
            && !ignored.starts_with("open|filtered")
        {
            found.push(Port {
                address: address.to_owned(),
                protocol: "any".to_owned(),
                number: 0,
                state: format!("{} others", ignored.trim()),
            });
        }
        for port in ports.split(", ").filter(|port| !port.is_empty()) {
            let mut fields = port.trim().split('/');
            let (number, state, protocol) = (fields.next()?, fields.next()?, fields.next()?);
            // `filtered` and `open|filtered`: there was no answer.
            if matches!(state, "open" | "closed") {
                found.push(Port {
                    address: address.to_owned(),
                    protocol: protocol.to_owned(),
                    number: number.parse().ok()?,
                    state: state.to_owned(),
                });
            }
        }
        Some(found)
    };
    read().with_context(|| format!("nmap says {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_silence_is_left_out() {
        let line = "Host: 192.0.2.21 ()\tPorts: 53/open|filtered/udp//domain///, 67/closed/udp//dhcps///, \
                    3922/open/tcp//ssh///\tIgnored State: filtered (65534)";
        let shown: Vec<_> = parse(line).unwrap().iter().map(Port::to_string).collect();
        assert_eq!(shown, ["192.0.2.21 udp/67 closed", "192.0.2.21 tcp/3922 open"]);
        let line = "Host: 192.0.2.21 ()\tPorts: \tIgnored State: closed (65535)";
        let shown: Vec<_> = parse(line).unwrap().iter().map(Port::to_string).collect();
        assert_eq!(shown, ["192.0.2.21 any/0 closed (65535) others"]);
        assert!(parse("Host: x Ports: a").is_err());
    }

    #[tokio::test]
    async fn a_listening_port_of_this_machine_is_found() {
        let net = Net::new().await.unwrap();
        let _listener = net
            .inside(|| std::net::TcpListener::bind("127.0.0.1:3922"))
            .unwrap()
            .unwrap();
        let found = ports(&net, &["127.0.0.1"]).await.unwrap();
        let open: Vec<_> = found
            .iter()
            .filter(|port| port.state == "open")
            .map(Port::to_string)
            .collect();
        assert_eq!(open, ["127.0.0.1 tcp/3922 open"]);
    }
}
