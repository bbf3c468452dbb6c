//! Secondary storage.

use serde_json::{Value, json};

use crate::api::command::Kind::{Flag, Id, Number, Text};
use crate::api::command::{Call, Command, Field, Outcome, optional};
use crate::api::error::ApiError;
use crate::api::list;
use crate::store::image_store::ImageStore;
use crate::store::zone::Zone;

pub(super) const COMMANDS: &[Command] = &[Command::list(
    "listImageStores",
    "Lists the image stores, where templates are.",
    |call| Box::pin(list_image_stores(call)),
)
.takes(&[
    optional("id", Id, "one image store"),
    optional("name", Text, "its name"),
    optional("zoneid", Id, "its zone"),
    optional("protocol", Text, "such as nfs"),
    optional("provider", Text, "such as NFS"),
    optional("readonly", Flag, "whether nothing can be written"),
])
.answers(&[
    Field("id", Text, "the image store"),
    Field("name", Text, "its name"),
    Field("zoneid", Text, "id of the zone"),
    Field("zonename", Text, "name of the zone"),
    Field("url", Text, "where it is"),
    Field("protocol", Text, "such as nfs"),
    Field("providername", Text, "such as NFS"),
    Field("scope", Text, "ZONE"),
    Field("readonly", Flag, "whether nothing can be written"),
    Field("disksizetotal", Number, "bytes, as a storage VM said last"),
    Field("disksizeused", Number, "bytes, as a storage VM said last"),
])];

async fn list_image_stores(call: Call) -> Result<Outcome, ApiError> {
    let mut rows = Vec::new();
    for zone in call.management.store.zones().await? {
        if !list::is_id(call.id("zoneid"), Some(zone.uuid)) {
            continue;
        }
        for store in call.management.store.image_stores(zone.id).await? {
            let row = describe(&store, &zone);
            let is = |field: &str, wanted| list::matches(wanted, row[field].as_str().unwrap_or_default());
            if is("protocol", call.text("protocol"))
                && is("providername", call.text("provider"))
                && call.flag("readonly") != Some(true)
            {
                rows.push(row);
            }
        }
    }
    list::answer(&call, "imagestore", rows)
}

fn describe(store: &ImageStore, zone: &Zone) -> Value {
    let protocol = store.url.split_once("://").map_or("file", |(protocol, _)| protocol);
    json!({
        "id": store.uuid,
        "name": store.name,
        "zoneid": zone.uuid,
        "zonename": zone.name,
        "url": store.url,
        "protocol": protocol,
        "providername": if protocol == "nfs" { "NFS".to_owned() } else { protocol.to_owned() },
        "scope": "ZONE",
        "readonly": false,
        "disksizetotal": store.total_bytes,
        "disksizeused": store.used_bytes,
    })
}
