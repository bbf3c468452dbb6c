//! This machine as the one host of its zone: networks, NFS server, and VMs under QEMU (`serve --driver qemu`).

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use hypervisor::accelerator::Accelerator;
use hypervisor::ssh::Key;
use platform::files;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::console::forwards::Forwards;
use crate::driver::DriverError;
use crate::driver::qemu::{self, Qemu, Settings};
use crate::host_status::HostEvent;
use crate::store::Store;
use crate::store::host::{HostNic, HostType, StartupFacts};
use crate::store::id::{PodId, ZoneId};
use crate::system_vms::Place;
use crate::zone_network::{self, AGENTS_PORT, ZoneNetwork, ZoneNetworkOptions};

/// VMs from kernels on have this; 4.2 gives wrong bytes with nfs-ganesha 4.3 (docs/decisions/0061).
const NFS_VERSION: &str = "4.1";

/// Options of `serve` for it.
#[derive(Debug, Clone, Args)]
pub struct EmbeddedOptions {
    /// With --driver qemu: the image of system VMs, qcow2, as `cargo xtask image` makes it. It is copied.
    #[arg(long, value_name = "FILE", required_if_eq("driver", "qemu"))]
    pub image: Option<PathBuf>,
    /// With --driver qemu: whether the processor runs guests itself.
    #[arg(long, value_enum, default_value = "auto")]
    pub kvm: Kvm,
    /// With --driver qemu: a directory with files that are uploaded to each system VM, as KVM hosts do from
    /// /usr/share/cloudstack-common/vms: agent.zip, cloud-scripts.tgz, patch-sysvms.sh, and sysvm-bundle (a signed bundle of
    /// our own). Those that are not there are left out; our image needs none.
    #[arg(long, value_name = "DIR")]
    pub system_vm_files: Option<PathBuf>,
    #[command(flatten)]
    network: ZoneNetworkOptions,
}

impl EmbeddedOptions {
    /// As they are given to `serve`.
    ///
    /// # Errors
    /// There is no working directory that relative paths could begin at.
    pub fn arguments(&self) -> io::Result<Vec<OsString>> {
        let mut words: Vec<OsString> = Vec::new();
        for (option, path) in [("--image", &self.image), ("--system-vm-files", &self.system_vm_files)] {
            if let Some(path) = path {
                words.extend([option.into(), std::path::absolute(path)?.into()]);
            }
        }
        if let Some(kvm) = self.kvm.to_possible_value() {
            words.extend(["--kvm".into(), kvm.get_name().into()]);
        }
        let network = &self.network;
        words.extend(["--zone-cidr".into(), network.zone_cidr.to_string().into()]);
        words.extend(network.uplink.then(|| "--uplink".into()));
        words.extend(network.nfs_v3.then(|| "--nfs-v3".into()));
        Ok(words)
    }
}

/// Whether to use KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kvm {
    /// If it works.
    Auto,
    /// It must work.
    On,
    /// Emulate, which is five to ten times slower.
    Off,
}

/// The parts; they are there when it is opened, and stay when it is dropped.
pub struct Embedded {
    network: ZoneNetwork,
    driver: Qemu,
    key: Key,
}

