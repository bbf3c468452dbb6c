//! System VMs that are tasks of this process: an agent that speaks the real protocol over TCP and TLS to the server that
//! its boot arguments name, and no work behind it.
//!
//! It is for measuring and testing the management side with hundreds of VMs, and it says so: its hypervisor is
//! `Simulator`, as CloudStack's own simulator is called. A VM ends with this process. Faults come on demand.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use protocol::boot::{BadBootArgs, BootArgs, SystemVm};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{Doing, Driver, DriverError, Outcome, Power, Progress, Purpose, Step, VmSpec, check_name};
use agent::SimulatedAgent;

mod agent;

/// How simulated VMs behave.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a start takes: real ones take minutes under emulation.
    pub start: Duration,
    /// From power on until the agent connects.
    pub boot: Duration,
    /// Starts at the same time.
    pub parallel_starts: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            start: Duration::ZERO,
            boot: Duration::ZERO,
            parallel_starts: 64,
        }
    }
}

/// The driver. Its clones share the VMs, which end with the last of them.
#[derive(Clone)]
pub struct InProcess {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    vms: Mutex<HashMap<String, Vm>>,
    /// Starts that go on. Whoever cancels one ends it.
    starting: Mutex<HashMap<String, CancellationToken>>,
    /// Starts that fail from now on, and why.
    failing: Mutex<Option<String>>,
    changed: watch::Sender<u64>,
}

struct Vm {
    power: Power,
    /// What is done in it.
    task: Option<AbortHandle>,
    hang: CancellationToken,
    /// Since when it hangs.
    silent: Option<OffsetDateTime>,
    steps: Vec<Step>,
    last_words: Option<String>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let vms = self.vms.get_mut().unwrap_or_else(PoisonError::into_inner);
        vms.values_mut().for_each(Vm::end);
    }
}

impl Vm {
    fn end(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl InProcess {
    /// No VMs yet.
    pub fn new(options: Options) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                vms: Mutex::default(),
                starting: Mutex::default(),
                failing: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        }
    }

    /// A VM ends by itself. Answers whether it was on.
    pub fn kill(&self, name: &str, why: &str) -> bool {
        self.inner.ended(name, why)
    }

    /// A VM hangs: it is on, nothing in it moves, and its links stay open. Answers whether it was on.
    pub fn hang(&self, name: &str) -> bool {
        let mut vms = self.inner.vms();
        let Some(vm) = vms.get_mut(name).filter(|vm| vm.power == Power::On) else {
            return false;
        };
        vm.hang.cancel();
        vm.silent = Some(OffsetDateTime::now_utc());
        true
    }

    /// A VM goes on without its agent. Answers whether it was on.
    pub fn end_agent(&self, name: &str) -> bool {
        let mut vms = self.inner.vms();
        let Some(vm) = vms.get_mut(name).filter(|vm| vm.power == Power::On) else {
            return false;
        };
        vm.end();
        vm.last_words = Some("the agent was told to end".into());
        true
    }

    /// From now on starts fail with these words, or work again.
    pub fn fail_starts(&self, why: Option<&str>) {
        let mut failing = self.inner.failing.lock().unwrap_or_else(PoisonError::into_inner);
        *failing = why.map(str::to_owned);
    }

    async fn wait_and_power_on(&self, spec: &VmSpec) -> Result<(), DriverError> {
        check_name(&spec.name)?;
        let wait = self.inner.options.start;
        if !wait.is_zero() && self.power(&spec.name) != Power::On {
            let cancelled = CancellationToken::new();
            self.inner.starting().insert(spec.name.clone(), cancelled.clone());
            let waited = cancelled.run_until_cancelled(sleep(wait)).await;
            self.inner.starting().remove(&spec.name);
            if waited.is_none() {
                return Err(DriverError::Failed(
                    spec.name.clone(),
                    "it was stopped while it started".into(),
                ));
            }
        }
        self.power_on(spec)
    }

    fn power_on(&self, spec: &VmSpec) -> Result<(), DriverError> {
        let inner = &self.inner;
        let failing = inner.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(why) = failing {
            return Err(DriverError::Failed(spec.name.clone(), why));
        }
        let mut vms = inner.vms();
        if vms.get(&spec.name).is_some_and(|vm| vm.power == Power::On) {
            return Ok(());
        }
        let mut vm = Vm {
            power: Power::On,
            task: None,
            hang: CancellationToken::new(),
            silent: None,
            steps: vec![step("boot", Outcome::Running, "")],
            last_words: None,
        };
        if !matches!(spec.purpose, Purpose::User { .. }) {
            let agent = agent_of(spec)?;
            let (boot, hang) = (inner.options.boot, vm.hang.clone());
            let live = live(Arc::downgrade(inner), spec.name.clone(), boot, agent);
            vm.task = Some(tokio::spawn(until_it_hangs(live, hang)).abort_handle());
        }
        debug!(vm = spec.name, "Simulated system VM started");
        if let Some(mut old) = vms.insert(spec.name.clone(), vm) {
            old.end();
        }
        Ok(())
    }

