//! Hosts: agents of system VMs that are, or were, connected (a connected SSVM or CPVM agent is a host, management.md §1), and
//! the hypervisor that a driver makes of this machine.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{HostId, PodId, ZoneId};
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};
use crate::host_status::{HostEvent, HostStatus};

/// CloudStack's host types, of those that we have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostType {
    /// A hypervisor. It does not connect: it is this machine.
    Routing,
    SecondaryStorageVm,
    ConsoleProxy,
}

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a type of host; there are Routing, SecondaryStorageVM and ConsoleProxy")]
pub struct BadHostType(String);

/// An agent's address in one network, as it told us; nothing here was checked.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HostNic {
    pub ip: Option<IpAddr>,
    pub mac: Option<String>,
    pub netmask: Option<String>,
}

/// What an agent says of itself in its Startup command (agent-protocol.md §4.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartupFacts {
    /// `<guid>-<resource class>`, such as `s-1-VM-NfsSecondaryStorageResource`.
    pub guid: String,
    /// Resource class, the last part of `guid`. It may change when the VM is updated.
    pub resource_name: Option<String>,
    pub host_type: HostType,
    /// The VM's instance name, such as `s-1-VM`.
    pub name: String,
    pub zone: ZoneId,
    pub pod: Option<PodId>,
    pub version: String,
    pub arch: String,
    pub private: HostNic,
    pub public: HostNic,
    pub storage: HostNic,
    pub ms_host_list: Option<String>,
    /// Of a CPVM: where it serves browsers.
    pub proxy_port: Option<NonZeroU16>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    pub id: HostId,
    pub uuid: Uuid,
    pub guid: String,
    pub name: String,
    pub host_type: HostType,
    pub zone: ZoneId,
    pub pod: Option<PodId>,
    pub status: HostStatus,
    /// Why it has this status, for people.
    pub status_reason: String,
    pub version: String,
    pub arch: String,
    pub private: HostNic,
    pub public: HostNic,
    pub storage: HostNic,
    pub ms_host_list: Option<String>,
    /// Of a CPVM: where it serves browsers, as it says.
    pub proxy_port: Option<NonZeroU16>,
    /// Of a CPVM: sessions in its last report.
    pub active_sessions: u32,
    pub created: OffsetDateTime,
    pub last_ping: Option<OffsetDateTime>,
    /// Since when it is neither Connecting nor Up.
    pub disconnected: Option<OffsetDateTime>,
    pub removed: Option<OffsetDateTime>,
}

impl Store {
    /// The row of this agent, with what it says of itself now; its id and status stay. A new agent gets a row that is
    /// Creating.
    ///
    /// It is the same host if the guid is the same, or else if the guid is without its resource class: a server in
    /// "premium" mode gives an SSVM another class (agent-protocol.md §4.2). CloudStack compares by SQL prefix there, so
    /// that `Proxy.2` may take the row of `Proxy.20-ConsoleProxyResource`; we compare the whole stem.
    pub async fn find_or_create_host(&self, facts: StartupFacts) -> Result<Host, StoreError> {
        self.write(move |transaction| {
            let known = match find_by_guid(transaction, &facts)? {
                Some(known) => known,
                None => create(transaction, &facts)?,
            };
            Ok(record_facts(transaction, known, &facts)?)
        })
        .await
    }

    /// What the agent of this host says of itself now.
    pub async fn record_facts(&self, host: HostId, facts: StartupFacts) -> Result<(), StoreError> {
        self.write(move |transaction| Ok(record_facts(transaction, host, &facts).map(drop)?))
            .await
    }

    /// Changes the status as [`HostStatus::on`] says. The same status again leaves the reason as it was.
    pub async fn apply_host_event(
        &self,
        host: HostId,
        event: HostEvent,
        reason: impl Into<String>,
    ) -> Result<HostStatus, StoreError> {
        let reason = reason.into();
        self.write(move |transaction| {
            let sql = "SELECT status FROM host WHERE id = ?";
            let mut statement = transaction.prepare_cached(sql)?;
            let found = statement.query_row([host], |row| row.get(0)).optional()?;
            let Parsed(status) = found.ok_or(StoreError::NoSuchHost(host))?;
            change_status(transaction, host, status, event, &reason)
        })
        .await
    }

