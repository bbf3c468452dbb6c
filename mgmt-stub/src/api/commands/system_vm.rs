//! System VMs.

use serde_json::{Value, json};

use crate::api::command::Kind::{Date, Flag, Id, Number, Text};
use crate::api::command::{Call, Command, Field, Job, Outcome, Parameter, optional, required};
use crate::api::error::{ApiError, Code};
use crate::api::{date, list};
use crate::instance_state::InstanceState;
use crate::store::StoreError;
use crate::store::host::Host;
use crate::store::instance::{Instance, InstanceType};
use crate::store::zone::{Pod, Zone};
use crate::system_vms::{SystemVmError, SystemVms, host_of};

const FIELDS: &[Field] = &[
    Field("id", Text, "the system VM"),
    Field("name", Text, "its name, such as v-2-VM"),
    Field("systemvmtype", Text, "consoleproxy or secondarystoragevm"),
    Field("state", Text, "such as Running"),
    Field("agentstate", Text, "of its agent, such as Up"),
    Field(
        "reason",
        Text,
        "why it is not of use now, for people; absent when it is; our own field",
    ),
    Field("since", Date, "since when it is in its state; our own field"),
    Field("zoneid", Text, "id of the zone"),
    Field("zonename", Text, "name of the zone"),
    Field("podid", Text, "id of the pod"),
    Field("podname", Text, "name of the pod"),
    Field("hostid", Text, "id of its agent's host"),
    Field("hostname", Text, "name of its agent's host"),
    Field(
        "hypervisor",
        Text,
        "who runs it; External: it is a process of the server's machine",
    ),
    Field("privateip", Text, "address for management"),
    Field("privatemacaddress", Text, "hardware address for management"),
    Field("privatenetmask", Text, "netmask for management"),
    Field("publicip", Text, "address for users"),
    Field("publicmacaddress", Text, "hardware address for users"),
    Field("publicnetmask", Text, "netmask for users"),
    Field("storageip", Text, "address for storage"),
    Field("dns1", Text, "name server"),
    Field("dns2", Text, "second name server"),
    Field("created", Date, "when it was made"),
    Field("disconnected", Date, "since when its agent is not connected"),
    Field(
        "activeviewersessions",
        Number,
        "consoles that are open, of a console proxy",
    ),
    Field(
        "consoleport",
        Number,
        "where browsers connect, of a console proxy; our own field",
    ),
    Field("version", Text, "of its agent"),
    Field("arch", Text, "processor"),
    Field("isdynamicallyscalable", Flag, "whether it can grow while it runs"),
];

const ONE: &[Parameter] = &[required("id", Id, "the system VM")];
const ONE_FORCED: &[Parameter] = &[
    required("id", Id, "the system VM"),
    optional(
        "forced",
        Flag,
        "without asking it; one that does not end is killed in any case",
    ),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listSystemVms", "Lists the system VMs.", |call| {
        Box::pin(list_system_vms(call))
    })
    .takes(&[
        optional("id", Id, "one system VM"),
        optional("name", Text, "its name"),
        optional("systemvmtype", Text, "consoleproxy or secondarystoragevm"),
        optional("state", Text, "such as Running"),
        optional("zoneid", Id, "its zone"),
        optional("podid", Id, "its pod"),
        optional("hostid", Id, "its agent's host"),
        optional("arch", Text, "processor"),
    ])
    .answers(FIELDS),
    Command::job("startSystemVm", "Starts a system VM.", "PROXY.START", |call| {
        Box::pin(job(call, "SSVM.START", "starting", |vms, vm| {
            Box::pin(async move { vms.start(vm).await.map(Some) })
        }))
    })
    .takes(ONE)
    .answers(FIELDS),
    Command::job(
        "stopSystemVm",
        "Stops a system VM. One that is needed is started again by the next scan.",
        "PROXY.STOP",
        |call| {
            Box::pin(job(call, "SSVM.STOP", "stopping", |vms, vm| {
                Box::pin(async move { vms.stop(vm).await.map(Some) })
            }))
        },
    )
    .takes(ONE_FORCED)
    .answers(FIELDS),
    Command::job(
        "rebootSystemVm",
        "Stops and starts a system VM.",
        "PROXY.REBOOT",
        |call| {
            Box::pin(job(call, "SSVM.REBOOT", "rebooting", |vms, vm| {
                Box::pin(async move { vms.reboot(vm).await.map(Some) })
            }))
        },
    )
    .takes(ONE_FORCED)
    .answers(FIELDS),
    Command::job(
        "destroySystemVm",
        "Destroys a system VM. Where one is needed the next scan makes a new one.",
        "PROXY.DESTROY",
        |call| {
            Box::pin(job(call, "SSVM.DESTROY", "destroying", |vms, vm| {
                Box::pin(async move { vms.destroy(vm).await.map(|()| None) })
            }))
        },
    )
    .takes(ONE)
    .answers(FIELDS),
];

