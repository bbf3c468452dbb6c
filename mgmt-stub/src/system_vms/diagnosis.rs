//! Why a system VM is not of use, for people: one answer for the API, the page and the log.
//!
//! Nothing is remembered: it is found from what the store, the driver and the agent's link say at this moment.

use std::time::Duration;

use time::OffsetDateTime;

use super::place::Place;
use super::{CANNOT_BE_STARTED, RUNNING};
use crate::configuration::{
    AGENT_SILENCE_LIMIT, AGENT_START_LIMIT, CONSOLEPROXY_RESTART, Configuration, HA_ENABLED, HYPERVISOR_SILENCE_LIMIT,
};
use crate::driver::{Driver, Outcome, Power};
use crate::host_status::HostStatus;
use crate::instance_state::InstanceState;
use crate::store::host::Host;
use crate::store::instance::{Instance, InstanceType};

/// Why a system VM is not of use now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnosis {
    /// What is wrong, or what it waits for.
    pub reason: String,
    /// What a person can do about it; nothing, where it mends itself.
    pub what_to_do: Option<String>,
    /// Since when it is so.
    pub since: OffsetDateTime,
}

/// What there is to know.
pub(super) struct Facts<'a> {
    pub(super) vm: &'a Instance,
    pub(super) host: Option<&'a Host>,
    pub(super) driver: &'a dyn Driver,
    pub(super) place: &'a Place,
    pub(super) limits: &'a Limits,
}

/// After how long a VM that is of no use is started again; zero: never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    hang: Duration,
    agent_start: Duration,
    agent_silence: Duration,
    is_ha_enabled: bool,
    are_proxies_restarted: bool,
}

impl Limits {
    pub(super) fn of(configuration: &Configuration) -> Self {
        Self {
            hang: configuration.time(&HYPERVISOR_SILENCE_LIMIT),
            agent_start: configuration.time(&AGENT_START_LIMIT),
            agent_silence: configuration.time(&AGENT_SILENCE_LIMIT),
            is_ha_enabled: configuration.flag(&HA_ENABLED),
            are_proxies_restarted: configuration.flag(&CONSOLEPROXY_RESTART),
        }
    }

    /// What happens without help, or that help is needed.
    fn after(&self, vm: &Instance, limit: Duration, help: &str) -> String {
        let is_restarted = vm.kind != InstanceType::ConsoleProxy || self.are_proxies_restarted;
        if limit.is_zero() || !self.is_ha_enabled || !is_restarted {
            format!("{help}, or reboot it")
        } else {
            format!(
                "wait: after {} s of this it is started again; else {help}",
                limit.as_secs()
            )
        }
    }
}

pub(super) fn of(facts: &Facts<'_>) -> Option<Diagnosis> {
    let vm = facts.vm;
    if vm.state != InstanceState::Running {
        return Some(not_running(facts));
    }
    let name = vm.name.as_str();
    if let Power::Off(reason) = facts.driver.power(name) {
        return Some(Diagnosis {
            reason,
            what_to_do: None,
            since: OffsetDateTime::now_utc(),
        });
    }
    if let Some(since) = facts.driver.silent_since(name) {
        let reason = "it is on, but hangs: it does not answer the hypervisor".to_owned();
        let help = "look at this machine's load and at the VM's log";
        let what_to_do = Some(facts.limits.after(vm, facts.limits.hang, help));
        return Some(Diagnosis {
            reason,
            what_to_do,
            since,
        });
    }
    match facts.host {
        Some(host) if host.status == HostStatus::Up => although_up(facts),
        host => Some(without_agent(facts, host)),
    }
}

fn not_running(facts: &Facts<'_>) -> Diagnosis {
    let vm = facts.vm;
    let told = format!("{}: {}", vm.state, vm.reason);
    let (reason, what_to_do) = match vm.state {
        InstanceState::Starting => match step(facts) {
            Some(words) => (format!("{told}; {words}"), None),
            None => (told, None),
        },
        InstanceState::Stopped if vm.reason.starts_with(CANNOT_BE_STARTED) => {
            let help = "remove the cause; it is tried again without help, or start it (startSystemVm)";
            (told, Some(help.to_owned()))
        }
        InstanceState::Stopped => {
            let help = "start it (startSystemVm); where one is needed it is started without help";
            (told, Some(help.to_owned()))
        }
        InstanceState::Error => (told, Some("destroy it (destroySystemVm); a new one is made".to_owned())),
        _ => (told, None),
    };
    Diagnosis {
        reason,
        what_to_do,
        since: vm.since,
    }
}

/// Its agent is Up, and it cannot do its work all the same.
fn although_up(facts: &Facts<'_>) -> Option<Diagnosis> {
    let vm = facts.vm;
    if vm.kind == InstanceType::SecondaryStorageVm
        && let Some((since, store)) = facts.driver.storage_silent_since()
    {
        return Some(Diagnosis {
            reason: format!("it is Up, but the secondary storage {store} does not answer"),
            what_to_do: Some(
                "wait: the NFS server is started again if it does not come back by itself, and downloads go on".into(),
            ),
            since,
        });
    }
    let problem = facts.driver.progress(&vm.name)?.problem?;
    Some(Diagnosis {
        reason: format!("it is Up, but {problem}"),
        what_to_do: None,
        since: vm.since,
    })
}

/// It is on, and its agent is not Up.
fn without_agent(facts: &Facts<'_>, host: Option<&Host>) -> Diagnosis {
    let vm = facts.vm;
    let state = match vm.reason.as_str() {
        RUNNING => "it runs",
        reason => reason,
    };
    let (agent, since, limit) = match host {
        None => ("has not connected yet".to_owned(), vm.since, facts.limits.agent_start),
        Some(host) => (
            format!("is {}: {}", host.status, host.status_reason),
            host.disconnected.unwrap_or(vm.since).max(vm.since),
            facts.limits.agent_silence,
        ),
    };
    let progress = facts.driver.progress(&vm.name);
    // What the VM says of itself says more than that its agent is missing.
    if let Some(problem) = progress.and_then(|progress| progress.problem) {
        return Diagnosis {
            reason: format!("{state}, but {problem}"),
            what_to_do: Some(facts.limits.after(vm, limit, "do what the problem names")),
            since,
        };
    }
    let mut reason = format!("{state}, but its agent {agent}");
    if host.is_none()
        && let Some(words) = step(facts)
    {
        reason = format!("{reason}; {words}");
    }
    if let Some(words) = facts.driver.last_words(&vm.name) {
        reason = format!("{reason}; last log line: {words}");
    }
    let servers = facts.place.servers.join(", ");
    let help = format!("see in its log whether it reaches {servers} port {}", facts.place.port);
    Diagnosis {
        reason,
        what_to_do: Some(facts.limits.after(vm, limit, &help)),
        since,
    }
}

/// Where its start is, in words: the problem that it tells, or the last step that is not over.
fn step(facts: &Facts<'_>) -> Option<String> {
    let progress = facts.driver.progress(&facts.vm.name)?;
    if progress.problem.is_some() {
        return progress.problem;
    }
    let last = progress.steps.iter().rev().find(|step| step.outcome != Outcome::Done)?;
    let outcome = match last.outcome {
        Outcome::Running | Outcome::Done => "goes on",
        Outcome::Waiting => "waits",
        Outcome::Failed => "has failed",
    };
    let words = format!("{} {outcome}", last.name);
    Some(match last.detail.as_str() {
        "" => words,
        detail => format!("{words}: {detail}"),
    })
}

#[cfg(test)]
mod tests;
