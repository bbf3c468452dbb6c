//! What is known of a VM's start: what we do and what the VM tells of itself, folded into one [`Progress`].
//!
//! Pure. What a VM tells is hostile: lengths and counts are bounded here, and it becomes plain text.

use std::time::Duration;

use hypervisor::guest_channel::{
    BootProgress, CheckOutcome, Finding, Heartbeat, Link, LinkState, Memory, Outcome as GuestOutcome, Report,
};
use time::OffsetDateTime;

use crate::driver::last_words::plain;
use crate::driver::{Outcome, Progress, Step};

/// A boot has eleven.
const MAX_GUEST_STEPS: usize = 32;
/// Characters of a text from the VM.
const MAX_TEXT: usize = 400;
/// A VM that has less than this part of its memory left is about to end programs.
const SHORT_OF_MEMORY: u64 = 20;
/// Checks that fail because there is no link, or while the program starts.
const CONSEQUENCES: [&str; 3] = ["listening", "service", "units"];
/// A clock that says more is broken.
const MAX_UPTIME: Duration = Duration::from_hours(24 * 3650);

/// What we do in a start, in order. The names are those of [`Progress::steps`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    /// Disk, NICs, and the QEMU process.
    Qemu,
    /// It answers.
    GuestAgent,
    /// They are written.
    BootArguments,
    /// Port 3922 is open on the control address, and lets us in.
    Ssh,
    /// What a host looks for before it believes in a system VM.
    Files,
    /// Its certificate and key are imported.
    Certificate,
}

impl Deed {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::GuestAgent => "guest agent",
            Self::BootArguments => "boot arguments",
            Self::Ssh => "ssh",
            Self::Files => "files",
            Self::Certificate => "certificate",
        }
    }

    /// How long it may take on a machine with KVM; times the factor of the accelerator. A KVM host waits for 300 s for the
    /// guest agent, ten minutes each for ssh and for the files (appliance.md §3.2): who looks at a screen gives up earlier,
    /// and the next start begins anew.
    pub(super) fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Qemu => 30,
            Self::GuestAgent | Self::Ssh | Self::Certificate => 60,
            Self::BootArguments | Self::Files => 20,
        })
    }

    /// What a person can do when it fails.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::Qemu => "see its log; is there memory, disk space and QEMU?",
            Self::GuestAgent => {
                "does the image boot? its console says more; give it more time on a slow machine with --kvm on"
            }
            Self::BootArguments => "the image must run the QEMU guest agent and have /var/cache/cloud",
            Self::Ssh => "its console and its boot steps say why it has no control network",
            Self::Files => "the image must have /opt/cloud/bin/patched.sh and /opt/cloud/bin/keystore-cert-import",
            Self::Certificate => "`agent check` in the VM says more",
        }
    }
}

/// All that is known.
#[derive(Clone, Default, Debug)]
pub(super) struct Facts {
    /// With the times when they began.
    own: Vec<(OffsetDateTime, Step)>,
    failure: Option<String>,
    boot: Option<BootProgress>,
    /// When its kernel started, by our clock.
    kernel_started: Option<OffsetDateTime>,
    link: Option<Link>,
    check: Option<Report>,
    /// At the last sign of life.
    memory: Memory,
}

impl Facts {
    /// A step begins.
    pub(super) fn begin(&mut self, deed: Deed, now: OffsetDateTime) {
        let step = Step {
            name: deed.name().into(),
            outcome: Outcome::Running,
            at: now,
            detail: String::new(),
        };
        self.own.push((now, step));
    }

    /// The last step is over.
    pub(super) fn done(&mut self, detail: impl Into<String>, now: OffsetDateTime) {
        self.end(Outcome::Done, detail.into(), now);
    }

    /// The last step has failed, and the start with it.
    pub(super) fn failed(&mut self, why: &str, now: OffsetDateTime) {
        self.end(Outcome::Failed, why.to_owned(), now);
        self.failure = Some(why.to_owned());
    }

    fn end(&mut self, outcome: Outcome, detail: String, now: OffsetDateTime) {
        if let Some((_, step)) = self.own.last_mut() {
            (step.outcome, step.detail, step.at) = (outcome, detail, now);
        }
    }

