//! Alerts: what a person should look at (management.md §15).

use rusqlite::types::Value as Sql;
use rusqlite::{Row, named_params, params_from_iter};
use time::OffsetDateTime;
use uuid::Uuid;

use super::event::{Where, containing, number};
use super::id::{AlertId, PodId, ZoneId};
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};
use crate::alerts::AlertType;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alert {
    pub id: AlertId,
    pub uuid: Uuid,
    pub alert_type: i64,
    pub name: String,
    pub description: String,
    /// How often it came up; 1 for types that make a row each time.
    pub sent_count: i64,
    pub last_sent: OffsetDateTime,
}

/// Which alerts; `None` does not restrict. Archived ones never.
#[derive(Clone, Default, Debug)]
pub struct AlertFilter {
    pub uuids: Option<Vec<Uuid>>,
    pub alert_type: Option<i64>,
    pub name: Option<String>,
    pub keyword: Option<String>,
    pub from: Option<OffsetDateTime>,
    pub until: Option<OffsetDateTime>,
}

impl Store {
    /// A new row, or one more of the row that the type has for this zone and pod.
    pub async fn add_alert(
        &self,
        alert_type: AlertType,
        zone: Option<ZoneId>,
        pod: Option<PodId>,
        name: String,
        description: String,
    ) -> Result<Uuid, StoreError> {
        self.write(move |transaction| {
            if !alert_type.repeats {
                let sql = "UPDATE alert SET sent_count = sent_count + 1, last_sent = :now, description = :description
                           WHERE type = :type AND zone_id IS :zone AND pod_id IS :pod AND archived = 0 RETURNING uuid";
                let params = named_params! {
                    ":type": alert_type.number, ":description": description, ":zone": zone, ":pod": pod, ":now": now(),
                };
                let mut statement = transaction.prepare(sql)?;
                if let Some(known) = statement.query_map(params, |row| row.get::<_, Parsed<Uuid>>(0))?.next() {
                    return Ok(known?.0);
                }
            }
            let params = named_params! {
                ":uuid": Uuid::new_v4().to_string(), ":type": alert_type.number, ":name": name,
                ":description": description, ":zone": zone, ":pod": pod, ":now": now(),
            };
            let sql = "INSERT INTO alert (uuid, type, name, description, zone_id, pod_id, created, last_sent)
                       VALUES (:uuid, :type, :name, :description, :zone, :pod, :now, :now) RETURNING uuid";
            Ok(transaction
                .query_row(sql, params, |row| row.get::<_, Parsed<Uuid>>(0))?
                .0)
        })
        .await
    }

    /// How many there are, and `limit` of them from `offset` on, the newest first.
    pub async fn alerts(&self, filter: AlertFilter, limit: u64, offset: u64) -> Result<(u64, Vec<Alert>), StoreError> {
        self.read(move |transaction| {
            let Where { sql, mut values } = conditions(&filter);
            let count = transaction.query_row(
                &format!("SELECT count(*) FROM alert WHERE {sql}"),
                params_from_iter(&values),
                |row| row.get::<_, i64>(0),
            )?;
            values.extend([number(limit), number(offset)]);
            let sql = format!("SELECT * FROM alert WHERE {sql} ORDER BY last_sent DESC, id DESC LIMIT ? OFFSET ?");
            let mut statement = transaction.prepare(&sql)?;
            let rows = statement.query_map(params_from_iter(&values), alert)?;
            Ok((
                u64::try_from(count).unwrap_or_default(),
                rows.collect::<Result<_, _>>()?,
            ))
        })
        .await
    }

    /// Says how many were archived.
    pub async fn archive_alerts(&self, filter: AlertFilter) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let Where { sql, values } = conditions(&filter);
            let sql = format!("UPDATE alert SET archived = 1 WHERE {sql}");
            Ok(transaction.execute(&sql, params_from_iter(&values))?)
        })
        .await
    }

    /// Says how many were deleted.
    pub async fn delete_alerts(&self, filter: AlertFilter) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let Where { sql, values } = conditions(&filter);
            Ok(transaction.execute(&format!("DELETE FROM alert WHERE {sql}"), params_from_iter(&values))?)
        })
        .await
    }
}

fn conditions(filter: &AlertFilter) -> Where {
    let seconds = |time: OffsetDateTime| time.unix_timestamp();
    let mut sql = Where::new();
    sql.and("archived = ?", Some(Sql::Integer(0)));
    sql.and_one_of("uuid", filter.uuids.as_ref());
    sql.and("type = ?", filter.alert_type);
    sql.and("name = ?", filter.name.clone());
    sql.and(
        "description LIKE ? ESCAPE '\\'",
        filter.keyword.as_deref().map(containing),
    );
    sql.and("last_sent >= ?", filter.from.map(seconds));
    sql.and("last_sent <= ?", filter.until.map(seconds));
    sql
}

fn alert(row: &Row<'_>) -> rusqlite::Result<Alert> {
    Ok(Alert {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        alert_type: row.get("type")?,
        name: row.get("name")?,
        description: row.get("description")?,
        sent_count: row.get("sent_count")?,
        last_sent: row.get::<_, Seconds>("last_sent")?.0,
    })
}
