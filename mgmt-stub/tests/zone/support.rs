//! A zone that starts in a moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mgmt_stub::agents::Agents;
use mgmt_stub::ca::{Ca, Presented};
use mgmt_stub::configuration::{self, Configuration};
use mgmt_stub::driver::processes::{Processes, Programs};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::server::{Fixed, Server};
use mgmt_stub::settings::Settings;
use mgmt_stub::store::Store;
use mgmt_stub::store::alert::AlertFilter;
use mgmt_stub::store::id::{PodId, ZoneId};
use mgmt_stub::store::instance::{Instance, InstanceType};
use mgmt_stub::system_vms::{Place, SystemVms, host_of};
use mgmt_stub::zone::{Zone, ZoneHooks};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Debug builds on two busy cores are slow.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for a condition and gives what it gave.
pub(crate) async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            if let Some(found) = holds().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

pub(crate) struct TestZone {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
    pub(crate) agents: Agents,
    pub(crate) configuration: Configuration,
    pub(crate) zone: Zone,
    pub(crate) port: u16,
    driver: Processes,
    has_driver: bool,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// Built by cargo with the tests.
pub(crate) fn fake_vm() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().unwrap().parent().unwrap().join("examples/fake_vm");
    assert!(
        built.exists(),
        "`cargo test` builds it; with --test: cargo build -p mgmt-stub --example fake_vm"
    );
    built
}

impl TestZone {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With settings.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::prepare(settings, true).await
    }

    /// As `serve --driver none`: somebody else starts system VMs.
    pub(crate) async fn start_without_driver(settings: &[(&str, &str)]) -> Self {
        Self::prepare(settings, false).await
    }

    async fn prepare(settings: &[(&str, &str)], has_driver: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let added = store
            .add_image_store(ZoneId(1), "secondary", "nfs://127.0.0.1/srv/secondary", None)
            .await
            .unwrap();
        store
            .set_image_store_directory(added.id, "/srv/secondary".into())
            .await
            .unwrap();
        for (name, value) in [
            ("template.download.poll.interval", "20"),
            ("template.download.retry.interval", "50"),
            ("secstorage.capacityscan.interval", "300"),
            ("consoleproxy.capacityscan.interval", "300"),
        ]
        .iter()
        .chain(settings)
        {
            store.set_setting(*name, *value).await.unwrap();
        }
        Self::start_in(directory, store, 0, has_driver).await
    }

    async fn start_in(directory: TempDir, store: Store, port: u16, has_driver: bool) -> Self {
        platform::crypto::install();
        let ca = Ca::open_or_create(directory.path().join("ca")).unwrap();
        let presented = Presented::Leaf {
            names: vec!["mgmt".into()],
            addresses: vec!["127.0.0.1".parse().unwrap()],
        };
        let settings = Settings {
            ping_interval: Duration::from_secs(1),
            ..Settings::default()
        };
        let hooks = ZoneHooks::new();
        let address = ([127, 0, 0, 1], port).into();
        let shared: Arc<ZoneHooks> = Arc::clone(&hooks);
        let server = Server::bind(
            address,
            store.clone(),
            ca.clone(),
            presented,
            settings,
            shared,
            Fixed::default(),
        )
        .await
        .unwrap();
        let port = server.local_addr().unwrap().port();
        let configuration = Configuration::load(store.clone()).await.unwrap();
        let programs = Programs {
            ssvm: fake_vm(),
            console_proxy: fake_vm(),
            novnc: None,
        };
        let driver = Processes::open(directory.path().join("vms"), programs).unwrap();
        let place = Place {
            zone: ZoneId(1),
            pod: PodId(1),
            servers: vec!["127.0.0.1".into()],
            port,
            console: "127.0.0.1:6080".parse().unwrap(),
            authorized_key: None,
            networks: None,
        };
        let agents = server.agents();
        let shared = Arc::new(driver.clone());
        let system_vms = SystemVms::new(store.clone(), agents.clone(), configuration.clone(), ca, shared, place);
        let system_vms = has_driver.then_some(system_vms);
        let (zone, books) = Zone::new(store.clone(), agents.clone(), configuration.clone(), system_vms, None);
        hooks.set(zone.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let tasks = vec![
            tokio::spawn(zone.clone().run(books, store.clone(), stop.clone())),
            tokio::spawn(server.serve(async move { stopped.cancelled().await })),
        ];
        Self {
            directory,
            store,
            agents,
            configuration,
            zone,
            port,
            driver,
            has_driver,
            stop,
            tasks,
        }
    }

    /// Ends the server, not the VMs, does something meanwhile, and starts it again.
    pub(crate) async fn restart(self, meanwhile: impl AsyncFnOnce(&Path)) -> Self {
        let Self {
            directory,
            store,
            agents,
            configuration,
            zone,
            port,
            driver,
            has_driver,
            stop,
            tasks,
        } = self;
        stop.cancel();
        for task in tasks {
            task.await.unwrap();
        }
        drop((store, agents, configuration, zone, driver));
        meanwhile(directory.path()).await;
        let store = until("the old server has given the database back", async || {
            Store::open(directory.path()).ok()
        })
        .await;
        Self::start_in(directory, store, port, has_driver).await
    }

    /// Ends everything.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        let (_, failed) = self.driver.stop_all().await;
        assert!(failed.is_empty(), "{failed:?}");
    }

    pub(crate) fn system_vms(&self) -> &SystemVms {
        self.zone.system_vms.as_ref().unwrap()
    }

    pub(crate) async fn all(&self, kind: InstanceType) -> Vec<Instance> {
        let all = self.store.instances().await.unwrap();
        all.into_iter().filter(|vm| vm.kind == kind).collect()
    }

    /// The only one of its kind, Running, with its agent Up.
    pub(crate) async fn up(&self, kind: InstanceType) -> Instance {
        until(&format!("one {kind} is Up"), async || {
            let mut all = self.all(kind).await;
            let hosts = self.store.hosts().await.unwrap();
            let vm = (all.len() == 1).then(|| all.remove(0))?;
            let host = host_of(&hosts, &vm)?;
            (vm.state == InstanceState::Running && host.status == HostStatus::Up).then_some(vm)
        })
        .await
    }

    /// A file of a VM's directory.
    pub(crate) fn file(&self, vm: &Instance, name: &str) -> PathBuf {
        self.directory.path().join("vms").join(&vm.name).join(name)
    }

    pub(crate) fn pid(&self, vm: &Instance) -> i32 {
        let text = std::fs::read_to_string(self.file(vm, "process")).unwrap();
        text.parse::<platform::exec::Process>().unwrap().pid()
    }

    /// What its agent has been told.
    pub(crate) fn seen(&self, vm: &Instance) -> String {
        std::fs::read_to_string(self.file(vm, "state/seen")).unwrap_or_default()
    }

    pub(crate) async fn alerts(&self) -> Vec<String> {
        let (_, alerts) = self.store.alerts(AlertFilter::default(), 100, 0).await.unwrap();
        alerts.into_iter().map(|alert| alert.description).collect()
    }

    pub(crate) async fn set(&self, name: &str, value: &str) {
        let setting = configuration::find(name).unwrap();
        self.configuration.set(setting, value).await.unwrap();
    }
}