async fn list_system_vms(call: Call) -> Result<Outcome, ApiError> {
    let describe = Describe::new(&call).await?;
    let mut rows = Vec::new();
    for vm in call.management.store.instances().await? {
        let Some(kind) = vm.kind.system_vm_type() else { continue };
        let row = describe.row(&call, &vm);
        let is = |field: &str, wanted: Option<&str>| list::matches(wanted, row[field].as_str().unwrap_or_default());
        let is_id = |name: &'static str| call.id(name).is_none_or(|id| row[name] == json!(id));
        if list::matches(call.text("systemvmtype"), kind)
            && is("state", call.text("state"))
            && is("arch", call.text("arch"))
            && is_id("zoneid")
            && is_id("podid")
            && is_id("hostid")
        {
            rows.push(row);
        }
    }
    list::answer(&call, "systemvm", rows)
}

type Doing = std::pin::Pin<Box<dyn Future<Output = Result<Option<Instance>, SystemVmError>> + Send>>;

async fn job(
    call: Call,
    ssvm_event: &'static str,
    doing: &'static str,
    run: fn(SystemVms, crate::store::id::InstanceId) -> Doing,
) -> Result<Job, ApiError> {
    let id = call.needed_id("id")?;
    let found = call.management.store.instance_by_uuid(id).await?;
    let vm = found
        .filter(|vm| vm.removed.is_none() && vm.kind != InstanceType::User)
        .ok_or_else(|| ApiError::no_such_id("id", id))?;
    let Some(system_vms) = call.management.zone.system_vms.clone() else {
        let text = "the server runs without a driver; start it with --driver processes";
        return Err(ApiError::new(Code::Unsupported, text));
    };
    let description = format!("{doing} system VM {}", vm.name);
    let event = (vm.kind == InstanceType::SecondaryStorageVm).then_some(ssvm_event);
    let uuid = vm.uuid;
    let work = async move {
        let Some(vm) = run(system_vms, vm.id).await? else {
            return Ok(Outcome::Success(None));
        };
        let row = Describe::new(&call).await?.row(&call, &vm);
        Ok(Outcome::Object("systemvm", row))
    };
    let job = Job::new(description, work).on("SystemVm", uuid);
    Ok(match event {
        Some(event) => job.event(event),
        None => job,
    })
}

impl From<SystemVmError> for ApiError {
    fn from(error: SystemVmError) -> Self {
        match error {
            SystemVmError::Store(error @ (StoreError::LostRace { .. } | StoreError::NoInstanceTransition(_))) => {
                Self::new(Code::ResourceInUse, error.to_string())
            }
            SystemVmError::Store(error) => error.into(),
            error => Self::new(Code::Internal, platform::logging::chain(&error).to_string()),
        }
    }
}

struct Describe {
    zones: Vec<Zone>,
    pods: Vec<Pod>,
    hosts: Vec<Host>,
}

impl Describe {
    async fn new(call: &Call) -> Result<Self, ApiError> {
        let store = &call.management.store;
        Ok(Self {
            zones: store.zones().await?,
            pods: store.pods().await?,
            hosts: store.hosts().await?,
        })
    }

    fn row(&self, call: &Call, vm: &Instance) -> Value {
        let host = host_of(&self.hosts, vm);
        let zone = self.zones.iter().find(|zone| zone.id == vm.zone);
        let pod = self.pods.iter().find(|pod| Some(pod.id) == vm.pod);
        let is_proxy = vm.kind == InstanceType::ConsoleProxy;
        let system_vms = call.management.zone.system_vms.as_ref();
        let reason = match system_vms {
            Some(system_vms) => system_vms.why_not_up(vm, host),
            None if vm.state == InstanceState::Running => {
                Some("the server runs without the driver that has started it; use --driver processes".to_owned())
            }
            None => Some(vm.reason.clone()),
        };
        json!({
            "id": vm.uuid,
            "name": vm.name,
            "systemvmtype": vm.kind.system_vm_type(),
            "state": vm.state.as_str(),
            "agentstate": host.map(|host| host.status.as_str()),
            "reason": reason,
            "since": date::format(vm.since),
            "zoneid": zone.map(|zone| zone.uuid),
            "zonename": zone.map(|zone| &zone.name),
            "podid": pod.map(|pod| pod.uuid),
            "podname": pod.map(|pod| &pod.name),
            "hostid": host.map(|host| host.uuid),
            "hostname": host.map(|host| &host.name),
            "hypervisor": vm.hypervisor,
            "privateip": host.and_then(|host| host.private.ip),
            "privatemacaddress": host.and_then(|host| host.private.mac.clone()),
            "privatenetmask": host.and_then(|host| host.private.netmask.clone()),
            "publicip": vm.public_ip,
            "publicmacaddress": host.and_then(|host| host.public.mac.clone()),
            "publicnetmask": host.and_then(|host| host.public.netmask.clone()),
            "storageip": host.and_then(|host| host.storage.ip),
            "dns1": zone.and_then(|zone| zone.dns1.clone()),
            "dns2": zone.and_then(|zone| zone.dns2.clone()),
            "created": date::format(vm.created),
            "disconnected": host.and_then(|host| host.disconnected).map(date::format),
            "activeviewersessions": is_proxy.then_some(vm.active_sessions),
            "consoleport": vm.console_port,
            "version": host.map(|host| &host.version),
            "arch": host.map(|host| &host.arch),
            "isdynamicallyscalable": false,
        })
    }
}
