//! Instances of users: those that this zone's hypervisor runs, and those that somebody else runs.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::os_type;
use super::owner::{Owners, fields as owner_fields};
use crate::api::command::Kind::{Date, Flag, Id, Ids, List, Map, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Parameter, Who, optional, required};
use crate::api::error::ApiError;
use crate::api::{date, list};
use crate::instance_state::InstanceState;
use crate::offering;
use crate::store::id::InstanceId;
use crate::store::instance::{Instance, InstanceType};
use crate::store::template::TemplateOnStores;
use crate::store::user_vm::UserVm;
use crate::store::zone::Zone;
use crate::usage::percent;

mod deploy;
mod external;
mod life;

/// RFC 1035 §2.3.4: a label.
const MAX_NAME: usize = 63;
const MAX_DISPLAY_NAME: usize = 255;

const FIELDS: &[Field] = &[
    Field("id", Text, "the instance"),
    Field("name", Text, "its name"),
    Field("displayname", Text, "its name for people"),
    Field("instancename", Text, "its name at the hypervisor"),
    Field("state", Text, "such as Running"),
    Field("reason", Text, "why it is in this state, for people; our own field"),
    Field("created", Date, "when it was made or registered"),
    Field("lastupdated", Date, "when its state changed"),
    Field("hypervisor", Text, "who runs it; External: somebody else"),
    Field("haenable", Flag, "whether it is started again when it ends"),
    Field("zoneid", Text, "id of the zone"),
    Field("zonename", Text, "name of the zone"),
    Field("templateid", Text, "id of the template of its root disk"),
    Field("templatename", Text, "name of that template"),
    Field("templatedisplaytext", Text, "description of that template"),
    Field("templateformat", Text, "format of that template"),
    Field("templatetype", Text, "USER"),
    Field("passwordenabled", Flag, "whether it takes a password at the start"),
    Field("serviceofferingid", Text, "id of its service offering"),
    Field("serviceofferingname", Text, "name of its service offering"),
    Field("cpunumber", Number, "processors"),
    Field("cpuspeed", Number, "MHz of each; it is not held to it"),
    Field("memory", Number, "MiB"),
    Field("cpuused", Text, "percent of one processor, in the last seconds"),
    Field("memorykbs", Number, "KiB of the host's memory that it uses"),
    Field("networkkbsread", Number, "KiB that came to its NICs since its start"),
    Field("networkkbswrite", Number, "KiB that its NICs sent since its start"),
    Field("rootdeviceid", Number, "position of its root disk"),
    Field("rootdevicetype", Text, "ROOT"),
    Field("pooltype", Text, "Filesystem: where its root disk is"),
    Field("isdynamicallyscalable", Flag, "whether it can grow while it runs"),
    Field("arch", Text, "processor"),
    Field("guestosid", Text, "id of its operating system"),
    Field("ostypeid", Text, "id of its operating system"),
    Field("osdisplayname", Text, "name of its operating system"),
    Field("userid", Text, "id of who deployed it"),
    Field("username", Text, "name of who deployed it"),
    Field("vmtype", Text, "User"),
    Field("displayvm", Flag, "true"),
    Field("nic", Object, "its NICs: it has none; not known of external instances"),
    Field("securitygroup", Object, "there are none"),
    Field("affinitygroup", Object, "there are none"),
    Field(
        "hasscreen",
        Flag,
        "whether it has a screen to look at now; our own field",
    ),
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

const ONE: &[Parameter] = &[required("id", Id, "the instance")];
const ONE_FORCED: &[Parameter] = &[
    required("id", Id, "the instance"),
    optional("forced", Flag, "without asking it: as if the power failed"),
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
        optional("state", Text, "such as Running; Present is all that are not destroyed"),
        optional("zoneid", Id, "its zone"),
        optional("hypervisor", Text, "its hypervisor"),
        optional("templateid", Id, "made of a template"),
        optional("serviceofferingid", Id, "of a service offering"),
        optional("userid", Id, "deployed by a user"),
        optional("networkid", Id, "in a network; there are none"),
        optional("vpcid", Id, "in a VPC; there are none"),
        optional("affinitygroupid", Id, "in an affinity group; there are none"),
        optional(
            "details",
            List,
            "all and stats show what it uses, too, and so does none",
        ),
        optional("tags", Map, "with all these tags"),
        optional("account", Text, "of an account; with domainid"),
        optional("domainid", Id, "of a domain"),
        optional("projectid", Id, "of a project; there are none"),
        optional("listall", Flag, "also of other accounts"),
        optional("isrecursive", Flag, "also in the domains below"),
    ])
    .answers(FIELDS),
    Command::job(
        "deployVirtualMachine",
        "Makes an instance of a template, and starts it. It has no NIC: there are no guest networks yet.",
        "VM.CREATE",
        |call| Box::pin(deploy::deploy(call)),
    )
    .open_to(Who::User)
    .takes(deploy::PARAMETERS)
    .answers(FIELDS),
    Command::job("startVirtualMachine", "Starts an instance.", "VM.START", |call| {
        Box::pin(life::start(call))
    })
    .open_to(Who::User)
    .takes(ONE)
    .answers(FIELDS),
    Command::job(
        "stopVirtualMachine",
        "Asks an instance to shut down, and powers it off if it does not.",
        "VM.STOP",
        |call| Box::pin(life::stop(call)),
    )
    .open_to(Who::User)
    .takes(ONE_FORCED)
    .answers(FIELDS),
    Command::job(
        "rebootVirtualMachine",
        "Restarts an instance that runs.",
        "VM.REBOOT",
        |call| Box::pin(life::reboot(call)),
    )
    .open_to(Who::User)
    .takes(ONE_FORCED)
    .answers(FIELDS),
    Command::job(
        "destroyVirtualMachine",
        "Stops an instance and removes it for good after a while (setting expunge.delay).",
        "VM.DESTROY",
        |call| Box::pin(life::destroy(call)),
    )
    .open_to(Who::User)
    .takes(&[
        required("id", Id, "the instance"),
        optional("expunge", Flag, "for good, at once, without asking it to shut down"),
        optional("forced", Flag, "without asking it to shut down"),
    ])
    .answers(FIELDS),
    Command::job(
        "expungeVirtualMachine",
        "Removes a destroyed instance for good, with its disk.",
        "VM.EXPUNGE",
        |call| Box::pin(life::expunge(call)),
    )
    .open_to(Who::User)
    .takes(ONE),
    Command::sync(
        "recoverVirtualMachine",
        "Takes back that an instance was destroyed; it is Stopped then.",
        |call| Box::pin(life::recover(call)),
    )
    .open_to(Who::User)
    .takes(ONE)
    .answers(FIELDS),
    Command::sync(
        "registerExternalVirtualMachine",
        "Registers a machine that somebody else runs, so that its screen can be seen in a browser. Our own command.",
        |call| Box::pin(external::register(call)),
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
        |call| Box::pin(external::unregister(call)),
    )
    .takes(&[required("id", Id, "the instance")]),
];

