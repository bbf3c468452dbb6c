//! Primary storage: pools, and the disks on them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::owner::{Owners, fields as owner_fields};
use crate::api::command::Kind::{Date, Flag, Id, Ids, Map, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional};
use crate::api::error::ApiError;
use crate::api::{date, list};
use crate::store::id::InstanceId;
use crate::store::instance::Instance;
use crate::store::storage_pool::StoragePool;
use crate::store::template::TemplateOnStores;
use crate::store::user_vm::{UserVm, Volume};
use crate::store::zone::Zone;
use crate::user_vms::UserVms;

pub(super) const COMMANDS: &[Command] = &[
    Command::list(
        "listStoragePools",
        "Lists the storage pools, where disks of instances are.",
        |call| Box::pin(list_pools(call)),
    )
    .takes(&[
        optional("id", Id, "one storage pool"),
        optional("name", Text, "its name"),
        optional("zoneid", Id, "its zone"),
        optional("podid", Id, "its pod; pools of a host are in none"),
        optional("clusterid", Id, "its cluster; there are none"),
        optional("scope", Text, "HOST"),
        optional("status", Text, "Up or Down"),
        optional("path", Text, "where it is"),
    ])
    .answers(&[
        Field("id", Text, "the storage pool"),
        Field("name", Text, "its name"),
        Field("zoneid", Text, "id of the zone"),
        Field("zonename", Text, "name of the zone"),
        Field("path", Text, "where it is on the hypervisor's host"),
        Field("type", Text, "Filesystem"),
        Field("scope", Text, "HOST: only instances of this host have disks on it"),
        Field("state", Text, "Up, or Down when it cannot be used now"),
        Field("created", Date, "when it was added"),
        Field("disksizetotal", Number, "bytes of its file system"),
        Field(
            "disksizeused",
            Number,
            "bytes of its file system that are not free, whoever uses them",
        ),
        Field(
            "disksizeallocated",
            Number,
            "bytes that its templates and disks may grow to",
        ),
        Field("hypervisor", Text, "whose disks"),
        Field("provider", Text, "DefaultPrimary"),
        Field(
            "overprovisionfactor",
            Text,
            "1.0: nothing is promised beyond what there is",
        ),
        Field("managed", Flag, "false"),
    ]),
    Command::list("listVolumes", "Lists the disks of instances.", |call| {
        Box::pin(list_volumes(call))
    })
    .open_to(Who::User)
    .takes(&[
        optional("id", Id, "one volume"),
        optional("ids", Ids, "these volumes"),
        optional("name", Text, "its name"),
        optional("type", Text, "ROOT"),
        optional("virtualmachineid", Id, "those of an instance"),
        optional("zoneid", Id, "its zone"),
        optional("storageid", Id, "its storage pool"),
        optional("state", Text, "Allocated or Ready"),
        optional("tags", Map, "with all these tags"),
        optional("account", Text, "of an account; with domainid"),
        optional("domainid", Id, "of a domain"),
        optional("projectid", Id, "of a project; there are none"),
        optional("listall", Flag, "also of other accounts"),
        optional("isrecursive", Flag, "also in the domains below"),
    ])
    .answers(&[
        Field("id", Text, "the volume"),
        Field("name", Text, "its name"),
        Field("type", Text, "ROOT"),
        Field("state", Text, "Allocated: its instance has never been started; Ready"),
        Field("deviceid", Number, "position at the instance"),
        Field("size", Number, "bytes of the disk"),
        Field("physicalsize", Number, "bytes that it takes now"),
        Field("virtualsize", Number, "bytes of the disk"),
        Field("created", Date, "when it was made"),
        Field("zoneid", Text, "id of the zone"),
        Field("zonename", Text, "name of the zone"),
        Field("virtualmachineid", Text, "id of the instance"),
        Field("vmname", Text, "name of the instance"),
        Field("vmdisplayname", Text, "name of the instance, for people"),
        Field("vmstate", Text, "state of the instance"),
        Field("templateid", Text, "id of the template"),
        Field("templatename", Text, "name of the template"),
        Field("storage", Text, "name of the storage pool; for administrators"),
        Field("storageid", Text, "id of the storage pool; for administrators"),
        Field("path", Text, "file in the storage pool; for administrators"),
        Field("storagetype", Text, "local"),
        Field("provisioningtype", Text, "thin"),
        Field("hypervisor", Text, "whose disk"),
        Field("displayvolume", Flag, "true"),
        Field("isextractable", Flag, "whether it can be downloaded"),
        Field("destroyed", Flag, "false"),
        Field("account", Text, "name of the account"),
        Field("accountid", Text, "id of the account"),
        Field("domain", Text, "name of the domain"),
        Field("domainid", Text, "id of the domain"),
        Field("domainpath", Text, "path of the domain"),
        Field("tags", Object, "its tags"),
    ]),
];

async fn list_pools(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let zones = store.zones().await?;
    let mut rows = Vec::new();
    for pool in store.storage_pools().await? {
        let zone = zones.iter().find(|zone| zone.id == pool.zone);
        let row = describe_pool(&call, &pool).await?;
        let is = |field: &str, wanted| list::matches(wanted, row[field].as_str().unwrap_or_default());
        if list::is_id(call.id("zoneid"), zone.map(|zone| zone.uuid))
            && list::is_id(call.id("podid"), None)
            && list::is_id(call.id("clusterid"), None)
            && is("scope", call.text("scope"))
            && is("state", call.text("status"))
            && call.text("path").is_none_or(|path| path == pool.path)
        {
            let mut row = row;
            row["zoneid"] = json!(zone.map(|zone| zone.uuid));
            row["zonename"] = json!(zone.map(|zone| &zone.name));
            rows.push(row);
        }
    }
    list::answer(&call, "storagepool", rows)
}

