//! Tags.

use uuid::Uuid;

use super::owner::Owners;
use crate::api::command::Kind::{List, Map, Text};
use crate::api::command::{Call, Command, Field, Job, Outcome, Who, optional, ready, required};
use crate::api::error::ApiError;
use crate::api::list;
use crate::store::tag::Tag;

/// Bytes of a key, and of a value.
const MAX_TEXT: usize = 255;

pub(super) const COMMANDS: &[Command] = &[
    Command::job(
        "createTags",
        "Puts tags on things; a key that is there gets a new value.",
        "CREATE_TAGS",
        |call| ready(create(call)),
    )
    .open_to(Who::User)
    .takes(&[
        required("tags", Map, "keys and values: tags[0].key=…&tags[0].value=…"),
        required("resourcetype", Text, "type of the things, such as Template"),
        required("resourceids", List, "the things"),
        optional("customer", Text, "for whom"),
    ]),
    Command::job("deleteTags", "Takes tags off things.", "DELETE_TAGS", |call| {
        ready(delete(call))
    })
    .open_to(Who::User)
    .takes(&[
        required("resourcetype", Text, "type of the things, such as Template"),
        required("resourceids", List, "the things"),
        optional("tags", Map, "keys, with values or without; else all tags"),
    ]),
    Command::list("listTags", "Lists the tags.", |call| Box::pin(list_tags(call)))
        .open_to(Who::User)
        .takes(&[
            optional("resourcetype", Text, "those of things of a type"),
            optional("resourceid", Text, "those of one thing"),
            optional("key", Text, "those with a key"),
            optional("value", Text, "those with a value"),
            optional("customer", Text, "those for somebody"),
            optional(
                "listall",
                crate::api::command::Kind::Flag,
                "also those of other accounts",
            ),
        ])
        .answers(&[
            Field("key", Text, "the key"),
            Field("value", Text, "the value"),
            Field("resourcetype", Text, "type of the thing"),
            Field("resourceid", Text, "the thing"),
            Field("account", Text, "name of the account"),
            Field("domainid", Text, "id of its domain"),
            Field("domain", Text, "name of its domain"),
            Field("customer", Text, "for whom"),
        ]),
];

fn create(call: Call) -> Result<Job, ApiError> {
    let pairs = call.details("tags");
    if pairs
        .iter()
        .any(|(key, value)| key.len() > MAX_TEXT || value.len() > MAX_TEXT)
    {
        return Err(ApiError::parameter(format!(
            "keys and values of tags have at most {MAX_TEXT} bytes"
        )));
    }
    let resource_type = call.needed_text("resourcetype")?.to_owned();
    let mut tags = Vec::new();
    for resource in resources(&call)? {
        tags.extend(pairs.iter().map(|(key, value)| Tag {
            account: call.caller.identity.account.id,
            resource_type: resource_type.clone(),
            resource: resource.to_string(),
            key: key.clone(),
            value: value.clone(),
            customer: call.text("customer").map(str::to_owned),
        }));
    }
    let description = format!("putting {} tags on things of type {resource_type}", tags.len());
    Ok(Job::new(description, async move {
        call.management.store.add_tags(tags).await?;
        Ok(Outcome::Success(None))
    }))
}

fn delete(call: Call) -> Result<Job, ApiError> {
    let resources = resources(&call)?;
    let description = format!("taking tags off {} things", resources.len());
    Ok(Job::new(description, async move {
        let wanted: Vec<(Option<String>, Option<String>)> = match call.map("tags") {
            [] => vec![(None, None)],
            rows => rows
                .iter()
                .map(|row| (row.get("key").cloned(), row.get("value").cloned()))
                .collect(),
        };
        for resource in resources {
            for (key, value) in wanted.clone() {
                call.management.store.delete_tags(resource, key, value).await?;
            }
        }
        Ok(Outcome::Success(None))
    }))
}

fn resources(call: &Call) -> Result<Vec<Uuid>, ApiError> {
    let id = |text: &String| text.parse().map_err(|_| ApiError::no_such("resourceids", text));
    call.list("resourceids").iter().map(id).collect()
}

async fn list_tags(call: Call) -> Result<Outcome, ApiError> {
    let owners = Owners::load(&call.management.store).await?;
    let is = |name: &str, found: &str| call.text(name).is_none_or(|wanted| wanted == found);
    let is_wanted = |tag: &&Tag| {
        list::matches(call.text("resourcetype"), &tag.resource_type)
            && list::matches(call.text("resourceid"), &tag.resource)
            && is("key", &tag.key)
            && is("value", &tag.value)
            && is("customer", tag.customer.as_deref().unwrap_or_default())
    };
    let rows = owners
        .tags()
        .iter()
        .filter(is_wanted)
        .map(|tag| owners.describe_tag(tag))
        .collect();
    list::answer(&call, "tag", rows)
}
