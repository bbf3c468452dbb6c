//! What an agent must know to start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::boot::{HostList, Role, SecondaryStorage, SystemVm, VmType};
use protocol::session::{HostType, StartupCommand};

use crate::keystore::SYSTEM_CA;
use crate::link_status;
use crate::properties::Properties;
use crate::trust::TrustUnknown;

/// Which kind of system VM this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SSVM.
    SecondaryStorage,
    /// CPVM.
    ConsoleProxy {
        /// Port of the browser side.
        proxy_port: u16,
        /// Database id of the VM.
        proxy_vm_id: i64,
    },
}

/// An agent's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it is.
    pub kind: Kind,
    /// Management servers.
    pub hosts: HostList,
    /// Their port.
    pub port: u16,
    /// What the agent says of itself: zone, pod, guid, name, addresses. The members that change (`id`, `msHostList`,
    /// `connectionTransferred`) are filled in at each connection.
    pub startup: StartupCommand,
    /// Commands carried out at once.
    pub workers: usize,
    /// Directory of `agent.properties` and the PEM files.
    pub directory: PathBuf,
    /// What to think of a server as long as there is no key store.
    pub trust_unknown: TrustUnknown,
    /// Where new CA certificates go for the system's other programs, too; usually
    /// [`SYSTEM_CA`](crate::keystore::SYSTEM_CA).
    pub system_ca: Option<PathBuf>,
    /// Where to tell others what the link is like; usually [`link_status::FILE`] where its directory is.
    pub status: Option<PathBuf>,
    /// Time limits.
    pub timing: Timing,
}

/// Time limits of the link (agent-protocol.md §1.1, §1.4, §4). Tests shorten them; programs use the default.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Wait after the first failed attempt; property `backoff.seconds`.
    pub backoff: Duration,
    /// Longest wait between attempts.
    pub longest_backoff: Duration,
    /// For a TCP connection. The Java agent leaves it to the system, which takes minutes.
    pub connect: Duration,
    /// For the TLS handshake; property `ssl.handshake.timeout`.
    pub handshake: Duration,
    /// For the StartupAnswer; doubled once it was not enough.
    pub startup: Duration,
    /// Intervals without a PingAnswer after which the link counts as dead.
    pub missed_pings: u32,
    /// Between looks for the preferred server; property `host.lb.check.interval`, which wins over the server's wish.
    pub host_check: Option<Duration>,
    /// Between the answer to MigrateAgentConnectionCommand and the move.
    pub migrate: Duration,
    /// For a look whether the preferred server listens.
    pub probe: Duration,
    /// For the last message before the end.
    pub farewell: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff: Duration::from_secs(5),
            longest_backoff: Duration::from_mins(1),
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(30),
            startup: Duration::from_mins(3),
            missed_pings: 3,
            host_check: None,
            migrate: Duration::from_secs(3),
            probe: Duration::from_secs(5),
            farewell: Duration::from_secs(1),
        }
    }
}

/// Longest wait that a number of seconds from outside may mean.
const MAX_SECONDS: u64 = 24 * 3600;

/// Seconds from a peer or a file: `None` for 0 and less, at most a day.
pub(crate) fn seconds(value: i64) -> Option<Duration> {
    let seconds = u64::try_from(value).ok().filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(seconds.min(MAX_SECONDS)))
}

impl Timing {
    /// With what an operator has set in `agent.properties` (agent-protocol.md §8).
    #[must_use]
    pub fn with_properties(self, properties: &Properties) -> Self {
        let set = |key| {
            properties
                .get(key)
                .and_then(|value| value.trim().parse().ok())
                .and_then(seconds)
        };
        Self {
            backoff: set("backoff.seconds").unwrap_or(self.backoff),
            handshake: set("ssl.handshake.timeout").unwrap_or(self.handshake),
            host_check: set("host.lb.check.interval").or(self.host_check),
            ..self
        }
    }
}

/// Class that a console proxy answers for; the image's default, which servers do not send.
const CONSOLE_PROXY_RESOURCE: &str = "com.cloud.agent.resource.consoleproxy.ConsoleProxyResource";

/// What the boot arguments do not say.
pub struct Facts<'a> {
    /// Host name, for a line without `name=`.
    pub host_name: &'a str,
    /// CPU architecture as `arch` prints it.
    pub arch: &'a str,
    /// Version of the program, for the server's list of hosts.
    pub version: &'a str,
    /// MAC address of a device.
    pub mac_of: &'a dyn Fn(&str) -> Option<String>,
}

/// The boot arguments are those of a VM without an agent link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("type={0} has no agent; secstorage or consoleproxy is expected")]
pub struct NoAgent(VmType);

