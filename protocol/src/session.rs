//! Classes of the link itself: startup, ready, ping, shutdown, server lists (agent-protocol.md §4).

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::command::{Base, StringMap};
use crate::gson;
use crate::secret::Secret;

/// The ping inside of a [`PingAnswer`]: no class name, but the members that every command has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EchoedPing {
    /// Present when it was a [`PingStorageCommand`].
    pub changes: Option<IndexMap<String, bool>>,
    /// Kind of the sender.
    #[serde(deserialize_with = "gson::known")]
    pub host_type: Option<HostType>,
    /// Database id of the host.
    pub host_id: i64,
    /// Not caused by the timer.
    pub out_of_band: bool,
    /// Commands that outlived their connection; empty.
    pub command_infos: Vec<CommandInfo>,
    /// The members of every command.
    #[serde(rename = "<super>")]
    pub base: Base,
}

/// What every agent says of itself first (§4.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartupCommand {
    /// Kind of agent: `SecondaryStorage` or `ConsoleProxy`.
    #[serde(rename = "type", deserialize_with = "gson::known")]
    pub kind: Option<HostType>,
    /// Zone name or id.
    pub data_center: Option<String>,
    /// Pod name or id.
    pub pod: Option<String>,
    /// Cluster; absent for system VMs.
    pub cluster: Option<String>,
    /// `<guid>-<resource simple class name>`: the key of the host row.
    pub guid: Option<String>,
    /// Instance name of the VM: the server finds the VM by it.
    pub name: Option<String>,
    /// Persisted host id.
    pub id: Option<i64>,
    /// Version of the agent.
    pub version: Option<String>,
    /// iSCSI initiator; `NoIqn` for system VMs.
    pub iqn: Option<String>,
    /// Public address; used in download URLs.
    pub public_ip_address: Option<String>,
    /// Public netmask.
    pub public_netmask: Option<String>,
    /// Public MAC.
    pub public_mac_address: Option<String>,
    /// Management address.
    pub private_ip_address: Option<String>,
    /// Management MAC.
    pub private_mac_address: Option<String>,
    /// Management netmask.
    pub private_netmask: Option<String>,
    /// Storage address, else the management address.
    pub storage_ip_address: Option<String>,
    /// Storage netmask.
    pub storage_netmask: Option<String>,
    /// Storage MAC.
    pub storage_mac_address: Option<String>,
    /// Second storage address.
    pub storage_ip_address_deux: Option<String>,
    /// Second storage MAC.
    pub storage_mac_address_deux: Option<String>,
    /// Second storage netmask.
    pub storage_netmask_deux: Option<String>,
    /// Not used by system VMs.
    pub agent_tag: Option<String>,
    /// Simple name of the resource class.
    pub resource_name: Option<String>,
    /// Not used by system VMs.
    pub gateway_ip_address: Option<String>,
    /// Persisted server list: `a,b@algorithm`.
    pub ms_host_list: Option<String>,
    /// First startup after a MigrateAgentConnectionCommand.
    pub connection_transferred: bool,
    /// CPU architecture: `x86_64`, `aarch64`, `i686` or `s390x`.
    pub arch: Option<String>,
}

/// First message of a secondary storage agent (§4.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartupSecondaryStorageCommand {
    /// What it inherits.
    #[serde(rename = "<super>")]
    pub startup: StartupCommand,
}

/// First message of a console proxy agent (§4.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartupProxyCommand {
    /// Port of the browser side.
    pub proxy_port: i64,
    /// Database id of the proxy VM.
    pub proxy_vm_id: i64,
    /// What it inherits.
    #[serde(rename = "<super>")]
    pub startup: StartupCommand,
}

/// The immediate answer to a startup command; the host id is still 0 (§4.3).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartupAnswer {
    /// Database id of the host.
    pub host_id: i64,
    /// Host name as the server knows it.
    pub host_name: Option<String>,
    /// UUID of the host.
    pub host_uuid: Option<String>,
    /// Seconds between pings.
    pub ping_interval: i64,
}

/// The host is accepted, or refused when `details` is set (§4.4).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReadyCommand {
    /// Present: refusal, with the reason.
    #[serde(rename = "_details")]
    pub details: Option<String>,
    /// Zone id.
    pub dc_id: Option<i64>,
    /// Database id of the host.
    pub host_id: Option<i64>,
    /// UUID of the host.
    pub host_uuid: Option<String>,
    /// Host name as the server knows it.
    pub host_name: Option<String>,
    /// Management servers.
    pub ms_host_list: Option<Vec<String>>,
    /// Servers not to connect to now.
    pub avoid_ms_host_list: Option<Vec<String>>,
    /// `static`, `roundrobin` or `shuffle`.
    pub lb_algorithm: Option<String>,
    /// Seconds between checks for the preferred server; 0 = off.
    pub lb_check_interval: Option<i64>,
    /// How sizes are logged.
    pub enable_human_readable_sizes: Option<bool>,
    /// CPU architecture: `x86_64`, `aarch64`, `i686` or `s390x`.
    pub arch: Option<String>,
}

/// Answer to [`ReadyCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReadyAnswer {
    /// Facts of a hypervisor host; absent for system VMs.
    pub details_map: Option<StringMap>,
}

/// Sign of life of a console proxy agent (§4.5).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PingCommand {
    /// Kind of the sender.
    #[serde(deserialize_with = "gson::known")]
    pub host_type: Option<HostType>,
    /// Database id of the host.
    pub host_id: i64,
    /// Not caused by the timer.
    pub out_of_band: bool,
    /// Commands that outlived their connection; empty.
    pub command_infos: Vec<CommandInfo>,
}

