//! Keeps the zone's system VMs alive: what [`crate::scanner`] decides is done here (management.md §3, §6, §7, §9).
//!
//! Whoever starts, stops or destroys a VM holds its lock; its state is in the store and moves by conditional updates.
//! That a VM has ended is noticed at once by the driver, and it is started again within the restart budget.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::logging::chain;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::agents::Agents;
use crate::alerts::{self, AlertType};
use crate::boot_line;
use crate::ca::{Ca, IssueError, Request};
use crate::configuration::{
    CONSOLEPROXY_CAPACITY_STANDBY, CONSOLEPROXY_CAPACITYSCAN_INTERVAL, CONSOLEPROXY_LAUNCH_MAX,
    CONSOLEPROXY_MANAGEMENT_STATE, CONSOLEPROXY_RESTART, CONSOLEPROXY_SESSION_MAX, Configuration,
    SECSTORAGE_CAPACITY_STANDBY, SECSTORAGE_CAPACITYSCAN_INTERVAL, SECSTORAGE_CMD_EXECUTION_TIME_MAX,
    SECSTORAGE_NFS_VERSION, SECSTORAGE_SESSION_MAX, SECSTORAGE_VM_AUTO_SCALE_DOWN, SYSTEM_VM_AUTO_RESERVE_CAPACITY,
    SYSTEMVM_INSTANCE_NAME,
};
use crate::driver::{Driver, DriverError, Power, Purpose, VmSpec};
use crate::host_status::{HostEvent, HostStatus};
use crate::instance_state::{InstanceEvent, InstanceState};
use crate::random;
use crate::scanner::{self, Action, Member, PoolSettings, Restart, RestartBudget, Role};
use crate::store::event::{EventState, Level, NewEvent};
use crate::store::host::Host;
use crate::store::id::{AccountId, InstanceId, UserId};
use crate::store::instance::{Instance, InstanceType, NewInstance};
use crate::store::{Store, StoreError};

mod diagnosis;
mod place;

pub use diagnosis::Diagnosis;
pub use place::{AddressRange, BadZoneCidr, Network, Networks, Place};

