//! Machines that somebody else runs: they are registered with the place of their screen.

use protocol::secret::Secret;

use super::{Describe, display_name, host_name};
use crate::api::command::{Call, Outcome};
use crate::api::commands::os_type;
use crate::api::error::ApiError;
use crate::console::screen_address;
use crate::instance_state::InstanceState;
use crate::store::instance::{InstanceType, NewInstance, Vnc};

/// RFC 6143 §7.2.2 uses eight; servers may know more.
const MAX_PASSWORD: usize = 255;

pub(super) async fn register(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let zones = store.zones().await?;
    let zone = match call.id("zoneid") {
        Some(id) => zones
            .iter()
            .find(|zone| zone.uuid == id)
            .ok_or_else(|| ApiError::no_such_id("zoneid", id))?,
        None => zones.first().ok_or_else(|| ApiError::parameter("there is no zone"))?,
    };
    let name = host_name(call.needed_text("name")?)?;
    let instances = store.instances().await?;
    if instances.iter().any(|vm| vm.name == name) {
        return Err(ApiError::parameter(format!(
            "there is an instance of the name {name} already"
        )));
    }
    let display_name = display_name(call.text("displayname").unwrap_or(name))?;
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
    let row = Describe::new(&call).await?.row(&call, &vm);
    Ok(Outcome::Object("virtualmachine", row))
}

pub(super) async fn unregister(call: Call) -> Result<Outcome, ApiError> {
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
