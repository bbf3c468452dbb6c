//! A network of VMs on this machine: bridges and taps in a network namespace of its own, with rules that keep VMs apart.
//!
//! The host's own network does not change. Everything is found again by the name of the namespace: [`Network::build`] makes
//! what is missing, changes what is different, and leaves alone what is right, so that VMs go on.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use hypervisor::network::{Bridge, Network, Opening, Port, Service};
//!
//! let mut control = Bridge::new("control".parse()?);
//! control.addresses = vec!["169.254.0.1/16".parse()?];
//! control.openings = vec![Opening::to("169.254.0.1".parse()?, Service::Tcp(8250..=8250))];
//! let network = Network::build(&"sysvm-1f2e3d4c".parse()?, vec![control]).await?;
//! let tap = network
//!     .attach(&Port {
//!         vm: "s-1-VM".to_owned(),
//!         device: 0,
//!         bridge: "control".parse()?,
//!         mac: "0e:00:a9:fe:0e:57".parse()?,
//!         addresses: vec!["169.254.14.87".parse()?],
//!         groups: Vec::new(),
//!     })
//!     .await?;
//! // … QEMU gets the tap: ifname=s-1-VM.0
//! network.detach("s-1-VM").await?;
//! network.namespace().clone().remove().await?;
//! # Ok(()) }
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use protocol::boot::MacAddr;
use tokio::sync::Mutex;
use tracing::info;

mod interface;
mod links;
pub mod namespace;
mod rules;

pub use interface::{BadInterfaceName, InterfaceName};
use namespace::{Name, Namespace, NamespaceError};

/// The end of the uplink that is inside; see [`crate::uplink`].
pub const UPLINK: &str = "uplink";

/// For all interfaces that come: no IPv6, answers to ARP only for addresses of the network that asks, and nothing in from
/// addresses that are of another network. What VMs of one network say to each other is no matter of the host's table, which
/// `br_netfilter` would make it, where it is loaded.
const PARAMETERS: [(&str, &str); 11] = [
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
];

/// A network that VMs are in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// Its name.
    pub name: InterfaceName,
    /// The host's own addresses in it, the one that it speaks from first. Without any the host is not in it.
    pub addresses: Vec<Ipv4Net>,
    /// Whether VMs in it see each other.
    pub neighbours: Neighbours,
    /// What of the host they reach; else only answers to what the host has asked.
    pub openings: Vec<Opening>,
    /// Whether they reach the world through the uplink, if there is one.
    pub may_leave: bool,
}

/// Whether VMs in the same network see each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbours {
    /// Each sees only the host.
    Apart,
    /// They do.
    Together,
}

/// Something of the host that VMs reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opening {
    /// The host's address.
    pub to: Ipv4Addr,
    /// What is there.
    pub service: Service,
    /// Only for VMs of this group.
    pub group: Option<Group>,
}

/// What is at an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Service {
    /// Answers to ICMP echo requests, a hundred a second.
    Ping,
    /// TCP ports.
    Tcp(RangeInclusive<u16>),
    /// UDP ports.
    Udp(RangeInclusive<u16>),
}

/// Some of the VMs, by a number below 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Group(pub u8);

/// Where a device of a VM is plugged in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The VM, by a name that no other has.
    pub vm: String,
    /// The number of the device.
    pub device: u8,
    /// The network.
    pub bridge: InterfaceName,
    /// Its hardware address. Frames with another one are dropped.
    pub mac: MacAddr,
    /// Its IPv4 addresses: it may have no others, and speaks no other protocol. Without any it may have all.
    pub addresses: Vec<Ipv4Addr>,
    /// The groups it belongs to.
    pub groups: Vec<Group>,
}

/// A network that is there. Clones are the same one; it stays when they are dropped.
#[derive(Clone, Debug)]
pub struct Network(Arc<Built>);

#[derive(Debug)]
struct Built {
    namespace: Namespace,
    bridges: Vec<Bridge>,
    /// Held by whoever changes ports.
    changing: Mutex<()>,
}

/// What cannot be done with a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// In its namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A tool's answer.
    #[error("cannot understand what `{0}` prints; is it of another version?")]
    Printed(&'static str, #[source] serde_json::Error),
    /// The rules.
    #[error(
        "cannot load the rules that keep VMs apart; the kernel needs nftables with bridges, sets and connection tracking"
    )]
    Rules(#[source] NamespaceError),
    /// The wish.
    #[error("there is no network {0}")]
    NoSuchBridge(InterfaceName),
}

impl Bridge {
    /// One that nobody but its VMs is in, who see each other.
    pub fn new(name: InterfaceName) -> Self {
        Self {
            name,
            addresses: Vec::new(),
            neighbours: Neighbours::Together,
            openings: Vec::new(),
            may_leave: false,
        }
    }
}

impl Opening {
    /// For all VMs of the network.
    pub fn to(address: Ipv4Addr, service: Service) -> Self {
        Self {
            to: address,
            service,
            group: None,
        }
    }

    /// For some of them.
    #[must_use]
    pub fn only_for(self, group: Group) -> Self {
        Self {
            group: Some(group),
            ..self
        }
    }
}

