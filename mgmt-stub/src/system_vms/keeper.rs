//! The loop that keeps system VMs as they shall be: it follows the power of each, starts again what has ended or hangs,
//! within a budget, and looks at the pools in their rhythm (management.md §2, §6, §14).
//!
//! It looks at what is, never at a queue of changes. What takes time are tasks beside it; it owns all that is remembered.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use platform::logging::chain;
use time::OffsetDateTime;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::life::StartFailed;
use super::power::{Ended, Told};
use super::spec::released_on_stop;
use super::{SystemVms, alert_type, started_again};
use crate::alerts::AlertType;
use crate::configuration::{
    AGENT_SILENCE_LIMIT, AGENT_START_LIMIT, CONSOLEPROXY_CAPACITYSCAN_INTERVAL, CONSOLEPROXY_RESTART,
    CONSOLEPROXY_SCALE_DOWN_DELAY, HA_ENABLED, HYPERVISOR_SILENCE_LIMIT, SECSTORAGE_CAPACITYSCAN_INTERVAL, Setting,
};
use crate::instance_state::InstanceState::{Expunging, Running};
use crate::restart_budget::{Restart, RestartBudget};
use crate::scanner::Action;
use crate::store::StoreError;
use crate::store::host::Host;
use crate::store::id::InstanceId;
use crate::store::instance::{Instance, InstanceType};

/// After something that could not be done, and between two looks at what nobody reports.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks, at least: many changes at once are one look. With very many VMs as long as the look took.
const REST: Duration = Duration::from_millis(20);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Between two looks for VMs that the driver has and the store does not know.
const TIDY: Duration = Duration::from_mins(1);
/// VMs that are followed at the same time: the store commits what they ask for together.
const AT_ONCE: usize = 64;
/// A console proxy that could not be started so often in a row is made anew (management.md §7).
const MAX_FAILED_STARTS: u32 = 3;

pub(super) struct Keeper {
    vms: SystemVms,
    budgets: HashMap<InstanceId, RestartBudget>,
    /// What is done later, or again.
    plans: HashMap<InstanceId, Plan>,
    /// What is being done, beside the loop.
    tasks: JoinSet<Done>,
    busy: HashMap<InstanceId, task::Id>,
    /// When each pool is looked at next.
    due: HashMap<InstanceType, Instant>,
    /// Of those whose agent is not Up although they run.
    agents: HashMap<InstanceId, Agent>,
    /// Console proxies without sessions: since when.
    idle: HashMap<InstanceId, Instant>,
    /// In a row.
    failed_starts: HashMap<InstanceId, u32>,
    tidied: Option<Instant>,
}

/// What is to be done with a VM.
#[derive(Clone, Debug)]
struct Plan {
    what: What,
    at: OffsetDateTime,
    /// How it ended, or why it is of no use.
    why: String,
    /// Transitions of its row by then: if there are more, somebody else is at it.
    seen: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// The scan wants it.
    StartWanted,
    /// It has ended.
    StartAgain,
    /// It hangs: off and on.
    Cycle,
    /// Nothing else has helped: a new one, unless it is of use by then.
    Replace,
    /// It is one too many, or half removed.
    Destroy,
}

/// The agent of a VM that runs, as this server has seen it.
#[derive(Clone, Copy, Debug)]
struct Agent {
    /// Transitions of its row: with a new start all begins anew.
    run: i64,
    was_up: bool,
    /// Since when it is not Up.
    gone: Option<Instant>,
}

/// What a task has come to.
struct Done {
    id: InstanceId,
    plan: Plan,
    result: Result<(), StartFailed>,
}

impl Keeper {
    pub(super) fn new(vms: SystemVms) -> Self {
        Self {
            vms,
            budgets: HashMap::new(),
            plans: HashMap::new(),
            tasks: JoinSet::new(),
            busy: HashMap::new(),
            due: HashMap::new(),
            agents: HashMap::new(),
            idle: HashMap::new(),
            failed_starts: HashMap::new(),
            tidied: None,
        }
    }