impl Embedded {
    /// Makes what is missing and takes over what an earlier server has left.
    ///
    /// # Errors
    /// We are not root, or a part cannot be made.
    pub async fn open(data_dir: &Path, options: &EmbeddedOptions) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "--driver qemu needs root: it makes a network for VMs; start mgmt-stub as root, or use --driver processes"
        );
        let image = options.image.as_deref().context("--driver qemu needs --image")?;
        let image = std::path::absolute(image)?;
        ensure!(
            image.is_file(),
            "{} is not there; `cargo xtask image` makes target/image/sysvm.qcow2",
            image.display()
        );
        let accelerator = accelerator(options.kvm).await?;
        let network = ZoneNetwork::open(data_dir, &options.network).await?;
        Self::with(data_dir, image, options.system_vm_files.clone(), accelerator, network).await
    }

    async fn with(
        data_dir: &Path,
        image: PathBuf,
        files: Option<PathBuf>,
        accelerator: Accelerator,
        network: ZoneNetwork,
    ) -> anyhow::Result<Self> {
        let data_dir = std::path::absolute(data_dir)?;
        let key = Key::open_or_create(&data_dir.join("ssh"))
            .await
            .context("opening the key for system VMs")?;
        let settings = Settings {
            directory: data_dir.join("vms"),
            image,
            files,
            primary: data_dir.join("primary"),
            accelerator,
            network: network.network().clone(),
            store: Some(network.nfs().clone()),
            console_proxies: zone_network::CONSOLE_PROXIES,
            screens: network.networks().management.gateway,
            key: key.clone(),
            users_grace: qemu::USERS_GRACE,
        };
        let driver = Qemu::open(settings).await.context("looking for VMs that run")?;
        Ok(Self { network, driver, key })
    }

    /// Who runs VMs.
    pub fn driver(&self) -> Qemu {
        self.driver.clone()
    }

    /// Where agents of VMs find this server.
    pub fn agents(&self) -> SocketAddr {
        (self.network.networks().management.gateway, AGENTS_PORT).into()
    }

    /// Listens there.
    ///
    /// # Errors
    /// Somebody else does.
    pub fn listen_for_agents(&self) -> anyhow::Result<TcpListener> {
        Ok(self.network.network().namespace().listen(self.agents())?)
    }

    /// Where system VMs live.
    pub fn place(&self, console: SocketAddr) -> Place {
        Place {
            zone: ZoneId(1),
            pod: PodId(1),
            servers: vec![self.agents().ip().to_string()],
            port: AGENTS_PORT,
            console,
            authorized_key: Some(self.key.public().to_owned()),
            networks: Some(self.network.networks().clone()),
        }
    }

    /// Makes the NFS export the zone's image store, and this machine a host.
    ///
    /// # Errors
    /// The store.
    pub async fn register(&self, store: &Store) -> anyhow::Result<()> {
        let nfs = self.network.nfs();
        let (zone, url) = (ZoneId(1), nfs.url());
        let added = store
            .add_image_store(zone, url.clone(), url, Some(NFS_VERSION.to_owned()))
            .await?;
        store
            .set_image_store_directory(added.id, nfs.directory().display().to_string())
            .await?;
        let nic = |ip: std::net::Ipv4Addr| HostNic {
            ip: Some(ip.into()),
            ..HostNic::default()
        };
        let networks = self.network.networks();
        let facts = StartupFacts {
            guid: "embedded-hypervisor".into(),
            resource_name: None,
            host_type: HostType::Routing,
            name: host_name(),
            zone,
            pod: Some(PodId(1)),
            version: env!("CARGO_PKG_VERSION").into(),
            arch: std::env::consts::ARCH.into(),
            private: nic(networks.management.gateway),
            public: nic(networks.public.gateway),
            storage: networks
                .storage
                .as_ref()
                .map(|network| nic(network.gateway))
                .unwrap_or_default(),
            ms_host_list: None,
            proxy_port: None,
        };
        let host = store.find_or_create_host(facts).await?;
        for (event, reason) in [
            (HostEvent::AgentConnected, "starting"),
            (HostEvent::Ready, "it is this machine"),
        ] {
            store.apply_host_event(host.id, event, reason).await?;
        }
        Ok(())
    }

    /// Keeps the NFS server, the resolver and the ways to consoles, until `stop`. VMs go on without it.
    pub async fn run(self, store: Store, console: SocketAddr, stop: CancellationToken) {
        let forwards = Forwards::new(store, self.network.network().namespace().clone(), console.ip());
        let mut parts = JoinSet::new();
        parts.spawn(forwards.run(stop.clone()));
        parts.spawn(self.network.run(stop));
        while let Some(ended) = parts.join_next().await {
            if let Err(panic) = ended {
                tracing::error!(%panic, "A part of the zone has failed; restart the server");
            }
        }
    }

    /// Ends everything that a server with --driver qemu has left: VMs, NFS server, networks; also after all was killed. Says
    /// which VMs, and what could not be ended.
    pub async fn remove(data_dir: &Path) -> (Vec<String>, Vec<anyhow::Error>) {
        match Self::end(data_dir).await {
            Ok((names, failed)) => (names, failed),
            Err(error) => (Vec::new(), vec![error]),
        }
    }

    async fn end(data_dir: &Path) -> anyhow::Result<(Vec<String>, Vec<anyhow::Error>)> {
        // As it was when it was made: the name of its network comes from it.
        let data_dir = data_dir
            .canonicalize()
            .with_context(|| format!("looking for {}", data_dir.display()))?;
        let (names, failed) = qemu::end_all(&data_dir.join("vms"), qemu::USERS_GRACE).await?;
        let mut failed: Vec<anyhow::Error> = failed.into_iter().map(|error: DriverError| error.into()).collect();
        // Whatever else is in the network's namespace ends with it.
        if let Err(error) = ZoneNetwork::remove(&data_dir).await {
            failed.push(error.into());
        }
        Ok((names, failed))
    }
}

/// Of this machine.
fn host_name() -> String {
    let read = files::read_limited("/proc/sys/kernel/hostname", 256).ok().flatten();
    let name = read.and_then(|bytes| String::from_utf8(bytes).ok());
    name.map_or_else(|| "localhost".into(), |name| name.trim().to_owned())
}

async fn accelerator(wanted: Kvm) -> anyhow::Result<Accelerator> {
    if wanted == Kvm::Off {
        return Ok(Accelerator::Tcg);
    }
    let found = Accelerator::detect().await;
    ensure!(
        wanted == Kvm::Auto || found == Accelerator::Kvm,
        "KVM does not work here: is /dev/kvm there, and may QEMU use it? Without --kvm on VMs are emulated, which is slow"
    );
    Ok(found)
}
