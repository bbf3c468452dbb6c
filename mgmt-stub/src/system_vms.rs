//! Keeps the zone's system VMs alive: what [`crate::scanner`] decides is done here (management.md §2–§4, §6, §7, §9, §14).
//!
//! Whoever starts, stops or destroys a VM holds its lock; its state is in the store and moves by conditional updates.
//! `keeper` is the loop that looks and decides; what takes time runs beside it, so that a start that takes minutes keeps
//! nobody from seeing that another VM has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use platform::logging::chain;
use tokio::sync::{Notify, OwnedMutexGuard, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::agents::Agents;
use crate::alerts::{self, AlertType};
use crate::ca::{Ca, IssueError};
use crate::configuration::Configuration;
use crate::driver::{Driver, DriverError};
use crate::instance_state::InstanceState;
use crate::store::event::{EventState, Level, NewEvent};
use crate::store::host::Host;
use crate::store::id::{AccountId, InstanceId, UserId};
use crate::store::instance::{Instance, InstanceType};
use crate::store::{Store, StoreError};

mod diagnosis;
mod keeper;
mod life;
mod place;
mod pool;
mod power;
mod spec;

pub use diagnosis::Diagnosis;
pub use place::{AddressRange, BadZoneCidr, Network, Networks, Place};

/// The account that system VMs belong to, and the user who does what nobody asked for.
const SYSTEM: (AccountId, UserId) = (AccountId(1), UserId(1));

/// Why something could not be done with a system VM.
#[derive(Debug, thiserror::Error)]
pub enum SystemVmError {
    /// It is not there.
    #[error("system VM {0} does not exist any more")]
    Gone(InstanceId),
    /// Somebody else is at it, it is in a state that does not allow it, or there is no address for it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The driver could not.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// It could not get a certificate.
    #[error(transparent)]
    Certificate(#[from] IssueError),
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
    /// As many starts as the driver takes at the same time.
    starts: Semaphore,
    wake: Notify,
    /// Of those that were started again lately: restarts that are left.
    restarts_left: Mutex<HashMap<InstanceId, usize>>,
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
        let starts = Semaphore::new(driver.parallel_starts().max(1));
        Self {
            inner: Arc::new(Inner {
                store,
                agents,
                configuration,
                ca,
                driver,
                place,
                locks: Mutex::default(),
                starts,
                wake: Notify::new(),
                restarts_left: Mutex::default(),
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

    /// Where they live.
    pub fn place(&self) -> &Place {
        &self.inner.place
    }

    /// How often each of those that were started again lately may be so once more, within the budget.
    pub fn restarts_left(&self) -> HashMap<InstanceId, usize> {
        self.inner
            .restarts_left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks at the pools now rather than at the next scan.
    pub fn look_now(&self) {
        self.inner.wake.notify_one();
    }

    /// Keeps them alive until `stop`; they go on after that.
    pub async fn run(&self, stop: CancellationToken) {
        keeper::Keeper::new(self.clone()).run(stop).await;
    }

    /// Why a system VM is not of use now; `None` when it is.
    pub fn diagnose(&self, vm: &Instance, host: Option<&Host>) -> Option<Diagnosis> {
        diagnosis::of(&diagnosis::Facts {
            vm,
            host,
            driver: self.inner.driver.as_ref(),
            place: &self.inner.place,
            limits: &diagnosis::Limits::of(&self.inner.configuration),
        })
    }

    /// Why a system VM is not of use now, in words; `None` when it is.
    pub fn why_not_up(&self, vm: &Instance, host: Option<&Host>) -> Option<String> {
        self.diagnose(vm, host).map(|diagnosis| diagnosis.reason)
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

    /// For ending a VM: a start that goes on ends now, instead of keeping whoever wants this for minutes.
    async fn lock_to_end(&self, id: InstanceId) -> OwnedMutexGuard<()> {
        if let Some(lock) = self.try_lock(id) {
            return lock;
        }
        if let Ok(vm) = self.present(id).await
            && vm.state == InstanceState::Starting
            && let Err(error) = self.inner.driver.stop(&vm.name).await
        {
            warn!(vm = vm.name, error = %chain(&error), "Cannot end the start of a system VM");
        }
        self.lock(id).await
    }

    async fn alert(&self, vm: &Instance, kind: AlertType, text: String) {
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

/// `reason` of one that runs as it shall.
const RUNNING: &str = "running";

fn started_again(why: &str) -> String {
    format!("{why}; being started again")
}

/// The row of a VM's agent: its name is the VM's.
pub fn host_of<'a>(hosts: &'a [Host], vm: &Instance) -> Option<&'a Host> {
    hosts.iter().rev().find(|host| host.name == vm.name)
}

/// The kind of alert for what happens to a VM.
fn alert_type(kind: InstanceType) -> AlertType {
    match kind {
        InstanceType::ConsoleProxy => AlertType::CONSOLE_PROXY,
        _ => AlertType::SSVM,
    }
}
