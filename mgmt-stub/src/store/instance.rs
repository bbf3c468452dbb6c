//! Instances: system VMs that we run, and user VMs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::PoisonError;

use protocol::secret::Secret;
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AccountId, InstanceId, PodId, ZoneId};
use super::nic::remove_nics;
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};
use crate::instance_state::{InstanceEvent, InstanceState};

/// CloudStack's types of instances, of those that we have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InstanceType {
    /// A VM of a user.
    User,
    /// CPVM.
    ConsoleProxy,
    /// SSVM.
    SecondaryStorageVm,
}

/// The text is no type of instance.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a type of instance; there are User, ConsoleProxy and SecondaryStorageVm")]
pub struct BadInstanceType(String);

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    pub id: InstanceId,
    pub uuid: Uuid,
    /// Such as `v-2-VM`; the host row of its agent has the same.
    pub name: String,
    pub display_name: String,
    pub kind: InstanceType,
    pub hypervisor: String,
    pub state: InstanceState,
    /// Why it is in this state, for people.
    pub reason: String,
    /// Since when it is in this state.
    pub since: OffsetDateTime,
    /// Counts the transitions: two that want the same one cannot both have it.
    pub update_count: i64,
    pub zone: ZoneId,
    pub pod: Option<PodId>,
    pub account: AccountId,
    /// Of an SSVM: `templateProcessor` or `commandExecutor`.
    pub role: Option<String>,
    /// UUID of the guest's operating system type.
    pub os_type: Option<String>,
    pub public_ip: Option<IpAddr>,
    /// Of a CPVM: where browsers connect.
    pub console_port: Option<u16>,
    /// Where its screen is, of an instance that no driver of ours runs.
    pub vnc: Option<Vnc>,
    /// Of a CPVM.
    pub active_sessions: u32,
    /// Of a CPVM: its last report as it came.
    pub last_load: Option<String>,
    pub created: OffsetDateTime,
    pub removed: Option<OffsetDateTime>,
}

/// Where a screen is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vnc {
    pub address: String,
    pub port: u16,
    /// Empty: the screen has none.
    pub password: Secret<String>,
}

/// What a new instance is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewInstance {
    pub kind: InstanceType,
    /// `None`: made of type, number and the setting `instance.name`.
    pub name: Option<String>,
    pub display_name: Option<String>,
    /// Setting `instance.name`.
    pub suffix: String,
    pub hypervisor: String,
    pub state: InstanceState,
    pub reason: String,
    pub zone: ZoneId,
    pub pod: Option<PodId>,
    pub account: AccountId,
    pub role: Option<String>,
    pub os_type: Option<String>,
    pub public_ip: Option<IpAddr>,
    pub vnc: Option<Vnc>,
}

