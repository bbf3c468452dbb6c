//! One look at one pool: what the zone lacks, as [`crate::scanner`] says it (management.md §7, §9).

use std::collections::HashMap;

use time::OffsetDateTime;

use super::SystemVms;
use crate::configuration::{
    CONSOLEPROXY_CAPACITY_STANDBY, CONSOLEPROXY_LAUNCH_MAX, CONSOLEPROXY_MANAGEMENT_STATE, CONSOLEPROXY_RESTART,
    CONSOLEPROXY_SESSION_MAX, CONSOLEPROXY_VM_AUTO_SCALE_DOWN, SECSTORAGE_CAPACITY_STANDBY,
    SECSTORAGE_CMD_EXECUTION_TIME_MAX, SECSTORAGE_SESSION_MAX, SECSTORAGE_VM_AUTO_SCALE_DOWN,
    SYSTEM_VM_AUTO_RESERVE_CAPACITY,
};
use crate::scanner::{self, Action, Member, PoolSettings};
use crate::store::StoreError;
use crate::store::host::Host;
use crate::store::instance::{Instance, InstanceType};

impl SystemVms {
    /// Whether VMs of this kind are started when they are needed.
    pub(super) async fn is_scanned(&self, kind: InstanceType) -> Result<bool, StoreError> {
        let configuration = &self.inner.configuration;
        Ok(match kind {
            InstanceType::ConsoleProxy => configuration.text(&CONSOLEPROXY_MANAGEMENT_STATE) == "Auto",
            InstanceType::SecondaryStorageVm => {
                configuration.flag(&SYSTEM_VM_AUTO_RESERVE_CAPACITY)
                    && !self.inner.store.image_stores(self.inner.place.zone).await?.is_empty()
            }
            InstanceType::User => false,
        })
    }

    /// What to do with the pool. `is_idle`: without load for long enough to be one too many.
    pub(super) async fn decide(
        &self,
        kind: InstanceType,
        pool: &[&Instance],
        hosts: &HashMap<&str, &Host>,
        is_idle: impl Fn(&Instance) -> bool,
    ) -> Result<Action, StoreError> {
        let configuration = &self.inner.configuration;
        let number = |setting| u32::try_from(configuration.number(setting).max(0)).unwrap_or(u32::MAX);
        let member = |vm: &Instance, load, is_agent_up| Member {
            id: vm.id,
            state: vm.state,
            is_agent_up,
            load,
            is_idle: is_idle(vm),
        };
        if kind == InstanceType::ConsoleProxy {
            let settings = PoolSettings {
                session_max: number(&CONSOLEPROXY_SESSION_MAX),
                capacity_standby: number(&CONSOLEPROXY_CAPACITY_STANDBY),
                launch_max: number(&CONSOLEPROXY_LAUNCH_MAX),
                restart: configuration.flag(&CONSOLEPROXY_RESTART),
                scale_down: configuration.flag(&CONSOLEPROXY_VM_AUTO_SCALE_DOWN),
            };
            let members: Vec<Member> = pool.iter().map(|vm| member(vm, vm.active_sessions, true)).collect();
            return Ok(scanner::console_proxies(&members, &settings));
        }
        let settings = PoolSettings {
            session_max: number(&SECSTORAGE_SESSION_MAX),
            capacity_standby: number(&SECSTORAGE_CAPACITY_STANDBY),
            scale_down: configuration.flag(&SECSTORAGE_VM_AUTO_SCALE_DOWN),
            ..PoolSettings::SECONDARY_STORAGE
        };
        let since = OffsetDateTime::now_utc() - configuration.time(&SECSTORAGE_CMD_EXECUTION_TIME_MAX);
        let active = self.inner.store.active_commands(since).await?;
        let members = pool.iter().map(|vm| {
            let host = hosts.get(vm.name.as_str());
            let load = host.and_then(|host| active.get(&host.id)).copied().unwrap_or_default();
            let is_agent_up = host.is_some_and(|host| self.inner.agents.is_up(host.id));
            member(vm, load, is_agent_up)
        });
        let members: Vec<Member> = members.collect();
        Ok(scanner::secondary_storage(&members, &settings))
    }
}