    /// At the start of the server: it has no links, so what seems connected is not. Says which hosts that were.
    pub async fn mark_all_disconnected(&self, reason: impl Into<String>) -> Result<Vec<HostId>, StoreError> {
        let reason = reason.into();
        self.write(move |transaction| {
            let mut statement = transaction.prepare("SELECT id, status FROM host WHERE removed IS NULL ORDER BY id")?;
            let hosts = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut disconnected = Vec::new();
            for host in hosts.collect::<Result<Vec<(HostId, Parsed<HostStatus>)>, _>>()? {
                let (host, Parsed(status)) = host;
                if status.takes_commands() {
                    change_status(transaction, host, status, HostEvent::ManagementServerDown, &reason)?;
                    disconnected.push(host);
                }
            }
            Ok(disconnected)
        })
        .await
    }

    /// When each host was last heard of, many in one transaction. The last call counts, also if the clock was put back.
    pub async fn record_pings(&self, pings: Vec<(HostId, OffsetDateTime)>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let mut statement = transaction.prepare_cached("UPDATE host SET last_ping = ? WHERE id = ?")?;
            for (host, heard) in pings {
                statement.execute(params![heard.unix_timestamp(), host])?;
            }
            Ok(())
        })
        .await
    }

    /// What a console proxy reports.
    pub async fn record_host_sessions(&self, host: HostId, sessions: u32) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE host SET active_sessions = ? WHERE id = ? AND active_sessions <> ?";
            transaction.execute(sql, params![sessions, host, sessions])?;
            Ok(())
        })
        .await
    }

    /// All that are not removed.
    pub async fn hosts(&self) -> Result<Vec<Host>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare("SELECT * FROM host WHERE removed IS NULL ORDER BY id")?;
            Ok(statement.query_map([], host)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The newest one of this name that is not removed.
    pub async fn host_named(&self, name: &str) -> Result<Option<Host>, StoreError> {
        let name = name.to_owned();
        self.read(move |transaction| {
            let sql = "SELECT * FROM host WHERE name = ? AND removed IS NULL ORDER BY id DESC LIMIT 1";
            Ok(transaction.prepare_cached(sql)?.query_row([name], host).optional()?)
        })
        .await
    }

    /// Also if it is removed.
    pub async fn host(&self, id: HostId) -> Result<Option<Host>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM host WHERE id = ?";
            Ok(transaction.prepare_cached(sql)?.query_row([id], host).optional()?)
        })
        .await
    }
}

/// `Proxy.2-ConsoleProxyResource` is `Proxy.2`.
fn stem(facts: &StartupFacts) -> &str {
    let guid = facts.guid.as_str();
    let resource = facts.resource_name.as_deref();
    let stem = resource.and_then(|resource| guid.strip_suffix(resource)?.strip_suffix('-'));
    stem.filter(|stem| !stem.is_empty()).unwrap_or(guid)
}

fn find_by_guid(transaction: &Transaction<'_>, facts: &StartupFacts) -> Result<Option<HostId>, StoreError> {
    let exact = "SELECT id, type FROM host WHERE guid = ? AND removed IS NULL";
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Parsed<HostType>>(1)?.0));
    let mut exact = transaction.prepare_cached(exact)?;
    if let Some((host, kind)) = exact.query_row([&facts.guid], read).optional()? {
        let guid = facts.guid.clone();
        let same = kind == facts.host_type;
        return same
            .then_some(Some(host))
            .ok_or(StoreError::GuidTaken { guid, host, kind });
    }
    let by_stem = "SELECT id FROM host WHERE guid_stem = ? AND type = ? AND removed IS NULL ORDER BY id LIMIT 1";
    let params = params![stem(facts), facts.host_type.as_str()];
    let mut by_stem = transaction.prepare_cached(by_stem)?;
    Ok(by_stem.query_row(params, |row| row.get(0)).optional()?)
}

fn create(transaction: &Transaction<'_>, facts: &StartupFacts) -> rusqlite::Result<HostId> {
    let sql =
        "INSERT INTO host (uuid, guid, guid_stem, name, type, zone_id, status, status_reason, version, arch, created)
               VALUES (:uuid, :guid, '', '', :type, :zone, :status, 'new', '', '', :now) RETURNING id";
    let params = named_params! {
        ":uuid": Uuid::new_v4().to_string(),
        ":guid": facts.guid,
        ":type": facts.host_type.as_str(),
        ":zone": facts.zone,
        ":status": HostStatus::Creating.as_str(),
        ":now": now(),
    };
    transaction.prepare_cached(sql)?.query_row(params, |row| row.get(0))
}

