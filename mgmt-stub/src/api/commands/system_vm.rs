//! System VMs.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::virtual_machine::add_usage;
use crate::api::command::Kind::{Date, Flag, Id, List, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Job, Outcome, Parameter, optional, required};
use crate::api::error::{ApiError, Code};
use crate::api::{date, list};
use crate::configuration::{CONSOLEPROXY_RAM_SIZE, SECSTORAGE_VM_RAM_SIZE};
use crate::driver::{Outcome as Progress, Step, Traffic};
use crate::instance_state::InstanceState;
use crate::store::StoreError;
use crate::store::host::Host;
use crate::store::instance::{Instance, InstanceType};
use crate::store::nic::Nic;
use crate::store::zone::{Pod, Zone};
use crate::system_vms::{Diagnosis, SystemVmError, SystemVms, host_of};

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
    Field("reasonsince", Date, "since when that is so; our own field"),
    Field("whattodo", Text, "what a person can do about it; our own field"),
    Field(
        "bootprogress",
        Object,
        "steps of its start, in order: name, outcome (running, waiting, done or failed), at (milliseconds since 1970), detail; our own field",
    ),
    Field("bootproblem", Text, "what the VM says stands in its way; our own field"),
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
    Field(
        "linklocalip",
        Text,
        "address for control, by which the hypervisor's host reaches it",
    ),
    Field("linklocalmacaddress", Text, "hardware address for control"),
    Field("linklocalnetmask", Text, "netmask for control"),
    Field("gateway", Text, "its default gateway"),
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
    Field("cpunumber", Number, "processors; our own field"),
    Field("memory", Number, "MiB that it was given; our own field"),
    Field(
        "cpuused",
        Text,
        "percent of one processor, in the last seconds; our own field",
    ),
    Field(
        "memorykbs",
        Number,
        "KiB of the host's memory that it uses; our own field",
    ),
    Field(
        "networkkbsread",
        Number,
        "KiB that came to its NICs since its start; our own field",
    ),
    Field(
        "networkkbswrite",
        Number,
        "KiB that its NICs sent since its start; our own field",
    ),
    Field(
        "hasscreen",
        Flag,
        "whether it has a screen to look at now; our own field",
    ),
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
        optional(
            "details",
            List,
            "all and stats show what it uses, too, and so does none; our own parameter",
        ),
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
    nics: Vec<Nic>,
}

impl Describe {
    async fn new(call: &Call) -> Result<Self, ApiError> {
        let store = &call.management.store;
        Ok(Self {
            zones: store.zones().await?,
            pods: store.pods().await?,
            hosts: store.hosts().await?,
            nics: store.all_nics().await?,
        })
    }

