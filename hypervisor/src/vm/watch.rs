//! Watches a VM: keeps its monitor connected, hears its events, and sees its end.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use platform::exec::{Detached, Process};
use serde_json::json;
use tokio::sync::{broadcast, watch};
use tokio::time::{interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::ended::Ended;
use super::{Places, limits, logs};
use crate::machine::Machine;
use crate::qmp::{Event, Events, Qmp, Shutdown};

/// For a QEMU that does not answer to be asked again.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between two connections, and between two looks at a process that is not our child.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks how long the logs are, and whether the VM runs.
const LOOKS: Duration = Duration::from_secs(10);
/// For the last words of a QEMU that has ended to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For an answer to such a look.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// What to do about it.
const FULL: &str = "; it stands still until there is space on this host's file system";
/// Events that a subscriber has not taken yet.
const EVENTS: usize = 256;

/// The task of a VM, and what it has seen. Dropping it ends the task, not the VM.
#[derive(Debug)]
pub(super) struct Watcher {
    state: Arc<watch::Sender<State>>,
    /// Weak: subscribers learn that the VM has ended when the task is gone.
    events: broadcast::WeakSender<Event>,
    _task: AbortOnDropHandle<()>,
}

/// What is known of a VM.
#[derive(Clone, Default, Debug)]
pub(super) struct State {
    /// While it answers.
    qmp: Option<Qmp>,
    /// QEMU has said that it ends.
    shutdown: Option<Shutdown>,
    is_killed: bool,
    /// What is wrong while it runs.
    pub(super) trouble: Option<String>,
    /// That is: a disk has no space on this host, and the VM stands still until it has.
    is_full: bool,
    ended: Option<Ended>,
}

/// Whose end is waited for.
enum Qemu {
    Child(Box<Detached>),
    Found(Process),
}

struct Task {
    machine: Arc<Machine>,
    places: Places,
    state: Arc<watch::Sender<State>>,
    events: broadcast::Sender<Event>,
}

impl Watcher {
    /// Of a VM that we have just started.
    pub(super) fn of_new(machine: &Arc<Machine>, places: &Places, child: Detached, qmp: Qmp, events: Events) -> Self {
        Self::new(machine, places, Qemu::Child(Box::new(child)), Some((qmp, events)))
    }

    /// Of one that runs.
    pub(super) fn of_found(machine: &Arc<Machine>, places: &Places, process: Process) -> Self {
        Self::new(machine, places, Qemu::Found(process), None)
    }

    fn new(machine: &Arc<Machine>, places: &Places, qemu: Qemu, first: Option<(Qmp, Events)>) -> Self {
        let qmp = first.as_ref().map(|(qmp, _)| qmp.clone());
        let state = Arc::new(watch::Sender::new(State {
            qmp,
            ..State::default()
        }));
        let (events, _) = broadcast::channel(EVENTS);
        let weak = events.downgrade();
        let task = Task {
            machine: Arc::clone(machine),
            places: places.clone(),
            state: Arc::clone(&state),
            events,
        };
        Self {
            state,
            events: weak,
            _task: AbortOnDropHandle::new(tokio::spawn(task.watch(qemu, first.map(|(_, events)| events)))),
        }
    }

    pub(super) fn state(&self) -> &watch::Sender<State> {
        &self.state
    }

    pub(super) fn events(&self) -> Events {
        let strong = self.events.upgrade().unwrap_or_else(|| broadcast::channel(1).0);
        Events::of(&strong)
    }

    /// We kill it now.
    pub(super) fn killed(&self) {
        self.state.send_modify(|state| state.is_killed = true);
    }

    pub(super) async fn ended(&self) -> Ended {
        self.until(|state| state.ended.clone()).await
    }

    /// Its monitor once it answers, or how the VM ended.
    pub(super) async fn qmp(&self) -> Result<Qmp, Ended> {
        self.until(|state| {
            let ended = state.ended.clone().map(Err);
            ended.or_else(|| state.qmp.clone().filter(|qmp| !qmp.is_closed()).map(Ok))
        })
        .await
    }

    async fn until<T>(&self, find: impl Fn(&State) -> Option<T>) -> T {
        let mut changes = self.state.subscribe();
        loop {
            if let Some(found) = find(&changes.borrow_and_update()) {
                return found;
            }
            // The sender is ours: it is not gone.
            changes.changed().await.ok();
        }
    }
}

impl Qemu {
    /// Until it is gone; its exit status where the kernel tells us. May be dropped and called again.
    async fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.wait().await.ok(),
            Self::Found(process) => {
                while process.is_alive() {
                    sleep(LOOK).await;
                }
                None
            }
        }
    }
}

