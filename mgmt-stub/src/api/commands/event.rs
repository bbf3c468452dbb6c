//! Events.

use serde_json::{Value, json};
use time::Duration;

use crate::api::command::Kind::{Date, Flag, Id, Ids, Number, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional, ready};
use crate::api::error::ApiError;
use crate::api::{date, list};
use crate::store::event::{Event, EventFilter};

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listEvents", "Lists what was done, the newest first.", |call| {
        Box::pin(list_events(call))
    })
    .takes(&[
        optional("id", Id, "one event"),
        optional("type", Text, "such as USER.LOGIN"),
        optional("level", Text, "INFO, WARN or ERROR"),
        optional("state", Text, "Created, Scheduled, Started or Completed"),
        optional(
            "startid",
            Id,
            "an event that started something, and what followed from it",
        ),
        optional("resourceid", Text, "what it is about"),
        optional("resourcetype", Text, "type of that, such as Template"),
        optional("startdate", Date, "not before"),
        optional("enddate", Date, "not after"),
        optional("duration", Number, "at most this many minutes old"),
        optional("archived", Flag, "only archived ones"),
        optional("listall", Flag, "also those of other accounts; there is one account"),
    ])
    .answers(&[
        Field("id", Text, "the event"),
        Field("type", Text, "such as USER.LOGIN"),
        Field("level", Text, "INFO, WARN or ERROR"),
        Field("state", Text, "Created, Scheduled, Started or Completed"),
        Field("description", Text, "what was done"),
        Field("username", Text, "who did it"),
        Field("account", Text, "name of his account"),
        Field("domainid", Text, "id of his domain"),
        Field("domain", Text, "name of his domain"),
        Field("domainpath", Text, "path of his domain"),
        Field("parentid", Text, "the event that started this"),
        Field("resourceid", Text, "what it is about"),
        Field("resourcetype", Text, "type of that"),
        Field("created", Date, "when"),
        Field("archived", Flag, "whether it was archived"),
    ]),
    Command::sync(
        "listEventTypes",
        "Lists the types of events that this server records.",
        |_| ready(Ok(list_types())),
    )
    .open_to(Who::User)
    .answers(&[Field("name", Text, "such as USER.LOGIN")]),
    Command::sync(
        "archiveEvents",
        "Archives events: lists do not show them any more.",
        |call| Box::pin(archive(call)),
    )
    .takes(&[
        optional("ids", Ids, "these events"),
        optional("type", Text, "those of a type"),
        optional("startdate", Date, "not before"),
        optional("enddate", Date, "not after"),
    ])
    .answers(&[Field("success", Flag, "true")]),
    Command::sync("deleteEvents", "Deletes events.", |call| Box::pin(delete(call)))
        .takes(&[
            optional("ids", Ids, "these events"),
            optional("type", Text, "those of a type"),
            optional("startdate", Date, "not before"),
            optional("enddate", Date, "not after"),
        ])
        .answers(&[Field("success", Flag, "true")]),
];

/// Types that commands record which are no jobs; those of jobs are in the table.
const SYNC_TYPES: [&str; 10] = [
    "USER.LOGIN",
    "USER.LOGOUT",
    "USER.UPDATE",
    "CONFIGURATION.VALUE.EDIT",
    "TEMPLATE.CREATE",
    "ISO.CREATE",
    "SSVM.CREATE",
    "PROXY.CREATE",
    "VM.RECOVER",
    "ALERT.GENERATE",
];

async fn list_events(call: Call) -> Result<Outcome, ApiError> {
    let page = list::page(&call)?;
    let text = |name| call.text(name).map(str::to_owned);
    let since = call.number("duration").map(|minutes| {
        let age = Duration::minutes(minutes.clamp(0, 100_000_000));
        time::OffsetDateTime::now_utc() - age
    });
    let filter = EventFilter {
        uuids: call.id("id").map(|id| vec![id]),
        event_type: text("type"),
        level: text("level"),
        state: text("state"),
        start: call.id("startid"),
        resource: text("resourceid"),
        resource_type: text("resourcetype"),
        keyword: text("keyword"),
        from: call.date("startdate").max(since),
        until: call.date("enddate"),
        is_archived: Some(call.flag("archived").unwrap_or(false)),
    };
    let (count, events) = call.management.store.events(filter, page.limit, page.offset).await?;
    if let (Some(id), 0) = (call.id("id"), count) {
        return Err(ApiError::no_such_id("id", id));
    }
    let rows = events.iter().map(describe).collect();
    Ok(Outcome::List {
        object: "event",
        count,
        rows,
    })
}

fn describe(event: &Event) -> Value {
    json!({
        "id": event.uuid,
        "type": event.event_type,
        "level": event.level,
        "state": event.state,
        "description": event.description,
        "username": event.by.user.username,
        "account": event.by.account.name,
        "domainid": event.by.domain.uuid,
        "domain": event.by.domain.name,
        "domainpath": event.by.domain.path,
        "parentid": event.parent,
        "resourceid": event.resource,
        "resourcetype": event.resource_type,
        "created": date::format(event.created),
        "archived": event.is_archived,
    })
}

fn list_types() -> Outcome {
    let mut names: Vec<&str> = super::all()
        .filter_map(|command| command.event)
        .chain(SYNC_TYPES)
        .collect();
    names.sort_unstable();
    names.dedup();
    let rows: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
    let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    Outcome::List {
        object: "eventtype",
        count,
        rows,
    }
}

async fn archive(call: Call) -> Result<Outcome, ApiError> {
    call.management.store.archive_events(which(&call)?).await?;
    Ok(Outcome::Success(None))
}

async fn delete(call: Call) -> Result<Outcome, ApiError> {
    call.management.store.delete_events(which(&call)?).await?;
    Ok(Outcome::Success(None))
}

/// At least one condition: nobody means all.
fn which(call: &Call) -> Result<EventFilter, ApiError> {
    let filter = EventFilter {
        uuids: call.ids("ids").map(<[_]>::to_vec),
        event_type: call.text("type").map(str::to_owned),
        from: call.date("startdate"),
        until: call.date("enddate"),
        ..EventFilter::default()
    };
    if filter.uuids.is_none() && filter.event_type.is_none() && filter.from.is_none() && filter.until.is_none() {
        return Err(ApiError::parameter("one of ids, type, startdate and enddate is needed"));
    }
    Ok(filter)
}
