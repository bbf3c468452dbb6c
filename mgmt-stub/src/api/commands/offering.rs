//! Offerings: there are none as long as nothing can be deployed.

use crate::api::command::Kind::{Flag, Id, Text};
use crate::api::command::{Call, Command, Field, Outcome, Parameter, Who, optional, ready};
use crate::api::error::ApiError;
use crate::api::list;

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
        "Lists the service offerings; there are none yet.",
        |call| ready(none(&call, "serviceoffering")),
    )
    .open_to(Who::User)
    .takes(WHICH)
    .answers(FIELDS),
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

fn none(call: &Call, object: &'static str) -> Result<Outcome, ApiError> {
    list::answer(call, object, Vec::new())
}
