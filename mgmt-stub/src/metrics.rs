//! Numbers for Prometheus, at `/metrics` on the server's own socket.

use std::collections::HashMap;
use std::time::Duration;

use platform::logging::chain;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tracing::warn;

use crate::api::error::Code;
use crate::instance_state::InstanceState;
use crate::management::Management;
use crate::restart_budget::RestartBudget;
use crate::store::instance::{Instance, InstanceType};

/// Names of our own, never a caller's: there are as many series as commands and codes.
type Labels = [(&'static str, String); 2];
/// Type of VM, and the two states.
type Transition = [(&'static str, &'static str); 3];
/// Type of VM and its state.
type InState = [(&'static str, &'static str); 2];
/// Instance name: as many as there are VMs.
type OfVm = [(&'static str, String); 1];

/// All of them.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    elapsed: Histogram,
    agents: Gauge,
    jobs: Gauge,
    vms: VmMetrics,
}

#[derive(Default)]
struct VmMetrics {
    states: Family<InState, Gauge>,
    transitions: Family<Transition, Counter>,
    /// Milliseconds: gauges are whole numbers.
    cpu: Family<OfVm, Gauge>,
    memory: Family<OfVm, Gauge>,
    received: Family<OfVm, Gauge>,
    sent: Family<OfVm, Gauge>,
    restarts_left: Family<OfVm, Gauge>,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(management: &Management) -> Self {
        let mut registry = Registry::with_prefix("mgmt");
        let requests = Family::default();
        let elapsed = Histogram::new(exponential_buckets(0.000_1, 4.0, 9)); // 0.1 ms to 6.5 s
        let (agents, jobs) = (Gauge::default(), Gauge::default());
        registry.register(
            "api_requests",
            "Answers of the API, by command and code",
            requests.clone(),
        );
        registry.register_with_unit(
            "api_answer",
            "From a request's parameters to its answer",
            Unit::Seconds,
            elapsed.clone(),
        );
        registry.register(
            "agents_connected",
            "Links of agents that are registered",
            agents.clone(),
        );
        registry.register("jobs_pending", "Jobs that wait or run", jobs.clone());
        let vms = VmMetrics::default();
        vms.register(&mut registry);
        registry.register_with_unit(
            "vm_start_phase",
            "From the end of the phase before to the end of this one, of starts of VMs",
            Unit::Seconds,
            management.zone.usages.phases().seconds(),
        );
        Self {
            registry,
            requests,
            elapsed,
            agents,
            jobs,
            vms,
        }
    }

    /// One answer. `command` is a name of the table, or `unknown`.
    pub(crate) fn answered(&self, command: &'static str, refused: Option<Code>, elapsed: Duration) {
        let code = refused.map_or(200, Code::number).to_string();
        let labels = [("command", command.to_owned()), ("code", code)];
        self.requests.get_or_create(&labels).inc();
        self.elapsed.observe(elapsed.as_secs_f64());
    }

    /// In the text format of OpenMetrics.
    pub(crate) async fn text(&self, management: &Management) -> String {
        self.agents.set(signed(management.agents.count()));
        self.jobs.set(signed(management.jobs.pending()));
        match management.store.instances().await {
            Ok(instances) => self.vms.update(management, &instances),
            Err(error) => warn!(error = %chain(&error), "Cannot count the VMs"),
        }
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl VmMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("vms", "VMs by type and state", self.states.clone());
        registry.register(
            "vm_transitions",
            "State changes of VMs in this run of the server: to Running are starts, from Starting to Stopped failures",
            self.transitions.clone(),
        );
        registry.register(
            "vm_cpu_milliseconds",
            "Processor time of VMs since their starts",
            self.cpu.clone(),
        );
        registry.register_with_unit(
            "vm_memory",
            "Memory of the host that VMs use",
            Unit::Bytes,
            self.memory.clone(),
        );
        registry.register_with_unit(
            "vm_received",
            "What came to NICs of VMs since their starts",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "vm_sent",
            "What NICs of VMs sent since their starts",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register(
            "vm_restarts_left",
            "How often system VMs that end may be started again within the next minutes",
            self.restarts_left.clone(),
        );
    }

    fn update(&self, management: &Management, instances: &[Instance]) {
        let mut counts: HashMap<(InstanceType, InstanceState), usize> = HashMap::new();
        for vm in instances {
            *counts.entry((vm.kind, vm.state)).or_default() += 1;
        }
        for kind in [
            InstanceType::User,
            InstanceType::ConsoleProxy,
            InstanceType::SecondaryStorageVm,
        ] {
            for state in InstanceState::ALL {
                let count = counts.get(&(kind, state)).copied().unwrap_or_default();
                let labels = [("type", kind.as_str()), ("state", state.as_str())];
                self.states.get_or_create(&labels).set(signed(count));
            }
        }
        for ((kind, from, to), count) in management.store.transitions() {
            let labels = [("type", kind.as_str()), ("from", from.as_str()), ("to", to.as_str())];
            let counter = self.transitions.get_or_create(&labels);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let families = [&self.cpu, &self.memory, &self.received, &self.sent, &self.restarts_left];
        for family in families {
            family.clear(); // VMs that are off have none
        }
        let set = |family: &Family<OfVm, Gauge>, name: &str, value: u128| {
            let labels = [("vm", name.to_owned())];
            family
                .get_or_create(&labels)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for (name, sample) in management.zone.usages.all() {
            set(&self.cpu, &name, sample.total.cpu.as_millis());
            set(&self.memory, &name, sample.total.memory.into());
            set(&self.received, &name, sample.total.received.into());
            set(&self.sent, &name, sample.total.sent.into());
        }
        let Some(system_vms) = &management.zone.system_vms else {
            return;
        };
        let left = system_vms.restarts_left();
        for vm in instances.iter().filter(|vm| vm.kind != InstanceType::User) {
            let left = left.get(&vm.id).copied().unwrap_or(RestartBudget::COUNT);
            set(&self.restarts_left, &vm.name, u128::try_from(left).unwrap_or(u128::MAX));
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
