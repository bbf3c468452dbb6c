//! Is this system VM well, and if not, what is to be done? Every check has a name, a time limit, and says in words what it
//! found. All run at once; whatever hangs, the report is there after [`LIMIT`].
//!
//! | module | |
//! |---|---|
//! | `look` | what the checks have in common: the boot arguments, units, listening sockets, mounts |
//! | `boot` | the boot, the line, units, time, memory, disk |
//! | `network` | NICs, gateways, name servers, management servers, ports |
//! | `dns` | a question to a name server |
//! | `service` | the program of an SSVM or CPVM: unit, link, certificate, stores |
//! | [`ssvm_check`] | the same as `ssvm-check.sh` says it (§8.4) |

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::root::Root;

mod boot;
mod dns;
mod look;
mod network;
mod service;
pub mod ssvm_check;

pub use look::{Line, Look};

/// For all checks together.
pub const LIMIT: Duration = Duration::from_secs(15);
/// For one question to a peer.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// For one program on this machine, which may be busy and slow.
const RUN_LIMIT: Duration = Duration::from_secs(10);

/// How good or bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The VM does its work, but somebody should look.
    Warning,
    /// The VM cannot do its work.
    Error,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check, such as `gateway`.
    pub check: String,
    /// How it is.
    pub outcome: Outcome,
    /// What it is about, when there are several: an address, a mount, a unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// What was found, for people. No secrets.
    pub what: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Finding {
    fn new(check: &str, outcome: Outcome, what: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            outcome,
            about: None,
            what: what.into(),
            todo: None,
        }
    }

    fn ok(check: &str, what: impl Into<String>) -> Self {
        Self::new(check, Outcome::Ok, what)
    }

    fn warning(check: &str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            todo: Some(todo.into()),
            ..Self::new(check, Outcome::Warning, what)
        }
    }

    fn error(check: &str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            todo: Some(todo.into()),
            ..Self::new(check, Outcome::Error, what)
        }
    }

    fn about(self, about: impl Display) -> Self {
        Self {
            about: Some(about.to_string()),
            ..self
        }
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The worst of all findings.
    pub outcome: Outcome,
    /// The name of the VM in its boot arguments.
    pub name: Option<String>,
    /// Its type in its boot arguments, such as `secstorage`.
    #[serde(rename = "type")]
    pub vm_type: Option<String>,
    /// How long the checks took.
    pub took_ms: u64,
    /// One or more for each check.
    pub findings: Vec<Finding>,
}

/// The checks, in the order in which they are reported: each is nearer to the service than the one before.
const CHECKS: [&str; 14] = [
    "boot",
    "line",
    "units",
    "memory",
    "disk",
    "time",
    "nics",
    "gateway",
    "dns",
    "management-server",
    "listening",
    "service",
    "certificate",
    "storage",
];

/// Runs every check that belongs to this type of VM.
pub async fn run(root: &Root) -> Report {
    let started = Instant::now();
    let deadline = tokio::time::Instant::now() + LIMIT;
    let look = Look::at(root);
    let mut checks = JoinSet::new();
    let mut running: Vec<&'static str> = Vec::new();
    for check in CHECKS.into_iter().filter(|check| look.is_wanted(check)) {
        running.push(check);
        let look = look.clone();
        checks.spawn(async move { (check, one(check, &look).await) });
    }
    let mut findings = Vec::new();
    while let Ok(Some(done)) = timeout_at(deadline, checks.join_next()).await {
        if let Ok((check, found)) = done {
            running.retain(|other| *other != check);
            findings.extend(found);
        }
    }
    // A check that panicked is there, too: nothing is left out silently.
    findings.extend(running.into_iter().map(|check| {
        Finding::warning(
            check,
            format!("no answer within {LIMIT:?}"),
            "the machine is very busy or something hangs: look at `journalctl -b` and try again",
        )
    }));
    findings.sort_by_key(|finding| CHECKS.iter().position(|check| *check == finding.check));
    Report {
        outcome: worst(&findings),
        name: look.name(),
        vm_type: look.vm_type().map(|vm_type| vm_type.to_string()),
        took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        findings,
    }
}

async fn one(check: &str, look: &Look) -> Vec<Finding> {
    match check {
        "boot" => boot::boot(look),
        "line" => boot::line(look),
        "units" => boot::units().await,
        "memory" => boot::memory(look),
        "disk" => boot::disk(look),
        "time" => boot::time().await,
        "nics" => network::nics(look),
        "gateway" => network::gateways(look).await,
        "dns" => network::name_servers(look).await,
        "management-server" => network::management_servers(look).await,
        "listening" => network::listening(look),
        "service" => service::service(look).await,
        "certificate" => service::certificate(look),
        "storage" => service::stores(look).await,
        _ => Vec::new(),
    }
}

/// The worst outcome; good when nothing was found.
fn worst(findings: &[Finding]) -> Outcome {
    let outcomes = findings.iter().map(|finding| finding.outcome);
    outcomes.max().unwrap_or(Outcome::Ok)
}

impl Report {
    /// The first finding that is as bad as the whole.
    pub fn first_problem(&self) -> Option<&Finding> {
        let mut findings = self.findings.iter();
        findings.find(|finding| finding.outcome != Outcome::Ok && finding.outcome == self.outcome)
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
        })
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("this VM, which has no name yet");
        let vm_type = self.vm_type.as_deref().unwrap_or("type not known");
        writeln!(f, "{name} ({vm_type})\n")?;
        for finding in &self.findings {
            let about = finding.about.as_deref().map(|about| format!("{about}: "));
            let (outcome, check) = (finding.outcome, &finding.check);
            writeln!(f, "{outcome:8}{check:19}{}{}", about.unwrap_or_default(), finding.what)?;
            if let Some(todo) = &finding.todo {
                writeln!(f, "{:27}-> {todo}", "")?;
            }
        }
        let count = |outcome| self.findings.iter().filter(|found| found.outcome == outcome).count();
        let (errors, warnings) = (count(Outcome::Error), count(Outcome::Warning));
        write!(f, "\n{} checks in {} ms: ", self.findings.len(), self.took_ms)?;
        match (errors, warnings) {
            (0, 0) => writeln!(f, "all good"),
            _ => writeln!(f, "{errors} errors, {warnings} warnings"),
        }
    }
}
