//! Alerts.

use serde_json::{Value, json};

use crate::alerts::AlertType;
use crate::api::command::Kind::{Date, Flag, Id, Ids, Number, Text};
use crate::api::command::{Call, Command, Field, Job, Outcome, optional, required};
use crate::api::error::ApiError;
use crate::api::{date, list};
use crate::store::alert::{Alert, AlertFilter};

pub(super) const COMMANDS: &[Command] = &[
    Command::list(
        "listAlerts",
        "Lists what a person should look at, the newest first.",
        |call| Box::pin(list_alerts(call)),
    )
    .takes(&[
        optional("id", Id, "one alert"),
        optional("type", Number, "those of a type, such as 19 for secondary storage VMs"),
        optional("name", Text, "those of a name, such as ALERT.SERVICE.SSVM"),
    ])
    .answers(&[
        Field("id", Text, "the alert"),
        Field("type", Number, "such as 19 for secondary storage VMs"),
        Field("name", Text, "such as ALERT.SERVICE.SSVM"),
        Field("description", Text, "what happened"),
        Field("sent", Date, "when it happened last"),
    ]),
    Command::sync(
        "archiveAlerts",
        "Archives alerts: lists do not show them any more.",
        |call| Box::pin(archive(call)),
    )
    .takes(&[
        optional("ids", Ids, "these alerts"),
        optional("type", Number, "those of a type"),
        optional("startdate", Date, "not before"),
        optional("enddate", Date, "not after"),
    ])
    .answers(&[Field("success", Flag, "true")]),
    Command::sync("deleteAlerts", "Deletes alerts.", |call| Box::pin(delete(call)))
        .takes(&[
            optional("ids", Ids, "these alerts"),
            optional("type", Number, "those of a type"),
            optional("startdate", Date, "not before"),
            optional("enddate", Date, "not after"),
        ])
        .answers(&[Field("success", Flag, "true")]),
    Command::job(
        "generateAlert",
        "Records an alert of the caller's own.",
        "ALERT.GENERATE",
        |call| Box::pin(generate(call)),
    )
    .takes(&[
        required("type", Number, "its type, such as 14 for the management server"),
        required("name", Text, "its name"),
        required("description", Text, "what happened"),
        optional("zoneid", Id, "in which zone"),
        optional("podid", Id, "in which pod"),
    ])
    .answers(&[Field("success", Flag, "true")]),
];

async fn list_alerts(call: Call) -> Result<Outcome, ApiError> {
    let page = list::page(&call)?;
    let filter = AlertFilter {
        uuids: call.id("id").map(|id| vec![id]),
        alert_type: call.number("type"),
        name: call.text("name").map(str::to_owned),
        keyword: call.text("keyword").map(str::to_owned),
        ..AlertFilter::default()
    };
    let (count, alerts) = call.management.store.alerts(filter, page.limit, page.offset).await?;
    if let (Some(id), 0) = (call.id("id"), count) {
        return Err(ApiError::no_such_id("id", id));
    }
    let rows = alerts.iter().map(describe).collect();
    Ok(Outcome::List {
        object: "alert",
        count,
        rows,
    })
}

fn describe(alert: &Alert) -> Value {
    json!({
        "id": alert.uuid,
        "type": alert.alert_type,
        "name": alert.name,
        "description": alert.description,
        "sent": date::format(alert.last_sent),
    })
}

async fn archive(call: Call) -> Result<Outcome, ApiError> {
    call.management.store.archive_alerts(which(&call)?).await?;
    Ok(Outcome::Success(None))
}

async fn delete(call: Call) -> Result<Outcome, ApiError> {
    call.management.store.delete_alerts(which(&call)?).await?;
    Ok(Outcome::Success(None))
}

/// At least one condition: nobody means all.
fn which(call: &Call) -> Result<AlertFilter, ApiError> {
    let filter = AlertFilter {
        uuids: call.ids("ids").map(<[_]>::to_vec),
        alert_type: call.number("type"),
        from: call.date("startdate"),
        until: call.date("enddate"),
        ..AlertFilter::default()
    };
    if filter.uuids.is_none() && filter.alert_type.is_none() && filter.from.is_none() && filter.until.is_none() {
        return Err(ApiError::parameter("one of ids, type, startdate and enddate is needed"));
    }
    Ok(filter)
}

async fn generate(call: Call) -> Result<Job, ApiError> {
    let number = call.number("type").unwrap_or(-1);
    let alert_type = AlertType::find(number).ok_or_else(|| {
        let known: Vec<String> = AlertType::ALL
            .iter()
            .map(|kind| format!("{} {}", kind.number, kind.name))
            .collect();
        ApiError::parameter(format!(
            "there is no alert type {number}; there are {}",
            known.join(", ")
        ))
    })?;
    let zone = match call.id("zoneid") {
        None => None,
        Some(id) => {
            let zones = call.management.store.zones().await?;
            let zone = zones.into_iter().find(|zone| zone.uuid == id);
            Some(zone.ok_or_else(|| ApiError::no_such_id("zoneid", id))?.id)
        }
    };
    let pod = match call.id("podid") {
        None => None,
        Some(id) => {
            let pods = call.management.store.pods().await?;
            let pod = pods.into_iter().find(|pod| pod.uuid == id);
            Some(pod.ok_or_else(|| ApiError::no_such_id("podid", id))?.id)
        }
    };
    let (name, description) = (
        call.needed_text("name")?.to_owned(),
        call.needed_text("description")?.to_owned(),
    );
    let work = {
        let name = name.clone();
        async move {
            call.management
                .store
                .add_alert(alert_type, zone, pod, name, description)
                .await?;
            Ok(Outcome::Success(None))
        }
    };
    Ok(Job::new(format!("recording alert {name}"), work))
}