impl Config {
    /// The agent of a system VM (agent-protocol.md §4.2, §8).
    ///
    /// # Errors
    /// This type of VM has none.
    pub fn from_boot(vm: &SystemVm, facts: &Facts<'_>, directory: PathBuf) -> Result<Self, NoAgent> {
        let (kind, boot, resource) = match &vm.role {
            Role::SecondaryStorage(ssvm) => (Kind::SecondaryStorage, &ssvm.agent, ssvm.resource.as_str()),
            Role::ConsoleProxy(cpvm) => {
                let proxy_vm_id = i64::try_from(cpvm.proxy_vm).unwrap_or_default();
                let kind = Kind::ConsoleProxy {
                    proxy_port: cpvm.reported_port.get(),
                    proxy_vm_id,
                };
                (kind, &cpvm.agent, CONSOLE_PROXY_RESOURCE)
            }
            _ => return Err(NoAgent(vm.vm_type())),
        };
        let resource = resource.rsplit('.').next().unwrap_or(resource);
        let public = nic(vm, &boot.public_nic.to_string(), facts);
        let private = nic(vm, &boot.management_nic.to_string(), facts);
        let storage = match &vm.role {
            Role::SecondaryStorage(SecondaryStorage {
                storage: Some(storage), ..
            }) => Nic {
                ip: Some(storage.address.addr().to_string()),
                netmask: Some(storage.address.netmask().to_string()),
                mac: (facts.mac_of)("eth3"),
            },
            _ => private.clone(),
        };
        let host_type = match kind {
            Kind::SecondaryStorage => HostType::SecondaryStorage,
            Kind::ConsoleProxy { .. } => HostType::ConsoleProxy,
        };
        let name = vm
            .machine
            .name
            .as_ref()
            .map_or_else(|| facts.host_name.to_owned(), ToString::to_string);
        let startup = StartupCommand {
            kind: Some(host_type),
            data_center: Some(boot.zone.clone()),
            pod: Some(boot.pod.clone()),
            guid: Some(format!("{}-{resource}", boot.guid)),
            name: Some(name),
            version: Some(facts.version.to_owned()),
            iqn: Some("NoIqn".into()),
            public_ip_address: public.ip,
            public_netmask: public.netmask,
            public_mac_address: public.mac,
            private_ip_address: private.ip,
            private_netmask: private.netmask,
            private_mac_address: private.mac,
            storage_ip_address: storage.ip,
            storage_netmask: storage.netmask,
            storage_mac_address: storage.mac,
            resource_name: Some(resource.to_owned()),
            arch: Some(facts.arch.to_owned()),
            ..StartupCommand::default()
        };
        Ok(Self {
            kind,
            hosts: boot.hosts.clone(),
            port: boot.port.get(),
            startup,
            workers: usize::from(boot.workers.get()),
            directory,
            trust_unknown: TrustUnknown::Accept,
            system_ca: Some(SYSTEM_CA.into()),
            status: status_file(),
            timing: Timing::default(),
        })
    }
}

/// systemd makes its directory for the unit of a system VM's program, and nobody else does.
fn status_file() -> Option<PathBuf> {
    let file = PathBuf::from(link_status::FILE);
    file.parent().is_some_and(Path::is_dir).then_some(file)
}

#[derive(Clone, Default)]
struct Nic {
    ip: Option<String>,
    netmask: Option<String>,
    mac: Option<String>,
}

fn nic(vm: &SystemVm, device: &str, facts: &Facts<'_>) -> Nic {
    let index = device.strip_prefix("eth").and_then(|index| index.parse::<u8>().ok());
    let Some(found) = index.and_then(|index| vm.machine.nics.get(&index)) else {
        return Nic::default();
    };
    Nic {
        ip: found.ipv4.map(|net| net.addr().to_string()),
        netmask: found.ipv4.map(|net| net.netmask().to_string()),
        mac: (facts.mac_of)(device),
    }
}

#[cfg(test)]
mod tests {
    use protocol::boot::BootArgs;

    use super::*;

    fn boot(line: &str) -> Result<Config, NoAgent> {
        let facts = Facts {
            host_name: "systemvm",
            arch: "x86_64",
            version: "0.1.0",
            mac_of: &|device| Some(format!("02:00:00:00:00:0{}", &device[3..])),
        };
        let vm = SystemVm::parse(&BootArgs::parse(line).unwrap()).unwrap();
        Config::from_boot(&vm, &facts, "/tmp".into())
    }

    #[test]
    fn an_ssvm_reports_its_public_management_and_storage_nics() {
        let config = boot(include_str!("../../protocol/tests/boot/secondary-storage.cmdline")).unwrap();
        insta::assert_debug_snapshot!((config.kind, config.hosts, config.port, config.workers, config.startup));
    }

    #[test]
    fn a_console_proxy_without_storage_network_reports_its_management_nic_for_storage() {
        let config = boot(include_str!("../../protocol/tests/boot/console-proxy.cmdline")).unwrap();
        insta::assert_debug_snapshot!((config.kind, config.hosts, config.port, config.workers, config.startup));
    }

    #[test]
    fn an_operators_properties_win_over_the_defaults() {
        let properties =
            Properties::parse(b"backoff.seconds=7\nssl.handshake.timeout=0\nhost.lb.check.interval=99999999");
        let timing = Timing::default().with_properties(&properties);
        assert_eq!(timing.backoff, Duration::from_secs(7));
        assert_eq!(timing.handshake, Duration::from_secs(30), "0 is no time limit");
        assert_eq!(timing.host_check, Some(Duration::from_hours(24)));
    }

    #[test]
    fn a_router_has_no_agent() {
        let error = boot("type=router name=r-4-VM eth0ip=10.1.1.1 eth0mask=255.255.255.0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "type=router has no agent; secstorage or consoleproxy is expected"
        );
    }
}