    /// Until `stop`. Starts that go on then are left where they are; the next server sees what became of them.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let vms = self.vms.clone();
        let mut power = vms.inner.driver.changes();
        let mut settings = vms.inner.configuration.changes();
        loop {
            power.borrow_and_update();
            settings.borrow_and_update();
            let began = Instant::now();
            let wait = match self.pass().await {
                Ok(wait) => wait,
                Err(error) => {
                    error!(error = %chain(&error), "Cannot look after the system VMs; trying again");
                    TRY_AGAIN
                }
            };
            tokio::time::sleep(began.elapsed().clamp(REST, LONGEST_REST)).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = vms.inner.wake.notified() => self.due.clear(),
                _ = power.changed() => {}
                _ = settings.changed() => self.due.clear(),
                Some(done) = self.tasks.join_next() => self.done(done).await,
            }
            while let Some(done) = self.tasks.try_join_next() {
                self.done(done).await;
            }
        }
    }

    /// One look at everything; says when the next one is due at the latest.
    async fn pass(&mut self) -> Result<Duration, StoreError> {
        if self.tidied.is_none_or(|tidied| tidied.elapsed() >= TIDY) {
            self.tidy().await?;
            self.tidied = Some(Instant::now());
        }
        let hosts = self.vms.inner.store.hosts().await?;
        let hosts: HashMap<&str, &Host> = hosts.iter().map(|host| (host.name.as_str(), host)).collect();
        self.follow(&hosts).await?;
        let instances = self.instances().await?;
        self.forget(&instances);
        self.look_for_trouble(&instances, &hosts).await;
        self.carry_out();
        self.pools(&instances, &hosts).await?;

        let now = OffsetDateTime::now_utc();
        let left = self.budgets.iter().map(|(id, budget)| (*id, budget.left(now)));
        *self
            .vms
            .inner
            .restarts_left
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = left.collect();
        let plans = self.plans.values();
        let plans = plans.map(|plan| (plan.at - now).max(time::Duration::ZERO).unsigned_abs());
        let scans = self.due.values();
        let scans = scans.map(|due| due.saturating_duration_since(Instant::now()));
        Ok(plans.chain(scans).min().unwrap_or(TRY_AGAIN).min(TRY_AGAIN))
    }

    async fn instances(&self) -> Result<Vec<Instance>, StoreError> {
        let mut instances = self.vms.inner.store.instances().await?;
        instances.retain(|vm| vm.kind != InstanceType::User);
        Ok(instances)
    }

    /// What was left behind: addresses of VMs that are off, and VMs that nobody knows any more.
    async fn tidy(&self) -> Result<(), StoreError> {
        let inner = &self.vms.inner;
        if inner.place.networks.is_some() {
            let released = released_on_stop(&inner.configuration);
            let count = inner.store.release_left_addresses(released).await?;
            if count > 0 {
                info!(count, "Gave back addresses of system VMs that are off");
            }
        }
        let names = inner.driver.names();
        let known: HashSet<String> = inner.store.instances().await?.into_iter().map(|vm| vm.name).collect();
        for name in names.into_iter().filter(|name| !known.contains(name)) {
            warn!(vm = name, "Removing a VM that the database does not know");
            if let Err(error) = inner.driver.destroy(&name).await {
                warn!(vm = name, error = %chain(&error), "Cannot remove a VM that the database does not know");
            }
        }
        Ok(())
    }

    /// The store believes the driver.
    async fn follow(&mut self, hosts: &HashMap<&str, &Host>) -> Result<(), StoreError> {
        let instances = self.instances().await?;
        let vms = &self.vms;
        let followed = stream::iter(instances)
            .map(|vm| {
                let host = hosts.get(vm.name.as_str()).copied();
                async move { vms.follow_one(vm, host).await }
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready);
        let ended: Vec<Ended> = followed.collect().await;
        let told: Vec<_> = ended.into_iter().map(|ended| self.ended(ended)).collect();
        stream::iter(told)
            .for_each_concurrent(AT_ONCE, |told| told.tell(self.vms.clone()))
            .await;
        Ok(())
    }

    /// Decides what becomes of one that should be on and has ended.
    fn ended(&mut self, Ended { vm, why }: Ended) -> Told {
        let configuration = &self.vms.inner.configuration;
        let mut told = Told {
            alerts: vec![(alert_type(vm.kind), format!("{} ended by itself: {why}", vm.name))],
            event: Some(format!("{} ended by itself: {why}", vm.name)),
            reason: None,
            vm,
        };
        let vm = &told.vm;
        let is_wanted = vm.kind != InstanceType::ConsoleProxy || configuration.flag(&CONSOLEPROXY_RESTART);
        if !is_wanted || !configuration.flag(&HA_ENABLED) {
            told.alerts
                .push((AlertType::SYNC, format!("{} is Stopped now: {why}", vm.name)));
            return told;
        }
        let (plan, reason) = self.again(vm, What::StartAgain, &why);
        told.alerts
            .push((AlertType::HA_ACTION, format!("{}: {reason}", vm.name)));
        if plan.what == What::Replace {
            told.alerts.push((alert_type(vm.kind), reason.clone()));
        }
        told.reason = Some(reason);
        self.plans.insert(vm.id, plan);
        told
    }

    /// When the budget lets a VM be started again, and in words. A budget that is used up means that this VM does not
    /// get well: the next try is with a new one.
    fn again(&mut self, vm: &Instance, what: What, why: &str) -> (Plan, String) {
        let now = OffsetDateTime::now_utc();
        let (what, at, reason) = match self.budgets.entry(vm.id).or_default().next(now) {
            Restart::At(at) if at <= now => (what, at, started_again(why)),
            Restart::At(at) => (what, at, format!("{why}; it is started again at {} UTC", clock(at))),
            Restart::UsedUp(at) => {
                let minutes = RestartBudget::WINDOW.as_secs() / 60;
                let text = format!(
                    "{} was started again {} times within {minutes} minutes and did not stay of use; the next try is at {} UTC, \
                     with a new VM in its place. {why}",
                    vm.name,
                    RestartBudget::COUNT,
                    clock(at)
                );
                (What::Replace, at, text)
            }
        };
        let (why, seen) = (why.to_owned(), vm.update_count);
        (Plan { what, at, why, seen }, reason)
    }

    /// What is remembered of VMs that are gone.
    fn forget(&mut self, instances: &[Instance]) {
        let known: HashSet<InstanceId> = instances.iter().map(|vm| vm.id).collect();
        self.budgets.retain(|id, _| known.contains(id));
        self.plans.retain(|id, _| known.contains(id));
        self.agents.retain(|id, _| known.contains(id));
        self.idle.retain(|id, _| known.contains(id));
        self.failed_starts.retain(|id, _| known.contains(id));
        for vm in instances {
            if vm.state == Expunging && !self.busy.contains_key(&vm.id) && !self.plans.contains_key(&vm.id) {
                info!(vm = vm.name, "Finishing the removal of a system VM");
                self.plan_now(vm, What::Destroy);
            }
            if vm.active_sessions == 0 && vm.state == Running {
                self.idle.entry(vm.id).or_insert_with(Instant::now);
            } else {
                self.idle.remove(&vm.id);
            }
        }
    }

    fn plan_now(&mut self, vm: &Instance, what: What) {
        let plan = Plan {
            what,
            at: OffsetDateTime::now_utc(),
            why: vm.reason.clone(),
            seen: vm.update_count,
        };
        self.plans.insert(vm.id, plan);
    }

    /// VMs that are on and of no use: they hang, or their agent does not come or has gone.
    async fn look_for_trouble(&mut self, instances: &[Instance], hosts: &HashMap<&str, &Host>) {
        let configuration = self.vms.inner.configuration.clone();
        for vm in instances.iter().filter(|vm| vm.state == Running) {
            let host = hosts.get(vm.name.as_str()).copied();
            let Some(why) = self.trouble(vm, host) else { continue };
            let is_wanted = vm.kind != InstanceType::ConsoleProxy || configuration.flag(&CONSOLEPROXY_RESTART);
            if !is_wanted
                || !configuration.flag(&HA_ENABLED)
                || self.busy.contains_key(&vm.id)
                || self.plans.contains_key(&vm.id)
            {
                continue;
            }
            let (plan, reason) = self.again(vm, What::Cycle, &why);
            self.plans.insert(vm.id, plan);
            let told = Told {
                alerts: vec![
                    (alert_type(vm.kind), format!("{}: {why}", vm.name)),
                    (AlertType::HA_ACTION, format!("{}: {reason}", vm.name)),
                ],
                event: None,
                reason: Some(reason),
                vm: vm.clone(),
            };
            told.tell(self.vms.clone()).await;
        }
    }

    /// Why a VM that runs is to be started again, if it is.
    fn trouble(&mut self, vm: &Instance, host: Option<&Host>) -> Option<String> {
        let inner = &self.vms.inner;
        let limit = |setting: &Setting| Some(inner.configuration.time(setting)).filter(|limit| !limit.is_zero());
        let agent = self.agents.entry(vm.id).or_insert(Agent {
            run: vm.update_count,
            was_up: false,
            gone: None,
        });
        if agent.run != vm.update_count {
            *agent = Agent {
                run: vm.update_count,
                was_up: false,
                gone: None,
            };
        }
        if let (Some(since), Some(limit)) = (inner.driver.silent_since(&vm.name), limit(&HYPERVISOR_SILENCE_LIMIT))
            && OffsetDateTime::now_utc() - since >= limit
        {
            return Some(format!("it hangs: it has not answered since {} UTC", clock(since)));
        }
        if host.is_some_and(|host| inner.agents.is_up(host.id)) {
            agent.was_up = true;
            agent.gone = None;
            return None;
        }
        // It may have come and gone between two looks.
        agent.was_up |= host
            .and_then(|host| host.disconnected)
            .is_some_and(|gone| gone >= vm.since);
        let gone = agent.gone.get_or_insert_with(Instant::now).elapsed();
        let limit = limit(if agent.was_up {
            &AGENT_SILENCE_LIMIT
        } else {
            &AGENT_START_LIMIT
        })?;
        let seconds = limit.as_secs();
        (gone >= limit).then(|| {
            if agent.was_up {
                format!("its agent has not been Up for {seconds} s")
            } else {
                format!("its agent was not Up within {seconds} s after its start")
            }
        })
    }

    /// Begins what is due.
    fn carry_out(&mut self) {
        let now = OffsetDateTime::now_utc();
        let is_due = |id: &InstanceId, plan: &mut Plan| plan.at <= now && !self.busy.contains_key(id);
        let due: Vec<(InstanceId, Plan)> = self.plans.extract_if(is_due).collect();
        for (id, plan) in due {
            if matches!(plan.what, What::StartAgain | What::Cycle) {
                self.budgets.entry(id).or_default().count(now);
            }
            self.begin(id, plan);
        }
    }

    fn begin(&mut self, id: InstanceId, plan: Plan) {
        let vms = self.vms.clone();
        let task = self.tasks.spawn(async move {
            let result = match plan.what {
                What::StartWanted => vms.start_seen(id, plan.seen, None).await,
                What::StartAgain => vms.start_seen(id, plan.seen, Some(&plan.why)).await,
                What::Cycle => vms.cycle(id, plan.seen, &plan.why).await,
                What::Replace => vms.replace(id, plan.seen, &plan.why).await,
                What::Destroy => vms.destroy(id).await.map_err(StartFailed::from),
            };
            Done { id, plan, result }
        });
        self.busy.insert(id, task.id());
    }

    /// What could not be done is tried again.
    async fn done(&mut self, done: Result<Done, JoinError>) {
        let Done { id, plan, result } = match done {
            Ok(done) => done,
            Err(panic) => {
                error!(%panic, "Looking after a system VM has failed; please report the panic");
                self.busy.retain(|_, task| *task != panic.id());
                return;
            }
        };
        self.busy.remove(&id);
        let Err(StartFailed { error, left }) = result else {
            self.failed_starts.remove(&id);
            if matches!(plan.what, What::Replace | What::Destroy) {
                self.due.clear(); // there may be one too few now
            }
            return;
        };
        warn!(instance = %id, what = ?plan.what, error = %chain(&error), "Cannot do what a system VM needs; trying again");
        match (plan.what, left) {
            (What::StartWanted, Some(left)) => {
                let failed = self.failed_starts.entry(id).or_default();
                *failed += 1;
                if left.kind == InstanceType::ConsoleProxy && *failed >= MAX_FAILED_STARTS {
                    info!(vm = left.name, "A console proxy that cannot be started is made anew");
                    self.plan_now(&left, What::Destroy);
                }
            }
            (What::StartAgain | What::Cycle, Some(left)) => {
                let (plan, reason) = self.again(&left, What::StartAgain, &plan.why);
                let soonest = OffsetDateTime::now_utc() + Duration::from_secs(1);
                let is_used_up = plan.what == What::Replace;
                let at = plan.at.max(soonest);
                self.plans.insert(id, Plan { at, ..plan });
                if is_used_up {
                    let alerts = vec![(alert_type(left.kind), reason.clone())];
                    let told = Told {
                        alerts,
                        event: None,
                        reason: Some(format!("{}. {reason}", left.reason)),
                        vm: left,
                    };
                    told.tell(self.vms.clone()).await;
                }
            }
            (What::Replace | What::Destroy, _) => {
                let at = OffsetDateTime::now_utc() + TRY_AGAIN;
                self.plans.insert(id, Plan { at, ..plan });
            }
            (_, None) => {}
        }
    }

    /// At most one VM of each pool is started or destroyed in a look.
    async fn pools(&mut self, instances: &[Instance], hosts: &HashMap<&str, &Host>) -> Result<(), StoreError> {
        for kind in [InstanceType::SecondaryStorageVm, InstanceType::ConsoleProxy] {
            let now = Instant::now();
            if self.due.get(&kind).is_some_and(|due| *due > now) {
                continue;
            }
            let configuration = &self.vms.inner.configuration;
            let interval = match kind {
                InstanceType::ConsoleProxy => &CONSOLEPROXY_CAPACITYSCAN_INTERVAL,
                _ => &SECSTORAGE_CAPACITYSCAN_INTERVAL,
            };
            let interval = configuration.time(interval).max(Duration::from_millis(100));
            self.due.insert(kind, now + interval);
            let pool: Vec<&Instance> = instances.iter().filter(|vm| vm.kind == kind).collect();
            // Those that ended by themselves are started again by the budget, not by the scan.
            let is_being_changed = |vm: &&Instance| self.plans.contains_key(&vm.id) || self.busy.contains_key(&vm.id);
            if pool.iter().any(is_being_changed) || !self.vms.is_scanned(kind).await? {
                continue;
            }
            let delay = configuration.time(&CONSOLEPROXY_SCALE_DOWN_DELAY);
            let is_idle = |vm: &Instance| self.idle.get(&vm.id).is_some_and(|since| since.elapsed() >= delay);
            let action = self.vms.decide(kind, &pool, hosts, is_idle).await?;
            debug!(%kind, ?action, "Scanned a pool of system VMs");
            let known = |id| pool.iter().find(|vm| vm.id == id).copied();
            let (what, vm) = match action {
                Action::Nothing(_) => continue,
                Action::Start(id) => (What::StartWanted, known(id).cloned()),
                Action::Destroy(id) => (What::Destroy, known(id).cloned()),
                Action::Create(role) => match self.vms.create(kind, role).await {
                    Ok(vm) => (What::StartWanted, Some(vm)),
                    Err(error) => {
                        warn!(%kind, error = %chain(&error), "Cannot create a system VM; trying again at the next scan");
                        continue;
                    }
                },
            };
            if let Some(vm) = vm {
                self.plan_now(&vm, what);
                self.carry_out();
            }
        }
        Ok(())
    }
}

/// Hours, minutes and seconds.
fn clock(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())
}

#[cfg(test)]
mod tests;
