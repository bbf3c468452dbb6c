//! What a management server may ask of secondary storage (ssvm.md §1.4, §6.1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::config::{Config, Facts, NoAgent};
use agent::service::Service;
use anyhow::Context;
use ipnet::IpNet;
use platform::files;
use platform::http::{Limits as HttpLimits, serve};
use platform::logging::chain;
use protocol::answer::Answer;
use protocol::boot::{Role, SystemVm};
use protocol::command::{Command, CommandBody};
use protocol::secondary_storage::{
    GetStorageStatsAnswer, GetStorageStatsCommand, SecStorageFirewallCfgCommand, SecStorageSetupAnswer,
    SecStorageSetupCommand, SecStorageVMSetupCommand,
};
use protocol::secret::Secret;
use protocol::session::CheckHealthAnswer;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::blocking::on_thread;
use crate::engine::{Engine, Places};
use crate::jobs::Jobs;
use crate::journal::Journal;
use crate::metrics::{Metrics, Page};
use crate::order::{StoreRef, shown_store};
use crate::rate::Rate;
use crate::reach::Reach;
use crate::rules::Rules;
use crate::settings::Settings;
use crate::source::{Client, Limits, tls_config};
use crate::stores::{Store, StoreError, Stores};
use crate::{delete, listing};

/// Commands carried out at once. They wait for downloads (3 s at most) and stores, not for a processor.
const COMMANDS: usize = 128;

/// What was last set up is small.
const MAX_SETUP: u64 = 4 << 20;

/// What the boot arguments say.
#[derive(Debug)]
pub struct Boot {
    /// The link to the management server.
    pub agent: Config,
    nfs_version: Option<String>,
    public: Option<IpAddr>,
    reserved: Vec<IpNet>,
}

/// The boot arguments are not those of a secondary storage VM.
#[derive(Debug, thiserror::Error)]
pub enum NotSecondaryStorage {
    /// No agent at all.
    #[error(transparent)]
    NoAgent(#[from] NoAgent),
    /// Another agent.
    #[error("type={0} is not for this program; secstorage is expected")]
    OtherType(protocol::boot::VmType),
}

impl Boot {
    /// Takes what this program needs.
    ///
    /// # Errors
    /// It is another type of VM.
    pub fn new(vm: &SystemVm, settings: &Settings) -> Result<Self, NotSecondaryStorage> {
        let Role::SecondaryStorage(storage) = &vm.role else {
            return Err(NotSecondaryStorage::OtherType(vm.vm_type()));
        };
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let facts = Facts {
            host_name: host_name.trim(),
            arch: std::env::consts::ARCH,
            version: env!("CARGO_PKG_VERSION"),
            mac_of: &mac_of,
        };
        let mut agent = Config::from_boot(vm, &facts, settings.agent_dir())?;
        agent.workers = agent.workers.max(COMMANDS);
        if settings.is_plain_process() {
            agent.system_ca = None; // the machine's other programs are none of our business
        }
        let nics = &vm.machine.nics;
        let index = |device: String| device.strip_prefix("eth")?.parse::<u8>().ok();
        let nic = |index: u8| nics.get(&index)?.ipv4;
        let public = index(storage.agent.public_nic.to_string()).and_then(nic);
        let control = nic(0).map(|net| IpNet::V4(net.trunc()));
        let hosts = storage.agent.hosts.hosts.iter().chain(&storage.stores);
        let hosts = hosts.filter_map(|host| host.parse::<IpAddr>().ok()).map(IpNet::from);
        Ok(Self {
            agent,
            nfs_version: storage.nfs_version.clone(),
            public: public.map(|net| net.addr().into()),
            reserved: hosts.chain(control).collect(),
        })
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        self.agent.startup.name.as_deref().unwrap_or_default()
    }
}

fn mac_of(device: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/sys/class/net").join(device).join("address")).ok()?;
    Some(text.trim().to_owned())
}

/// What management servers have set up, kept over restarts: downloads go on before anybody connects.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Setup {
    allowed_sites: Vec<IpNet>,
    /// SSVMs of other zones, which may copy from here.
    copy_peers: BTreeSet<IpAddr>,
    copy_user: Option<String>,
    copy_password: Option<Secret<String>>,
    /// Addresses of file servers.
    store_hosts: BTreeSet<IpAddr>,
}

/// The service behind the agent link. Cheap to clone.
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    stores: Arc<Stores>,
    jobs: Arc<Jobs>,
    setup: Mutex<Setup>,
    setup_file: PathBuf,
    upload_key: PathBuf,
    reach: watch::Sender<Arc<Reach>>,
    stop: CancellationToken,
}

