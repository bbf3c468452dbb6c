//! Events: what was done, by whom, and how it ended (management.md §15).

use rusqlite::types::Value as Sql;
use rusqlite::{Row, named_params, params_from_iter};
use time::OffsetDateTime;
use uuid::Uuid;

use super::account::{Identity, identity_by_id};
use super::id::{EventId, UserId};
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventState {
    Created,
    Scheduled,
    Started,
    Completed,
}

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Such as `SSVM.START`.
    pub event_type: &'static str,
    pub level: Level,
    pub state: EventState,
    /// For people; never a secret.
    pub description: String,
    /// The event that started what this one ends.
    pub parent: Option<EventId>,
    pub user: UserId,
    /// Type and id of what it is about, such as `Template`.
    pub resource: Option<(&'static str, Uuid)>,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub id: EventId,
    pub uuid: Uuid,
    pub event_type: String,
    pub level: String,
    pub state: String,
    pub description: String,
    /// The id of the event that started this.
    pub parent: Option<Uuid>,
    pub by: Identity,
    pub resource_type: Option<String>,
    pub resource: Option<String>,
    pub created: OffsetDateTime,
    pub is_archived: bool,
}

/// Which events; `None` does not restrict.
#[derive(Clone, Default, Debug)]
pub struct EventFilter {
    pub uuids: Option<Vec<Uuid>>,
    pub event_type: Option<String>,
    pub level: Option<String>,
    pub state: Option<String>,
    /// The event that started them; it is itself among them.
    pub start: Option<Uuid>,
    pub resource: Option<String>,
    pub resource_type: Option<String>,
    /// Part of the description or type.
    pub keyword: Option<String>,
    pub from: Option<OffsetDateTime>,
    pub until: Option<OffsetDateTime>,
    pub is_archived: Option<bool>,
}

/// Conditions with their values.
pub(super) struct Where {
    pub(super) sql: String,
    pub(super) values: Vec<Sql>,
}

impl Where {
    pub(super) fn new() -> Self {
        Self {
            sql: "1".into(),
            values: Vec::new(),
        }
    }

    /// Another condition with one `?` for each value; nothing without a value.
    pub(super) fn and(&mut self, condition: &str, value: Option<impl Into<Sql>>) {
        if let Some(value) = value {
            let value = value.into();
            for _ in condition.matches('?') {
                self.values.push(value.clone());
            }
            self.sql.push_str(" AND ");
            self.sql.push_str(condition);
        }
    }

    /// A column has one of these UUIDs.
    pub(super) fn and_one_of(&mut self, column: &str, uuids: Option<&Vec<Uuid>>) {
        let list =
            |uuids: &Vec<Uuid>| serde_json::json!(uuids.iter().map(Uuid::to_string).collect::<Vec<_>>()).to_string();
        self.and(
            &format!("{column} IN (SELECT value FROM json_each(?))"),
            uuids.map(list),
        );
    }
}

/// For `LIKE … ESCAPE '\'`.
pub(super) fn containing(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    format!("%{escaped}%")
}

