//! VMs of users, for the case without a guest network (management.md §2, §3): from a template to a disk, on, off, gone.
//! They have no NIC: there is no network yet that would keep tenants apart (decision 0073).
//!
//! Whoever does something with a VM holds its lock; its state is in the store and moves by conditional updates. What the
//! driver says of its power is believed while nobody holds the lock.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::logging::chain;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::alerts::{self, AlertType};
use crate::configuration::{Configuration, EXPUNGE_DELAY, EXPUNGE_INTERVAL, SYSTEMVM_INSTANCE_NAME};
use crate::driver::{Driver, DriverError, Power, Purpose, VmSpec};
use crate::host::Host;
use crate::instance_state::{InstanceEvent, InstanceState};
use crate::offering::{self, ServiceOffering};
use crate::random;
use crate::store::event::{EventState, Level, NewEvent};
use crate::store::id::{AccountId, InstanceId, TemplateId, UserId, ZoneId};
use crate::store::instance::{Instance, InstanceType, NewInstance};
use crate::store::storage_pool::StoragePool;
use crate::store::template::Template;
use crate::store::user_vm::UserVm;
use crate::store::{Store, StoreError};

mod disks;

pub use disks::DiskError;

/// The user who does what nobody asked for.
const SYSTEM: UserId = UserId(1);
/// RFC 6143 §7.2.2: more do not count.
const VNC_PASSWORD_LEN: usize = 8;
/// Looks at the power of all VMs without being told of a change.
const LOOK: Duration = Duration::from_secs(10);
/// CloudStack's name of the pool is the host's; there is one host.
const POOL: &str = "primary";

/// The zone's VMs of users; cheap to clone.
#[derive(Clone)]
pub struct UserVms {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    configuration: Configuration,
    driver: Arc<dyn Driver>,
    host: Host,
    pool: StoragePool,
    /// Held while something is done with a VM.
    locks: Locks<InstanceId>,
    /// Held while a template is copied.
    copies: Locks<TemplateId>,
    wake: Notify,
}

/// One lock for each thing that somebody works on.
struct Locks<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

/// A VM to be.
#[derive(Clone, Debug)]
pub struct NewUserVm {
    /// `None`: made of its UUID.
    pub host_name: Option<String>,
    /// For people; else its instance name.
    pub display_name: Option<String>,
    /// Ready.
    pub template: Template,
    /// Its size.
    pub offering: &'static ServiceOffering,
    /// Whose it is.
    pub account: AccountId,
    /// Who deploys it.
    pub user: UserId,
}

