//! What an agent says of itself, checked before anything is believed (agent-protocol.md §4.2).

use std::num::NonZeroU16;

use protocol::command::CommandBody;
use protocol::packet::Request;
use protocol::session::StartupCommand;

use crate::client_auth::{PresentedCertificate, Strictness};
use crate::server::Shared;
use crate::session::End;
use crate::store::host::{HostNic, HostType, StartupFacts};

/// A startup command of one of the two kinds.
pub(crate) struct Startup {
    host_type: HostType,
    /// Of a console proxy, as it says.
    proxy_port: i64,
    said: StartupCommand,
}

impl Startup {
    pub(crate) fn of(request: &Request) -> Option<Self> {
        request.commands.iter().find_map(|command| match &command.body {
            CommandBody::StartupSecondaryStorage(ssvm) => Some(Self {
                host_type: HostType::SecondaryStorageVm,
                proxy_port: 0,
                said: ssvm.startup.clone(),
            }),
            CommandBody::StartupProxy(cpvm) => Some(Self {
                host_type: HostType::ConsoleProxy,
                proxy_port: cpvm.proxy_port,
                said: cpvm.startup.clone(),
            }),
            _ => None,
        })
    }
}

/// The architectures a host may have (agent-protocol.md §4.2).
const ARCHITECTURES: [&str; 4] = ["x86_64", "aarch64", "i686", "s390x"];

/// Longest text of a startup member: a host name has at most 253 bytes (RFC 1035 §2.3.4).
const MAX_FACT: usize = 255;

/// Longest list of management servers that is kept.
const MAX_HOST_LIST: usize = 4096;

/// Checks what an agent says of itself.
pub(crate) async fn facts(
    shared: &Shared,
    Startup {
        host_type,
        proxy_port,
        said: startup,
    }: Startup,
    certificate: Option<&PresentedCertificate>,
) -> Result<StartupFacts, End> {
    let name = required("name", startup.name)?;
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Err(End::Refused(format!("{name:?} is not an instance name such as s-1-VM")));
    }
    let is_named =
        |shown: &PresentedCertificate| shown.names.contains(&name) || shown.common_name() == Some(name.as_str());
    if let (Strictness::Required, Some(shown)) = (shared.settings.strictness, certificate)
        && !is_named(shown)
    {
        return Err(End::Refused(format!(
            "{name} shows the certificate of {}",
            shown.subject
        )));
    }
    let arch = fact("arch", startup.arch)?.unwrap_or_else(|| "x86_64".into());
    if !ARCHITECTURES.contains(&arch.as_str()) {
        let known = ARCHITECTURES.join(", ");
        return Err(End::Refused(format!(
            "{name} has CPU architecture {arch:?}; one of {known} is expected"
        )));
    }
    let zone = required("dataCenter", startup.data_center)?;
    let Some(zone) = shared.store.find_zone(zone.clone()).await? else {
        return Err(End::Refused(format!("Host {name} sent incorrect data center: {zone}")));
    };
    let pod = match fact("pod", startup.pod)? {
        Some(pod) => shared.store.find_pod(zone.id, pod).await?,
        None => None,
    };
    let nic = |ip: Option<String>, mac, netmask| {
        let ip = ip.and_then(|ip| ip.parse().ok());
        Ok::<_, End>(HostNic {
            ip,
            mac: fact("a MAC address", mac)?,
            netmask: fact("a netmask", netmask)?,
        })
    };
    Ok(StartupFacts {
        guid: required("guid", startup.guid)?,
        resource_name: fact("resourceName", startup.resource_name)?,
        host_type,
        name,
        zone: zone.id,
        pod: pod.map(|pod| pod.id),
        version: fact("version", startup.version)?.unwrap_or_default(),
        arch,
        private: nic(
            startup.private_ip_address,
            startup.private_mac_address,
            startup.private_netmask,
        )?,
        public: nic(
            startup.public_ip_address,
            startup.public_mac_address,
            startup.public_netmask,
        )?,
        storage: nic(
            startup.storage_ip_address,
            startup.storage_mac_address,
            startup.storage_netmask,
        )?,
        ms_host_list: startup.ms_host_list.filter(|list| list.len() <= MAX_HOST_LIST),
        proxy_port: u16::try_from(proxy_port).ok().and_then(NonZeroU16::new),
    })
}

/// A text that may go to logs, tables and terminals; blank counts as absent.
fn fact(member: &str, value: Option<String>) -> Result<Option<String>, End> {
    match value.filter(|value| !value.trim().is_empty()) {
        Some(value) if value.len() > MAX_FACT => Err(End::Refused(format!(
            "startup: {member} is longer than {MAX_FACT} bytes"
        ))),
        Some(value) if value.chars().any(char::is_control) => {
            Err(End::Refused(format!("startup: {member} has control characters")))
        }
        value => Ok(value),
    }
}

fn required(member: &str, value: Option<String>) -> Result<String, End> {
    fact(member, value)?.ok_or_else(|| End::Refused(format!("startup: {member} is missing")))
}

/// Some words of a peer for logs and tables.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