    /// The VM says how its boot is.
    pub(super) fn boot(&mut self, boot: BootProgress, now: OffsetDateTime) {
        if self.kernel_started.is_none() {
            // Too late a guess until the first heartbeat: some of the steps may have been over for long.
            let latest = boot.steps.iter().map(|step| step.at_ms).max().unwrap_or_default();
            self.kernel_started = before(now, Duration::from_millis(latest));
        }
        self.boot = Some(boot);
    }

    /// The VM says for how long it has been running, and what memory it has left.
    pub(super) fn heartbeat(&mut self, heartbeat: &Heartbeat, now: OffsetDateTime) {
        self.kernel_started = before(now, Duration::from_millis(heartbeat.uptime_ms));
        self.memory = heartbeat.memory;
    }

    /// The VM says how its link to a management server is.
    pub(super) fn link(&mut self, link: Option<Link>) {
        self.link = link;
    }

    /// The VM has checked itself.
    pub(super) fn check(&mut self, report: Report) {
        self.check = Some(report);
    }

    /// It runs since an earlier server has started it.
    pub(super) fn found(&mut self, pid: i32, now: OffsetDateTime) {
        self.begin(Deed::Qemu, now);
        self.done(format!("process {pid}, started by an earlier management server"), now);
    }

    /// It boots again: what it told before is old, and what was done to it, but for the machine itself.
    pub(super) fn restarted(&mut self) {
        self.own.truncate(1);
        *self = Self {
            own: std::mem::take(&mut self.own),
            ..Self::default()
        };
    }

    /// Why the boot arguments are of no use, when the VM says so: no time makes them better.
    pub(super) fn bad_arguments(&self) -> Option<String> {
        let boot = self.boot.as_ref()?;
        let failed = |name: &str| {
            let mut steps = boot.steps.iter().filter(|step| step.step == name);
            steps.any(|step| step.outcome == GuestOutcome::Failed)
        };
        (failed("line") || failed("arguments"))
            .then(|| self.guest_problem().unwrap_or_else(|| "they make no sense".into()))
    }

    /// What stands in the way, as the VM sees it.
    pub(super) fn guest_problem(&self) -> Option<String> {
        let boot = self.boot.as_ref();
        let told = boot.and_then(|boot| boot.problem.as_deref()).map(bounded);
        told.or_else(|| self.memory_problem()).or_else(|| {
            // The link says what is wrong, a check perhaps why.
            let parts: Vec<String> = self.link_problem().into_iter().chain(self.check_problem()).collect();
            (!parts.is_empty()).then(|| parts.join("; "))
        })
    }

    fn memory_problem(&self) -> Option<String> {
        let Memory {
            mem_total,
            mem_available,
            ..
        } = self.memory;
        (mem_available < mem_total / SHORT_OF_MEMORY).then(|| {
            format!(
                "it is out of memory: {} of {} MiB are left; give it more (consoleproxy.ram.size, secstorage.vm.ram.size)",
                mem_available / 1024,
                mem_total / 1024
            )
        })
    }

    /// Whether the VM has a reason to be looked into: it is up, and its agent is not linked.
    pub(super) fn wants_check(&self) -> bool {
        self.boot.as_ref().is_some_and(|boot| boot.ready) && self.link_problem().is_some()
    }

    fn link_problem(&self) -> Option<String> {
        let link = self.link.as_ref().filter(|link| link.state != LinkState::Ready)?;
        let why = bounded(link.last_error.as_deref()?);
        let to = link.server.as_deref().map(|server| format!(" to {}", bounded(server)));
        Some(format!("its agent has no link{}: {why}", to.unwrap_or_default()))
    }

    fn check_problem(&self) -> Option<String> {
        if self.link.as_ref()?.state == LinkState::Ready {
            return None;
        }
        let mut findings = self.check.iter().flat_map(|report| &report.findings);
        findings
            .find(|finding| finding.outcome == CheckOutcome::Error && !CONSEQUENCES.contains(&finding.check.as_str()))
            .map(said)
    }

