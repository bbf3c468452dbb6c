//! The power of one VM against its row, and what is told when they differ (management.md §2, power sync).

use super::life::{StartFailed, event_type};
use super::{RUNNING, SystemVms};
use crate::alerts::AlertType;
use crate::driver::Power;
use crate::instance_state::InstanceEvent;
use crate::instance_state::InstanceState::{Migrating, Running, Starting, Stopped, Stopping};
use crate::store::event::Level;
use crate::store::host::Host;
use crate::store::id::InstanceId;
use crate::store::instance::Instance;

/// A VM that has ended by itself.
pub(super) struct Ended {
    pub(super) vm: Instance,
    pub(super) why: String,
}

impl SystemVms {
    /// Moves the row to what the driver says; answers if it should be on and has ended.
    pub(super) async fn follow_one(&self, vm: Instance, host: Option<&Host>) -> Option<Ended> {
        let _lock = self.try_lock(vm.id)?;
        let store = &self.inner.store;
        match (self.inner.driver.power(&vm.name), vm.state) {
            (Power::Off(why), Starting | Running | Stopping | Migrating) => {
                let event = InstanceEvent::FollowAgentPowerOffReport;
                // An error: somebody else was faster, and knows better.
                let stopped = store.instance_event(&vm, event, why.as_str()).await.ok()?;
                self.powered_off(&stopped).await;
                let was_wanted = vm.state != Stopping;
                return was_wanted.then_some(Ended { vm: stopped, why });
            }
            (Power::On, Starting | Stopping | Stopped | Migrating) => {
                let event = InstanceEvent::FollowAgentPowerOnReport;
                let moved = store.instance_event(&vm, event, "it was found running").await.ok()?;
                if vm.state != Starting {
                    let text = format!("{} was {}, but it is on: it is Running now", vm.name, vm.state);
                    self.alert(&moved, AlertType::SYNC, text).await;
                }
            }
            // Why it was started again is of interest until it is of use again.
            (Power::On, Running)
                if vm.reason != RUNNING && host.is_some_and(|host| self.inner.agents.is_up(host.id)) =>
            {
                store.set_instance_reason(vm.id, RUNNING).await.ok();
            }
            _ => {}
        }
        None
    }

    /// Removes one that does not get well, for the scan to make a new one; where nothing scans it is started once more.
    pub(super) async fn replace(&self, id: InstanceId, seen: i64, why: &str) -> Result<(), StartFailed> {
        let vm = self.present(id).await?;
        if vm.update_count != seen {
            return Ok(()); // somebody has done something with it meanwhile
        }
        let runs = vm.state == Running;
        if runs && !self.is_in_trouble(&vm).await? {
            return Ok(());
        }
        if self.is_scanned(vm.kind).await? {
            return Ok(self.destroy(id).await?);
        }
        if runs {
            self.cycle(id, seen, why).await
        } else {
            self.start_seen(id, seen, Some(why)).await
        }
    }
}

/// What people are told of a VM.
pub(super) struct Told {
    pub(super) vm: Instance,
    pub(super) alerts: Vec<(AlertType, String)>,
    pub(super) event: Option<String>,
    pub(super) reason: Option<String>,
}

impl Told {
    pub(super) async fn tell(self, vms: SystemVms) {
        let Self {
            vm,
            alerts,
            event,
            reason,
        } = self;
        if let Some(reason) = reason {
            vms.inner.store.set_instance_reason(vm.id, reason).await.ok();
        }
        for (kind, text) in alerts {
            vms.alert(&vm, kind, text).await;
        }
        if let Some(text) = event {
            let kind = event_type(vm.kind, "PROXY.STOP", "SSVM.STOP");
            vms.event(&vm, kind, Level::Warn, text).await;
        }
    }
}
