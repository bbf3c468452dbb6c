//! Hosts: the agents of system VMs, and this machine where its driver makes it a hypervisor.

use serde_json::{Value, json};

use crate::api::command::Kind::{Date, Flag, Id, Text};
use crate::api::command::{Call, Command, Field, Outcome, optional};
use crate::api::date;
use crate::api::error::ApiError;
use crate::api::list;
use crate::store::host::{Host, HostType};
use crate::store::zone::{Pod, Zone};

pub(super) const COMMANDS: &[Command] = &[Command::list(
    "listHosts",
    "Lists the hosts: agents of system VMs that are, or were, connected, and the hypervisor, if this machine is one.",
    |call| Box::pin(list_hosts(call)),
)
.takes(&[
    optional("id", Id, "one host"),
    optional("name", Text, "its name"),
    optional("zoneid", Id, "its zone"),
    optional("podid", Id, "its pod"),
    optional("clusterid", Id, "its cluster; system VMs have none"),
    optional("type", Text, "Routing, SecondaryStorageVM or ConsoleProxy"),
    optional("state", Text, "such as Up"),
    optional("resourcestate", Text, "Enabled"),
    optional("hypervisor", Text, "its hypervisor; agents of system VMs have none"),
    optional("version", Text, "its version"),
    optional("arch", Text, "its processor, such as x86_64"),
])
.answers(&[
    Field("id", Text, "the host"),
    Field("name", Text, "its name, that of the system VM"),
    Field("type", Text, "Routing, SecondaryStorageVM or ConsoleProxy"),
    Field("state", Text, "of the agent, such as Up"),
    Field("statereason", Text, "why it is so, for people; our own field"),
    Field("resourcestate", Text, "Enabled"),
    Field("hypervisor", Text, "of one of type Routing: KVM"),
    Field("ipaddress", Text, "private address"),
    Field("publicip", Text, "public address; our own field"),
    Field("zoneid", Text, "id of the zone"),
    Field("zonename", Text, "name of the zone"),
    Field("podid", Text, "id of the pod"),
    Field("podname", Text, "name of the pod"),
    Field("version", Text, "of the agent"),
    Field("arch", Text, "processor"),
    Field("created", Date, "when it came first"),
    Field("lastpinged", Date, "when it was heard last"),
    Field("disconnected", Date, "since when it is neither Connecting nor Up"),
    Field("managementserverid", Text, "the server that it is connected to"),
    Field("islocalstorageactive", Flag, "whether it has disks of VMs"),
])];

async fn list_hosts(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let (zones, pods) = (store.zones().await?, store.pods().await?);
    let mut rows = Vec::new();
    for host in store.hosts().await? {
        let zone = zones.iter().find(|zone| zone.id == host.zone);
        let pod = pods.iter().find(|pod| Some(pod.id) == host.pod);
        let is_wanted = list::is_id(call.id("zoneid"), zone.map(|zone| zone.uuid))
            && list::is_id(call.id("podid"), pod.map(|pod| pod.uuid))
            && list::is_id(call.id("clusterid"), None)
            && list::matches(call.text("type"), host.host_type.as_str())
            && list::matches(call.text("state"), host.status.as_str())
            && list::matches(call.text("resourcestate"), "Enabled")
            && list::matches(call.text("hypervisor"), hypervisor(&host).unwrap_or_default())
            && list::matches(call.text("version"), &host.version)
            && list::matches(call.text("arch"), &host.arch);
        if is_wanted {
            rows.push(describe(&call, &host, zone, pod));
        }
    }
    list::answer(&call, "host", rows)
}

fn describe(call: &Call, host: &Host, zone: Option<&Zone>, pod: Option<&Pod>) -> Value {
    json!({
        "id": host.uuid,
        "name": host.name,
        "type": host.host_type.as_str(),
        "state": host.status.as_str(),
        "statereason": host.status_reason,
        "resourcestate": "Enabled",
        "hypervisor": hypervisor(host),
        "ipaddress": host.private.ip,
        "publicip": host.public.ip,
        "zoneid": zone.map(|zone| zone.uuid),
        "zonename": zone.map(|zone| &zone.name),
        "podid": pod.map(|pod| pod.uuid),
        "podname": pod.map(|pod| &pod.name),
        "version": host.version,
        "arch": host.arch,
        "created": date::format(host.created),
        "lastpinged": host.last_ping.map(date::format),
        "disconnected": host.disconnected.map(date::format),
        "managementserverid": host.status.takes_commands().then_some(call.management.id),
        "islocalstorageactive": host.host_type == HostType::Routing,
    })
}

fn hypervisor(host: &Host) -> Option<&'static str> {
    (host.host_type == HostType::Routing).then_some("KVM")
}