impl Store {
    /// Adds an instance; a CPVM gets the first console port from `first_console_port` on that no other one has.
    pub async fn create_instance(
        &self,
        new: NewInstance,
        first_console_port: Option<u16>,
    ) -> Result<Instance, StoreError> {
        self.write(move |transaction| {
            let console_port = match first_console_port {
                Some(first) => Some(free_console_port(transaction, first)?),
                None => None,
            };
            let sql = "INSERT INTO instance (uuid, name, display_name, type, hypervisor, state, reason, state_since,
                           zone_id, pod_id, account_id, role, os_type, public_ip, console_port, vnc_address, vnc_port,
                           vnc_password, created)
                       VALUES (:uuid, '', '', :type, :hypervisor, :state, :reason, :now, :zone, :pod, :account, :role,
                           :os_type, :public_ip, :console_port, :vnc_address, :vnc_port, :vnc_password, :now)
                       RETURNING id";
            let params = named_params! {
                ":uuid": Uuid::new_v4().to_string(),
                ":type": new.kind.as_str(),
                ":hypervisor": new.hypervisor,
                ":state": new.state.as_str(),
                ":reason": new.reason,
                ":now": now(),
                ":zone": new.zone,
                ":pod": new.pod,
                ":account": new.account,
                ":role": new.role,
                ":os_type": new.os_type,
                ":public_ip": new.public_ip.map(|ip| ip.to_string()),
                ":console_port": console_port,
                ":vnc_address": new.vnc.as_ref().map(|vnc| vnc.address.as_str()),
                ":vnc_port": new.vnc.as_ref().map(|vnc| vnc.port),
                ":vnc_password": new.vnc.as_ref().map(|vnc| vnc.password.expose().as_str()),
            };
            let id: InstanceId = transaction.query_row(sql, params, |row| row.get(0))?;
            let name = new
                .name
                .unwrap_or_else(|| instance_name(new.kind, id, new.account, &new.suffix));
            let display_name = new.display_name.unwrap_or_else(|| name.clone());
            let sql = "UPDATE instance SET name = ?, display_name = ? WHERE id = ? RETURNING *";
            Ok(transaction.query_row(sql, params![name, display_name, id], instance)?)
        })
        .await
    }

    /// All that are not removed, oldest first.
    pub async fn instances(&self) -> Result<Vec<Instance>, StoreError> {
        self.read(|transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT * FROM instance WHERE removed IS NULL ORDER BY id")?;
            Ok(statement.query_map([], instance)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Also if it is removed.
    pub async fn instance(&self, id: InstanceId) -> Result<Option<Instance>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM instance WHERE id = ?";
            Ok(transaction.prepare_cached(sql)?.query_row([id], instance).optional()?)
        })
        .await
    }

    /// By UUID, as the API names it; also if it is removed.
    pub async fn instance_by_uuid(&self, uuid: Uuid) -> Result<Option<Instance>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM instance WHERE uuid = ?";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_row([uuid.to_string()], instance).optional()?)
        })
        .await
    }

    /// Moves an instance from the state in which the caller has seen it.
    ///
    /// # Errors
    /// There is no such transition, or somebody else was faster.
    pub async fn instance_event(
        &self,
        seen: &Instance,
        event: InstanceEvent,
        reason: impl Into<String>,
    ) -> Result<Instance, StoreError> {
        let next = seen.state.on(event)?;
        let (id, name, state, count) = (seen.id, seen.name.clone(), seen.state, seen.update_count);
        let reason = reason.into();
        let moved = self
            .write(move |transaction| {
                let sql = "UPDATE instance SET
                           state_since = CASE WHEN state = :next THEN state_since ELSE :now END,
                           state = :next, reason = :reason, update_count = update_count + 1
                       WHERE id = :id AND state = :state AND update_count = :count AND removed IS NULL
                       RETURNING *";
                let params = named_params! {
                    ":next": next.as_str(), ":reason": reason, ":now": now(),
                    ":id": id, ":state": state.as_str(), ":count": count,
                };
                let moved = transaction.query_row(sql, params, instance).optional()?;
                moved.ok_or(StoreError::LostRace { name, state })
            })
            .await?;
        let mut transitions = self.shared.transitions.lock().unwrap_or_else(PoisonError::into_inner);
        *transitions.entry((moved.kind, state, next)).or_default() += 1;
        Ok(moved)
    }

    /// Another reason for the same state.
    pub async fn set_instance_reason(&self, id: InstanceId, reason: impl Into<String>) -> Result<(), StoreError> {
        let reason = reason.into();
        self.write(move |transaction| {
            let sql = "UPDATE instance SET reason = ? WHERE id = ? AND reason <> ?";
            transaction.execute(sql, params![reason, id, reason])?;
            Ok(())
        })
        .await
    }

    /// Marks an instance as removed, with the console sessions that it had. Its row stays for the history.
    pub async fn remove_instance(&self, id: InstanceId) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE instance SET removed = ?, vnc_password = NULL, console_port = NULL WHERE id = ?";
            transaction.execute(sql, params![now(), id])?;
            remove_nics(transaction, id)?;
            let sql = "UPDATE console_session SET removed = ? WHERE instance_id = ? AND removed IS NULL";
            transaction.execute(sql, params![now(), id])?;
            Ok(())
        })
        .await
    }

    /// What a console proxy reports: its sessions, and the report as it came.
    pub async fn record_console_load(
        &self,
        proxy: InstanceId,
        sessions: u32,
        report: String,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE instance SET active_sessions = ?, last_load = ? WHERE id = ?";
            transaction.execute(sql, params![sessions, report, proxy])?;
            Ok(())
        })
        .await
    }
}

