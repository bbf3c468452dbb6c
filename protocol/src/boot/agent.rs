//! The VMs with an agent: secondary storage and console proxy.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use ipnet::Ipv4Net;

use super::{HostList, InterfaceName, Reader, encoded};
use crate::secret::Secret;

const AGENT_PORT: NonZeroU16 = NonZeroU16::new(8250).expect("not zero");
const WORKERS: NonZeroU16 = NonZeroU16::new(5).expect("not zero");
const CONSOLE_PORT: NonZeroU16 = NonZeroU16::new(8080).expect("not zero");
const HTTP_PORT: NonZeroU16 = NonZeroU16::new(80).expect("not zero");
const HTTPS_PORT: NonZeroU16 = NonZeroU16::new(443).expect("not zero");
const NFS_RESOURCE: &str = "org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource";

/// How an agent reaches the management server and who it says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Management servers, in the order to try.
    pub hosts: HostList,
    /// Their agent port.
    pub port: NonZeroU16,
    /// Zone id, or `default`.
    pub zone: String,
    /// Pod id, or `default`.
    pub pod: String,
    /// Identity in the start-up command, without the resource's suffix.
    pub guid: String,
    /// Commands worked on at the same time.
    pub workers: NonZeroU16,
    /// The NIC with management traffic.
    pub management_nic: InterfaceName,
    /// The NIC with public traffic.
    pub public_nic: InterfaceName,
    /// Of no use today: the certificate step brings its own.
    pub keystore_password: Option<Secret<String>>,
}

impl Agent {
    fn read(read: &mut Reader<'_>) -> Option<Self> {
        let hosts = read.required("host", "the management servers, such as 192.0.2.10,192.0.2.11");
        let guid = read.required("guid", "the agent's identity, such as s-1-VM");
        let keystore_password = read.parsed(
            "keystore_password",
            "base64 text with ^ for newlines and ~ for spaces",
            encoded::armoured_text,
        );
        Some(Self {
            port: read.port("port", AGENT_PORT),
            zone: read.place("zone"),
            pod: read.place("pod"),
            workers: read
                .optional("workers", "a number of threads from 1 to 65535")
                .unwrap_or(WORKERS),
            management_nic: read.nic("private.network.device", 1),
            public_nic: read.nic("public.network.device", 2),
            keystore_password: keystore_password.map(Secret::new),
            hosts: hosts?, // `?` comes last, here and below: every key is read before one that is missing ends this
            guid: guid?,
        })
    }
}

/// `type=secstorage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondaryStorage {
    /// The link to the management server.
    pub agent: Agent,
    /// Java class this agent answers for; its last part is the suffix of the guid. The NFS one and its "premium"
    /// sibling (server with VMware support) work alike.
    pub resource: String,
    /// The agent's name for itself.
    pub instance: Option<String>,
    /// `templateProcessor`, `commandExecutor`, …
    pub role: String,
    /// The storage network's NIC, where the pod has one.
    pub storage: Option<StorageNic>,
    /// Bytes; for the storage NIC only.
    pub mtu: Option<u16>,
    /// Mount option `vers=`; `None` leaves the choice to the kernel.
    pub nfs_version: Option<String>,
    /// Hosts of the zone's secondary stores, for checks.
    pub stores: Vec<String>,
    /// Whether copies between zones use HTTPS.
    pub encrypts_copies: bool,
    /// Whether upload URLs use HTTPS.
    pub encrypts_uploads: bool,
}

/// The address on the storage network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageNic {
    /// Own address with its prefix length.
    pub address: Ipv4Net,
    /// The way to stores in other networks.
    pub gateway: Option<Ipv4Addr>,
}

impl SecondaryStorage {
    pub(super) fn read(read: &mut Reader<'_>) -> Option<Self> {
        let agent = Agent::read(read);
        let address = read.ipv4_net("storageip", "storagenetmask");
        let gateway = read.optional("storagegateway", "the IPv4 address of the storage network's gateway");
        Some(Self {
            resource: read
                .optional("resource", "a Java class")
                .unwrap_or_else(|| NFS_RESOURCE.to_owned()),
            instance: read.optional("instance", "a word"),
            role: read
                .optional("role", "a word")
                .unwrap_or_else(|| "templateProcessor".to_owned()),
            storage: address.map(|address| StorageNic { address, gateway }),
            mtu: read.mtu("mtu"),
            nfs_version: read.parsed("nfsVersion", "an NFS version such as 4.1", nfs_version),
            stores: read.hosts("secondaryStorageServerAddress"),
            encrypts_copies: read.flag("sslcopy", false),
            encrypts_uploads: read.flag("useHttpsToUpload", true),
            agent: agent?,
        })
    }
}

/// `type=consoleproxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleProxy {
    /// The link to the management server.
    pub agent: Agent,
    /// The VM's id in the management server's database; `StartupProxyCommand.proxyVmId`.
    pub proxy_vm: u64,
    /// Whether consoles use TLS.
    pub is_encrypted: bool,
    /// `StartupProxyCommand.proxyPort`: 443 only for the literal value `premium=premium` (`premium=true`, which servers
    /// send, is not that), else `consoleproxy.httpListenPort`. apache/cloudstack ConsoleProxyResource.java.
    pub reported_port: NonZeroU16,
    /// Where browsers connect.
    pub console_port: NonZeroU16,
}

impl ConsoleProxy {
    pub(super) fn read(read: &mut Reader<'_>) -> Option<Self> {
        let agent = Agent::read(read);
        let proxy_vm = read.optional("proxy_vm", "a VM id").unwrap_or(0);
        let premium = read
            .optional("premium", "true, false or premium")
            .unwrap_or(Premium::No);
        let http_port = read.port("consoleproxy.httpListenPort", HTTP_PORT);
        let console_port = read.port("vncport", CONSOLE_PORT);
        Some(Self {
            agent: agent?,
            proxy_vm,
            is_encrypted: premium != Premium::No,
            reported_port: if premium == Premium::Literal {
                HTTPS_PORT
            } else {
                http_port
            },
            console_port,
        })
    }
}

#[derive(PartialEq)]
enum Premium {
    No,
    Yes,
    Literal,
}

impl std::str::FromStr for Premium {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "false" => Ok(Self::No),
            "true" => Ok(Self::Yes),
            "premium" => Ok(Self::Literal),
            _ => Err(()),
        }
    }
}

impl Reader<'_> {
    fn port(&mut self, key: &str, when_absent: NonZeroU16) -> NonZeroU16 {
        self.optional(key, "a port number").unwrap_or(when_absent)
    }

    fn nic(&mut self, key: &str, when_absent: u8) -> InterfaceName {
        self.optional(key, "a network interface such as eth1")
            .unwrap_or_else(|| InterfaceName::eth(when_absent))
    }

    /// A zone or a pod; `@…@` is a template's placeholder that nobody filled in.
    fn place(&mut self, key: &str) -> String {
        let id: Option<String> = self.optional(key, "an id");
        let is_placeholder = |id: &String| id.starts_with('@') && id.ends_with('@');
        id.filter(|id| !is_placeholder(id))
            .unwrap_or_else(|| "default".to_owned())
    }
}

/// Becomes part of a mount option, so nothing but numbers and dots.
fn nfs_version(text: &str) -> Option<String> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').all(is_number).then(|| text.to_owned())
}
