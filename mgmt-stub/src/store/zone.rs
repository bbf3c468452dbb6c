//! Zones and pods. The first migration makes one of each.

use rusqlite::{OptionalExtension, Row, named_params};
use uuid::Uuid;

use super::id::{PodId, ZoneId};
use super::row::Parsed;
use super::{Store, StoreError};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    pub id: ZoneId,
    pub uuid: Uuid,
    pub name: String,
    /// `Advanced` or `Basic`.
    pub network_type: String,
    /// `Enabled` or `Disabled`.
    pub allocation_state: String,
    pub dns1: Option<String>,
    pub dns2: Option<String>,
    pub internal_dns1: Option<String>,
    pub internal_dns2: Option<String>,
    pub guest_cidr: Option<String>,
    pub network_domain: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    pub id: PodId,
    pub uuid: Uuid,
    pub zone: ZoneId,
    pub name: String,
    pub cidr: Option<String>,
    pub gateway: Option<String>,
    pub netmask: Option<String>,
    /// `Enabled` or `Disabled`.
    pub allocation_state: String,
}

impl Store {
    /// All, by id.
    pub async fn zones(&self) -> Result<Vec<Zone>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM zone ORDER BY id")?;
            Ok(statement.query_map([], zone)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// All pods of all zones, by id.
    pub async fn pods(&self) -> Result<Vec<Pod>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM pod ORDER BY id")?;
            Ok(statement.query_map([], pod)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// `dataCenter` of a Startup command: a name or an id (agent-protocol.md §4.2). A name wins over an id.
    pub async fn find_zone(&self, name_or_id: impl Into<String>) -> Result<Option<Zone>, StoreError> {
        let word = name_or_id.into();
        self.read(move |transaction| {
            let sql = "SELECT * FROM zone WHERE name = :word OR id = :id ORDER BY name = :word DESC LIMIT 1";
            let params = named_params! { ":word": word, ":id": word.parse::<ZoneId>().ok() };
            Ok(transaction.query_row(sql, params, zone).optional()?)
        })
        .await
    }

    /// `pod` of a Startup command, likewise.
    pub async fn find_pod(&self, zone: ZoneId, name_or_id: impl Into<String>) -> Result<Option<Pod>, StoreError> {
        let word = name_or_id.into();
        self.read(move |transaction| {
            let sql = "SELECT * FROM pod WHERE zone_id = :zone AND (name = :word OR id = :id)
                       ORDER BY name = :word DESC LIMIT 1";
            let params = named_params! { ":zone": zone, ":word": word, ":id": word.parse::<PodId>().ok() };
            Ok(transaction.query_row(sql, params, pod).optional()?)
        })
        .await
    }
}

fn zone(row: &Row<'_>) -> rusqlite::Result<Zone> {
    Ok(Zone {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        name: row.get("name")?,
        network_type: row.get("network_type")?,
        allocation_state: row.get("allocation_state")?,
        dns1: row.get("dns1")?,
        dns2: row.get("dns2")?,
        internal_dns1: row.get("internal_dns1")?,
        internal_dns2: row.get("internal_dns2")?,
        guest_cidr: row.get("guest_cidr")?,
        network_domain: row.get("network_domain")?,
    })
}

fn pod(row: &Row<'_>) -> rusqlite::Result<Pod> {
    Ok(Pod {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        zone: row.get("zone_id")?,
        name: row.get("name")?,
        cidr: row.get("cidr")?,
        gateway: row.get("gateway")?,
        netmask: row.get("netmask")?,
        allocation_state: row.get("allocation_state")?,
    })
}