    fn power_off(&self, name: &str) -> Result<(), DriverError> {
        check_name(name)?;
        if let Some(start) = self.inner.starting().get(name) {
            start.cancel();
        }
        if let Some(vm) = self.inner.vms().get_mut(name) {
            vm.end();
            if vm.power == Power::On {
                vm.power = Power::Off("stopped".into());
            }
            vm.silent = None;
        }
        Ok(())
    }
}

fn agent_of(spec: &VmSpec) -> Result<SimulatedAgent, DriverError> {
    let failed = |why: String| DriverError::Failed(spec.name.clone(), why);
    let read = |line: &str| -> Result<SystemVm, BadBootArgs> { SystemVm::parse(&BootArgs::parse(line)?) };
    let vm = read(spec.boot_args.expose()).map_err(|error| failed(error.to_string()))?;
    let identity = spec
        .identity
        .as_ref()
        .ok_or_else(|| failed("it has no certificate".into()))?;
    SimulatedAgent::new(&vm, spec, identity).map_err(|error| failed(error.to_string()))
}

/// What hangs is not over: its connections stay open.
async fn until_it_hangs(live: impl Future<Output = ()>, hang: CancellationToken) {
    let mut live = pin!(live);
    if hang.run_until_cancelled(&mut live).await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// What is done in a VM. It does not keep the driver alive.
async fn live(driver: Weak<Inner>, name: String, boot: Duration, agent: SimulatedAgent) {
    sleep(boot).await;
    let note = |words: Option<String>, done: &str| {
        let Some(driver) = driver.upgrade() else { return };
        if let Some(vm) = driver.vms().get_mut(&name) {
            vm.last_words = words;
            for step in &mut vm.steps {
                if step.outcome == Outcome::Running {
                    (step.outcome, step.at) = (Outcome::Done, OffsetDateTime::now_utc());
                }
            }
            if !vm.steps.iter().any(|step| step.name == done) {
                vm.steps.push(step(done, Outcome::Done, ""));
            }
        }
    };
    note(None, "services");
    let mut wait = agent::FIRST_WAIT;
    loop {
        let began = tokio::time::Instant::now();
        let error = agent.work().await;
        let words = platform::logging::chain(&error).to_string();
        debug!(vm = name, error = words, "The link of a simulated agent ended");
        note(Some(words), "services");
        wait = if began.elapsed() > agent::LONGEST_WAIT {
            agent::FIRST_WAIT
        } else {
            (wait * 2).min(agent::LONGEST_WAIT)
        };
        sleep(wait).await;
    }
}

fn step(name: &str, outcome: Outcome, detail: &str) -> Step {
    Step {
        name: name.into(),
        outcome,
        at: OffsetDateTime::now_utc(),
        detail: detail.into(),
    }
}

impl Inner {
    fn vms(&self) -> MutexGuard<'_, HashMap<String, Vm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn starting(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, name: &str, why: &str) -> bool {
        let mut vms = self.vms();
        let Some(vm) = vms.get_mut(name).filter(|vm| vm.power == Power::On) else {
            return false;
        };
        vm.end();
        vm.power = Power::Off(why.to_owned());
        vm.silent = None;
        drop(vms);
        info!(vm = name, why, "Simulated system VM ended by itself");
        self.changed.send_modify(|count| *count += 1);
        true
    }
}

impl Driver for InProcess {
    fn hypervisor(&self) -> &'static str {
        "Simulator"
    }

    fn start<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(self.wait_and_power_on(vm))
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(async { self.power_off(name) })
    }

    fn destroy<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            self.power_off(name)?;
            self.inner.vms().remove(name);
            Ok(())
        })
    }

    fn power(&self, name: &str) -> Power {
        let vms = self.inner.vms();
        vms.get(name).map_or_else(
            || Power::Off("it ended with the server that ran it".into()),
            |vm| vm.power.clone(),
        )
    }

    fn last_words(&self, name: &str) -> Option<String> {
        self.inner.vms().get(name)?.last_words.clone()
    }

    fn progress(&self, name: &str) -> Option<Progress> {
        let steps = self.inner.vms().get(name)?.steps.clone();
        Some(Progress { steps, problem: None })
    }

    fn names(&self) -> Vec<String> {
        self.inner.vms().keys().cloned().collect()
    }

    fn silent_since(&self, name: &str) -> Option<OffsetDateTime> {
        self.inner.vms().get(name)?.silent
    }

    fn parallel_starts(&self) -> usize {
        self.inner.options.parallel_starts
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}
