use time::macros::datetime;
use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::driver::{Doing, Progress, Step, VmSpec};
use crate::store::host::{HostNic, HostType};
use crate::store::id::{AccountId, HostId, InstanceId, PodId, ZoneId};

/// Says what it is told to say.
#[derive(Default)]
struct FakeDriver {
    off: Option<String>,
    silent: Option<OffsetDateTime>,
    progress: Option<Progress>,
    words: Option<String>,
}

impl Driver for FakeDriver {
    fn hypervisor(&self) -> &'static str {
        "Fake"
    }

    fn start<'a>(&'a self, _vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn stop<'a>(&'a self, _name: &'a str) -> Doing<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn destroy<'a>(&'a self, _name: &'a str) -> Doing<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn power(&self, _name: &str) -> Power {
        self.off.clone().map_or(Power::On, Power::Off)
    }

    fn last_words(&self, _name: &str) -> Option<String> {
        self.words.clone()
    }

    fn progress(&self, _name: &str) -> Option<Progress> {
        self.progress.clone()
    }

    fn silent_since(&self, _name: &str) -> Option<OffsetDateTime> {
        self.silent
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

const STARTED: OffsetDateTime = datetime!(2026-11-20 12:00:00 UTC);
const LATER: OffsetDateTime = datetime!(2026-11-20 12:05:00 UTC);

fn vm(state: InstanceState, reason: &str) -> Instance {
    Instance {
        id: InstanceId(1),
        uuid: Uuid::nil(),
        name: "s-1-VM".into(),
        display_name: "s-1-VM".into(),
        kind: InstanceType::SecondaryStorageVm,
        hypervisor: "Fake".into(),
        state,
        reason: reason.into(),
        since: STARTED,
        update_count: 1,
        zone: ZoneId(1),
        pod: Some(PodId(1)),
        account: AccountId(1),
        role: None,
        os_type: None,
        public_ip: None,
        console_port: None,
        vnc: None,
        active_sessions: 0,
        last_load: None,
        created: STARTED,
        removed: None,
    }
}

fn host(status: HostStatus, reason: &str) -> Host {
    Host {
        id: HostId(1),
        uuid: Uuid::nil(),
        guid: "s-1-VM-NfsSecondaryStorageResource".into(),
        name: "s-1-VM".into(),
        host_type: HostType::SecondaryStorageVm,
        zone: ZoneId(1),
        pod: Some(PodId(1)),
        status,
        status_reason: reason.into(),
        version: String::new(),
        arch: "x86_64".into(),
        private: HostNic::default(),
        public: HostNic::default(),
        storage: HostNic::default(),
        ms_host_list: None,
        proxy_port: None,
        active_sessions: 0,
        created: STARTED,
        last_ping: None,
        disconnected: Some(LATER),
        removed: None,
    }
}

fn diagnose(vm: &Instance, host: Option<&Host>, driver: &FakeDriver) -> Option<Diagnosis> {
    let limits = Limits {
        hang: Duration::from_secs(30),
        agent_start: Duration::from_mins(5),
        agent_silence: Duration::ZERO,
        is_ha_enabled: true,
        are_proxies_restarted: true,
    };
    let place = Place {
        zone: ZoneId(1),
        pod: PodId(1),
        servers: vec!["192.0.2.10".into()],
        port: 8250,
        console: "127.0.0.1:6080".parse().unwrap(),
        authorized_key: None,
        networks: None,
    };
    of(&Facts {
        vm,
        host,
        driver,
        place: &place,
        limits: &limits,
    })
}

/// Reason, what to do, since when.
fn told(diagnosis: Option<Diagnosis>) -> (String, Option<String>, OffsetDateTime) {
    let diagnosis = diagnosis.unwrap();
    (diagnosis.reason, diagnosis.what_to_do, diagnosis.since)
}

fn expected(reason: &str, what_to_do: Option<&str>, since: OffsetDateTime) -> (String, Option<String>, OffsetDateTime) {
    (reason.to_owned(), what_to_do.map(str::to_owned), since)
}

fn step(name: &str, outcome: Outcome, detail: &str) -> Step {
    Step {
        name: name.into(),
        outcome,
        at: LATER,
        detail: detail.into(),
    }
}

#[test]
fn one_that_is_up_needs_none() {
    let up = host(HostStatus::Up, "agent is ready");
    let running = vm(InstanceState::Running, "running");
    assert_eq!(diagnose(&running, Some(&up), &FakeDriver::default()), None);
}

#[test]
fn what_is_nearest_to_the_cause_comes_first() {
    let up = host(HostStatus::Up, "agent is ready");
    let running = vm(InstanceState::Running, "running");
    let silent = FakeDriver {
        silent: Some(LATER),
        ..FakeDriver::default()
    };
    assert_eq!(
        told(diagnose(&running, Some(&up), &silent)),
        expected(
            "it is on, but hangs: it does not answer the hypervisor",
            Some("wait: after 30 s of this it is started again; else look at this machine's load and at the VM's log"),
            LATER,
        )
    );
    let off = FakeDriver {
        off: Some("exited: signal 9".into()),
        ..silent
    };
    let found = diagnose(&running, Some(&up), &off).unwrap();
    assert_eq!((found.reason.as_str(), found.what_to_do), ("exited: signal 9", None));
}

#[test]
fn a_vm_without_agent_says_what_stands_in_its_way() {
    let running = vm(InstanceState::Running, "running");
    let steps = vec![
        step("ssh", Outcome::Done, ""),
        step("network", Outcome::Waiting, "for a link on eth1"),
    ];
    let problem = FakeDriver {
        progress: Some(Progress {
            steps: steps.clone(),
            problem: Some("the boot arguments lack eth1ip; look at the driver's log".into()),
        }),
        words: Some("something else".into()),
        ..FakeDriver::default()
    };
    assert_eq!(
        told(diagnose(&running, None, &problem)),
        expected(
            "it runs, but the boot arguments lack eth1ip; look at the driver's log",
            Some("wait: after 300 s of this it is started again; else do what the problem names"),
            STARTED,
        )
    );
    let waits = FakeDriver {
        progress: Some(Progress { steps, problem: None }),
        ..FakeDriver::default()
    };
    let help = "see in its log whether it reaches 192.0.2.10 port 8250";
    assert_eq!(
        told(diagnose(&running, None, &waits)),
        expected(
            "it runs, but its agent has not connected yet; network waits: for a link on eth1",
            Some(&format!("wait: after 300 s of this it is started again; else {help}")),
            STARTED,
        )
    );
    let gone = host(HostStatus::Alert, "the agent closed the connection");
    let words = FakeDriver {
        words: Some("cannot connect".into()),
        ..FakeDriver::default()
    };
    assert_eq!(
        told(diagnose(&running, Some(&gone), &words)),
        expected(
            "it runs, but its agent is Alert: the agent closed the connection; last log line: cannot connect",
            Some(&format!("{help}, or reboot it")), // the limit is 0
            LATER,
        )
    );
}

#[test]
fn a_vm_that_does_not_run_says_what_is_known_of_its_state() {
    let starting = vm(InstanceState::Starting, "being started");
    let ssh = FakeDriver {
        progress: Some(Progress {
            steps: vec![step("qemu", Outcome::Done, ""), step("ssh", Outcome::Running, "")],
            problem: None,
        }),
        ..FakeDriver::default()
    };
    assert_eq!(
        told(diagnose(&starting, None, &ssh)),
        expected("Starting: being started; ssh goes on", None, STARTED,)
    );
    let failed = vm(InstanceState::Stopped, "cannot be started: no image");
    assert_eq!(
        told(diagnose(&failed, None, &FakeDriver::default())),
        expected(
            "Stopped: cannot be started: no image",
            Some("remove the cause; it is tried again without help, or start it (startSystemVm)"),
            STARTED,
        )
    );
}