async fn list_instances(call: Call) -> Result<Outcome, ApiError> {
    let describe = Describe::new(&call).await?;
    let is_nowhere = ["networkid", "vpcid", "affinitygroupid", "projectid"];
    let mut instances = call.management.store.instances().await?;
    if is_nowhere.iter().any(|name| call.id(name).is_some()) {
        instances.clear();
    }
    let mut rows = Vec::new();
    for vm in instances.into_iter().rev().filter(|vm| may_see(&call, vm, true)) {
        if !is_in_state(call.text("state"), vm.state)
            || !list::matches(call.text("hypervisor"), &vm.hypervisor)
            || !describe.owners.has_tags(&vm.uuid.to_string(), call.map("tags"))
        {
            continue;
        }
        let row = describe.row(&call, &vm);
        let is_id = |field: &'static str| call.id(field).is_none_or(|id| row[field] == json!(id));
        if ["zoneid", "templateid", "serviceofferingid", "userid"]
            .into_iter()
            .all(is_id)
        {
            rows.push(row);
        }
    }
    list::answer(&call, "virtualmachine", rows)
}

/// `is_list`: administrators see what is not theirs only when they ask for it.
fn may_see(call: &Call, vm: &Instance, is_list: bool) -> bool {
    let caller = &call.caller;
    let is_all = caller.is_admin() && (!is_list || call.flag("listall") == Some(true));
    // CloudStack's default of `allow.user.view.destroyed.vm`.
    let is_gone = matches!(vm.state, InstanceState::Destroyed | InstanceState::Expunging);
    vm.kind == InstanceType::User
        && vm.removed.is_none()
        && (is_all || vm.account == caller.identity.account.id)
        && (caller.is_admin() || !is_gone)
}