impl Store {
    pub async fn add_event(&self, event: NewEvent) -> Result<EventId, StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO event
                           (uuid, type, level, state, description, parent_id, user_id, resource_type, resource_id, created)
                       VALUES (:uuid, :type, :level, :state, :description, :parent, :user, :resource_type, :resource, :now)
                       RETURNING id";
            let params = named_params! {
                ":uuid": Uuid::new_v4().to_string(), ":type": event.event_type, ":level": event.level.as_str(),
                ":state": event.state.as_str(), ":description": event.description, ":parent": event.parent,
                ":user": event.user, ":resource_type": event.resource.map(|(kind, _)| kind),
                ":resource": event.resource.map(|(_, uuid)| uuid.to_string()), ":now": now(),
            };
            Ok(transaction.prepare_cached(sql)?.query_row(params, |row| row.get(0))?)
        })
        .await
    }

    /// How many there are, and `limit` of them from `offset` on, the newest first.
    pub async fn events(&self, filter: EventFilter, limit: u64, offset: u64) -> Result<(u64, Vec<Event>), StoreError> {
        self.read(move |transaction| {
            let Where { sql, mut values } = conditions(&filter);
            let count = transaction.query_row(
                &format!("SELECT count(*) FROM event e WHERE {sql}"),
                params_from_iter(&values),
                |row| row.get::<_, i64>(0),
            )?;
            values.extend([number(limit), number(offset)]);
            let sql = format!(
                "SELECT e.*, (SELECT p.uuid FROM event p WHERE p.id = e.parent_id) AS parent_uuid
                 FROM event e WHERE {sql} ORDER BY e.id DESC LIMIT ? OFFSET ?"
            );
            let mut statement = transaction.prepare(&sql)?;
            let rows = statement.query_map(params_from_iter(&values), |row| {
                Ok((row.get::<_, UserId>("user_id")?, event(row)?))
            })?;
            let mut events = Vec::new();
            for row in rows {
                let (user, unfinished) = row?;
                events.push(unfinished(identity_by_id(transaction, user)?));
            }
            Ok((u64::try_from(count).unwrap_or_default(), events))
        })
        .await
    }

    /// Says how many were archived.
    pub async fn archive_events(&self, filter: EventFilter) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let Where { sql, values } = conditions(&filter);
            let sql = format!("UPDATE event AS e SET archived = 1 WHERE {sql}");
            Ok(transaction.execute(&sql, params_from_iter(&values))?)
        })
        .await
    }

    /// Says how many were deleted.
    pub async fn delete_events(&self, filter: EventFilter) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let Where { sql, values } = conditions(&filter);
            let sql = format!("DELETE FROM event AS e WHERE {sql}");
            Ok(transaction.execute(&sql, params_from_iter(&values))?)
        })
        .await
    }
}

pub(super) fn number(number: u64) -> Sql {
    Sql::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn conditions(filter: &EventFilter) -> Where {
    let seconds = |time: OffsetDateTime| time.unix_timestamp();
    let mut sql = Where::new();
    sql.and_one_of("e.uuid", filter.uuids.as_ref());
    sql.and("e.type = ?", filter.event_type.clone());
    sql.and("e.level = ?", filter.level.clone());
    sql.and("e.state = ?", filter.state.clone());
    sql.and(
        "(e.uuid = ? OR e.parent_id = (SELECT s.id FROM event s WHERE s.uuid = ?))",
        filter.start.map(|uuid| uuid.to_string()),
    );
    sql.and("e.resource_id = ?", filter.resource.clone());
    sql.and("e.resource_type = ? COLLATE NOCASE", filter.resource_type.clone());
    sql.and(
        "(e.description LIKE ? ESCAPE '\\' OR e.type LIKE ? ESCAPE '\\')",
        filter.keyword.as_deref().map(containing),
    );
    sql.and("e.created >= ?", filter.from.map(seconds));
    sql.and("e.created <= ?", filter.until.map(seconds));
    sql.and("e.archived = ?", filter.is_archived.map(i64::from));
    sql
}

/// All but who did it.
fn event(row: &Row<'_>) -> rusqlite::Result<impl FnOnce(Identity) -> Event + use<>> {
    let (id, uuid) = (row.get("id")?, row.get::<_, Parsed<Uuid>>("uuid")?.0);
    let (event_type, level, state) = (row.get("type")?, row.get("level")?, row.get("state")?);
    let (description, is_archived) = (row.get("description")?, row.get("archived")?);
    let parent = row.get::<_, Option<Parsed<Uuid>>>("parent_uuid")?.map(|uuid| uuid.0);
    let (resource_type, resource) = (row.get("resource_type")?, row.get("resource_id")?);
    let created = row.get::<_, Seconds>("created")?.0;
    Ok(move |by| Event {
        id,
        uuid,
        event_type,
        level,
        state,
        description,
        parent,
        by,
        resource_type,
        resource,
        created,
        is_archived,
    })
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

impl EventState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Scheduled => "Scheduled",
            Self::Started => "Started",
            Self::Completed => "Completed",
        }
    }
}
