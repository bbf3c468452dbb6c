//! `ssvm-check.sh` (§8.4): the text and exit codes of the script of that name in CloudStack's own image, which
//! administrators know and integration tests read. They count words: in a healthy run `ERROR` and `WARNING` are there exactly
//! once each, in the last line, and `FAIL` never.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use protocol::boot::VmType;

use super::dns::{self, Answer};
use super::look::Look;
use super::network::{answers_ping, ask_name_servers, connect};
use super::service::{storage_addresses, try_write};
use crate::appliance::root::Root;

/// Between two checks.
const RULE: &str = "================================================";
/// Exit codes of the script.
const DNS: u8 = 2;
const NO_PROCESS: u8 = 3;
const NO_SERVER: u8 = 4;

/// What was found, as text, and the exit code for it: that of the first check that makes the VM useless.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Lines for standard output.
    pub text: String,
    /// 0: well. 2: no name server answers. 3: the program does not run. 4: no management server can be reached.
    pub code: u8,
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Facts {
    is_ssvm: bool,
    /// The first of resolv.conf, and whether it answers pings.
    resolver: Option<(IpAddr, bool)>,
    resolves: bool,
    /// Device, place, and whether it can be written.
    mounts: Vec<(String, String, Result<(), String>)>,
    /// Who was asked in place of mounts, and whether it answers pings.
    storage: Vec<(IpAddr, bool)>,
    port: u16,
    servers: Vec<(String, Result<(), String>)>,
    process: Option<u32>,
}

/// Runs the checks, all at once.
pub async fn run(root: &Root) -> Checked {
    let look = Look::at(root);
    let resolver = async {
        let first = look.name_servers().into_iter().next()?;
        Some((first, answers_ping(first).await))
    };
    let servers = async {
        let Some(agent) = look.agent() else { return Vec::new() };
        let answers = connect(&agent.hosts.hosts, agent.port.get()).await;
        answers
            .into_iter()
            .map(|(host, answer)| (host, answer.map(drop)))
            .collect()
    };
    let (resolver, answers, mounts, storage, servers) = tokio::join!(
        resolver,
        ask_name_servers(&look),
        mounts(&look),
        storage(&look),
        servers
    );
    // As stock, for which any answer is a good one: a closed cloud has no way to the world.
    let resolves = answers
        .iter()
        .any(|(_, answer)| matches!(answer, Ok(Answer::Found | Answer::NotFound(_))));
    render(&Facts {
        is_ssvm: look.vm_type() == Some(VmType::SecondaryStorage),
        resolver,
        resolves,
        mounts,
        storage,
        port: look.agent().map_or(8250, |agent| agent.port.get()),
        servers,
        process: look.service_pids().into_iter().find(|pid| is_program(&look, *pid)),
    })
}

async fn mounts(look: &Look) -> Vec<(String, String, Result<(), String>)> {
    let mut mounts = Vec::new();
    for store in look.stores() {
        let written = try_write(store.path).await;
        mounts.push((store.device, store.place, written));
    }
    mounts
}

async fn storage(look: &Look) -> Vec<(IpAddr, bool)> {
    if !look.stores().is_empty() {
        return Vec::new();
    }
    let mut answers = Vec::new();
    for (_, ip) in storage_addresses(look) {
        answers.push((ip, answers_ping(ip).await));
    }
    answers
}

fn is_program(look: &Look, pid: u32) -> bool {
    let name = look.proc(&format!("/proc/{pid}/comm"));
    matches!(Path::new(name.trim()).to_str(), Some("ssvm" | "console-proxy"))
}

fn render(facts: &Facts) -> Checked {
    let mut lines = Lines::default();
    lines.resolver(facts);
    lines.stores(facts);
    lines.servers(facts);
    lines.process(facts);
    lines.say(RULE);
    lines.say("Tests Complete. Look for ERROR or WARNING above.");
    lines.0
}

#[derive(Default)]
struct Lines(Checked);

impl Lines {
    fn say(&mut self, line: impl AsRef<str>) {
        writeln!(self.0.text, "{}", line.as_ref()).expect("a String takes everything");
    }

    /// The first one counts.
    fn code(&mut self, code: u8) {
        if self.0.code == 0 {
            self.0.code = code;
        }
    }

    fn resolver(&mut self, facts: &Facts) {
        self.say(RULE);
        match facts.resolver {
            Some((first, answers)) => {
                self.say(format!("First DNS server is {first}"));
                if answers {
                    self.say("Good: Can ping DNS server");
                } else {
                    self.say("WARNING: cannot ping DNS server");
                    self.say(format!("See the route to it with: ip route get {first}"));
                }
            }
            None => self.say("WARNING: there is no DNS server in /etc/resolv.conf"),
        }
        self.say(RULE);
        let name = dns::NAME;
        if facts.resolves {
            self.say(format!("Good: DNS resolves {name}"));
        } else {
            self.say(format!("ERROR: DNS not resolving {name}"));
            self.say("No server of /etc/resolv.conf answers; is the zone's DNS right, and is there a way to it?");
            self.code(DNS);
        }
    }

