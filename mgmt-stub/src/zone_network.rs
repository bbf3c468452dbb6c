//! The network of a zone whose VMs run on this machine: who is in it, who reaches whom, the NFS server, name servers and the
//! uplink. It is made at the start of the server, goes on without it, and is taken over by the next one.
//!
//! ```text
//!                 control          management       public           storage          guest
//!                 169.254.0.0/16   172.31.1.0/24    172.31.2.0/24    172.31.3.0/24    10.1.1.0/24
//!   host          .0.1             .1               .1               .1, NFS .5       –
//!   VMs reach     answers only     8250, 53, ping,  the uplink,      2049, ping       each other
//!                                  CPVMs: screens   each other, ping
//! ```

use std::fs::DirBuilder;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use hypervisor::network::namespace::{Name, Namespace, NamespaceError};
use hypervisor::network::{Bridge, Group, InterfaceName, Neighbours, Network, NetworkError, Opening, Service};
use hypervisor::nfs::{self, Export, NfsError, NfsServer, Versions};
use hypervisor::relay::{Resolver, Upstream};
use hypervisor::uplink::{self, Uplink, UplinkError};
use ipnet::Ipv4Net;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::driver::Traffic;
use crate::system_vms::{BadZoneCidr, Networks};

/// Console proxies: their management NICs reach the screens of VMs.
pub const CONSOLE_PROXIES: Group = Group(0);
/// Where agents find this server (management.md §13.1).
pub const AGENTS_PORT: u16 = 8250;
/// What comes to this port of the host's public address from VMs is let through. Nobody listens there, but for
/// `cargo xtask up`, which offers its demo template.
pub const SOURCE_PORT: u16 = 8089;
/// QEMU's screens: a thousand from RFB's port on (RFC 6143 §4).
const SCREENS: std::ops::RangeInclusive<u16> = 5900..=6899;
const NAME_SERVER_PORT: u16 = 53;
/// Last byte of the NFS server's address in the storage network.
const NFS_HOST: u32 = 5;
/// Last bytes of the two ends of the uplink, in the first /24 of the zone.
const UPLINK_ENDS: [u32; 2] = [253, 254];
const UPLINK_PREFIX: u8 = 30;

/// Where the exported files are, in the data directory.
pub const SECONDARY: &str = "secondary";
const NFS_FILES: &str = "nfs";
/// What the uplink has changed on this machine.
const UPLINK_STATE: &str = "uplink.json";

/// Options of `serve` for it.
#[derive(Clone, Debug, Args)]
pub struct ZoneNetworkOptions {
    /// With --driver qemu: where the zone's networks lie, in a network namespace of their own. Management gets the /24
    /// whose third byte is 1, public 2, storage 3. Choose another one when VMs have to reach machines in this one.
    #[arg(long, value_name = "CIDR", default_value = "172.31.0.0/16")]
    pub zone_cidr: Ipv4Net,
    /// With --driver qemu: let system VMs reach the world through this machine, by NAT; templates from the internet need it.
    /// Without it the zone has no way out.
    #[arg(long)]
    pub uplink: bool,
    /// With --driver qemu: the zone's NFS server also speaks NFS versions 3 and 4.0, with mountd and rpcbind.
    #[arg(long)]
    pub nfs_v3: bool,
}

/// What is there.
#[derive(Debug)]
pub struct ZoneNetwork {
    network: Network,
    networks: Networks,
    nfs: NfsServer,
    resolver: Resolver,
}