    fn row(&self, call: &Call, vm: &Instance) -> Value {
        let host = host_of(&self.hosts, vm);
        let zone = self.zones.iter().find(|zone| zone.id == vm.zone);
        let pod = self.pods.iter().find(|pod| Some(pod.id) == vm.pod);
        let is_proxy = vm.kind == InstanceType::ConsoleProxy;
        let system_vms = call.management.zone.system_vms.as_ref();
        let diagnosis = match system_vms {
            Some(system_vms) => system_vms.diagnose(vm, host),
            None => Some(without_driver(vm)),
        };
        let nic = |traffic| {
            self.nics
                .iter()
                .find(|nic| nic.instance == vm.id && nic.traffic == traffic)
        };
        let (control, management) = (nic(Traffic::Control), nic(Traffic::Management));
        let (public, storage) = (nic(Traffic::Public), nic(Traffic::Storage));
        let address = |nic: Option<&Nic>| {
            nic.and_then(|nic| nic.address)
                .map(|address| IpAddr::V4(address.addr()))
        };
        let netmask = |nic: Option<&Nic>| {
            nic.and_then(|nic| nic.address)
                .map(|address| address.netmask().to_string())
        };
        let mac = |nic: Option<&Nic>| nic.and_then(|nic| nic.mac.as_ref()).map(ToString::to_string);
        let default = self.nics.iter().find(|nic| nic.instance == vm.id && nic.is_default);
        let driver = call.management.zone.driver();
        let progress = driver.as_ref().and_then(|driver| driver.progress(&vm.name));
        let has_screen = driver.as_ref().is_some_and(|driver| driver.screen(&vm.name).is_some());
        let memory = match vm.kind {
            InstanceType::ConsoleProxy => &CONSOLEPROXY_RAM_SIZE,
            _ => &SECSTORAGE_VM_RAM_SIZE,
        };
        let is_vm = vm.hypervisor != "External";
        let mut row = json!({
            "id": vm.uuid,
            "name": vm.name,
            "systemvmtype": vm.kind.system_vm_type(),
            "state": vm.state.as_str(),
            "agentstate": host.map(|host| host.status.as_str()),
            "reason": diagnosis.as_ref().map(|diagnosis| &diagnosis.reason),
            "reasonsince": diagnosis.as_ref().map(|diagnosis| date::format(diagnosis.since)),
            "whattodo": diagnosis.as_ref().map(|diagnosis| &diagnosis.what_to_do),
            "bootprogress": progress.as_ref().map(|progress| steps(&progress.steps)),
            "bootproblem": progress.as_ref().map(|progress| &progress.problem),
            "since": date::format(vm.since),
            "zoneid": zone.map(|zone| zone.uuid),
            "zonename": zone.map(|zone| &zone.name),
            "podid": pod.map(|pod| pod.uuid),
            "podname": pod.map(|pod| &pod.name),
            "hostid": host.map(|host| host.uuid),
            "hostname": host.map(|host| &host.name),
            "hypervisor": vm.hypervisor,
            "linklocalip": address(control),
            "linklocalmacaddress": mac(control),
            "linklocalnetmask": netmask(control),
            "gateway": default.and_then(|nic| nic.gateway),
            "privateip": address(management).or(host.and_then(|host| host.private.ip)),
            "privatemacaddress": mac(management).or(host.and_then(|host| host.private.mac.clone())),
            "privatenetmask": netmask(management).or(host.and_then(|host| host.private.netmask.clone())),
            "publicip": address(public).or(vm.public_ip),
            "publicmacaddress": mac(public).or(host.and_then(|host| host.public.mac.clone())),
            "publicnetmask": netmask(public).or(host.and_then(|host| host.public.netmask.clone())),
            "storageip": address(storage).or(host.and_then(|host| host.storage.ip)),
            "dns1": zone.and_then(|zone| zone.dns1.clone()),
            "dns2": zone.and_then(|zone| zone.dns2.clone()),
            "created": date::format(vm.created),
            "disconnected": host.and_then(|host| host.disconnected).map(date::format),
            "activeviewersessions": is_proxy.then_some(vm.active_sessions),
            "consoleport": vm.console_port,
            "version": host.map(|host| &host.version),
            "arch": host.map(|host| &host.arch),
            "cpunumber": is_vm.then_some(1),
            "memory": is_vm.then(|| call.management.configuration.number(memory)),
            "hasscreen": has_screen,
            "isdynamicallyscalable": false,
        });
        add_usage(call, vm, &mut row);
        row
    }
}

/// Nobody looks after it now.
fn without_driver(vm: &Instance) -> Diagnosis {
    let is_on = vm.state == InstanceState::Running;
    Diagnosis {
        reason: if is_on {
            "the server runs without the driver that has started it".to_owned()
        } else {
            vm.reason.clone()
        },
        what_to_do: is_on.then(|| "start the server with the option --driver that it had before".to_owned()),
        since: vm.since,
    }
}

fn steps(steps: &[Step]) -> Vec<Value> {
    let row = |step: &Step| {
        json!({
            "name": step.name,
            "outcome": match step.outcome {
                Progress::Running => "running",
                Progress::Waiting => "waiting",
                Progress::Done => "done",
                Progress::Failed => "failed",
            },
            "at": i64::try_from(step.at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX),
            "detail": step.detail,
        })
    };
    steps.iter().map(row).collect()
}