impl Network {
    /// Makes what of it is missing, and takes over what is there.
    ///
    /// # Errors
    /// We are not root, or the kernel cannot.
    pub async fn build(name: &Name, bridges: Vec<Bridge>) -> Result<Self, NetworkError> {
        let namespace = Namespace::open_or_create(name).await?;
        namespace.set_parameters(&PARAMETERS)?;
        // The rules first: there is no moment without them.
        let uplink: InterfaceName = UPLINK.parse().expect("it is a short word");
        let script = rules::script(&bridges, &uplink);
        namespace.nft(&script).await.map_err(NetworkError::Rules)?;
        let there = namespace.ip_json(&["address", "show"]).await?;
        let there: Vec<links::Link> =
            serde_json::from_slice(&there).map_err(|error| NetworkError::Printed("ip -j -d address show", error))?;
        namespace.ip(&links::bridges(&bridges, &there)).await?;
        let network = Self(Arc::new(Built {
            namespace,
            bridges,
            changing: Mutex::new(()),
        }));
        Ok(network)
    }

    /// Where it is.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Plugs a device in: its tap is there and up then, and lets through what it may send. Doing it again changes what is
    /// different. An interface of the tap's name that is there is taken, whatever it is.
    ///
    /// # Errors
    /// There is no such bridge, or the kernel cannot.
    pub async fn attach(&self, port: &Port) -> Result<InterfaceName, NetworkError> {
        let bridge = self.0.bridges.iter().find(|bridge| bridge.name == port.bridge);
        let bridge = bridge.ok_or_else(|| NetworkError::NoSuchBridge(port.bridge.clone()))?;
        let tap = InterfaceName::of_tap(&port.vm, port.device);
        let _alone = self.0.changing.lock().await;
        let wanted = rules::elements(port, &tap);
        let there = self.elements().await?;
        let ours = there.iter().filter(|element| element.port() == tap.as_str());
        let gone: Vec<_> = ours.filter(|element| !wanted.contains(element)).collect();
        let new: Vec<_> = wanted.difference(&there).collect();
        if !gone.is_empty() || !new.is_empty() {
            let script = rules::change(&gone, &new);
            self.namespace().nft(&script).await.map_err(NetworkError::Rules)?;
        }
        let is_there = self.namespace().inside(|| if_nametoindex(tap.as_str()).is_ok())?;
        let add = if is_there {
            String::new()
        } else {
            format!("tuntap add {tap} mode tap\n")
        };
        let isolated = match bridge.neighbours {
            Neighbours::Apart => "on",
            Neighbours::Together => "off",
        };
        let batch = format!(
            "{add}link set {tap} master {}\nlink set {tap} type bridge_slave isolated {isolated}\nlink set {tap} up\n",
            bridge.name
        );
        self.namespace().ip(&batch).await?;
        info!(vm = port.vm, device = port.device, %tap, bridge = %bridge.name, mac = %port.mac, "Device plugged in");
        Ok(tap)
    }

    /// Unplugs all devices of a VM, and forgets what they may send. A VM without any is fine.
    ///
    /// # Errors
    /// The kernel cannot.
    pub async fn detach(&self, vm: &str) -> Result<(), NetworkError> {
        let prefix = interface::tap_prefix(vm);
        let _alone = self.0.changing.lock().await;
        let mut batch = String::new();
        for name in self.interfaces()?.iter().filter(|name| name.starts_with(&prefix)) {
            let _ = writeln!(batch, "link delete {name}");
        }
        self.namespace().ip(&batch).await?;
        let there = self.elements().await?;
        let gone: Vec<_> = there
            .iter()
            .filter(|element| element.port().starts_with(&prefix))
            .collect();
        if !gone.is_empty() {
            let script = rules::change(&gone, &[]);
            self.namespace().nft(&script).await.map_err(NetworkError::Rules)?;
        }
        if !batch.is_empty() {
            info!(vm, "Devices unplugged");
        }
        Ok(())
    }

    /// Unplugs all devices of all VMs but these: those of VMs that nobody knows any more.
    ///
    /// # Errors
    /// The kernel cannot.
    pub async fn detach_others(&self, vms: &[&str]) -> Result<(), NetworkError> {
        let prefixes: Vec<_> = vms.iter().map(|vm| interface::tap_prefix(vm)).collect();
        let elements = self.elements().await?;
        let ports = elements.iter().map(|element| element.port().to_owned());
        let taps = self.interfaces()?.into_iter().chain(ports);
        let others = taps.filter(|name| !prefixes.iter().any(|prefix| name.starts_with(prefix)));
        let others: BTreeSet<_> = others
            .filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned()))
            .collect();
        for vm in others {
            self.detach(&vm).await?; // what is before the dot is the prefix, also for a digest
        }
        Ok(())
    }

    /// Names of all interfaces inside.
    fn interfaces(&self) -> Result<Vec<String>, NetworkError> {
        let names = self.namespace().inside(|| {
            let all = nix::net::if_::if_nameindex()?;
            Ok::<_, nix::Error>(
                all.iter()
                    .map(|each| each.name().to_string_lossy().into_owned())
                    .collect(),
            )
        })?;
        let listed = |error: nix::Error| NamespaceError::Io {
            operation: "list the interfaces in",
            path: self.namespace().path().to_owned(),
            source: error.into(),
        };
        Ok(names.map_err(listed)?)
    }

    async fn elements(&self) -> Result<BTreeSet<rules::Element>, NetworkError> {
        let listed = self.namespace().nft_json(&["list", "table", "bridge", "zone"]).await?;
        rules::there(&listed).map_err(|error| NetworkError::Printed("nft -j list table bridge zone", error))
    }
}