impl Storage {
    /// Takes every resource and takes up the downloads of an earlier run.
    ///
    /// # Errors
    /// A directory, file or port that we need cannot be had.
    pub async fn start(boot: &Boot, settings: &Settings) -> anyhow::Result<Self> {
        for directory in [&settings.state_dir, &settings.agent_dir()] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("making the directory {}; is state_dir right?", directory.display()))?;
        }
        let setup_file = settings.state_dir.join("setup.json");
        let setup = read_setup(&setup_file)?;
        let reach = watch::Sender::new(Arc::new(Reach {
            allowed_sites: setup.allowed_sites.clone(),
            reserved: boot
                .reserved
                .iter()
                .copied()
                .chain(setup.store_hosts.iter().copied().map(IpNet::from))
                .collect(),
            public: boot.public,
        }));
        let limits = Limits {
            connect: settings.connect_timeout(),
            tls: settings.tls_timeout(),
            idle: settings.idle_timeout(),
            redirects: settings.max_redirects,
            ports: settings.allowed_ports.clone(),
        };
        let tls = tls_config(&settings.ca_file, &settings.extra_ca_files)?;
        let stores = Arc::new(Stores::new(settings, boot.nfs_version.clone()));
        let metrics = Arc::new(Metrics::default());
        let (journal, entries) = Journal::open(&settings.state_dir.join("jobs"))?;
        let engine = Arc::new(Engine {
            client: Client::new(limits, tls, reach.subscribe()),
            stores: Arc::clone(&stores),
            journal,
            places: Places::new(settings.active_jobs),
            rate_total: Rate::new(settings.rate_total),
            rules: Rules::new(settings),
            metrics: Arc::clone(&metrics),
        });
        let listener = match settings.metrics_listen {
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                Some(listener.with_context(|| {
                    format!("cannot listen on {address} (metrics_listen); is another program using the port?")
                })?)
            }
            None => None,
        };
        let jobs = Arc::new(Jobs::resume(engine, entries).await);
        let stop = CancellationToken::new();
        if let Some(listener) = listener {
            info!(listen = %listener.local_addr()?, "Serving metrics");
            let page = Arc::new(Page::new(&metrics, Arc::clone(&jobs), Arc::clone(&stores)));
            tokio::spawn(serve(listener, None, HttpLimits::default(), page, stop.clone()));
        }
        Ok(Self(Arc::new(Inner {
            stores,
            jobs,
            setup: Mutex::new(setup),
            setup_file,
            upload_key: settings.agent_dir().join("ms-psk"),
            reach,
            stop,
        })))
    }

    /// Ends what serves others. Downloads are not stopped: the next start goes on with them.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}

impl Service for Storage {
    async fn execute(&self, command: Command) -> Option<Answer> {
        let this = &self.0;
        Some(match command.body {
            CommandBody::CheckHealth(_) => Answer::new(CheckHealthAnswer {}).with_details("resource is alive"),
            CommandBody::SecStorageSetup(setup) => this.set_up_store(setup).await,
            CommandBody::SecStorageFirewallCfg(peers) => this.set_copy_peers(&peers).await,
            CommandBody::SecStorageVMSetup(setup) => this.set_up_vm(setup).await,
            CommandBody::Download(download) => this.jobs.download(&download).await,
            CommandBody::DownloadProgress(progress) => this.jobs.progress(&progress).await,
            CommandBody::GetStorageStats(stats) => this.stats(&stats).await,
            CommandBody::ListTemplate(list) => {
                let store = StoreRef::find(list.store.as_ref(), None, list.nfs_version.as_deref());
                listing::templates(&this.stores, &this.jobs, store).await
            }
            CommandBody::ListVolume(list) => {
                let store = StoreRef::find(
                    list.store.as_ref(),
                    list.sec_url.as_deref(),
                    list.nfs_version.as_deref(),
                );
                listing::volumes(&this.stores, &this.jobs, store).await
            }
            CommandBody::ListDataStoreObjects(list) => listing::objects(&this.stores, &list).await,
            CommandBody::ComputeChecksum(compute) => listing::checksum(&this.stores, &compute).await,
            CommandBody::Delete(delete) => delete::delete(&this.stores, &this.jobs, &delete).await,
            CommandBody::DeleteSnapshotsDir(delete) => delete::snapshots(&this.stores, &delete).await,
            _ => return None,
        })
    }
}

impl Inner {
    /// SecStorageSetupCommand (§1.4). The key is saved also when the mount fails.
    async fn set_up_store(&self, setup: SecStorageSetupCommand) -> Answer {
        let key_saved = match setup.post_upload_key {
            Some(key) => {
                let file = self.upload_key.clone();
                let saved = on_thread("upload-key", move || files::replace(file, key.expose(), 0o600)).await;
                saved.map_or_else(
                    |lost| Err(lost.to_string()),
                    |saved| saved.map_err(|error| chain(&error).to_string()),
                )
            }
            None => Ok(files::Change::Same),
        };
        if setup.certs.is_some() {
            warn!("Certificates for the copy server are not used: this version has no copy server");
        }
        let url = setup.sec_url.clone().unwrap_or_default();
        let shown = shown_store(&url);
        let store = StoreRef::find(
            setup.store.as_ref(),
            setup.sec_url.as_deref(),
            setup.nfs_version.as_deref(),
        );
        let opened = match &store {
            Ok(store) => self.stores.open(store).await.map_err(|error| chain(&error).to_string()),
            Err(text) => Err(text.clone()),
        };
        let opened = opened.and_then(|store| match key_saved {
            Ok(_) => Ok(store),
            Err(error) => Err(format!("the upload key cannot be saved: {error}")),
        });
        match opened {
            Ok(store) => {
                self.reserve(&store).await;
                info!(store = shown, directory = store.directory, "Store is set up");
                Answer::new(SecStorageSetupAnswer {
                    dir: Some(store.directory.clone()),
                })
            }
            Err(why) => Answer {
                result: false,
                ..Answer::new(SecStorageSetupAnswer::default())
            }
            .with_details(format!("GetRootDir for {shown} failed due to {why}")),
        }
    }