/// management.md §1: V: `server/.../vm/VirtualMachineName`.
fn instance_name(kind: InstanceType, id: InstanceId, account: AccountId, suffix: &str) -> String {
    match kind {
        InstanceType::User => format!("i-{account}-{id}-{suffix}"),
        InstanceType::ConsoleProxy => format!("v-{id}-{suffix}"),
        InstanceType::SecondaryStorageVm => format!("s-{id}-{suffix}"),
    }
}

fn free_console_port(transaction: &Transaction<'_>, first: u16) -> Result<u16, StoreError> {
    let mut statement =
        transaction.prepare("SELECT console_port FROM instance WHERE removed IS NULL AND console_port IS NOT NULL")?;
    let taken = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<u16>, _>>()?;
    (first..=u16::MAX)
        .find(|port| !taken.contains(port))
        .ok_or(StoreError::NoConsolePort { first })
}

fn instance(row: &Row<'_>) -> rusqlite::Result<Instance> {
    let vnc = match (row.get::<_, Option<String>>("vnc_address")?, row.get("vnc_port")?) {
        (Some(address), Some(port)) => Some(Vnc {
            address,
            port,
            password: Secret::new(row.get::<_, Option<String>>("vnc_password")?.unwrap_or_default()),
        }),
        _ => None,
    };
    Ok(Instance {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        name: row.get("name")?,
        display_name: row.get("display_name")?,
        kind: row.get::<_, Parsed<_>>("type")?.0,
        hypervisor: row.get("hypervisor")?,
        state: row.get::<_, Parsed<_>>("state")?.0,
        reason: row.get("reason")?,
        since: row.get::<_, Seconds>("state_since")?.0,
        update_count: row.get("update_count")?,
        zone: row.get("zone_id")?,
        pod: row.get("pod_id")?,
        account: row.get("account_id")?,
        role: row.get("role")?,
        os_type: row.get("os_type")?,
        public_ip: row.get::<_, Option<Parsed<_>>>("public_ip")?.map(|ip| ip.0),
        console_port: row.get("console_port")?,
        vnc,
        active_sessions: row.get("active_sessions")?,
        last_load: row.get("last_load")?,
        created: row.get::<_, Seconds>("created")?.0,
        removed: row.get::<_, Option<Seconds>>("removed")?.map(|seconds| seconds.0),
    })
}

impl InstanceType {
    /// CloudStack's spelling in its database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::ConsoleProxy => "ConsoleProxy",
            Self::SecondaryStorageVm => "SecondaryStorageVm",
        }
    }

    /// `systemvmtype` of the API; `None` for a user's VM.
    pub fn system_vm_type(self) -> Option<&'static str> {
        match self {
            Self::User => None,
            Self::ConsoleProxy => Some("consoleproxy"),
            Self::SecondaryStorageVm => Some("secondarystoragevm"),
        }
    }
}

impl fmt::Display for InstanceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for InstanceType {
    type Err = BadInstanceType;

    fn from_str(text: &str) -> Result<Self, BadInstanceType> {
        let known = [Self::User, Self::ConsoleProxy, Self::SecondaryStorageVm];
        let found = known.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| BadInstanceType(text.to_owned()))
    }
}