fn record_facts(transaction: &Transaction<'_>, id: HostId, facts: &StartupFacts) -> rusqlite::Result<Host> {
    let sql = "UPDATE host SET
                   guid = :guid, guid_stem = :stem, name = :name, zone_id = :zone, pod_id = :pod,
                   version = :version, arch = :arch, ms_host_list = :ms_host_list, proxy_port = :proxy_port,
                   private_ip = :private_ip, private_mac = :private_mac, private_netmask = :private_netmask,
                   public_ip = :public_ip, public_mac = :public_mac, public_netmask = :public_netmask,
                   storage_ip = :storage_ip, storage_mac = :storage_mac, storage_netmask = :storage_netmask
               WHERE id = :id RETURNING *";
    let text = |nic: &HostNic| nic.ip.map(|ip| ip.to_string());
    let params = named_params! {
        ":id": id, ":guid": facts.guid, ":stem": stem(facts), ":name": facts.name, ":zone": facts.zone,
        ":pod": facts.pod, ":version": facts.version, ":arch": facts.arch, ":ms_host_list": facts.ms_host_list,
        ":proxy_port": facts.proxy_port.map(NonZeroU16::get),
        ":private_ip": text(&facts.private), ":private_mac": facts.private.mac,
        ":private_netmask": facts.private.netmask,
        ":public_ip": text(&facts.public), ":public_mac": facts.public.mac, ":public_netmask": facts.public.netmask,
        ":storage_ip": text(&facts.storage), ":storage_mac": facts.storage.mac,
        ":storage_netmask": facts.storage.netmask,
    };
    transaction.prepare_cached(sql)?.query_row(params, host)
}

fn change_status(
    transaction: &Transaction<'_>,
    host: HostId,
    status: HostStatus,
    event: HostEvent,
    reason: &str,
) -> Result<HostStatus, StoreError> {
    let next = status.on(event)?;
    if next == status {
        return Ok(status);
    }
    let sql = "UPDATE host SET status = :status, status_reason = :reason,
                   disconnected = CASE WHEN :linked THEN NULL ELSE coalesce(disconnected, :now) END,
                   removed = CASE WHEN :removed THEN :now END
               WHERE id = :id";
    let params = named_params! {
        ":status": next.as_str(),
        ":reason": reason,
        ":linked": next.takes_commands(),
        ":removed": next == HostStatus::Removed,
        ":now": now(),
        ":id": host,
    };
    transaction.prepare_cached(sql)?.execute(params)?;
    Ok(next)
}

fn host(row: &Row<'_>) -> rusqlite::Result<Host> {
    let nic = |ip, mac, netmask| -> rusqlite::Result<HostNic> {
        Ok(HostNic {
            ip: row.get::<_, Option<Parsed<_>>>(ip)?.map(|ip| ip.0),
            mac: row.get(mac)?,
            netmask: row.get(netmask)?,
        })
    };
    let moment = |column| -> rusqlite::Result<Option<OffsetDateTime>> {
        Ok(row.get::<_, Option<Seconds>>(column)?.map(|seconds| seconds.0))
    };
    Ok(Host {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        guid: row.get("guid")?,
        name: row.get("name")?,
        host_type: row.get::<_, Parsed<_>>("type")?.0,
        zone: row.get("zone_id")?,
        pod: row.get("pod_id")?,
        status: row.get::<_, Parsed<_>>("status")?.0,
        status_reason: row.get("status_reason")?,
        version: row.get("version")?,
        arch: row.get("arch")?,
        private: nic("private_ip", "private_mac", "private_netmask")?,
        public: nic("public_ip", "public_mac", "public_netmask")?,
        storage: nic("storage_ip", "storage_mac", "storage_netmask")?,
        ms_host_list: row.get("ms_host_list")?,
        proxy_port: row.get::<_, Option<u16>>("proxy_port")?.and_then(NonZeroU16::new),
        active_sessions: row.get("active_sessions")?,
        created: row.get::<_, Seconds>("created")?.0,
        last_ping: moment("last_ping")?,
        disconnected: moment("disconnected")?,
        removed: moment("removed")?,
    })
}

impl HostType {
    /// CloudStack's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Routing => "Routing",
            Self::SecondaryStorageVm => "SecondaryStorageVM",
            Self::ConsoleProxy => "ConsoleProxy",
        }
    }
}

impl fmt::Display for HostType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for HostType {
    type Err = BadHostType;

    fn from_str(text: &str) -> Result<Self, BadHostType> {
        let known = [Self::Routing, Self::SecondaryStorageVm, Self::ConsoleProxy];
        let found = known.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| BadHostType(text.to_owned()))
    }
}

#[cfg(test)]
mod tests;
