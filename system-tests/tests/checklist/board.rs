//! What scenarios have found out, for the tests that wait for it; and the two lanes that scenarios run in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use system_tests::vm::Booted;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::checks::Check;
use crate::scenarios::Scenario;

/// VMs that do something at once. More than processors only makes each slower.
const LANES: usize = 2;

/// Results as they come.
#[derive(Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Scenarios that will say something about a check, or have.
    scenarios: Vec<&'static Scenario>,
    /// With what came over one that ended too early.
    ended: BTreeMap<&'static str, Result<(), String>>,
    results: Vec<(Check, &'static str, Result<(), String>)>,
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until all scenarios that belong to a check have ended.
    ///
    /// # Errors
    /// One of them found that it is not true, or ended before it came to it.
    pub(crate) fn wait_for(&self, check: Check) -> Result<(), String> {
        let mut state = self.state();
        loop {
            if let Some(verdict) = state.verdict(check) {
                return verdict;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// `None` while a scenario may still say something.
    fn verdict(&self, check: Check) -> Option<Result<(), String>> {
        let mut wrong = String::new();
        let mut is_known = true;
        for scenario in self
            .scenarios
            .iter()
            .filter(|scenario| scenario.checks.contains(&check))
        {
            let name = scenario.name;
            let mut found = self
                .results
                .iter()
                .filter(|(of, by, _)| (*of, *by) == (check, name))
                .peekable();
            let has_result = found.peek().is_some();
            for (_, _, result) in found {
                if let Err(error) = result {
                    let _ = writeln!(wrong, "scenario {name}: {error}");
                }
            }
            match self.ended.get(name) {
                Some(Err(why)) if !has_result => {
                    let _ = writeln!(wrong, "scenario {name} ended before it came to this: {why}");
                }
                Some(Ok(())) if !has_result => {
                    let _ = writeln!(wrong, "scenario {name} says nothing about this");
                }
                Some(_) => {}
                None => is_known = false,
            }
        }
        match (wrong.is_empty(), is_known) {
            (false, _) => Some(Err(wrong)),
            (true, true) => Some(Ok(())),
            (true, false) => None,
        }
    }
}

/// How a scenario tells what it has found.
pub(crate) struct Report {
    scenario: &'static str,
    board: Arc<Board>,
    started: Instant,
}

impl Report {
    /// Checks one item of the list; the scenario goes on when it is not true. What is known of the VM is kept then.
    pub(crate) async fn item(&self, number: u8, vm: &Booted, work: impl Future<Output = anyhow::Result<()>>) {
        self.check(Check::Item(number), Some(vm), work).await;
    }

    /// As [`Report::item`], for anything.
    pub(crate) async fn check(
        &self,
        check: Check,
        vm: Option<&Booted>,
        work: impl Future<Output = anyhow::Result<()>>,
    ) {
        let result = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(panic) => Err(said(&*panic)),
        };
        let result = match (result, vm) {
            (Err(why), Some(vm)) => Err(format!("{why} (evidence: {})", vm.keep_evidence().await.display())),
            (result, _) => result,
        };
        println!(
            "{:>7.1} s {}: {} {}",
            self.started.elapsed().as_secs_f64(),
            self.scenario,
            check.name(),
            if let Err(why) = &result { why } else { "ok" }
        );
        self.board
            .change(|state| state.results.push((check, self.scenario, result)));
    }

    /// Lets another scenario run while this one keeps no processor busy.
    pub(crate) async fn aside<T>(&self, lane: &mut Lane, work: impl Future<Output = T>) -> T {
        lane.0 = None;
        let done = work.await;
        *lane = Lane::enter().await;
        done
    }

    /// What took how long, for people.
    pub(crate) fn took(&self, what: &str, time: Duration) {
        println!("          {}: {what}: {:.1} s", self.scenario, time.as_secs_f64());
    }
}

/// The right to keep a processor busy.
pub(crate) struct Lane(Option<SemaphorePermit<'static>>);

impl Lane {
    /// For a scenario that begins. Of these only one stands in the queue: those that go on need not wait for them all.
    async fn enter_first() -> Self {
        static NEXT: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _next = NEXT.lock().await;
        Self::enter().await
    }

    async fn enter() -> Self {
        static FREE: Semaphore = Semaphore::const_new(LANES);
        Self(FREE.acquire().await.ok())
    }
}

/// Scenarios on their way.
pub(crate) struct Running(Vec<JoinHandle<()>>);

impl Running {
    /// Waits until the VMs are gone.
    pub(crate) fn finish(self) {
        for thread in self.0 {
            let _ = thread.join(); // what it panicked with is on the board
        }
    }
}

/// Starts scenarios, a thread each: QEMU ends with the thread that has started it.
pub(crate) fn run(board: &Arc<Board>, scenarios: Vec<&'static Scenario>) -> Running {
    board.change(|state| state.scenarios.clone_from(&scenarios));
    let start = |scenario: &'static Scenario| {
        let board = Arc::clone(board);
        let (queued, is_queued) = mpsc::channel();
        let work = move || run_one(&board, scenario, &queued);
        let thread = thread::Builder::new().name(format!("checklist-{}", scenario.name));
        let thread = thread.spawn(work).expect("a thread can be started");
        let _ = is_queued.recv(); // the next one stands behind it
        thread
    };
    Running(scenarios.into_iter().map(start).collect())
}

fn run_one(board: &Arc<Board>, scenario: &'static Scenario, queued: &mpsc::Sender<()>) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let ended = runtime.block_on(async {
        // The first is polled first.
        let (lane, _) = tokio::join!(Lane::enter_first(), async { queued.send(()) });
        let started = Instant::now();
        let report = Report {
            scenario: scenario.name,
            board: Arc::clone(board),
            started,
        };
        let ended = AssertUnwindSafe((scenario.run)(report, lane)).catch_unwind().await;
        println!("{:>7.1} s {}: over", started.elapsed().as_secs_f64(), scenario.name);
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(panic) => Err(said(&*panic)),
        }
    });
    if let Err(why) = &ended {
        println!("scenario {} ended early: {why}", scenario.name);
    }
    board.change(|state| drop(state.ended.insert(scenario.name, ended)));
}

/// The text of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}