fn is_in_state(wanted: Option<&str>, state: InstanceState) -> bool {
    match wanted {
        Some(wanted) if wanted.eq_ignore_ascii_case("Present") => {
            !matches!(state, InstanceState::Destroyed | InstanceState::Expunging)
        }
        wanted => list::matches(wanted, state.as_str()),
    }
}

/// The instance that a parameter names, if the caller may see it; and what we know of it if we run it.
pub(super) async fn find(call: &Call, parameter: &'static str) -> Result<(Instance, Option<UserVm>), ApiError> {
    let id = call.needed_id(parameter)?;
    let found = call.management.store.instance_by_uuid(id).await?;
    // Whether it exists is not said to others.
    let found = found.filter(|vm| may_see(call, vm, false) || is_own_destroyed(call, vm));
    let vm = found.ok_or_else(|| ApiError::no_such_id(parameter, id))?;
    let user_vm = call.management.store.user_vm(vm.id).await?;
    Ok((vm, user_vm))
}

/// Its owner may recover it, where the setting lets him.
fn is_own_destroyed(call: &Call, vm: &Instance) -> bool {
    vm.kind == InstanceType::User
        && vm.removed.is_none()
        && vm.state == InstanceState::Destroyed
        && vm.account == call.caller.identity.account.id
}

/// A name that a host may have.
fn host_name(name: &str) -> Result<&str, ApiError> {
    let is_good = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_good {
        Ok(name)
    } else {
        let text = "Invalid value for parameter name: 1 to 63 letters, digits and - are expected, such as web-1";
        Err(ApiError::parameter(text))
    }
}

/// A name that people read.
fn display_name(name: &str) -> Result<&str, ApiError> {
    if name.len() > MAX_DISPLAY_NAME || name.chars().any(char::is_control) {
        let text = "Invalid value for parameter displayname: at most 255 printable characters are expected";
        return Err(ApiError::parameter(text));
    }
    Ok(name)
}

/// What rows are made of.
struct Describe {
    zones: Vec<Zone>,
    owners: Owners,
    templates: Vec<TemplateOnStores>,
    user_vms: BTreeMap<InstanceId, UserVm>,
    users: BTreeMap<crate::store::id::UserId, (Uuid, String)>,
}

impl Describe {
    async fn new(call: &Call) -> Result<Self, ApiError> {
        let store = &call.management.store;
        let users = store.users().await?.into_iter();
        Ok(Self {
            zones: store.zones().await?,
            owners: Owners::load(store).await?,
            templates: store.templates().await?,
            user_vms: store.user_vms().await?,
            users: users
                .map(|found| (found.user.id, (found.user.uuid, found.user.username)))
                .collect(),
        })
    }