/// Why a zone has no network.
#[derive(Debug, thiserror::Error)]
pub enum ZoneNetworkError {
    /// `--zone-cidr`.
    #[error(transparent)]
    Cidr(#[from] BadZoneCidr),
    /// The data directory.
    #[error("cannot make the directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bridges and rules.
    #[error("making the zone's network")]
    Network(#[from] NetworkError),
    /// Its namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The NFS server.
    #[error("starting the zone's NFS server")]
    Nfs(#[from] NfsError),
    /// The way out.
    #[error("making the zone's uplink")]
    Uplink(#[from] UplinkError),
}

impl ZoneNetwork {
    /// Makes what is missing and takes over what is there. VMs in it go on meanwhile.
    ///
    /// # Errors
    /// We are not root, a program is missing, or the kernel cannot.
    pub async fn open(data_dir: &Path, options: &ZoneNetworkOptions) -> Result<Self, ZoneNetworkError> {
        let networks = Networks::of_zone(options.zone_cidr)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        let made = made.and_then(|()| std::fs::canonicalize(data_dir));
        let data_dir = made.map_err(|source| ZoneNetworkError::Directory {
            path: data_dir.to_owned(),
            source,
        })?;
        let name = Name::of_directory(&data_dir);
        let versions = if options.nfs_v3 { Versions::All } else { Versions::V4 };
        let network = Network::build(&name, bridges(&networks, versions)).await?;
        if options.uplink {
            let [outside, inside] = uplink_ends(options.zone_cidr);
            Uplink { outside, inside }
                .build(network.namespace(), &data_dir.join(UPLINK_STATE))
                .await?;
        } else {
            uplink::remove(&name, &data_dir.join(UPLINK_STATE)).await?;
        }
        let export = Export {
            address: nfs_address(&networks),
            directory: data_dir.join(SECONDARY),
            versions,
        };
        let nfs = NfsServer::new(network.namespace(), export, &data_dir.join(NFS_FILES))?;
        nfs.start().await?;
        let name_server = (networks.management.gateway, NAME_SERVER_PORT).into();
        let resolver = Resolver::bind(network.namespace(), name_server, Upstream::host())?;
        info!(namespace = %name, cidr = %options.zone_cidr, store = nfs.url(), uplink = options.uplink, "The zone's network is there");
        Ok(Self {
            network,
            networks,
            nfs,
            resolver,
        })
    }

    /// Where VMs are plugged in; see [`bridge_name`].
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Its addresses.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Its image store.
    pub fn nfs(&self) -> &NfsServer {
        &self.nfs
    }

    /// Keeps the NFS server and answers VMs' questions for names, until `stop`. The NFS server is left running.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.nfs.keep(stop.clone()), self.resolver.serve(stop));
    }

    /// Removes all of a data directory's zone that is not a file: whoever is in its network is ended, also what killed
    /// servers have left. Without any it does nothing.
    ///
    /// # Errors
    /// Something hangs in the kernel.
    pub async fn remove(data_dir: &Path) -> Result<(), ZoneNetworkError> {
        let name = Name::of_directory(data_dir);
        let without_uplink = uplink::remove(&name, &data_dir.join(UPLINK_STATE)).await;
        if let Some(namespace) = Namespace::open(&name)? {
            namespace.remove().await?;
        }
        Ok(without_uplink?)
    }
}

/// The networks, as bridges, and what of this machine each of them reaches.
pub fn bridges(networks: &Networks, versions: Versions) -> Vec<Bridge> {
    let mut control = bridge(Traffic::Control);
    control.addresses = vec![host(&networks.control)];
    control.neighbours = Neighbours::Apart;

    let mut management = bridge(Traffic::Management);
    let server = networks.management.gateway;
    management.addresses = vec![host(&networks.management)];
    management.neighbours = Neighbours::Apart;
    management.openings = vec![
        Opening::to(server, Service::Ping),
        Opening::to(server, Service::Tcp(AGENTS_PORT..=AGENTS_PORT)),
        Opening::to(server, Service::Tcp(NAME_SERVER_PORT..=NAME_SERVER_PORT)),
        Opening::to(server, Service::Udp(NAME_SERVER_PORT..=NAME_SERVER_PORT)),
        Opening::to(server, Service::Tcp(SCREENS)).only_for(CONSOLE_PROXIES),
    ];

    // SSVMs copy templates from each other by their public addresses: management.md §9.
    let mut public = bridge(Traffic::Public);
    let gateway = networks.public.gateway;
    public.addresses = vec![host(&networks.public)];
    public.openings = vec![
        Opening::to(gateway, Service::Ping),
        Opening::to(gateway, Service::Tcp(SOURCE_PORT..=SOURCE_PORT)),
    ];
    public.may_leave = true;

    let mut storage = networks.storage.as_ref().map(|network| {
        let mut storage = bridge(Traffic::Storage);
        storage.addresses = vec![host(network)];
        storage.neighbours = Neighbours::Apart;
        storage.openings = vec![Opening::to(network.gateway, Service::Ping)];
        storage
    });
    let stores = storage.as_mut().unwrap_or(&mut management);
    let (server, ports) = (nfs_address(networks), nfs_ports(versions));
    stores.addresses.push(net(server, stores.addresses[0].prefix_len()));
    stores
        .openings
        .extend(ports.map(|port| Opening::to(server, Service::Tcp(port..=port))));

    let guest = bridge(Traffic::Guest);
    [control, management, public]
        .into_iter()
        .chain(storage)
        .chain([guest])
        .collect()
}

fn nfs_ports(versions: Versions) -> impl Iterator<Item = u16> {
    let older = match versions {
        Versions::V4 => [].as_slice(),
        Versions::All => nfs::V3_PORTS.as_slice(),
    };
    [nfs::PORT].into_iter().chain(older.iter().copied())
}

/// The bridge of a network: `control`.
pub fn bridge_name(traffic: Traffic) -> InterfaceName {
    let name = traffic.as_str().to_ascii_lowercase();
    name.parse().expect("each is one short word")
}

fn bridge(traffic: Traffic) -> Bridge {
    Bridge::new(bridge_name(traffic))
}

/// The host's address in a network: the VMs' gateway.
fn host(network: &crate::system_vms::Network) -> Ipv4Net {
    net(network.gateway, network.subnet.prefix_len())
}

fn net(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(address, prefix).expect("it is the prefix of a network")
}

/// In the storage network, or where SSVMs look for stores without one (management.md §4).
fn nfs_address(networks: &Networks) -> Ipv4Addr {
    let network = networks.storage.as_ref().unwrap_or(&networks.management);
    Ipv4Addr::from(u32::from(network.subnet.network()) + NFS_HOST)
}

fn uplink_ends(cidr: Ipv4Net) -> [Ipv4Net; 2] {
    UPLINK_ENDS.map(|last| net(Ipv4Addr::from(u32::from(cidr.network()) + last), UPLINK_PREFIX))
}
