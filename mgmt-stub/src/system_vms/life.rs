//! Starting, stopping, rebooting and destroying one VM (management.md §3).

use std::sync::PoisonError;
use std::time::Duration;

use platform::logging::chain;
use tokio::time::Instant;
use tracing::{info, warn};

use super::spec::released_on_stop;
use super::{CANNOT_BE_STARTED, RUNNING, SYSTEM, SystemVmError, SystemVms, alert_type, started_again};
use crate::configuration::SYSTEMVM_INSTANCE_NAME;
use crate::driver::Power;
use crate::host_status::HostEvent;
use crate::instance_state::{InstanceEvent, InstanceState};
use crate::scanner::Role;
use crate::store::StoreError;
use crate::store::event::Level;
use crate::store::host::Host;
use crate::store::id::InstanceId;
use crate::store::instance::{Instance, InstanceType, NewInstance};

/// For the link of an agent whose VM was destroyed to end.
const LINK_LIMIT: Duration = Duration::from_secs(5);

/// A start that came to nothing.
pub(super) struct StartFailed {
    pub(super) error: SystemVmError,
    /// As the start has left it: whoever tries again sees whether somebody has done something with it meanwhile.
    pub(super) left: Option<Instance>,
}

impl<E: Into<SystemVmError>> From<E> for StartFailed {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            left: None,
        }
    }
}

