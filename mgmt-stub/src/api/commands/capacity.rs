//! What is used of what there is.

use serde_json::json;

use crate::api::command::Kind::{Id, Number, Text};
use crate::api::command::{Call, Command, Field, Outcome, optional};
use crate::api::error::ApiError;
use crate::api::list;

pub(super) const COMMANDS: &[Command] =
    &[
        Command::list("listCapacity", "Lists what is used of what there is.", |call| {
            Box::pin(list_capacity(call))
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

async fn list_capacity(call: Call) -> Result<Outcome, ApiError> {
    let is_wanted = call.number("type").is_none_or(|number| number == SECONDARY_STORAGE)
        && list::is_id(call.id("podid"), None)
        && list::is_id(call.id("clusterid"), None);
    let mut rows = Vec::new();
    for zone in call.management.store.zones().await? {
        if !is_wanted || !list::is_id(call.id("zoneid"), Some(zone.uuid)) {
            continue;
        }
        let stores = call.management.store.image_stores(zone.id).await?;
        let known = stores
            .iter()
            .filter_map(|store| Some((store.used_bytes?, store.total_bytes?)));
        let (used, total) = known.fold((0_i64, 0_i64), |sum, store| {
            (sum.0.saturating_add(store.0), sum.1.saturating_add(store.1))
        });
        if total > 0 {
            rows.push(json!({
                "type": SECONDARY_STORAGE,
                "name": "SECONDARY_STORAGE",
                "zoneid": zone.uuid,
                "zonename": zone.name,
                "capacityused": used,
                "capacitytotal": total,
                "percentused": percent(used, total),
            }));
        }
    }
    list::answer(&call, "capacity", rows)
}

/// management.md §15: 6 is secondary storage, in bytes. Other types come with what they count.
const SECONDARY_STORAGE: i64 = 6;

/// With two decimals, rounded down.
fn percent(used: i64, total: i64) -> String {
    let hundredths = i128::from(used) * 10_000 / i128::from(total);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_have_two_decimals() {
        assert_eq!(percent(0, 7), "0.00");
        assert_eq!(percent(1, 3), "33.33");
        assert_eq!(percent(i64::MAX, i64::MAX), "100.00");
    }
}