/// Why there is no place for disks.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory.
    #[error("cannot use the directory {path} as primary storage")]
    Pool {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why something could not be done with a VM of a user.
#[derive(Debug, thiserror::Error)]
pub enum UserVmError {
    /// It is not there.
    #[error("instance {0} does not exist any more")]
    Gone(InstanceId),
    /// The wrong time.
    #[error("instance {name} is {state}; this needs one that is {wanted}")]
    State {
        /// Which one.
        name: String,
        /// As it is.
        state: InstanceState,
        /// As it should be.
        wanted: &'static str,
    },
    /// From an older program.
    #[error("the service offering of instance {0} does not exist any more")]
    NoOffering(String),
    /// Its root disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The driver could not.
    #[error("the hypervisor could not {doing} instance {name}")]
    Driver {
        /// What was tried.
        doing: &'static str,
        /// With which one.
        name: String,
        /// What it said.
        source: DriverError,
    },
    /// Somebody else is at it, or the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UserVms {
    /// Takes the directory for disks, and makes it if need be. Removes what a server that was killed has left unfinished.
    ///
    /// # Errors
    /// There is no place for disks.
    pub async fn open(
        store: Store,
        configuration: Configuration,
        driver: Arc<dyn Driver>,
        zone: ZoneId,
        path: PathBuf,
    ) -> Result<Self, OpenError> {
        let host = Host::open(path.clone()).map_err(|source| OpenError::Pool {
            path: path.clone(),
            source,
        })?;
        let pool = store.add_storage_pool(zone, POOL, path.display().to_string()).await?;
        let user_vms = Self {
            inner: Arc::new(Inner {
                store,
                configuration,
                driver,
                host,
                pool,
                locks: Locks::new(),
                copies: Locks::new(),
                wake: Notify::new(),
            }),
        };
        user_vms.forget_half_made().await?;
        user_vms.remove_strays().await?;
        Ok(user_vms)
    }

    /// Where their disks are.
    pub fn pool(&self) -> &StoragePool {
        &self.inner.pool
    }

    /// Who keeps their disks.
    pub fn host(&self) -> &Host {
        &self.inner.host
    }

    /// Who runs them.
    pub fn driver(&self) -> &dyn Driver {
        self.inner.driver.as_ref()
    }

    /// Likewise, for others who need it.
    pub fn shared_driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.inner.driver)
    }

    /// Follows their power and removes those that were destroyed long ago, until `stop`. They go on after that.
    pub async fn run(&self, stop: CancellationToken) {
        let mut power = self.inner.driver.changes();
        let mut purged = None;
        loop {
            power.borrow_and_update();
            if let Err(error) = self.pass(&mut purged).await {
                error!(error = %chain(&error), "Cannot look after the VMs of users; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                () = self.inner.wake.notified() => {}
                _ = power.changed() => {}
            }
        }
    }

    async fn pass(&self, purged: &mut Option<Instant>) -> Result<(), StoreError> {
        let interval = self.inner.configuration.time(&EXPUNGE_INTERVAL);
        let is_purge = purged.is_none_or(|purged| purged.elapsed() >= interval);
        for vm in self.all().await? {
            let Some(_lock) = self.inner.locks.try_lock(vm.id) else {
                continue;
            };
            // Whoever held the lock may have moved it.
            let Some(vm) = self
                .inner
                .store
                .instance(vm.id)
                .await?
                .filter(|vm| vm.removed.is_none())
            else {
                continue;
            };
            self.follow(&vm).await;
            if is_purge && vm.state == InstanceState::Destroyed {
                let age = OffsetDateTime::now_utc() - vm.since;
                if age >= self.inner.configuration.time(&EXPUNGE_DELAY)
                    && let Err(error) = self.expunge_locked(vm.clone()).await
                {
                    warn!(vm = vm.name, error = %chain(&error), "Cannot remove an instance that was destroyed");
                }
            }
        }
        if is_purge {
            self.remove_unused_templates().await?;
            *purged = Some(Instant::now());
        }
        Ok(())
    }

    /// The store believes the driver (management.md §2 "Power sync").
    async fn follow(&self, vm: &Instance) {
        use InstanceState::*;
        let store = &self.inner.store;
        match (self.inner.driver.power(&vm.name), vm.state) {
            (Power::Off(why), Starting | Running | Stopping | Migrating) => {
                let event = InstanceEvent::FollowAgentPowerOffReport;
                if store.instance_event(vm, event, why.as_str()).await.is_err() {
                    return; // somebody else was faster, and knows better
                }
                if vm.state != Stopping {
                    let text = format!("{} is off without having been stopped: {why}", vm.display_name);
                    warn!(vm = vm.name, why, "An instance ended by itself");
                    alerts::record(store, AlertType::SYNC, Some(vm.zone), vm.pod, text.clone()).await;
                    self.event(vm, "VM.STOP", text).await;
                }
            }
            (Power::On, Starting | Stopping | Stopped | Migrating) => {
                let event = InstanceEvent::FollowAgentPowerOnReport;
                store.instance_event(vm, event, "it was found running").await.ok();
            }
            (_, Expunging) => {
                if let Err(error) = self.expunge_locked(vm.clone()).await {
                    warn!(vm = vm.name, error = %chain(&error), "Cannot remove an instance");
                }
            }
            _ => {}
        }
    }

    /// A new one, Stopped, with a root disk that has no file yet.
    ///
    /// # Errors
    /// The store.
    pub async fn create(&self, new: NewUserVm) -> Result<Instance, UserVmError> {
        let Inner { store, pool, .. } = &*self.inner;
        let instance = NewInstance {
            kind: InstanceType::User,
            name: None,
            display_name: new.display_name.or_else(|| new.host_name.clone()),
            suffix: self.inner.configuration.text(&SYSTEMVM_INSTANCE_NAME),
            hypervisor: self.inner.driver.hypervisor().to_owned(),
            state: InstanceState::Stopped,
            reason: "new".into(),
            zone: pool.zone,
            pod: None,
            account: new.account,
            role: None,
            os_type: new.template.facts.os_type.clone(),
            public_ip: None,
            vnc: None,
        };
        let vm = store.create_instance(instance, None).await?;
        let user_vm = UserVm {
            instance: vm.id,
            host_name: new.host_name.unwrap_or_else(|| format!("VM-{}", vm.uuid)),
            user: new.user,
            template: new.template.id,
            offering: new.offering.id,
        };
        store.add_user_vm(user_vm, new.account, pool.id, None).await?;
        info!(vm = vm.name, template = %new.template.uuid, offering = new.offering.name, "Instance created");
        Ok(vm)
    }

    /// The first start of a new one.
    ///
    /// # Errors
    /// It is in Error, and its reason says why: it can only be destroyed.
    pub async fn deploy(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        match self.start_locked(id).await {
            Ok(vm) => Ok(vm),
            Err(error) => {
                let vm = self.present(id).await?;
                if vm.state == InstanceState::Stopped {
                    let event = InstanceEvent::OperationFailedToError;
                    self.inner.store.instance_event(&vm, event, vm.reason.clone()).await?;
                }
                Err(error)
            }
        }
    }

    /// Starts one that is Stopped; one that runs is started already.
    ///
    /// # Errors
    /// It is Stopped again, and its reason says why.
    pub async fn start(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        self.start_locked(id).await
    }

    async fn start_locked(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        let store = &self.inner.store;
        let vm = self.present(id).await?;
        match vm.state {
            InstanceState::Running => return Ok(vm),
            InstanceState::Stopped => {}
            _ => return Err(wrong_state(&vm, "Stopped")),
        }
        let event = InstanceEvent::StartRequested;
        let vm = store.instance_event(&vm, event, "being started").await?;
        match self.power_on(&vm).await {
            Ok(()) => {
                let event = InstanceEvent::OperationSucceeded;
                Ok(store.instance_event(&vm, event, "running").await?)
            }
            Err(error) => {
                let why = format!("cannot be started: {}", chain(&error));
                store
                    .instance_event(&vm, InstanceEvent::OperationFailed, why.as_str())
                    .await?;
                Err(error)
            }
        }
    }

    async fn power_on(&self, vm: &Instance) -> Result<(), UserVmError> {
        let disk = self.prepare_disk(vm).await?;
        self.inner.store.set_instance_reason(vm.id, "being started").await?;
        let spec = self.spec(vm, disk).await?;
        self.inner.driver.start(&spec).await.map_err(of_driver("start", vm))
    }

    async fn spec(&self, vm: &Instance, disk: PathBuf) -> Result<VmSpec, UserVmError> {
        let user_vm = self.inner.store.user_vm(vm.id).await?.ok_or(UserVmError::Gone(vm.id))?;
        let size = offering::find(user_vm.offering).ok_or_else(|| UserVmError::NoOffering(vm.name.clone()))?;
        Ok(VmSpec {
            name: vm.name.clone(),
            purpose: Purpose::User { disk },
            boot_args: Secret::new(String::new()),
            identity: None,
            nics: Vec::new(),
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            vnc_password: Secret::new(random::letters(VNC_PASSWORD_LEN)),
        })
    }

    /// Stops one; `forced` does not ask it first.
    ///
    /// # Errors
    /// It runs on.
    pub async fn stop(&self, id: InstanceId, forced: bool) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        let vm = self.present(id).await?;
        self.stop_locked(vm, forced, "stopped").await
    }

    async fn stop_locked(&self, vm: Instance, forced: bool, reason: &str) -> Result<Instance, UserVmError> {
        let store = &self.inner.store;
        match vm.state {
            InstanceState::Stopped => return Ok(vm),
            InstanceState::Running | InstanceState::Stopping => {}
            _ => return Err(wrong_state(&vm, "Running")),
        }
        let vm = store
            .instance_event(&vm, InstanceEvent::StopRequested, "being stopped")
            .await?;
        let stopped = if forced {
            self.inner.driver.power_off(&vm.name).await
        } else {
            self.inner.driver.stop(&vm.name).await
        };
        match stopped.map_err(of_driver("stop", &vm)) {
            Ok(()) => Ok(store
                .instance_event(&vm, InstanceEvent::OperationSucceeded, reason)
                .await?),
            Err(error) => {
                let why = format!("cannot be stopped: {}", chain(&error));
                store.instance_event(&vm, InstanceEvent::OperationFailed, why).await?;
                Err(error)
            }
        }
    }

    /// Restarts what runs in one; `forced` powers it off and on.
    ///
    /// # Errors
    /// It is not Running; or the hypervisor could not, and then its power is followed.
    pub async fn reboot(&self, id: InstanceId, forced: bool) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state != InstanceState::Running {
            return Err(wrong_state(&vm, "Running"));
        }
        if forced {
            self.stop_locked(vm, true, "being rebooted").await?;
            return self.start_locked(id).await;
        }
        let disk = self.prepare_disk(&vm).await?;
        let spec = self.spec(&vm, disk).await?;
        let rebooted = self.inner.driver.reboot(&spec).await;
        if rebooted.is_err() {
            self.inner.wake.notify_one();
        }
        rebooted.map_err(of_driver("reboot", &vm))?;
        let event = InstanceEvent::OperationSucceeded;
        Ok(self.inner.store.instance_event(&vm, event, "running").await?)
    }

    /// Stops one if need be and marks it as Destroyed; one that could not be created is removed for good. `forced` does not
    /// ask it to shut down first.
    ///
    /// # Errors
    /// It could not be stopped or removed; doing it again is fine.
    pub async fn destroy(&self, id: InstanceId, forced: bool) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        let vm = self.present(id).await?;
        let vm = match vm.state {
            InstanceState::Running | InstanceState::Stopping => self.stop_locked(vm, forced, "being destroyed").await?,
            _ => vm,
        };
        match vm.state {
            InstanceState::Destroyed => Ok(vm),
            InstanceState::Error => self.expunge_locked(vm).await,
            _ => {
                let event = InstanceEvent::DestroyRequested;
                Ok(self.inner.store.instance_event(&vm, event, "destroyed").await?)
            }
        }
    }

    /// Destroys one and removes it at once. It is not asked to shut down: nothing of it is kept.
    ///
    /// # Errors
    /// As of [`Self::destroy`] and [`Self::expunge`].
    pub async fn destroy_for_good(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        match self.destroy(id, true).await? {
            vm if vm.state == InstanceState::Expunging => Ok(vm), // it could not be created, and is gone already
            _ => self.expunge(id).await,
        }
    }

    /// Removes one that is Destroyed, or could not be created, with its disk.
    ///
    /// # Errors
    /// It is partly removed; the next look goes on with it.
    pub async fn expunge(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        let vm = self.present(id).await?;
        match vm.state {
            InstanceState::Destroyed | InstanceState::Error | InstanceState::Expunging => self.expunge_locked(vm).await,
            _ => Err(wrong_state(&vm, "Destroyed")),
        }
    }

    /// Gives it as it was last.
    async fn expunge_locked(&self, vm: Instance) -> Result<Instance, UserVmError> {
        let event = InstanceEvent::ExpungeOperation;
        let vm = self.inner.store.instance_event(&vm, event, "being removed").await?;
        self.inner
            .driver
            .destroy(&vm.name)
            .await
            .map_err(of_driver("remove", &vm))?;
        self.remove_disk(&vm).await?;
        self.inner.store.remove_instance(vm.id).await?;
        self.inner.locks.forget(vm.id);
        info!(vm = vm.name, "Instance removed");
        Ok(vm)
    }

    /// Takes back that one was destroyed.
    ///
    /// # Errors
    /// It is not Destroyed.
    pub async fn recover(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        let _lock = self.inner.locks.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state != InstanceState::Destroyed {
            return Err(wrong_state(&vm, "Destroyed"));
        }
        let event = InstanceEvent::RecoveryRequested;
        Ok(self.inner.store.instance_event(&vm, event, "recovered").await?)
    }

    /// Those that we run.
    async fn all(&self) -> Result<Vec<Instance>, StoreError> {
        let ours = self.inner.store.user_vms().await?;
        let mut instances = self.inner.store.instances().await?;
        instances.retain(|vm| ours.contains_key(&vm.id));
        Ok(instances)
    }

    async fn present(&self, id: InstanceId) -> Result<Instance, UserVmError> {
        let vm = self.inner.store.instance(id).await?;
        vm.filter(|vm| vm.removed.is_none() && vm.kind == InstanceType::User)
            .ok_or(UserVmError::Gone(id))
    }

    /// Of a server that was killed between the two steps of [`Self::create`]: nobody was told of it.
    async fn forget_half_made(&self) -> Result<(), StoreError> {
        let ours = self.inner.store.user_vms().await?;
        for vm in self.inner.store.instances().await? {
            let is_half = vm.kind == InstanceType::User && vm.vnc.is_none() && !ours.contains_key(&vm.id);
            if is_half {
                info!(vm = vm.name, "Forgetting an instance that was only half made");
                self.inner.store.remove_instance(vm.id).await?;
            }
        }
        Ok(())
    }

    async fn event(&self, vm: &Instance, event_type: &'static str, description: String) {
        let event = NewEvent {
            event_type,
            level: Level::Warn,
            state: EventState::Completed,
            description,
            parent: None,
            user: SYSTEM,
            resource: Some(("VirtualMachine", vm.uuid)),
        };
        if let Err(error) = self.inner.store.add_event(event).await {
            warn!(error = %chain(&error), "Cannot record an event");
        }
    }
}

fn wrong_state(vm: &Instance, wanted: &'static str) -> UserVmError {
    UserVmError::State {
        name: vm.display_name.clone(),
        state: vm.state,
        wanted,
    }
}

fn of_driver(doing: &'static str, vm: &Instance) -> impl FnOnce(DriverError) -> UserVmError {
    let name = vm.display_name.clone();
    move |source| UserVmError::Driver { doing, name, source }
}

impl<K: Copy + Eq + std::hash::Hash> Locks<K> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn of(&self, key: K) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(key).or_default())
    }

    async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        self.of(key).lock_owned().await
    }

    fn try_lock(&self, key: K) -> Option<OwnedMutexGuard<()>> {
        self.of(key).try_lock_owned().ok()
    }

    fn forget(&self, key: K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}