    /// No user's URL may lead to a store's file server.
    async fn reserve(&self, store: &Store) {
        let Some(ip) = store.ip else { return };
        let net = IpNet::from(ip);
        let is_new = self.reach.send_if_modified(|reach| {
            let is_new = !reach.reserved.contains(&net);
            if is_new {
                Arc::make_mut(reach).reserved.push(net);
            }
            is_new
        });
        if is_new {
            let saved = self
                .change_setup(|setup| {
                    setup.store_hosts.insert(ip);
                })
                .await;
            if let Some(why) = saved.details.filter(|_| !saved.result) {
                warn!(error = why, "Cannot save the address of a store");
            }
        }
    }

    /// SecStorageFirewallCfgCommand (§1.4): port and interface are ignored, as upstream does.
    async fn set_copy_peers(&self, peers: &SecStorageFirewallCfgCommand) -> Answer {
        let added = peers.port_configs.iter().filter(|peer| peer.add);
        let added: BTreeSet<IpAddr> = added.filter_map(|peer| peer.source_ip.as_ref()?.parse().ok()).collect();
        let is_append = peers.is_append_ip;
        self.change_setup(|setup| {
            if is_append {
                setup.copy_peers.extend(added);
            } else {
                setup.copy_peers = added;
            }
        })
        .await
    }

    /// SecStorageVMSetupCommand (§1.4).
    async fn set_up_vm(&self, command: SecStorageVMSetupCommand) -> Answer {
        let mut bad = Vec::new();
        let mut sites = Vec::new();
        for text in command.allowed_internal_sites.unwrap_or_default() {
            let text = text.trim();
            let net = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match net {
                Ok(net) => sites.push(net),
                Err(_) => bad.push(format!("{text:?} is no network; write it like 10.1.0.0/16")),
            }
        }
        info!(?sites, "Internal sites that downloads may reach");
        self.reach
            .send_modify(|reach| Arc::make_mut(reach).allowed_sites.clone_from(&sites));
        let answer = self
            .change_setup(|setup| {
                setup.allowed_sites = sites;
                setup.copy_user = command.copy_user_name;
                setup.copy_password = command.copy_password;
            })
            .await;
        if bad.is_empty() {
            return answer;
        }
        warn!(problems = ?bad, "Some allowed internal sites cannot be read");
        Answer::failure(bad.join("; "))
    }

    async fn change_setup(&self, change: impl FnOnce(&mut Setup)) -> Answer {
        let mut setup = self.setup.lock().await; // until it is written: what is changed last is written last
        change(&mut setup);
        let text = serde_json::to_vec(&*setup).expect("it has text keys only");
        let file = self.setup_file.clone();
        match on_thread("setup", move || files::replace(file, text, 0o600)).await {
            Ok(Ok(_)) => Answer::success(),
            Ok(Err(error)) => Answer::failure(chain(&error).to_string()),
            Err(lost) => Answer::failure(lost.to_string()),
        }
    }

    /// GetStorageStatsCommand (§6.7).
    async fn stats(&self, command: &GetStorageStatsCommand) -> Answer {
        let url = command.sec_url.as_deref();
        let store = StoreRef::find(command.store.as_ref(), url, command.nfs_version.as_deref());
        let opened = match &store {
            Ok(store) => self.stores.open(store).await,
            Err(text) => return Answer::failure(text),
        };
        let space = match opened {
            Ok(store) => store
                .space()
                .await
                .ok_or_else(|| StoreError::Dead(store.shown().to_owned())),
            Err(error) => Err(error),
        };
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        match space {
            Ok(space) => Answer::new(GetStorageStatsAnswer {
                used_bytes: size(space.used),
                capacity_bytes: size(space.total),
                ..GetStorageStatsAnswer::default()
            }),
            Err(error) => Answer {
                result: false,
                ..Answer::new(GetStorageStatsAnswer::default())
            }
            .with_details(format!("Unable to get storage stats: {}", chain(&error))),
        }
    }
}

fn read_setup(file: &Path) -> anyhow::Result<Setup> {
    let Some(bytes) = files::read_limited(file, MAX_SETUP)? else {
        return Ok(Setup::default());
    };
    // The next server to connect sets everything up again.
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        warn!(path = %file.display(), %error, "What was set up before cannot be read, starting without");
        Setup::default()
    }))
}
