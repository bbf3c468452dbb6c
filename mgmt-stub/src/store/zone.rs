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
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    pub id: PodId,
    pub uuid: Uuid,
    pub zone: ZoneId,
    pub name: String,
    pub cidr: Option<String>,
}

impl Store {
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
    })
}

fn pod(row: &Row<'_>) -> rusqlite::Result<Pod> {
    Ok(Pod {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        zone: row.get("zone_id")?,
        name: row.get("name")?,
        cidr: row.get("cidr")?,
    })
}