/// The account that system VMs belong to, and the user who does what nobody asked for.
const SYSTEM: (AccountId, UserId) = (AccountId(1), UserId(1));
/// For the link of an agent whose VM was destroyed to end.
const LINK_LIMIT: Duration = Duration::from_secs(5);
/// After an error of the store.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Why something could not be done with a system VM.
#[derive(Debug, thiserror::Error)]
pub enum SystemVmError {
    /// It is not there.
    #[error("system VM {0} does not exist any more")]
    Gone(InstanceId),
    /// Somebody else is at it, or it is in a state that does not allow it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The driver could not.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// It could not get a certificate.
    #[error(transparent)]
    Certificate(#[from] IssueError),
    /// It is not what the command is for.
    #[error("{0} is {1}; it must be Running or Stopped for this")]
    State(String, InstanceState),
}

/// The system VMs of a zone; cheap to clone.
#[derive(Clone)]
pub struct SystemVms {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    agents: Agents,
    configuration: Configuration,
    ca: Ca,
    driver: Arc<dyn Driver>,
    place: Place,
    /// Held while something is done with a VM.
    locks: Mutex<HashMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    wake: Notify,
}

/// What only the loop knows.
#[derive(Default)]
struct Scan {
    budgets: HashMap<InstanceType, RestartBudget>,
    /// Ended by themselves.
    to_restart: HashMap<InstanceId, Again>,
    /// When each pool is looked at next.
    due: HashMap<InstanceType, Instant>,
}

/// A VM that is started again.
#[derive(Clone, Debug)]
struct Again {
    at: OffsetDateTime,
    /// How it ended.
    why: String,
}

impl SystemVms {
    /// Nothing is started yet.
    pub fn new(
        store: Store,
        agents: Agents,
        configuration: Configuration,
        ca: Ca,
        driver: Arc<dyn Driver>,
        place: Place,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                agents,
                configuration,
                ca,
                driver,
                place,
                locks: Mutex::default(),
                wake: Notify::new(),
            }),
        }
    }

    /// Who runs them.
    pub fn driver(&self) -> &dyn Driver {
        self.inner.driver.as_ref()
    }

    /// Likewise, for others who need it.
    pub fn shared_driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.inner.driver)
    }

    /// Looks at the pools now rather than at the next scan.
    pub fn look_now(&self) {
        self.inner.wake.notify_one();
    }

    /// Keeps them alive until `stop`; they go on after that.
    pub async fn run(&self, stop: CancellationToken) {
        let mut power = self.inner.driver.changes();
        let mut settings = self.inner.configuration.changes();
        let mut scan = Scan::default();
        loop {
            power.borrow_and_update();
            settings.borrow_and_update();
            let wait = match self.pass(&mut scan).await {
                Ok(wait) => wait,
                Err(error) => {
                    error!(error = %chain(&error), "Cannot look after the system VMs; trying again");
                    TRY_AGAIN
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.inner.wake.notified() => scan.due.clear(),
                _ = power.changed() => {}
                _ = settings.changed() => scan.due.clear(),
            }
        }
    }

    /// One look at everything; says when the next one is due at the latest.
    async fn pass(&self, scan: &mut Scan) -> Result<Duration, StoreError> {
        self.follow_power(scan).await?;
        self.restart(scan).await;
        for kind in [InstanceType::SecondaryStorageVm, InstanceType::ConsoleProxy] {
            let now = Instant::now();
            if scan.due.get(&kind).is_some_and(|due| *due > now) {
                continue;
            }
            let interval = match kind {
                InstanceType::ConsoleProxy => &CONSOLEPROXY_CAPACITYSCAN_INTERVAL,
                _ => &SECSTORAGE_CAPACITYSCAN_INTERVAL,
            };
            let interval = self.inner.configuration.time(interval).max(Duration::from_millis(100));
            scan.due.insert(kind, now + interval);
            self.scan(kind, scan).await?;
        }
        let now = OffsetDateTime::now_utc();
        let restarts = scan
            .to_restart
            .values()
            .map(|again| (again.at - now).max(time::Duration::ZERO).unsigned_abs());
        let scans = scan
            .due
            .values()
            .map(|due| due.saturating_duration_since(Instant::now()));
        Ok(restarts.chain(scans).min().unwrap_or(TRY_AGAIN))
    }

    /// The store believes the driver.
    async fn follow_power(&self, scan: &mut Scan) -> Result<(), StoreError> {
        use InstanceState::*;
        let hosts = self.inner.store.hosts().await?;
        for vm in self.inner.store.instances().await? {
            if vm.kind == InstanceType::User {
                continue;
            }
            let Some(_lock) = self.try_lock(vm.id) else { continue };
            match (self.inner.driver.power(&vm.name), vm.state) {
                (Power::Off(why), Starting | Running | Stopping | Migrating) => {
                    let was_wanted = vm.state != Stopping;
                    let event = InstanceEvent::FollowAgentPowerOffReport;
                    if self.inner.store.instance_event(&vm, event, why.as_str()).await.is_err() {
                        continue; // somebody else was faster, and knows better
                    }
                    if was_wanted {
                        self.ended(&vm, &why, scan).await;
                    }
                }
                (Power::On, Starting | Stopping | Stopped | Migrating) => {
                    let event = InstanceEvent::FollowAgentPowerOnReport;
                    self.inner
                        .store
                        .instance_event(&vm, event, "it was found running")
                        .await
                        .ok();
                }
                // Why it was started again is of interest until it is of use again.
                (Power::On, Running) if vm.reason != RUNNING && self.is_agent_up(&hosts, &vm) => {
                    self.inner.store.set_instance_reason(vm.id, RUNNING).await?;
                }
                (_, Expunging) => {
                    info!(vm = vm.name, "Finishing the removal of a system VM");
                    if let Err(error) = self.expunge(&vm).await {
                        warn!(vm = vm.name, error = %chain(&error), "Cannot remove a system VM");
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// One that should be on has ended.
    async fn ended(&self, vm: &Instance, why: &str, scan: &mut Scan) {
        self.alert(vm, format!("{} ended by itself: {why}", vm.name)).await;
        self.event(
            vm,
            stop_event(vm.kind),
            Level::Warn,
            format!("{} ended by itself: {why}", vm.name),
        )
        .await;
        let is_wanted = vm.kind != InstanceType::ConsoleProxy || self.inner.configuration.flag(&CONSOLEPROXY_RESTART);
        if !is_wanted {
            return;
        }
        let now = OffsetDateTime::now_utc();
        let (at, reason) = match scan.budgets.entry(vm.kind).or_default().next(now) {
            Restart::At(at) if at <= now => (at, started_again(why)),
            Restart::At(at) => (at, format!("{why}; it is started again at {} UTC", clock(at))),
            Restart::UsedUp(at) => {
                let minutes = RestartBudget::WINDOW.as_secs() / 60;
                let text = format!(
                    "{} was started again {} times within {minutes} minutes and ended each time; the next try is at {} UTC. {why}",
                    vm.name,
                    RestartBudget::COUNT,
                    clock(at)
                );
                self.alert(vm, text.clone()).await;
                (at, text)
            }
        };
        self.inner.store.set_instance_reason(vm.id, reason).await.ok();
        let why = why.to_owned();
        scan.to_restart.insert(vm.id, Again { at, why });
    }

    /// Starts those again that ended by themselves.
    async fn restart(&self, scan: &mut Scan) {
        let now = OffsetDateTime::now_utc();
        let due: Vec<(InstanceId, Again)> = scan.to_restart.extract_if(|_, again| again.at <= now).collect();
        for (id, Again { why, .. }) in due {
            let Ok(Some(vm)) = self.inner.store.instance(id).await else {
                continue;
            };
            if vm.removed.is_some() || vm.state != InstanceState::Stopped {
                continue; // somebody has done something with it meanwhile
            }
            scan.budgets.entry(vm.kind).or_default().count(now);
            info!(vm = vm.name, "Starting a system VM again that ended by itself");
            if let Err(error) = self.start_after(id, Some(&why)).await {
                let (Restart::At(at) | Restart::UsedUp(at)) = scan.budgets.entry(vm.kind).or_default().next(now);
                let at = at.max(now + Duration::from_secs(1));
                scan.to_restart.insert(id, Again { at, why });
                warn!(vm = vm.name, error = %chain(&error), "Cannot start a system VM");
            }
        }
    }

    /// One pass over one pool: at most one VM is started.
    async fn scan(&self, kind: InstanceType, scan: &Scan) -> Result<(), StoreError> {
        let configuration = &self.inner.configuration;
        let instances = self.inner.store.instances().await?;
        let pool: Vec<&Instance> = instances.iter().filter(|vm| vm.kind == kind).collect();
        // Those that ended by themselves are started again by the budget, not by the scan.
        if pool.iter().any(|vm| scan.to_restart.contains_key(&vm.id)) {
            return Ok(());
        }
        let action = if kind == InstanceType::ConsoleProxy {
            if configuration.text(&CONSOLEPROXY_MANAGEMENT_STATE) != "Auto" {
                return Ok(());
            }
            let settings = PoolSettings {
                session_max: number(configuration.number(&CONSOLEPROXY_SESSION_MAX)),
                capacity_standby: number(configuration.number(&CONSOLEPROXY_CAPACITY_STANDBY)),
                launch_max: number(configuration.number(&CONSOLEPROXY_LAUNCH_MAX)),
                restart: configuration.flag(&CONSOLEPROXY_RESTART),
                scale_down: false,
            };
            let members: Vec<Member> = pool.iter().map(|vm| member(vm, vm.active_sessions, true)).collect();
            scanner::console_proxies(&members, &settings)
        } else {
            let stores = self.inner.store.image_stores(self.inner.place.zone).await?;
            if !configuration.flag(&SYSTEM_VM_AUTO_RESERVE_CAPACITY) || stores.is_empty() {
                return Ok(());
            }
            let settings = PoolSettings {
                session_max: number(configuration.number(&SECSTORAGE_SESSION_MAX)),
                capacity_standby: number(configuration.number(&SECSTORAGE_CAPACITY_STANDBY)),
                scale_down: configuration.flag(&SECSTORAGE_VM_AUTO_SCALE_DOWN),
                ..PoolSettings::SECONDARY_STORAGE
            };
            let since = OffsetDateTime::now_utc() - configuration.time(&SECSTORAGE_CMD_EXECUTION_TIME_MAX);
            let active = self.inner.store.active_commands(since).await?;
            let hosts = self.inner.store.hosts().await?;
            let members: Vec<Member> = pool
                .iter()
                .map(|vm| {
                    let host = host_of(&hosts, vm);
                    let load = host.and_then(|host| active.get(&host.id)).copied().unwrap_or_default();
                    member(vm, load, self.is_agent_up(&hosts, vm))
                })
                .collect();
            scanner::secondary_storage(&members, &settings)
        };
        debug!(%kind, ?action, "Scanned a pool of system VMs");
        let done = match action {
            Action::Nothing(_) => return Ok(()),
            Action::Start(id) => self.start(id).await.map(drop),
            Action::Create(role) => self.create(kind, role).await.map(drop),
            Action::Destroy(id) => self.destroy(id).await,
        };
        if let Err(error) = done {
            warn!(%kind, error = %chain(&error), "Cannot bring up a system VM; trying again at the next scan");
        }
        Ok(())
    }

    async fn create(&self, kind: InstanceType, role: Role) -> Result<Instance, SystemVmError> {
        let place = &self.inner.place;
        let new = NewInstance {
            kind,
            name: None,
            display_name: None,
            suffix: self.inner.configuration.text(&SYSTEMVM_INSTANCE_NAME),
            hypervisor: self.inner.driver.hypervisor().to_owned(),
            state: InstanceState::Stopped,
            reason: "new".into(),
            zone: place.zone,
            pod: Some(place.pod),
            account: SYSTEM.0,
            role: role.as_str().map(str::to_owned),
            os_type: None,
            public_ip: Some(place.console.ip()),
            vnc: None,
        };
        let port = (kind == InstanceType::ConsoleProxy).then_some(place.console.port());
        let vm = self.inner.store.create_instance(new, port).await?;
        info!(vm = vm.name, role = vm.role, "System VM created");
        self.event(&vm, create_event(kind), Level::Info, format!("created {}", vm.name))
            .await;
        self.start(vm.id).await
    }

    /// Starts a VM; one that runs is started already.
    ///
    /// # Errors
    /// It is Stopped again, and its reason says why.
    pub async fn start(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        self.start_after(id, None).await
    }

    /// `end`: how it ended, when it did so by itself.
    async fn start_after(&self, id: InstanceId, end: Option<&str>) -> Result<Instance, SystemVmError> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state == InstanceState::Running {
            return Ok(vm);
        }
        let store = &self.inner.store;
        let known = vm.reason.clone();
        let starting = end.map_or_else(|| "being started".to_owned(), started_again);
        let vm = store
            .instance_event(&vm, InstanceEvent::StartRequested, starting.as_str())
            .await?;
        match self.power_on(&vm).await {
            Ok(()) => {
                let running = if end.is_some() { starting.as_str() } else { RUNNING };
                let vm = store
                    .instance_event(&vm, InstanceEvent::OperationSucceeded, running)
                    .await?;
                self.event(&vm, start_event(vm.kind), Level::Info, format!("started {}", vm.name))
                    .await;
                Ok(vm)
            }
            Err(error) => {
                let why = format!("cannot be started: {}", chain(&error));
                store
                    .instance_event(&vm, InstanceEvent::OperationFailed, why.as_str())
                    .await?;
                // Each scan tries again: what a person knows already is told once.
                if known != why {
                    self.alert(&vm, format!("{} {why}", vm.name)).await;
                }
                Err(error)
            }
        }
    }

    async fn power_on(&self, vm: &Instance) -> Result<(), SystemVmError> {
        let spec = self.spec(vm).await?;
        Ok(self.inner.driver.start(&spec).await?)
    }

    /// Stops a VM. The scanner starts it again, as CloudStack's does.
    ///
    /// # Errors
    /// It runs on.
    pub async fn stop(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        self.power_off(vm, "stopped by an operator").await
    }

    async fn power_off(&self, vm: Instance, reason: &str) -> Result<Instance, SystemVmError> {
        let store = &self.inner.store;
        if vm.state == InstanceState::Stopped {
            return Ok(vm);
        }
        let vm = store
            .instance_event(&vm, InstanceEvent::StopRequested, "being stopped")
            .await?;
        match self.inner.driver.stop(&vm.name).await {
            Ok(()) => Ok(store
                .instance_event(&vm, InstanceEvent::OperationSucceeded, reason)
                .await?),
            Err(error) => {
                let why = format!("cannot be stopped: {}", chain(&error));
                store.instance_event(&vm, InstanceEvent::OperationFailed, why).await?;
                Err(error.into())
            }
        }
    }

    /// Stops and starts a VM; starts one that is Stopped.
    ///
    /// # Errors
    /// It does not run now.
    pub async fn reboot(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        if self.present(id).await?.state == InstanceState::Running {
            self.stop(id).await?;
        }
        self.start(id).await
    }

    /// Stops a VM and removes it with all that belongs to it. The next scan makes a new one where it is needed.
    ///
    /// # Errors
    /// It could not be stopped or removed; doing it again is fine.
    pub async fn destroy(&self, id: InstanceId) -> Result<(), SystemVmError> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        let vm = match vm.state {
            InstanceState::Running | InstanceState::Stopping => self.power_off(vm, "being destroyed").await?,
            _ => vm,
        };
        let event = InstanceEvent::ExpungeOperation;
        let vm = self.inner.store.instance_event(&vm, event, "being removed").await?;
        self.expunge(&vm).await
    }

    async fn expunge(&self, vm: &Instance) -> Result<(), SystemVmError> {
        self.inner.driver.destroy(&vm.name).await?;
        let hosts = self.inner.store.hosts().await?;
        if let Some(host) = host_of(&hosts, vm) {
            self.remove_host(host).await?;
        }
        self.inner.store.remove_instance(vm.id).await?;
        self.inner
            .locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&vm.id);
        info!(vm = vm.name, "System VM removed");
        Ok(())
    }

    /// Its program has ended, so its link ends by itself; the host row then follows.
    async fn remove_host(&self, host: &Host) -> Result<(), StoreError> {
        let deadline = Instant::now() + LINK_LIMIT;
        while self.inner.agents.is_connected(host.id) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let removed = self
            .inner
            .store
            .apply_host_event(host.id, HostEvent::Remove, "its VM was destroyed")
            .await;
        match removed {
            Err(StoreError::Rejected(rejected)) => {
                warn!(host = %host.id, name = host.name, %rejected, "The host of a destroyed system VM stays");
                Ok(())
            }
            other => other.map(drop),
        }
    }

    async fn spec(&self, vm: &Instance) -> Result<VmSpec, SystemVmError> {
        let place = &self.inner.place;
        let public = vm.public_ip.unwrap_or(place.console.ip());
        let mask = match public {
            IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::new(255, 0, 0, 0)),
            _ => IpAddr::V4(Ipv4Addr::BROADCAST),
        };
        let nic = boot_line::Nic {
            address: Some((public, mask)),
            gateway: None,
            is_default: false,
        };
        let machine = boot_line::Machine {
            hosts: place.servers.clone(),
            port: place.port,
            name: vm.name.clone(),
            zone: place.zone,
            pod: place.pod,
            authorized_key: None,
            // A process has this machine's addresses: no control NIC, the others are the one it is reached by.
            nics: vec![boot_line::Nic::default(), nic.clone(), nic],
            local_gateway: None,
            management_cidr: None,
            internal_dns: Vec::new(),
            dns: Vec::new(),
            keystore_password: Secret::new(random::letters(16)),
        };
        let (purpose, boot_args) = if vm.kind == InstanceType::ConsoleProxy {
            let port = vm.console_port.unwrap_or(place.console.port());
            let proxy = boot_line::ConsoleProxy {
                id: vm.id,
                console_port: port,
                disable_rp_filter: false,
            };
            let listen = SocketAddr::new(place.console.ip(), port);
            (
                Purpose::ConsoleProxy { listen },
                boot_line::console_proxy(&machine, &proxy),
            )
        } else {
            let stores = self.inner.store.image_stores(place.zone).await?;
            let version = self.inner.configuration.text(&SECSTORAGE_NFS_VERSION);
            let ssvm = boot_line::SecondaryStorage {
                role: vm.role.clone().unwrap_or_else(|| "templateProcessor".into()),
                store_hosts: stores.iter().filter_map(|store| host_part(&store.url)).collect(),
                nfs_version: Some(version).filter(|version| !version.is_empty()),
                mtu: 1500,
            };
            let local = stores
                .into_iter()
                .filter_map(|store| Some((store.url, PathBuf::from(store.local_directory?))));
            let purpose = Purpose::SecondaryStorage {
                stores: local.collect(),
            };
            (purpose, boot_line::secondary_storage(&machine, &ssvm))
        };
        let request = Request::new(vm.name.clone(), vec![vm.name.clone()], vec![public]);
        let identity = self.inner.ca.issue(&request)?;
        self.inner.store.record_certificate(&identity.signed, None).await?;
        Ok(VmSpec {
            name: vm.name.clone(),
            purpose,
            boot_args,
            identity: Some(identity),
            // A process has this machine's.
            nics: Vec::new(),
            cpus: 1,
            memory_mib: 0,
            vnc_password: Secret::new(String::new()),
        })
    }

    /// Why a system VM is not of use now; `None` when it is.
    pub fn diagnose(&self, vm: &Instance, host: Option<&Host>) -> Option<Diagnosis> {
        self.why_not_up(vm, host).map(|reason| Diagnosis {
            reason,
            what_to_do: None,
            since: vm.since,
        })
    }

    /// Why a system VM is not of use now, in words; `None` when it is.
    pub fn why_not_up(&self, vm: &Instance, host: Option<&Host>) -> Option<String> {
        if vm.state != InstanceState::Running {
            return Some(format!("{}: {}", vm.state, vm.reason));
        }
        if let Power::Off(why) = self.inner.driver.power(&vm.name) {
            return Some(why);
        }
        let state = match vm.reason.as_str() {
            RUNNING => "it runs",
            reason => reason,
        };
        let why = match host {
            None => format!("{state}, but its agent has not connected yet"),
            Some(host) if host.status == HostStatus::Up => return None,
            Some(host) => format!("{state}, but its agent is {}: {}", host.status, host.status_reason),
        };
        Some(match self.inner.driver.last_words(&vm.name) {
            Some(words) => format!("{why}; last log line: {words}"),
            None => why,
        })
    }

    fn is_agent_up(&self, hosts: &[Host], vm: &Instance) -> bool {
        host_of(hosts, vm).is_some_and(|host| self.inner.agents.is_up(host.id))
    }

    async fn present(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        let vm = self.inner.store.instance(id).await?;
        vm.filter(|vm| vm.removed.is_none() && vm.kind != InstanceType::User)
            .ok_or(SystemVmError::Gone(id))
    }

    fn lock_of(&self, id: InstanceId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.inner.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(id).or_default())
    }

    async fn lock(&self, id: InstanceId) -> OwnedMutexGuard<()> {
        self.lock_of(id).lock_owned().await
    }

    fn try_lock(&self, id: InstanceId) -> Option<OwnedMutexGuard<()>> {
        self.lock_of(id).try_lock_owned().ok()
    }

    async fn alert(&self, vm: &Instance, text: String) {
        let kind = match vm.kind {
            InstanceType::ConsoleProxy => AlertType::CONSOLE_PROXY,
            _ => AlertType::SSVM,
        };
        alerts::record(&self.inner.store, kind, Some(vm.zone), vm.pod, text).await;
    }

    async fn event(&self, vm: &Instance, event_type: &'static str, level: Level, description: String) {
        let event = NewEvent {
            event_type,
            level,
            state: EventState::Completed,
            description,
            parent: None,
            user: SYSTEM.1,
            resource: Some(("SystemVm", vm.uuid)),
        };
        if let Err(error) = self.inner.store.add_event(event).await {
            warn!(error = %chain(&error), "Cannot record an event");
        }
    }
}

const RUNNING: &str = "running";

fn started_again(why: &str) -> String {
    format!("{why}; being started again")
}

/// The row of a VM's agent: its name is the VM's.
pub fn host_of<'a>(hosts: &'a [Host], vm: &Instance) -> Option<&'a Host> {
    hosts.iter().rev().find(|host| host.name == vm.name)
}

fn member(vm: &Instance, load: u32, is_agent_up: bool) -> Member {
    Member {
        id: vm.id,
        state: vm.state,
        is_agent_up,
        load,
    }
}

fn number(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

fn host_part(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    (!host.is_empty()).then(|| host.to_owned())
}

/// Hours, minutes and seconds.
fn clock(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())
}

fn create_event(kind: InstanceType) -> &'static str {
    match kind {
        InstanceType::ConsoleProxy => "PROXY.CREATE",
        _ => "SSVM.CREATE",
    }
}

fn start_event(kind: InstanceType) -> &'static str {
    match kind {
        InstanceType::ConsoleProxy => "PROXY.START",
        _ => "SSVM.START",
    }
}

fn stop_event(kind: InstanceType) -> &'static str {
    match kind {
        InstanceType::ConsoleProxy => "PROXY.STOP",
        _ => "SSVM.STOP",
    }
}