async fn describe_pool(call: &Call, pool: &StoragePool) -> Result<Value, ApiError> {
    let store = &call.management.store;
    let user_vms = call.management.zone.user_vms.as_ref();
    let user_vms = user_vms.filter(|user_vms| user_vms.pool().id == pool.id);
    let capacity = user_vms.and_then(|user_vms| user_vms.host().capacity().ok());
    let templates = store.templates_on_pool(pool.id).await?;
    let volumes = store.volumes().await?;
    let of_volumes = volumes
        .iter()
        .filter(|volume| volume.pool == pool.id)
        .filter_map(|volume| volume.size);
    let allocated: i64 = templates
        .iter()
        .map(|template| template.physical_size)
        .chain(of_volumes)
        .fold(0, i64::saturating_add);
    Ok(json!({
        "id": pool.uuid,
        "name": pool.name,
        "path": pool.path,
        "type": "Filesystem",
        "scope": "HOST",
        "state": if capacity.is_some() { "Up" } else { "Down" },
        "created": date::format(pool.created),
        "disksizetotal": capacity.map(|capacity| capacity.total),
        "disksizeused": capacity.map(|capacity| capacity.used),
        "disksizeallocated": allocated,
        "hypervisor": user_vms.map(|user_vms| user_vms.driver().hypervisor()),
        "provider": "DefaultPrimary",
        "overprovisionfactor": "1.0",
        "managed": false,
    }))
}

async fn list_volumes(call: Call) -> Result<Outcome, ApiError> {
    let describe = Describe::new(&call).await?;
    let mut rows = Vec::new();
    for volume in call.management.store.volumes().await? {
        let is_mine = volume.account == call.caller.identity.account.id
            || (call.caller.is_admin() && call.flag("listall") == Some(true));
        let pool = describe.pools.iter().find(|pool| pool.id == volume.pool);
        if !is_mine
            || !list::is_id(call.id("storageid"), pool.map(|pool| pool.uuid))
            || !describe.owners.has_tags(&volume.uuid.to_string(), call.map("tags"))
        {
            continue;
        }
        let row = describe.row(&call, &volume, pool);
        let is_id = |field: &'static str| call.id(field).is_none_or(|id| row[field] == json!(id));
        if is_id("virtualmachineid")
            && is_id("zoneid")
            && list::matches(call.text("type"), "ROOT")
            && list::matches(call.text("state"), volume.state.as_str())
        {
            rows.push(row);
        }
    }
    list::answer(&call, "volume", rows)
}

struct Describe {
    owners: Owners,
    instances: Vec<Instance>,
    user_vms: BTreeMap<InstanceId, UserVm>,
    pools: Vec<StoragePool>,
    zones: Vec<Zone>,
    templates: Vec<TemplateOnStores>,
}

impl Describe {
    async fn new(call: &Call) -> Result<Self, ApiError> {
        let store = &call.management.store;
        Ok(Self {
            owners: Owners::load(store).await?,
            instances: store.instances().await?,
            user_vms: store.user_vms().await?,
            pools: store.storage_pools().await?,
            zones: store.zones().await?,
            templates: store.templates().await?,
        })
    }

    fn row(&self, call: &Call, volume: &Volume, pool: Option<&StoragePool>) -> Value {
        let vm = self.instances.iter().find(|vm| vm.id == volume.instance);
        let zone = self
            .zones
            .iter()
            .find(|zone| pool.is_some_and(|pool| pool.zone == zone.id));
        let template = self
            .templates
            .iter()
            .find(|(template, _)| template.id == volume.template);
        let template = template.map(|(template, _)| template);
        let shown_pool = pool.filter(|_| call.caller.is_admin());
        let uuid = volume.uuid.to_string();
        let user_vms = call.management.zone.user_vms.as_ref();
        let mut row = json!({
            "id": uuid,
            "name": volume.name,
            "type": "ROOT",
            "state": volume.state.as_str(),
            "deviceid": 0,
            "size": volume.size,
            "virtualsize": volume.size,
            "physicalsize": user_vms.and_then(|user_vms| file_size(user_vms, volume)),
            "created": date::format(volume.created),
            "zoneid": zone.map(|zone| zone.uuid),
            "zonename": zone.map(|zone| &zone.name),
            "virtualmachineid": vm.map(|vm| vm.uuid),
            "vmname": self.user_vms.get(&volume.instance).map(|vm| &vm.host_name),
            "vmdisplayname": vm.map(|vm| &vm.display_name),
            "vmstate": vm.map(|vm| vm.state.as_str()),
            "templateid": template.map(|template| template.uuid),
            "templatename": template.map(|template| &template.facts.name),
            "storage": shown_pool.map(|pool| &pool.name),
            "storageid": shown_pool.map(|pool| pool.uuid),
            "path": shown_pool.and(volume.path.as_ref()),
            "storagetype": "local",
            "provisioningtype": "thin",
            "hypervisor": vm.map(|vm| &vm.hypervisor),
            "displayvolume": true,
            "isextractable": false,
            "destroyed": false,
        });
        if let Some(fields) = row.as_object_mut() {
            fields.extend(owner_fields(&self.owners, volume.account, &uuid));
        }
        row
    }
}

fn file_size(user_vms: &UserVms, volume: &Volume) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;

    let found = std::fs::metadata(user_vms.host().path(volume.uuid)).ok()?;
    Some(found.blocks().saturating_mul(512))
}