    /// For those who look.
    pub(super) fn progress(&self) -> Progress {
        let own = self.own.iter().cloned();
        let mut steps: Vec<(OffsetDateTime, Step)> = own.chain(self.guest_steps()).collect();
        // Stable: ours come first where the times are equal.
        steps.sort_by_key(|(began, _)| *began);
        Progress {
            steps: steps.into_iter().map(|(_, step)| step).collect(),
            problem: self.failure.clone().or_else(|| self.guest_problem()),
        }
    }

    fn guest_steps(&self) -> impl Iterator<Item = (OffsetDateTime, Step)> {
        let started = self.kernel_started;
        let boot = self.boot.iter().flat_map(|boot| &boot.steps).take(MAX_GUEST_STEPS);
        boot.filter_map(move |step| {
            let at = started?.checked_add(Duration::from_millis(step.at_ms).min(MAX_UPTIME).try_into().ok()?)?;
            let outcome = match step.outcome {
                GuestOutcome::Running => Outcome::Running,
                GuestOutcome::Waiting => Outcome::Waiting,
                GuestOutcome::Done => Outcome::Done,
                GuestOutcome::Failed => Outcome::Failed,
            };
            let step = Step {
                name: format!("boot: {}", bounded(&step.step)),
                outcome,
                at,
                detail: bounded(&step.detail),
            };
            Some((at, step))
        })
    }
}

fn said(finding: &Finding) -> String {
    let todo = finding.todo.as_deref().map(|todo| format!("; {}", bounded(todo)));
    format!(
        "{}: {}{}",
        bounded(&finding.check),
        bounded(&finding.what),
        todo.unwrap_or_default()
    )
}

fn bounded(text: &str) -> String {
    let start: String = text.chars().take(MAX_TEXT).collect();
    plain(&start)
}

