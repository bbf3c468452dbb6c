//! Networks, volumes and what else comes with virtual machines: a zone of plain processes has none of it yet, and says so
//! to clients that ask at their start.

use crate::api::command::Kind::{Id, Text};
use crate::api::command::{Call, Command, Field, Outcome, Parameter, Who, optional, ready, required};
use crate::api::error::ApiError;
use crate::api::list;

const ID_AND_NAME: &[Field] = &[Field("id", Text, "its id"), Field("name", Text, "its name")];
const ONE_OF_A_ZONE: &[Parameter] = &[
    optional("id", Id, "one of them"),
    optional("name", Text, "its name"),
    optional("zoneid", Id, "its zone"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::list(
        "listPhysicalNetworks",
        "Lists the physical networks; there are none yet.",
        |call| ready(none(&call, "physicalnetwork")),
    )
    .takes(ONE_OF_A_ZONE)
    .answers(ID_AND_NAME),
    Command::list(
        "listTrafficTypes",
        "Lists the traffic types of a physical network.",
        |call| ready(of_physical_network(&call)),
    )
    .takes(&[required("physicalnetworkid", Id, "the physical network")])
    .answers(&[Field("id", Text, "its id"), Field("traffictype", Text, "such as Guest")]),
    Command::list("listNetworks", "Lists the networks; there are none yet.", |call| {
        ready(none(&call, "network"))
    })
    .open_to(Who::User)
    .takes(ONE_OF_A_ZONE)
    .answers(ID_AND_NAME),
    Command::list(
        "listPublicIpAddresses",
        "Lists the public addresses; there are none yet.",
        |call| ready(none(&call, "publicipaddress")),
    )
    .open_to(Who::User)
    .takes(ONE_OF_A_ZONE)
    .answers(&[Field("id", Text, "its id"), Field("ipaddress", Text, "the address")]),
    Command::list(
        "listRouters",
        "Lists the virtual routers; there are none yet.",
        |call| ready(none(&call, "router")),
    )
    .takes(ONE_OF_A_ZONE)
    .answers(ID_AND_NAME),
    Command::list("listSnapshots", "Lists the snapshots; there are none yet.", |call| {
        ready(none(&call, "snapshot"))
    })
    .open_to(Who::User)
    .takes(ONE_OF_A_ZONE)
    .answers(ID_AND_NAME),
];

fn none(call: &Call, object: &'static str) -> Result<Outcome, ApiError> {
    list::answer(call, object, Vec::new())
}

fn of_physical_network(call: &Call) -> Result<Outcome, ApiError> {
    Err(ApiError::no_such_id(
        "physicalnetworkid",
        call.needed_id("physicalnetworkid")?,
    ))
}
