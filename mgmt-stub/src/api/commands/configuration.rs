//! Settings.

use serde_json::{Value, json};

use crate::api::command::Kind::{Flag, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional, ready, required};
use crate::api::error::ApiError;
use crate::api::list;
use crate::configuration::{ALL, Setting, find};

const CONFIGURATION: &[Field] = &[
    Field("name", Text, "the setting"),
    Field("value", Text, "its value"),
    Field("defaultvalue", Text, "its value until somebody changes it"),
    Field("category", Text, "what it is about"),
    Field("group", Text, "likewise"),
    Field("description", Text, "what it does, and in which unit"),
    Field("displaytext", Text, "its name, for people"),
    Field("isdynamic", Flag, "whether a change has effect at once: all do"),
    Field("type", Text, "Boolean, Number, Decimal, Select, CSV or String"),
    Field("options", Text, "what can be chosen"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listConfigurations", "Lists the settings.", |call| {
        ready(list_configurations(&call))
    })
    .open_to(Who::Admin)
    .takes(&[
        optional("name", Text, "one setting"),
        optional("category", Text, "those of a category"),
        optional("group", Text, "those of a category"),
    ])
    .answers(CONFIGURATION),
    Command::sync(
        "updateConfiguration",
        "Changes a setting; without a value it has its default again.",
        |call| Box::pin(update_configuration(call)),
    )
    .takes(&[
        required("name", Text, "the setting"),
        optional("value", Text, "its new value"),
    ])
    .answers(CONFIGURATION),
    Command::sync("resetConfiguration", "Gives a setting its default again.", |call| {
        Box::pin(reset_configuration(call))
    })
    .takes(&[required("name", Text, "the setting")])
    .answers(CONFIGURATION),
];

fn list_configurations(call: &Call) -> Result<Outcome, ApiError> {
    let is_wanted = |setting: &&&Setting| {
        list::matches(call.text("category"), setting.category) && list::matches(call.text("group"), setting.category)
    };
    let mut rows: Vec<Value> = ALL
        .iter()
        .filter(is_wanted)
        .map(|setting| describe(call, setting))
        .collect();
    rows.sort_by_key(|row| row["name"].as_str().map(str::to_owned));
    list::answer(call, "configuration", rows)
}

async fn update_configuration(call: Call) -> Result<Outcome, ApiError> {
    let setting = setting(&call)?;
    set(&call, setting, call.text("value").unwrap_or(setting.default)).await
}

async fn reset_configuration(call: Call) -> Result<Outcome, ApiError> {
    let setting = setting(&call)?;
    set(&call, setting, setting.default).await
}

fn setting(call: &Call) -> Result<&'static Setting, ApiError> {
    let name = call.needed_text("name")?;
    find(name).ok_or_else(|| ApiError::parameter(format!("there is no setting {name}; listConfigurations shows all")))
}

async fn set(call: &Call, setting: &'static Setting, value: &str) -> Result<Outcome, ApiError> {
    call.management.configuration.set(setting, value).await?;
    let value = call.management.configuration.text(setting);
    call.record(
        "CONFIGURATION.VALUE.EDIT",
        format!("setting {} is now {value:?}", setting.name),
        None,
    )
    .await?;
    Ok(Outcome::Object("configuration", describe(call, setting)))
}

fn describe(call: &Call, setting: &Setting) -> Value {
    json!({
        "name": setting.name,
        "value": call.management.configuration.text(setting),
        "defaultvalue": setting.default,
        "category": setting.category,
        "group": setting.category,
        "description": setting.description,
        "displaytext": setting.name,
        "isdynamic": true,
        "type": setting.kind.as_str(),
        "options": setting.kind.options(),
    })
}
