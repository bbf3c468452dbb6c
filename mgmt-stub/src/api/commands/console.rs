//! Consoles.

use serde_json::{Value, json};

use super::owner::{Owners, fields as owner_fields};
use crate::api::command::Kind::{Date, Flag, Id, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional, required};
use crate::api::error::ApiError;
use crate::api::{date, list};
use crate::console::{Creator, NoConsole};
use crate::store::instance::InstanceType;

/// Bytes.
const MAX_EXTRA: usize = 255;

pub(super) const COMMANDS: &[Command] = &[
    Command::sync(
        "createConsoleEndpoint",
        "Makes a URL that shows the screen of an instance: once, for the next two minutes.",
        |call| Box::pin(create(call)),
    )
    .open_to(Who::User)
    .takes(&[
        required("virtualmachineid", Id, "the instance"),
        optional("token", Text, "a text that the URL must then repeat as extra"),
    ])
    .answers(&[
        Field("success", Flag, "whether there is a console"),
        Field("details", Text, "why there is none"),
        Field("url", Text, "for a browser"),
        Field(
            "websocket",
            Object,
            "for a page of one's own: token, host, port, path, extra",
        ),
    ]),
    Command::list(
        "listConsoleSessions",
        "Lists console sessions, the newest first.",
        |call| Box::pin(list_sessions(call)),
    )
    .open_to(Who::User)
    .takes(&[
        optional("id", Id, "one session"),
        optional("accountid", Id, "of an account"),
        optional("userid", Id, "of a user"),
        optional("hostid", Id, "of a hypervisor; there are none"),
        optional("virtualmachineid", Id, "of an instance"),
        optional("startdate", Date, "made at this time or later"),
        optional("enddate", Date, "made at this time or before"),
        optional("consoleendpointcreatoraddress", Text, "asked for from this address"),
        optional("clientaddress", Text, "looked at from this address"),
        optional("activeonly", Flag, "only those that are open; true if absent"),
        optional("acquired", Flag, "only those that somebody has come to"),
        optional("account", Text, "of an account; with domainid"),
        optional("domainid", Id, "of a domain"),
        optional("listall", Flag, "also of other accounts"),
        optional("isrecursive", Flag, "also in the domains below"),
    ])
    .answers(&[
        Field("id", Text, "the session"),
        Field("created", Date, "when it was made"),
        Field("acquired", Date, "when somebody came"),
        Field("removed", Date, "when it ended"),
        Field("virtualmachineid", Text, "id of the instance"),
        Field("virtualmachinename", Text, "name of the instance"),
        Field("userid", Text, "id of the user"),
        Field("user", Text, "name of the user"),
        Field("account", Text, "name of the account"),
        Field("accountid", Text, "id of the account"),
        Field("domain", Text, "name of the domain"),
        Field("domainid", Text, "id of the domain"),
        Field("domainpath", Text, "path of the domain"),
        Field("clientaddress", Text, "where who came is"),
        Field("consoleendpointcreatoraddress", Text, "where who asked for it is"),
        Field("consoleproxy", Text, "name of the console proxy; our own field"),
    ]),
];

async fn create(call: Call) -> Result<Outcome, ApiError> {
    let id = call.needed_id("virtualmachineid")?;
    let no_such = || ApiError::no_such_id("virtualmachineid", id);
    let found = call.management.store.instance_by_uuid(id).await?;
    let vm = found.filter(|vm| vm.removed.is_none()).ok_or_else(no_such)?;
    let identity = &call.caller.identity;
    let is_mine = vm.kind == InstanceType::User && vm.account == identity.account.id;
    if !call.caller.is_admin() && !is_mine {
        return Err(no_such()); // whether it exists is not said
    }
    let extra = call.text("token").map(str::to_owned);
    if extra
        .as_ref()
        .is_some_and(|extra| extra.len() > MAX_EXTRA || !extra.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        let text =
            "Invalid value for parameter token: at most 255 printable ASCII characters without spaces are expected";
        return Err(ApiError::parameter(text));
    }
    let creator = Creator {
        account: identity.account.id,
        user: identity.user.id,
        address: call.from.map(|from| from.to_string()),
    };
    let outcome = match call.management.zone.consoles.create(&vm, &creator, extra).await {
        Ok(endpoint) => json!({
            "success": true,
            "url": endpoint.url,
            "websocket": {
                "token": endpoint.token.expose(),
                "host": endpoint.host,
                "port": endpoint.port.to_string(),
                "path": "websockify",
                "extra": endpoint.extra,
            },
        }),
        Err(NoConsole::Store(error)) => return Err(error.into()),
        Err(error) => json!({ "success": false, "details": error.to_string() }),
    };
    Ok(Outcome::Object("consoleendpoint", outcome))
}

async fn list_sessions(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let (users, owners) = (store.users().await?, Owners::load(store).await?);
    let active_only = call.flag("activeonly").unwrap_or(call.id("id").is_none());
    let mut rows: Vec<Value> = Vec::new();
    for session in store.console_sessions().await? {
        let is_mine = session.account == call.caller.identity.account.id
            || (call.caller.is_admin() && call.flag("listall") == Some(true));
        let is_active = session.acquired.is_some() && session.removed.is_none();
        if !is_mine
            || (active_only && !is_active)
            || call
                .flag("acquired")
                .is_some_and(|acquired| acquired != session.acquired.is_some())
            || call.date("startdate").is_some_and(|start| session.created < start)
            || call.date("enddate").is_some_and(|end| session.created > end)
        {
            continue;
        }
        let vm = store.instance(session.instance).await?;
        let user = users.iter().find(|identity| identity.user.id == session.user);
        let mut row = json!({
            "id": session.uuid,
            "created": date::format(session.created),
            "acquired": session.acquired.map(date::format),
            "removed": session.removed.map(date::format),
            "virtualmachineid": vm.as_ref().map(|vm| vm.uuid),
            "virtualmachinename": vm.as_ref().map(|vm| &vm.name),
            "userid": user.map(|identity| identity.user.uuid),
            "user": user.map(|identity| &identity.user.username),
            "clientaddress": session.client_address,
            "consoleendpointcreatoraddress": session.creator_address,
            "consoleproxy": session.proxy,
        });
        if let Some(fields) = row.as_object_mut() {
            fields.extend(owner_fields(&owners, session.account, &session.uuid.to_string()));
            fields.remove("tags");
        }
        let is_id = |field: &'static str| call.id(field).is_none_or(|id| row[field] == json!(id));
        let is = |field: &'static str| list::matches(call.text(field), row[field].as_str().unwrap_or_default());
        if is_id("accountid")
            && is_id("userid")
            && is_id("virtualmachineid")
            && call.id("hostid").is_none()
            && is("clientaddress")
            && is("consoleendpointcreatoraddress")
        {
            rows.push(row);
        }
    }
    list::answer(&call, "consolesession", rows)
}