fn before(now: OffsetDateTime, age: Duration) -> Option<OffsetDateTime> {
    now.checked_sub(age.min(MAX_UPTIME).try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use hypervisor::guest_channel::{Message, Step as GuestStep};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
    }

    fn said_by_guest(message: &Value) -> Message {
        Message::parse(message.to_string().as_bytes()).unwrap()
    }

    fn tell(facts: &mut Facts, message: &Value, now: OffsetDateTime) {
        match said_by_guest(message) {
            Message::BootProgress(boot) => facts.boot(boot, now),
            Message::AgentState(link) => facts.link(link),
            Message::CheckResult { report, .. } => facts.check(report),
            Message::Heartbeat(heartbeat) => facts.heartbeat(&heartbeat, now),
            other => panic!("{other:?}"),
        }
    }

    /// Of a VM with 1000 MiB.
    fn heartbeat(uptime_ms: u64, available_mib: u64) -> Value {
        let memory = json!({"mem_total": 1000 << 10, "mem_available": available_mib << 10});
        json!({"__name__": "heartbeat", "free-ram": "7", "memory-stat": memory, "uptime-ms": uptime_ms})
    }

    #[test]
    fn a_vm_without_memory_is_told_from_one_that_has_some() {
        let mut facts = Facts::default();
        assert_eq!(facts.guest_problem(), None, "it has not said anything");
        tell(&mut facts, &heartbeat(1, 49), at(0));
        let problem = facts.guest_problem().unwrap();
        assert!(
            problem.starts_with("it is out of memory: 49 of 1000 MiB are left"),
            "{problem}"
        );
        tell(&mut facts, &heartbeat(1, 50), at(5));
        assert_eq!(facts.guest_problem(), None);
    }

    fn shown(facts: &Facts) -> Vec<String> {
        let line = |step: &Step| format!("{} {:?} {}", step.name, step.outcome, (step.at - at(0)).whole_seconds());
        facts.progress().steps.iter().map(line).collect()
    }

    #[test]
    fn steps_of_both_sides_stand_in_the_order_in_which_they_began() {
        let mut facts = Facts::default();
        facts.begin(Deed::Qemu, at(0));
        facts.done("process 7", at(1));
        facts.begin(Deed::GuestAgent, at(1));
        let steps = json!([
            {"step": "hypervisor", "outcome": "done", "at_ms": 5000, "detail": "kvm"},
            {"step": "line", "outcome": "waiting", "at_ms": 6000, "detail": ""},
        ]);
        tell(
            &mut facts,
            &json!({"__name__": "boot-progress", "ready": false, "steps": steps}),
            at(9),
        );
        assert_eq!(
            shown(&facts),
            [
                "qemu Done 1",
                "guest agent Running 1",
                "boot: hypervisor Done 8",
                "boot: line Waiting 9"
            ]
        );
        // A heartbeat knows better when the kernel started.
        tell(&mut facts, &heartbeat(7000, 500), at(9));
        assert_eq!(shown(&facts)[2..], ["boot: hypervisor Done 7", "boot: line Waiting 8"]);
        assert_eq!(facts.progress().problem, None);
    }

    #[test]
    fn what_stands_in_the_way_is_told_by_who_knows_it_best() {
        let mut facts = Facts::default();
        tell(
            &mut facts,
            &json!({"__name__": "boot-progress", "ready": true, "steps": []}),
            at(0),
        );
        let link = json!({"state": "connecting", "server": "172.31.1.1:8250", "last_error": "no route to host"});
        tell(&mut facts, &json!({"__name__": "agent-state", "link": link}), at(1));
        assert!(facts.wants_check());
        assert_eq!(
            facts.progress().problem.unwrap(),
            "its agent has no link to 172.31.1.1:8250: no route to host"
        );
        let other = json!({"check": "listening", "outcome": "error", "what": "nobody listens for consoles"});
        let finding = json!({"check": "gateway", "outcome": "error", "what": "172.31.1.1 does not answer", "todo": "look at its NIC"});
        let report = json!({"outcome": "error", "findings": [other, finding]});
        tell(
            &mut facts,
            &json!({"__name__": "check-result", "id": 1, "report": report}),
            at(2),
        );
        assert_eq!(
            facts.progress().problem.unwrap(),
            "its agent has no link to 172.31.1.1:8250: no route to host; gateway: 172.31.1.1 does not answer; look at its NIC"
        );
        tell(
            &mut facts,
            &json!({"__name__": "agent-state", "link": {"state": "ready"}}),
            at(3),
        );
        assert!(!facts.wants_check());
        assert_eq!(
            facts.progress().problem,
            None,
            "what was wrong before is not told any more"
        );
        facts.failed("step `ssh` of its start failed", at(4));
        assert_eq!(facts.progress().problem.unwrap(), "step `ssh` of its start failed");
    }

    #[test]
    fn bad_arguments_are_known_before_any_time_is_over() {
        let mut facts = Facts::default();
        let boot = |outcome: &str| {
            let steps = json!([{"step": "arguments", "outcome": outcome, "at_ms": 1}]);
            json!({"__name__": "boot-progress", "ready": false, "problem": "eth0ip is no address", "steps": steps})
        };
        tell(&mut facts, &boot("running"), at(0));
        assert_eq!(facts.bad_arguments(), None);
        tell(&mut facts, &boot("failed"), at(0));
        assert_eq!(facts.bad_arguments().unwrap(), "eth0ip is no address");
        facts.restarted();
        assert_eq!(facts.bad_arguments(), None, "it boots again");
    }

    proptest! {
        #[test]
        fn whatever_a_vm_tells_is_bounded_plain_text(
            names in prop::collection::vec((any::<String>(), any::<u64>(), any::<String>()), 0..80),
            problem: String, uptime: u64,
        ) {
            let mut facts = Facts::default();
            let steps = names.into_iter().map(|(step, at_ms, detail)| GuestStep {
                step, at_ms, detail, outcome: GuestOutcome::Done,
            });
            let boot = BootProgress { ready: false, problem: Some(problem), steps: steps.collect() };
            facts.boot(boot, at(0));
            tell(&mut facts, &heartbeat(uptime, 500), at(0));
            let progress = facts.progress();
            prop_assert!(progress.steps.len() <= MAX_GUEST_STEPS);
            let texts = progress.steps.iter().flat_map(|step| [&step.name, &step.detail]).chain(&progress.problem);
            for text in texts {
                prop_assert!(text.chars().count() <= MAX_TEXT + 6 && !text.contains(char::is_control), "{text:?}");
            }
        }
    }
}
