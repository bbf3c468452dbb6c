//! Zones, pods, clusters. A zone on one machine has one pod, and no clusters.

use serde_json::{Value, json};

use super::owner::Owners;
use crate::api::command::Kind::{Flag, Id, Ids, Map, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional, ready};
use crate::api::error::ApiError;
use crate::api::list;
use crate::configuration::HYPERVISOR_LIST;
use crate::store::zone::{Pod, Zone};

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listZones", "Lists the zones.", |call| Box::pin(list_zones(call)))
        .open_to(Who::User)
        .takes(&[
            optional("id", Id, "one zone"),
            optional("ids", Ids, "these zones"),
            optional("name", Text, "its name"),
            optional("available", Flag, "only those that VMs can be deployed to; all are"),
            optional("networktype", Text, "Advanced or Basic"),
            optional("tags", Map, "with all these tags"),
        ])
        .answers(&[
            Field("id", Text, "the zone"),
            Field("name", Text, "its name"),
            Field("networktype", Text, "Advanced or Basic"),
            Field("allocationstate", Text, "Enabled or Disabled"),
            Field("dns1", Text, "name server of guests"),
            Field("dns2", Text, "second name server of guests"),
            Field("internaldns1", Text, "name server of system VMs"),
            Field("internaldns2", Text, "second name server of system VMs"),
            Field("guestcidraddress", Text, "default network of guests"),
            Field("domain", Text, "network domain of guests"),
            Field("securitygroupsenabled", Flag, "whether there are security groups"),
            Field("localstorageenabled", Flag, "whether disks may be on the hosts"),
            Field("dhcpprovider", Text, "who gives guests their addresses"),
            Field("zonetoken", Text, "made of the id"),
            Field("type", Text, "Core"),
            Field("tags", Object, "its tags"),
        ]),
    Command::list("listPods", "Lists the pods.", |call| Box::pin(list_pods(call)))
        .takes(&[
            optional("id", Id, "one pod"),
            optional("name", Text, "its name"),
            optional("zoneid", Id, "its zone"),
            optional("allocationstate", Text, "Enabled or Disabled"),
        ])
        .answers(&[
            Field("id", Text, "the pod"),
            Field("name", Text, "its name"),
            Field("zoneid", Text, "id of the zone"),
            Field("zonename", Text, "name of the zone"),
            Field("gateway", Text, "gateway of the management network"),
            Field("netmask", Text, "netmask of the management network"),
            Field("allocationstate", Text, "Enabled or Disabled"),
        ]),
    Command::list(
        "listClusters",
        "Lists the clusters; there are none without a hypervisor.",
        |call| ready(list_clusters(&call)),
    )
    .takes(&[
        optional("id", Id, "one cluster"),
        optional("name", Text, "its name"),
        optional("zoneid", Id, "its zone"),
        optional("podid", Id, "its pod"),
        optional("hypervisor", Text, "its hypervisor"),
    ])
    .answers(&[Field("id", Text, "the cluster"), Field("name", Text, "its name")]),
    Command::sync(
        "listHypervisors",
        "Lists the hypervisors that templates may be for.",
        |call| ready(Ok(list_hypervisors(&call))),
    )
    .open_to(Who::User)
    .takes(&[optional("zoneid", Id, "those of a zone")])
    .answers(&[Field("name", Text, "such as KVM")]),
];

async fn list_zones(call: Call) -> Result<Outcome, ApiError> {
    let owners = Owners::load(&call.management.store).await?;
    let mut rows = Vec::new();
    for zone in call.management.store.zones().await? {
        let uuid = zone.uuid.to_string();
        if list::matches(call.text("networktype"), &zone.network_type) && owners.has_tags(&uuid, call.map("tags")) {
            let mut row = describe_zone(&zone);
            row["tags"] = owners.tags_of(&uuid).into();
            rows.push(row);
        }
    }
    list::answer(&call, "zone", rows)
}

fn describe_zone(zone: &Zone) -> Value {
    json!({
        "id": zone.uuid,
        "name": zone.name,
        "networktype": zone.network_type,
        "allocationstate": zone.allocation_state,
        "dns1": zone.dns1,
        "dns2": zone.dns2,
        "internaldns1": zone.internal_dns1,
        "internaldns2": zone.internal_dns2,
        "guestcidraddress": zone.guest_cidr,
        "domain": zone.network_domain,
        "securitygroupsenabled": false,
        "localstorageenabled": false,
        "dhcpprovider": "VirtualRouter",
        "zonetoken": zone.uuid,
        "type": "Core",
    })
}

async fn list_pods(call: Call) -> Result<Outcome, ApiError> {
    let zones = call.management.store.zones().await?;
    let mut rows = Vec::new();
    for pod in call.management.store.pods().await? {
        let zone = zones.iter().find(|zone| zone.id == pod.zone);
        if list::is_id(call.id("zoneid"), zone.map(|zone| zone.uuid))
            && list::matches(call.text("allocationstate"), &pod.allocation_state)
        {
            rows.push(describe_pod(&pod, zone));
        }
    }
    list::answer(&call, "pod", rows)
}

fn describe_pod(pod: &Pod, zone: Option<&Zone>) -> Value {
    json!({
        "id": pod.uuid,
        "name": pod.name,
        "zoneid": zone.map(|zone| zone.uuid),
        "zonename": zone.map(|zone| &zone.name),
        "gateway": pod.gateway,
        "netmask": pod.netmask,
        "allocationstate": pod.allocation_state,
    })
}

fn list_clusters(call: &Call) -> Result<Outcome, ApiError> {
    list::answer(call, "cluster", Vec::new())
}

fn list_hypervisors(call: &Call) -> Outcome {
    let names = call.management.configuration.list(&HYPERVISOR_LIST);
    let rows: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
    let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    Outcome::List {
        object: "hypervisor",
        count,
        rows,
    }
}
