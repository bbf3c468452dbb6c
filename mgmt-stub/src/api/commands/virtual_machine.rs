//! Instances of users. So far those that somebody else runs: they are registered with the place of their screen.

use protocol::secret::Secret;
use serde_json::{Value, json};

use super::os_type;
use super::owner::{Owners, fields as owner_fields};
use crate::api::command::Kind::{Date, Flag, Id, Ids, List, Map, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional, required};
use crate::api::error::ApiError;
use crate::api::{date, list};
use crate::console::screen_address;
use crate::instance_state::InstanceState;
use crate::store::instance::{Instance, InstanceType, NewInstance, Vnc};
use crate::store::zone::Zone;

/// RFC 1035 §2.3.4: a label.
const MAX_NAME: usize = 63;
const MAX_DISPLAY_NAME: usize = 255;
/// RFC 6143 §7.2.2 uses eight; servers may know more.
const MAX_PASSWORD: usize = 255;

const FIELDS: &[Field] = &[
    Field("id", Text, "the instance"),
    Field("name", Text, "its name"),
    Field("displayname", Text, "its name for people"),
    Field("instancename", Text, "its name at the hypervisor"),
    Field("state", Text, "such as Running"),
    Field("created", Date, "when it was registered"),
    Field("lastupdated", Date, "when its state changed"),
    Field("hypervisor", Text, "External: somebody else runs it"),
    Field("haenable", Flag, "whether it is started again when it ends"),
    Field("zoneid", Text, "id of the zone"),
    Field("zonename", Text, "name of the zone"),
    Field("ostypeid", Text, "id of its operating system"),
    Field("osdisplayname", Text, "name of its operating system"),
    Field("vmtype", Text, "User"),
    Field("displayvm", Flag, "true"),
    Field("nic", Object, "its NICs; not known of external instances"),
    Field(
        "vncaddress",
        Text,
        "where its screen is; for administrators; our own field",
    ),
    Field(
        "vncport",
        Number,
        "where its screen is; for administrators; our own field",
    ),
    Field("account", Text, "name of the account"),
    Field("accountid", Text, "id of the account"),
    Field("domain", Text, "name of the domain"),
    Field("domainid", Text, "id of the domain"),
    Field("domainpath", Text, "path of the domain"),
    Field("tags", Object, "its tags"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listVirtualMachines", "Lists the instances of users.", |call| {
        Box::pin(list_instances(call))
    })
    .open_to(Who::User)
    .takes(&[
        optional("id", Id, "one instance"),
        optional("ids", Ids, "these instances"),
        optional("name", Text, "its name"),
        optional("state", Text, "such as Running"),
        optional("zoneid", Id, "its zone"),
        optional("hypervisor", Text, "its hypervisor"),
        optional("details", List, "which details; all are shown"),
        optional("tags", Map, "with all these tags"),
        optional("account", Text, "of an account; with domainid"),
        optional("domainid", Id, "of a domain"),
        optional("projectid", Id, "of a project; there are none"),
        optional("listall", Flag, "also of other accounts"),
        optional("isrecursive", Flag, "also in the domains below"),
    ])
    .answers(FIELDS),
    Command::sync(
        "registerExternalVirtualMachine",
        "Registers a machine that somebody else runs, so that its screen can be seen in a browser. Our own command.",
        |call| Box::pin(register(call)),
    )
    .takes(&[
        required("name", Text, "its name: letters, digits and -"),
        required(
            "vncaddress",
            Text,
            "where its screen is, as the console proxy reaches it",
        ),
        required("vncport", Number, "where its screen is, such as 5900"),
        optional(
            "vncpassword",
            Text,
            "of its screen; absent when it has none. Prefer POST or the server's socket",
        ),
        optional("zoneid", Id, "its zone"),
        optional("displayname", Text, "its name for people"),
        optional("ostypeid", Id, "its operating system"),
    ])
    .answers(FIELDS),
    Command::sync(
        "unregisterExternalVirtualMachine",
        "Forgets a machine that somebody else runs. Our own command.",
        |call| Box::pin(unregister(call)),
    )
    .takes(&[required("id", Id, "the instance")]),
];

async fn list_instances(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let (zones, owners) = (store.zones().await?, Owners::load(store).await?);
    let mut rows = Vec::new();
    for vm in store.instances().await?.into_iter().rev() {
        let is_mine = vm.account == call.caller.identity.account.id
            || (call.caller.is_admin() && call.flag("listall") == Some(true));
        let zone = zones.iter().find(|zone| zone.id == vm.zone);
        if vm.kind == InstanceType::User
            && is_mine
            && list::matches(call.text("state"), vm.state.as_str())
            && list::matches(call.text("hypervisor"), &vm.hypervisor)
            && list::is_id(call.id("zoneid"), zone.map(|zone| zone.uuid))
            && owners.has_tags(&vm.uuid.to_string(), call.map("tags"))
        {
            rows.push(describe(&call, &vm, zone, &owners));
        }
    }
    list::answer(&call, "virtualmachine", rows)
}