impl Task {
    async fn watch(self, mut qemu: Qemu, mut first: Option<Events>) {
        let mut looks = interval(LOOKS);
        let status = loop {
            tokio::select! {
                status = qemu.ended() => break status,
                () = self.listen(&mut first) => {}
                _ = looks.tick() => {
                    logs::shorten(&self.places);
                    self.look().await;
                }
            }
        };
        // QEMU has said why before it was gone, perhaps.
        timeout(LAST_WORDS, self.listen_on(&mut first)).await.ok();
        self.end(status).await;
    }

    /// One connection to the monitor, from its beginning to its end. May be dropped and called again: then it goes on.
    async fn listen(&self, events: &mut Option<Events>) {
        if events.is_none() {
            match Qmp::connect_and_listen(&self.places.qmp(), CONNECT_LIMIT).await {
                Ok((qmp, new)) => {
                    *events = Some(new);
                    self.state.send_modify(|state| state.qmp = Some(qmp));
                }
                Err(error) => {
                    debug!(vm = self.machine.name, %error, "QEMU's monitor does not answer");
                    sleep(LOOK).await;
                    return;
                }
            }
        }
        self.listen_on(events).await;
        *events = None;
        self.state.send_modify(|state| state.qmp = None);
        sleep(LOOK).await;
    }

    async fn listen_on(&self, events: &mut Option<Events>) {
        let Some(events) = events else { return };
        while let Some(event) = events.next().await {
            self.hear(&event);
            self.events.send(event).ok(); // nobody may listen
        }
    }

    fn hear(&self, event: &Event) {
        let vm = &self.machine.name;
        match event {
            Event::Shutdown(shutdown) => {
                info!(vm, why = %shutdown, "VM ends");
                self.state.send_modify(|state| state.shutdown = Some(shutdown.clone()));
            }
            Event::Reset { guest } => {
                info!(vm, by_guest = guest, "VM starts anew");
                self.state
                    .send_modify(|state| (state.trouble, state.is_full) = (None, false));
            }
            Event::GuestPanicked => self.trouble("the kernel of its guest has panicked".to_owned(), false),
            Event::BlockIoError {
                device,
                operation,
                reason,
                is_full,
            } => {
                let what = format!("its disk {device} fails to {operation}: {reason}");
                let hint = if *is_full { FULL } else { "" };
                self.trouble(format!("{what}{hint}"), *is_full);
            }
            event => debug!(vm, ?event, "Event of QEMU"),
        }
    }

    /// A VM that stands still because a disk has no space goes on when there is some: QEMU waits to be asked to try again.
    async fn look(&self) {
        let (qmp, is_full) = {
            let state = self.state.borrow();
            (state.qmp.clone(), state.is_full)
        };
        let Some(qmp) = qmp else { return };
        let ask = async |command| qmp.call_within(LOOK_LIMIT, command, json!({})).await;
        let Ok(status) = ask("query-status").await else { return };
        match status["status"].as_str() {
            Some("io-error") => {
                if !is_full {
                    // It came to this before we kept it.
                    self.trouble(format!("one of its disks cannot be written{FULL}"), true);
                }
                ask("cont").await.ok();
            }
            Some("running") if is_full => {
                info!(vm = self.machine.name, "VM goes on");
                self.state
                    .send_modify(|state| (state.trouble, state.is_full) = (None, false));
            }
            _ => {}
        }
    }

    fn trouble(&self, what: String, is_full: bool) {
        let is_news = self.state.borrow().trouble.as_ref() != Some(&what);
        if is_news {
            warn!(vm = self.machine.name, what, "VM is in trouble");
            self.state
                .send_modify(|state| (state.trouble, state.is_full) = (Some(what), is_full));
        }
    }

    async fn end(self, status: Option<ExitStatus>) {
        // Before anybody may start it again.
        limits::remove(&self.machine).await;
        self.state.send_modify(|state| {
            let ended = Ended::new(state.is_killed, state.shutdown.take(), status, &self.places.log());
            info!(vm = self.machine.name, why = %ended, "VM has ended");
            state.qmp = None;
            state.trouble = None;
            state.ended = Some(ended);
        });
    }
}