impl SystemVms {
    /// Makes the row of a new VM, which is Stopped.
    pub(super) async fn create(&self, kind: InstanceType, role: Role) -> Result<Instance, SystemVmError> {
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
            public_ip: place.networks.is_none().then(|| place.console.ip()),
            vnc: None,
        };
        let port = (kind == InstanceType::ConsoleProxy).then_some(place.console.port());
        let vm = self.inner.store.create_instance(new, port).await?;
        info!(vm = vm.name, role = vm.role, "System VM created");
        let event = event_type(kind, "PROXY.CREATE", "SSVM.CREATE");
        self.event(&vm, event, Level::Info, format!("created {}", vm.name))
            .await;
        Ok(vm)
    }

    /// Starts a VM; one that runs is started already.
    ///
    /// # Errors
    /// It is Stopped again, and its reason says why.
    pub async fn start(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state == InstanceState::Running {
            return Ok(vm);
        }
        self.start_locked(&vm, None).await.map_err(|failed| failed.error)
    }

    /// Starts one that is Stopped, unless somebody has done something with it since it was `seen`. `end`: how it ended,
    /// when it did so by itself.
    pub(super) async fn start_seen(&self, id: InstanceId, seen: i64, end: Option<&str>) -> Result<(), StartFailed> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state != InstanceState::Stopped || vm.update_count != seen {
            return Ok(());
        }
        if end.is_some() {
            info!(vm = vm.name, "Starting a system VM again that ended by itself");
        }
        self.start_locked(&vm, end).await.map(drop)
    }

    /// Powers off and on one that hangs or whose agent is gone, unless that is over.
    pub(super) async fn cycle(&self, id: InstanceId, seen: i64, why: &str) -> Result<(), StartFailed> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state != InstanceState::Running || vm.update_count != seen || !self.is_in_trouble(&vm).await? {
            return Ok(());
        }
        warn!(vm = vm.name, why, "Starting a system VM again that is of no use");
        let vm = self.power_off(vm, &started_again(why)).await?;
        self.start_locked(&vm, Some(why)).await.map(drop)
    }

    /// Whether nobody answers in it, or its agent is not Up.
    pub(super) async fn is_in_trouble(&self, vm: &Instance) -> Result<bool, StoreError> {
        if self.inner.driver.silent_since(&vm.name).is_some() {
            return Ok(true);
        }
        let host = self.inner.store.host_named(&vm.name).await?;
        Ok(!host.is_some_and(|host| self.inner.agents.is_up(host.id)))
    }

    /// Whoever calls this holds its lock.
    async fn start_locked(&self, vm: &Instance, end: Option<&str>) -> Result<Instance, StartFailed> {
        let store = &self.inner.store;
        let known = vm.reason.clone();
        let starting = match (end, known.strip_prefix(CANNOT_BE_STARTED)) {
            (Some(end), _) => started_again(end),
            // Who looks shall know why it is not there yet, also while that is tried once more.
            (None, Some(failed)) => format!("being started again; the last start failed: {failed}"),
            (None, None) => "being started".to_owned(),
        };
        let event = InstanceEvent::StartRequested;
        let vm = store.instance_event(vm, event, starting.as_str()).await?;
        match self.power_on(&vm).await {
            Ok(()) => {
                let running = if end.is_some() { starting.as_str() } else { RUNNING };
                let vm = store
                    .instance_event(&vm, InstanceEvent::OperationSucceeded, running)
                    .await?;
                let event = event_type(vm.kind, "PROXY.START", "SSVM.START");
                self.event(&vm, event, Level::Info, format!("started {}", vm.name))
                    .await;
                Ok(vm)
            }
            Err(error) => {
                let why = format!("{CANNOT_BE_STARTED}{}", chain(&error));
                let stopped = store
                    .instance_event(&vm, InstanceEvent::OperationFailed, why.as_str())
                    .await?;
                self.release_addresses(&stopped).await;
                // Each scan tries again: what a person knows already is told once.
                if known != why {
                    let text = format!("{} {why}", vm.name);
                    self.alert(&stopped, alert_type(vm.kind), text).await;
                }
                let left = Some(stopped);
                Err(StartFailed { error, left })
            }
        }
    }

    async fn power_on(&self, vm: &Instance) -> Result<(), SystemVmError> {
        // Closed never.
        let _turn = self.inner.starts.acquire().await;
        let nics = self.reserve_nics(vm).await?;
        let spec = self.spec(vm, &nics).await?;
        Ok(self.inner.driver.start(&spec).await?)
    }

    /// Stops a VM. The scanner starts it again, as CloudStack's does.
    ///
    /// # Errors
    /// It runs on.
    pub async fn stop(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        let _lock = self.lock_to_end(id).await;
        let vm = self.present(id).await?;
        self.power_off(vm, "stopped by an operator").await
    }

    /// Also of one that is Stopped: whoever was about to start it again sees that it shall not.
    async fn power_off(&self, vm: Instance, reason: &str) -> Result<Instance, SystemVmError> {
        let store = &self.inner.store;
        let was_stopped = vm.state == InstanceState::Stopped;
        let requested = if was_stopped { reason } else { "being stopped" };
        let event = InstanceEvent::StopRequested;
        let vm = store.instance_event(&vm, event, requested).await?;
        if was_stopped {
            return Ok(vm);
        }
        let driver = &self.inner.driver;
        // What hangs cannot be asked.
        let ended = match driver.silent_since(&vm.name) {
            Some(_) => driver.power_off(&vm.name).await,
            None => driver.stop(&vm.name).await,
        };
        match ended {
            Ok(()) => {
                let event = InstanceEvent::OperationSucceeded;
                let vm = store.instance_event(&vm, event, reason).await?;
                self.powered_off(&vm).await;
                Ok(vm)
            }
            Err(error) => {
                let why = format!("cannot be stopped: {}", chain(&error));
                store.instance_event(&vm, InstanceEvent::OperationFailed, why).await?;
                Err(error.into())
            }
        }
    }

    /// What follows when a VM has become Stopped, however that came about.
    pub(super) async fn powered_off(&self, vm: &Instance) {
        self.release_addresses(vm).await;
        if let Err(error) = self.disconnect(vm).await {
            warn!(vm = vm.name, error = %chain(&error), "Cannot end the link of a system VM that is off");
        }
    }

    /// Its link may be open still, or may have broken with the power, which looks like an accident.
    async fn disconnect(&self, vm: &Instance) -> Result<(), StoreError> {
        let Some(host) = self.inner.store.host_named(&vm.name).await? else {
            return Ok(());
        };
        self.inner.agents.powered_off(host.id);
        let event = HostEvent::ShutdownRequested;
        match self
            .inner
            .store
            .apply_host_event(host.id, event, "its VM was powered off")
            .await
        {
            Err(StoreError::Rejected(_)) => Ok(()), // it was never connected
            other => other.map(drop),
        }
    }

    /// Addresses that could not be given back now are given back when the server starts.
    async fn release_addresses(&self, vm: &Instance) {
        if self.inner.place.networks.is_none() {
            return;
        }
        let released = released_on_stop(&self.inner.configuration);
        if let Err(error) = self.inner.store.release_addresses(vm.id, released).await {
            warn!(vm = vm.name, error = %chain(&error), "Cannot give back the addresses of a system VM");
        }
    }

    /// Restarts what runs in a VM; starts one that is Stopped.
    ///
    /// # Errors
    /// It does not run now, or did not do so before.
    pub async fn reboot(&self, id: InstanceId) -> Result<Instance, SystemVmError> {
        let _lock = self.lock(id).await;
        let vm = self.present(id).await?;
        if vm.state != InstanceState::Running {
            return self.start_locked(&vm, None).await.map_err(|failed| failed.error);
        }
        let store = &self.inner.store;
        let spec = self.spec(&vm, &store.nics(id).await?).await?;
        let done = self.inner.driver.reboot(&spec).await;
        let reason = match &done {
            Ok(()) => RUNNING.to_owned(),
            Err(error) => format!("cannot be rebooted: {}", chain(error)),
        };
        let event = InstanceEvent::OperationSucceeded;
        let vm = match self.inner.driver.power(&vm.name) {
            Power::On => store.instance_event(&vm, event, reason).await?,
            // It is followed as any other one that has ended by itself.
            Power::Off(_) => vm,
        };
        self.look_now();
        done?;
        let event = event_type(vm.kind, "PROXY.REBOOT", "SSVM.REBOOT");
        self.event(&vm, event, Level::Info, format!("rebooted {}", vm.name))
            .await;
        Ok(vm)
    }

    /// Stops a VM and removes it with all that belongs to it. The next scan makes a new one where it is needed.
    ///
    /// # Errors
    /// It could not be stopped or removed; doing it again is fine.
    pub async fn destroy(&self, id: InstanceId) -> Result<(), SystemVmError> {
        let _lock = self.lock_to_end(id).await;
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
        if let Some(host) = self.inner.store.host_named(&vm.name).await? {
            self.remove_host(&host).await?;
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

    /// The host row follows the end of its link.
    async fn remove_host(&self, host: &Host) -> Result<(), StoreError> {
        let deadline = Instant::now() + LINK_LIMIT;
        self.inner.agents.powered_off(host.id);
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
}

/// Of a console proxy, or of an SSVM.
pub(super) fn event_type(kind: InstanceType, proxy: &'static str, ssvm: &'static str) -> &'static str {
    match kind {
        InstanceType::ConsoleProxy => proxy,
        _ => ssvm,
    }
}
