//! Capacity: nothing that could be full is known of yet.

use crate::api::command::Kind::{Id, Number, Text};
use crate::api::command::{Call, Command, Field, Outcome, optional, ready};
use crate::api::error::ApiError;
use crate::api::list;

pub(super) const COMMANDS: &[Command] =
    &[
        Command::list("listCapacity", "Lists what is used of what there is.", |call| {
            ready(list_capacity(&call))
        })
        .takes(&[
            optional("zoneid", Id, "of a zone"),
            optional("podid", Id, "of a pod"),
            optional("clusterid", Id, "of a cluster"),
            optional("type", Number, "one type, such as 6 for secondary storage"),
        ])
        .answers(&[
            Field("type", Number, "what it is, such as 6 for secondary storage"),
            Field("name", Text, "its name"),
            Field("zoneid", Text, "id of the zone"),
            Field("zonename", Text, "name of the zone"),
            Field("capacityused", Number, "used, in the type's unit"),
            Field("capacitytotal", Number, "there is"),
            Field("percentused", Text, "with two decimals"),
        ]),
    ];

fn list_capacity(call: &Call) -> Result<Outcome, ApiError> {
    list::answer(call, "capacity", Vec::new())
}