fn describe(call: &Call, vm: &Instance, zone: Option<&Zone>, owners: &Owners) -> Value {
    let os_type = vm.os_type.as_ref().and_then(|id| os_type::find(id.parse().ok()?));
    let vnc = vm.vnc.as_ref().filter(|_| call.caller.is_admin());
    let uuid = vm.uuid.to_string();
    let mut row = json!({
        "id": uuid,
        "name": vm.name,
        "displayname": vm.display_name,
        "instancename": vm.name,
        "state": vm.state.as_str(),
        "created": date::format(vm.created),
        "lastupdated": date::format(vm.since),
        "hypervisor": vm.hypervisor,
        "haenable": false,
        "zoneid": zone.map(|zone| zone.uuid),
        "zonename": zone.map(|zone| &zone.name),
        "ostypeid": os_type.map(|os_type| os_type.id),
        "osdisplayname": os_type.map(|os_type| os_type.name),
        "vmtype": "User",
        "displayvm": true,
        "nic": [],
        "vncaddress": vnc.map(|vnc| &vnc.address),
        "vncport": vnc.map(|vnc| vnc.port),
    });
    if let Some(fields) = row.as_object_mut() {
        fields.extend(owner_fields(owners, vm.account, &uuid));
    }
    row
}

async fn register(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let zones = store.zones().await?;
    let zone = match call.id("zoneid") {
        Some(id) => zones
            .iter()
            .find(|zone| zone.uuid == id)
            .ok_or_else(|| ApiError::no_such_id("zoneid", id))?,
        None => zones.first().ok_or_else(|| ApiError::parameter("there is no zone"))?,
    };
    let name = call.needed_text("name")?;
    let is_name = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !is_name {
        let text = "Invalid value for parameter name: 1 to 63 letters, digits and - are expected, such as web-1";
        return Err(ApiError::parameter(text));
    }
    let instances = store.instances().await?;
    if instances.iter().any(|vm| vm.name == name) {
        return Err(ApiError::parameter(format!(
            "there is an instance of the name {name} already"
        )));
    }
    let display_name = call.text("displayname").unwrap_or(name);
    if display_name.len() > MAX_DISPLAY_NAME || display_name.chars().any(char::is_control) {
        let text = "Invalid value for parameter displayname: at most 255 printable characters are expected";
        return Err(ApiError::parameter(text));
    }
    let address = screen_address(call.needed_text("vncaddress")?);
    let address =
        address.map_err(|problem| ApiError::parameter(format!("Invalid value for parameter vncaddress: {problem}")))?;
    let port = call
        .number("vncport")
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0);
    let port =
        port.ok_or_else(|| ApiError::parameter("Invalid value for parameter vncport: 1 to 65535 is expected"))?;
    let password = call.text("vncpassword").unwrap_or_default();
    if password.len() > MAX_PASSWORD || password.chars().any(char::is_control) {
        let text = "Invalid value for parameter vncpassword: at most 255 printable characters are expected";
        return Err(ApiError::parameter(text));
    }
    let os_type = call.id("ostypeid");
    if let Some(id) = os_type {
        os_type::find(id).ok_or_else(|| ApiError::no_such_id("ostypeid", id))?;
    }
    let new = NewInstance {
        kind: InstanceType::User,
        name: Some(name.to_owned()),
        display_name: Some(display_name.to_owned()),
        suffix: String::new(),
        hypervisor: "External".into(),
        state: InstanceState::Running,
        reason: "registered; somebody else runs it".into(),
        zone: zone.id,
        pod: None,
        account: call.caller.identity.account.id,
        role: None,
        os_type: os_type.map(|id| id.to_string()),
        public_ip: None,
        vnc: Some(Vnc {
            address,
            port,
            password: Secret::new(password.to_owned()),
        }),
    };
    let vm = store.create_instance(new, None).await?;
    call.record(
        "VM.CREATE",
        format!("registered external instance {}", vm.name),
        Some(("VirtualMachine", vm.uuid)),
    )
    .await?;
    let row = describe(&call, &vm, Some(zone), &Owners::load(store).await?);
    Ok(Outcome::Object("virtualmachine", row))
}

async fn unregister(call: Call) -> Result<Outcome, ApiError> {
    let id = call.needed_id("id")?;
    let found = call.management.store.instance_by_uuid(id).await?;
    let vm = found
        .filter(|vm| vm.removed.is_none() && vm.kind == InstanceType::User && vm.hypervisor == "External")
        .ok_or_else(|| ApiError::no_such_id("id", id))?;
    call.management.store.remove_instance(vm.id).await?;
    call.record(
        "VM.EXPUNGE",
        format!("forgot external instance {}", vm.name),
        Some(("VirtualMachine", vm.uuid)),
    )
    .await?;
    Ok(Outcome::Success(None))
}