    fn row(&self, call: &Call, vm: &Instance) -> Value {
        let zone = self.zones.iter().find(|zone| zone.id == vm.zone);
        let os_type = vm.os_type.as_ref().and_then(|id| os_type::find(id.parse().ok()?));
        let driver = call.management.zone.driver();
        let user_vm = self.user_vms.get(&vm.id);
        let screen = match (&vm.vnc, driver) {
            (Some(vnc), _) => Some((vnc.address.clone(), vnc.port)),
            (None, Some(driver)) if user_vm.is_some() => driver
                .screen(&vm.name)
                .map(|screen| (screen.address.ip().to_string(), screen.address.port())),
            _ => None,
        };
        let shown_screen = screen.as_ref().filter(|_| call.caller.is_admin());
        let uuid = vm.uuid.to_string();
        let mut row = json!({
            "id": uuid,
            "name": user_vm.map_or(&vm.name, |user_vm| &user_vm.host_name),
            "displayname": vm.display_name,
            "instancename": vm.name,
            "state": vm.state.as_str(),
            "reason": vm.reason,
            "created": date::format(vm.created),
            "lastupdated": date::format(vm.since),
            "hypervisor": vm.hypervisor,
            "haenable": false,
            "zoneid": zone.map(|zone| zone.uuid),
            "zonename": zone.map(|zone| &zone.name),
            "guestosid": os_type.map(|os_type| os_type.id),
            "ostypeid": os_type.map(|os_type| os_type.id),
            "osdisplayname": os_type.map(|os_type| os_type.name),
            "vmtype": "User",
            "displayvm": true,
            "nic": [],
            "securitygroup": [],
            "affinitygroup": [],
            "hasscreen": screen.is_some(),
            "vncaddress": shown_screen.map(|(address, _)| address),
            "vncport": shown_screen.map(|(_, port)| port),
        });
        if let Some(fields) = row.as_object_mut() {
            fields.extend(owner_fields(&self.owners, vm.account, &uuid));
            if let Some(user_vm) = user_vm {
                self.extend(fields, user_vm);
            }
        }
        if user_vm.is_some() {
            add_usage(call, vm, &mut row);
        }
        row
    }

    /// Of one that we run.
    fn extend(&self, fields: &mut serde_json::Map<String, Value>, user_vm: &UserVm) {
        let template = self
            .templates
            .iter()
            .find(|(template, _)| template.id == user_vm.template);
        let template = template.map(|(template, _)| template);
        let offering = offering::find(user_vm.offering);
        let user = self.users.get(&user_vm.user);
        let more = json!({
            "templateid": template.map(|template| template.uuid),
            "templatename": template.map(|template| &template.facts.name),
            "templatedisplaytext": template.map(|template| &template.facts.display_text),
            "templateformat": template.map(|template| &template.facts.format),
            "templatetype": template.map(|_| "USER"),
            "passwordenabled": false,
            "serviceofferingid": user_vm.offering,
            "serviceofferingname": offering.map(|offering| offering.name),
            "cpunumber": offering.map(|offering| offering.cpus),
            "cpuspeed": offering.map(|offering| offering.cpu_mhz),
            "memory": offering.map(|offering| offering.memory_mib),
            "rootdeviceid": 0,
            "rootdevicetype": "ROOT",
            "pooltype": "Filesystem",
            "isdynamicallyscalable": false,
            "arch": "x86_64",
            "userid": user.map(|(id, _)| id),
            "username": user.map(|(_, name)| name),
        });
        fields.extend(more.as_object().cloned().unwrap_or_default());
    }
}

/// What it uses, unless the caller wants less (CloudStack's `details`).
pub(super) fn add_usage(call: &Call, vm: &Instance, row: &mut Value) {
    let details = call.list("details");
    let is_wanted = details.is_empty() || details.iter().any(|word| ["all", "stats"].contains(&word.as_str()));
    let Some(sample) = call.management.zone.usages.latest(&vm.name).filter(|_| is_wanted) else {
        return;
    };
    row["cpuused"] = percent(sample.cpu).into();
    row["memorykbs"] = (sample.memory / 1024).into();
    row["networkkbsread"] = (sample.total.received / 1024).into();
    row["networkkbswrite"] = (sample.total.sent / 1024).into();
}
