//! Offerings. Those of disks, networks and VPCs come with what they are for.

use serde_json::{Value, json};

use crate::api::command::Kind::{Date, Flag, Id, Number, Text};
use crate::api::command::{Call, Command, Field, Outcome, Parameter, Who, optional, ready};
use crate::api::error::ApiError;
use crate::api::list;
use crate::offering::{self, ServiceOffering};

const FIELDS: &[Field] = &[
    Field("id", Text, "the offering"),
    Field("name", Text, "its name"),
    Field("displaytext", Text, "what it is, for people"),
];
const WHICH: &[Parameter] = &[
    optional("id", Id, "one offering"),
    optional("name", Text, "its name"),
    optional("zoneid", Id, "those of a zone"),
    optional("issystem", Flag, "those of system VMs"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::list(
        "listServiceOfferings",
        "Lists the service offerings: how big an instance can be.",
        |call| Box::pin(list_service_offerings(call)),
    )
    .open_to(Who::User)
    .takes(&[
        optional("id", Id, "one offering"),
        optional("name", Text, "its name"),
        optional("virtualmachineid", Id, "that of an instance"),
        optional("zoneid", Id, "those of a zone; all are in all zones"),
        optional("issystem", Flag, "those of system VMs; there are none"),
        optional("cpunumber", Number, "with at least so many processors"),
        optional("cpuspeed", Number, "with at least so many MHz"),
        optional("memory", Number, "with at least so many MiB"),
        optional("storagetype", Text, "local"),
        optional("state", Text, "Active"),
    ])
    .answers(&[
        Field("id", Text, "the offering"),
        Field("name", Text, "its name"),
        Field("displaytext", Text, "what it is, for people"),
        Field("state", Text, "Active"),
        Field("cpunumber", Number, "processors"),
        Field("cpuspeed", Number, "MHz of each; an instance is not held to it"),
        Field("memory", Number, "MiB"),
        Field("created", Date, "when this run of the server began"),
        Field("storagetype", Text, "local: disks are on the hypervisor's host"),
        Field("provisioningtype", Text, "thin"),
        Field("offerha", Flag, "whether instances are started again when they end"),
        Field("limitcpuuse", Flag, "whether instances are held to the MHz"),
        Field("isvolatile", Flag, "whether a reboot makes a new disk"),
        Field("issystem", Flag, "whether it is for system VMs"),
        Field("defaultuse", Flag, "whether it is the system's own"),
        Field("iscustomized", Flag, "whether the caller chooses the size"),
        Field(
            "iscustomizediops",
            Flag,
            "whether the caller chooses operations per second",
        ),
        Field(
            "dynamicscalingenabled",
            Flag,
            "whether instances can grow while they run",
        ),
    ]),
    Command::list(
        "listDiskOfferings",
        "Lists the disk offerings; there are none yet.",
        |call| ready(none(&call, "diskoffering")),
    )
    .open_to(Who::User)
    .takes(WHICH)
    .answers(FIELDS),
    Command::list(
        "listNetworkOfferings",
        "Lists the network offerings; there are none yet.",
        |call| ready(none(&call, "networkoffering")),
    )
    .open_to(Who::User)
    .takes(WHICH)
    .answers(FIELDS),
    Command::list(
        "listVPCOfferings",
        "Lists the VPC offerings; there are none yet.",
        |call| ready(none(&call, "vpcoffering")),
    )
    .open_to(Who::User)
    .takes(WHICH)
    .answers(FIELDS),
];

async fn list_service_offerings(call: Call) -> Result<Outcome, ApiError> {
    let only = match call.id("virtualmachineid") {
        None => None,
        Some(id) => {
            let (vm, _) = super::virtual_machine::find(&call, "virtualmachineid").await?;
            let offering = call.management.store.user_vm(vm.id).await?.map(|vm| vm.offering);
            Some(offering.ok_or_else(|| ApiError::no_such_id("virtualmachineid", id))?)
        }
    };
    let is_at_least = |name, found: u32| call.number(name).is_none_or(|wanted| i64::from(found) >= wanted);
    let is_wanted = |offering: &&ServiceOffering| {
        call.flag("issystem") != Some(true)
            && only.is_none_or(|only| only == offering.id)
            && list::matches(call.text("storagetype"), "local")
            && list::matches(call.text("state"), "Active")
            && is_at_least("cpunumber", offering.cpus)
            && is_at_least("cpuspeed", offering.cpu_mhz)
            && is_at_least("memory", offering.memory_mib)
    };
    let created = crate::api::date::format(call.management.started);
    let rows = offering::ALL
        .iter()
        .filter(is_wanted)
        .map(|offering| describe(offering, &created));
    let rows = rows.collect();
    list::answer(&call, "serviceoffering", rows)
}

fn describe(offering: &ServiceOffering, created: &str) -> Value {
    json!({
        "id": offering.id,
        "name": offering.name,
        "displaytext": offering.display_text,
        "state": "Active",
        "cpunumber": offering.cpus,
        "cpuspeed": offering.cpu_mhz,
        "memory": offering.memory_mib,
        "created": created,
        "storagetype": "local",
        "provisioningtype": "thin",
        "offerha": false,
        "limitcpuuse": false,
        "isvolatile": false,
        "issystem": false,
        "defaultuse": false,
        "iscustomized": false,
        "iscustomizediops": false,
        "dynamicscalingenabled": false,
    })
}

fn none(call: &Call, object: &'static str) -> Result<Outcome, ApiError> {
    list::answer(call, object, Vec::new())
}