/// Sign of life of a secondary storage agent (§4.5).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PingStorageCommand {
    /// Changed storage; empty.
    pub changes: IndexMap<String, bool>,
    /// What it inherits.
    #[serde(rename = "<super>")]
    pub ping: PingCommand,
}

/// Answer to a ping (§4.5).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PingAnswer {
    /// The ping, without its class name.
    #[serde(rename = "_command")]
    pub command: Option<EchoedPing>,
    /// Send the startup command again on this link.
    pub send_startup: bool,
    /// Servers not to connect to now.
    pub avoid_ms_list: Option<Vec<String>>,
    /// For hypervisor hosts; empty.
    pub reconcile_commands: Option<Vec<String>>,
}

/// The sender ends on purpose (§4.7, §4.8).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ShutdownCommand {
    /// Why: `sig.kill`, `update`, `deleteHost`, `unknown`.
    pub reason: Option<String>,
    /// Free text.
    pub detail: Option<String>,
    /// Forget zone, pod and cluster.
    pub remove_host: bool,
}

/// The host enters maintenance (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MaintainCommand {}

/// Answer to [`MaintainCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MaintainAnswer {
    /// Whether instances move away first.
    pub will_migrate: bool,
}

/// Parent of what an agent asks of the server; not sent as such (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentControlCommand {}

/// Answer to an agent's request that has no class of its own (§4.8).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentControlAnswer {}

/// The command is not handled here (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UnsupportedAnswer {}

/// Asks whether the agent works (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckHealthCommand {}

/// Answer to [`CheckHealthCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckHealthAnswer {}

/// Asks the agent to connect to another server (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MigrateAgentConnectionCommand {
    /// Management servers in order of preference.
    pub ms_list: Option<Vec<String>>,
    /// Servers not to connect to now.
    pub avoid_ms_list: Option<Vec<String>>,
    /// `static`, `roundrobin` or `shuffle`.
    pub lb_algorithm: Option<String>,
    /// Seconds between checks for the preferred server; 0 = off.
    pub lb_check_interval: Option<i64>,
}

/// Answer to [`MigrateAgentConnectionCommand`]; sent before the move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrateAgentConnectionAnswer {}

/// A new list of management servers (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SetupMSListCommand {
    /// Management servers in order of preference.
    pub ms_list: Option<Vec<String>>,
    /// Servers not to connect to now.
    pub avoid_ms_list: Option<Vec<String>>,
    /// `static`, `roundrobin` or `shuffle`.
    pub lb_algorithm: Option<String>,
    /// Seconds between checks for the preferred server; 0 = off.
    pub lb_check_interval: Option<i64>,
    /// Check for the preferred server now.
    pub trigger_host_lb: Option<bool>,
}

/// Answer to [`SetupMSListCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SetupMSListAnswer {}

/// For hypervisor hosts; system VMs answer "unsupported".
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UpdateHostPasswordCommand {
    /// Name of the account.
    pub username: Option<String>,
    /// The new password.
    pub new_password: Option<Secret<String>>,
    /// Address of the host.
    pub host_ip: Option<String>,
}

/// Between clustered management servers only (§2, flag CONTROL).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CancelCommand {
    /// Sequence of the request.
    pub sequence: i64,
    /// Why.
    pub reason: Option<String>,
}

/// State of a command that outlived its connection. System VMs report none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CommandInfo {
    /// Sequence of the request.
    pub request_seq: i64,
    /// How far it has come.
    #[serde(deserialize_with = "gson::known")]
    pub state: Option<CommandState>,
    /// When it started: a date text of the sender's locale.
    pub start_time: Option<String>,
    /// When it last changed.
    pub update_time: Option<String>,
    /// Class of the command.
    pub command_name: Option<String>,
    /// The command as JSON text.
    pub command: Option<Secret<String>>,
    /// Seconds.
    pub timeout: i64,
    /// Class of the answer.
    pub answer_name: Option<String>,
    /// The answer as JSON text.
    pub answer: Option<Secret<String>>,
}

/// How far a server has come with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum CommandState {
    #[serde(rename = "CREATED")]
    Created,
    #[serde(rename = "STARTED")]
    Started,
    #[serde(rename = "PROCESSING")]
    Processing,
    #[serde(rename = "PROCESSING_IN_BACKEND")]
    ProcessingInBackend,
    #[serde(rename = "COMPLETED")]
    Completed,
    #[serde(rename = "FAILED")]
    Failed,
    #[serde(rename = "RECONCILE_RETRY")]
    ReconcileRetry,
    #[serde(rename = "RECONCILING")]
    Reconciling,
    #[serde(rename = "RECONCILED")]
    Reconciled,
    #[serde(rename = "RECONCILE_SKIPPED")]
    ReconcileSkipped,
    #[serde(rename = "RECONCILE_FAILED")]
    ReconcileFailed,
    #[serde(rename = "TIMED_OUT")]
    TimedOut,
    #[serde(rename = "INTERRUPTED")]
    Interrupted,
    #[serde(rename = "DANGLED_IN_BACKEND")]
    DangledInBackend,
}

/// What a host row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum HostType {
    Storage,
    Routing,
    SecondaryStorage,
    SecondaryStorageCmdExecutor,
    ConsoleProxy,
    ExternalFirewall,
    ExternalLoadBalancer,
    ExternalVirtualSwitchSupervisor,
    PxeServer,
    BaremetalPxe,
    BaremetalDhcp,
    TrafficMonitor,
    NetScalerControlCenter,
    ExternalDhcp,
    SecondaryStorageVM,
    LocalSecondaryStorage,
    L2Networking,
}