    fn stores(&mut self, facts: &Facts) {
        if !facts.is_ssvm {
            return;
        }
        self.say(RULE);
        for (device, place, written) in &facts.mounts {
            self.say(format!("{device} is currently mounted on {place}"));
            match written {
                Ok(()) => self.say("Good: Can write to mount point"),
                Err(error) => {
                    self.say(format!("ERROR: Cannot write to mount point: {error}"));
                    self.say("You need to export with no_root_squash and rw to the storage address of this VM");
                }
            }
        }
        if facts.mounts.is_empty() {
            self.say("ERROR: NFS is not currently mounted");
            self.say("It is mounted when the management server sends a secondary store of the zone");
            for (ip, answers) in &facts.storage {
                self.say(if *answers {
                    format!("Good: Can ping storage address {ip}")
                } else {
                    format!("WARNING: cannot ping storage address {ip}; see: ip route get {ip}")
                });
            }
        }
    }

    fn servers(&mut self, facts: &Facts) {
        self.say(RULE);
        let port = facts.port;
        let is_any_there = facts.servers.iter().any(|(_, answer)| answer.is_ok());
        for (host, answer) in &facts.servers {
            self.say(format!("Management server is {host}. Checking connectivity."));
            match answer {
                Ok(()) => self.say(format!("Good: Can connect to management server {host} port {port}")),
                Err(error) if is_any_there => {
                    self.say(format!("WARNING: Cannot connect to {host} port {port}: {error}"));
                }
                Err(error) => self.say(format!("ERROR: Cannot connect to {host} port {port}: {error}")),
            }
        }
        if facts.servers.is_empty() {
            self.say("ERROR: the boot arguments in /var/cache/cloud/cmdline name no management server");
        }
        if !is_any_there {
            self.code(NO_SERVER);
        }
    }

    fn process(&mut self, facts: &Facts) {
        self.say(RULE);
        if let Some(pid) = facts.process {
            self.say(format!("Good: The agent's process is running ({pid})"));
        } else {
            self.say("ERROR: The agent's process is not running. Try: systemctl restart cloud");
            self.code(NO_PROCESS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            is_ssvm: true,
            resolver: Some(("192.0.2.53".parse().unwrap(), true)),
            resolves: true,
            mounts: vec![("192.0.2.5:/export".into(), "/mnt/SecStorage/x".into(), Ok(()))],
            storage: Vec::new(),
            port: 8250,
            servers: vec![("192.0.2.10".into(), Ok(()))],
            process: Some(700),
        }
    }

    #[test]
    fn a_healthy_run_is_what_integration_tests_count() {
        let Checked { text, code } = render(&healthy());
        insta::assert_snapshot!(text);
        assert_eq!(code, 0);
        for word in ["ERROR", "WARNING"] {
            assert_eq!(text.matches(word).count(), 1);
            assert!(text.lines().last().unwrap().contains(word));
        }
        assert!(!text.contains("FAIL"));
        let is_known = |line: &str| line.starts_with("Good:");
        assert_eq!(text.lines().filter(|line| is_known(line)).count(), 5);
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_check_that_matters() {
        let code = |change: fn(&mut Facts)| {
            let mut facts = healthy();
            change(&mut facts);
            let Checked { text, code } = render(&facts);
            let errors = text.lines().filter(|line| line.starts_with("ERROR:")).count();
            let warnings = text.lines().filter(|line| line.starts_with("WARNING:")).count();
            (code, errors, warnings)
        };
        assert_eq!(
            code(|facts| facts.resolver = Some(("192.0.2.53".parse().unwrap(), false))),
            (0, 0, 1)
        );
        assert_eq!(code(|facts| facts.resolves = false), (2, 1, 0));
        assert_eq!(
            code(|facts| facts.servers[0].1 = Err("Connection refused".into())),
            (4, 1, 0)
        );
        assert_eq!(
            code(|facts| facts.servers.push(("192.0.2.11".into(), Err("no answer".into())))),
            (0, 0, 1)
        );
        assert_eq!(code(|facts| facts.process = None), (3, 1, 0));
        assert_eq!(
            code(|facts| facts.mounts[0].2 = Err("Permission denied".into())),
            (0, 1, 0)
        );
        let no_store = |facts: &mut Facts| {
            facts.mounts.clear();
            facts.storage = vec![("192.0.2.5".parse().unwrap(), false)];
        };
        assert_eq!(code(no_store), (0, 1, 1));
        let nothing = render(&Facts::default());
        assert_eq!(nothing.code, 2, "{}", nothing.text);
    }

    #[tokio::test]
    async fn a_machine_that_is_no_system_vm_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let checked = run(&Root::new(directory.path())).await;
        assert_eq!(checked.code, 2);
        assert!(checked.text.contains("ERROR: The agent's process is not running"));
    }
}
