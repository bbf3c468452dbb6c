//! A zone whose VMs are simulated.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mgmt_stub::agents::Agents;
use mgmt_stub::ca::{Ca, Presented};
use mgmt_stub::configuration::{self, Configuration};
use mgmt_stub::driver::Traffic;
use mgmt_stub::driver::in_process::{InProcess, Options};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::server::{Fixed, Server};
use mgmt_stub::settings::Settings;
use mgmt_stub::store::Store;
use mgmt_stub::store::alert::AlertFilter;
use mgmt_stub::store::id::{PodId, ZoneId};
use mgmt_stub::store::instance::{Instance, InstanceType};
use mgmt_stub::system_vms::{Diagnosis, Networks, Place, SystemVms, host_of};
use mgmt_stub::zone::{Zone, ZoneHooks};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Debug builds on two busy cores are slow.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for a condition and gives what it gave.
pub(crate) async fn until<T>(what: &str, holds: impl AsyncFnMut() -> Option<T>) -> T {
    patiently(what, LIMIT, holds).await
}

/// The same, for what takes longer.
pub(crate) async fn patiently<T>(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(limit, async {
        loop {
            if let Some(found) = holds().await {
                return found;
            }
            tokio::time::sleep(limit / 1000).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

pub(crate) struct TestZone {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
    pub(crate) agents: Agents,
    pub(crate) configuration: Configuration,
    pub(crate) vms: SystemVms,
    pub(crate) driver: InProcess,
    networks: Networks,
    ping_interval: Duration,
    port: u16,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl TestZone {
    pub(crate) async fn start(options: Options, settings: &[(&str, &str)]) -> Self {
        Self::start_on(InProcess::new(options), settings).await
    }

    /// With a driver that may have VMs already.
    pub(crate) async fn start_on(driver: InProcess, settings: &[(&str, &str)]) -> Self {
        let networks = Networks::of_zone("172.31.0.0/16".parse().unwrap()).unwrap();
        Self::prepare(driver, settings, networks, Duration::from_secs(1)).await
    }

    /// With other networks and pings.
    pub(crate) async fn start_in(
        options: Options,
        settings: &[(&str, &str)],
        networks: Networks,
        ping_interval: Duration,
    ) -> Self {
        Self::prepare(InProcess::new(options), settings, networks, ping_interval).await
    }

    async fn prepare(
        driver: InProcess,
        settings: &[(&str, &str)],
        networks: Networks,
        ping_interval: Duration,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store
            .add_image_store(ZoneId(1), "secondary", "nfs://172.31.3.5/secondary", Some("4.1".into()))
            .await
            .unwrap();
        for (name, value) in [
            ("secstorage.capacityscan.interval", "200"),
            ("consoleproxy.capacityscan.interval", "200"),
        ]
        .iter()
        .chain(settings)
        {
            store.set_setting(*name, *value).await.unwrap();
        }
        Self::open(directory, store, driver, networks, ping_interval, 0).await
    }

    async fn open(
        directory: TempDir,
        store: Store,
        driver: InProcess,
        networks: Networks,
        ping_interval: Duration,
        port: u16,
    ) -> Self {
        platform::crypto::install();
        let ca = Ca::open_or_create(directory.path().join("ca")).unwrap();
        let presented = Presented::Leaf {
            names: vec!["mgmt".into()],
            addresses: Vec::new(),
        };
        let settings = Settings {
            ping_interval,
            ..Settings::default()
        };
        let hooks = ZoneHooks::new();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let shared: Arc<ZoneHooks> = Arc::clone(&hooks);
        let fixed = Fixed::default();
        let server = Server::bind(address, store.clone(), ca.clone(), presented, settings, shared, fixed)
            .await
            .unwrap();
        let port = server.local_addr().unwrap().port();
        let configuration = Configuration::load(store.clone()).await.unwrap();
        let place = Place {
            zone: ZoneId(1),
            pod: PodId(1),
            servers: vec!["127.0.0.1".into()],
            port,
            console: "127.0.0.1:6080".parse().unwrap(),
            authorized_key: Some("ssh-ed25519 AAAA cloud@test".into()),
            networks: Some(networks.clone()),
        };
        let agents = server.agents();
        let shared = Arc::new(driver.clone());
        let vms = SystemVms::new(store.clone(), agents.clone(), configuration.clone(), ca, shared, place);
        let (zone, books) = Zone::new(
            store.clone(),
            agents.clone(),
            configuration.clone(),
            Some(vms.clone()),
            None,
        );
        hooks.set(zone.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let tasks = vec![
            tokio::spawn(zone.run(books, store.clone(), stop.clone())),
            tokio::spawn(server.serve(async move { stopped.cancelled().await })),
        ];
        Self {
            directory,
            store,
            agents,
            configuration,
            vms,
            driver,
            networks,
            ping_interval,
            port,
            stop,
            tasks,
        }
    }

    /// Ends the server and starts another one, in which the VMs are what they were.
    pub(crate) async fn restart(self, meanwhile: impl FnOnce(&InProcess)) -> Self {
        let Self {
            directory,
            store,
            agents,
            configuration,
            vms,
            driver,
            networks,
            ping_interval,
            port,
            stop,
            tasks,
        } = self;
        stop.cancel();
        for task in tasks {
            task.await.unwrap();
        }
        drop((store, agents, configuration, vms));
        meanwhile(&driver);
        let path = directory.path().to_owned();
        let store = until("the database is given back", async || Store::open(&path).ok()).await;
        Self::open(directory, store, driver, networks, ping_interval, port).await
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    pub(crate) async fn all(&self, kind: InstanceType) -> Vec<Instance> {
        let all = self.store.instances().await.unwrap();
        all.into_iter().filter(|vm| vm.kind == kind).collect()
    }

    pub(crate) async fn row(&self, vm: &Instance) -> Instance {
        self.store.instance(vm.id).await.unwrap().unwrap()
    }

    /// The only one of its kind, Running, with its agent Up.
    pub(crate) async fn up(&self, kind: InstanceType) -> Instance {
        until(&format!("one {kind} is Up"), async || {
            let mut all = self.all(kind).await;
            let vm = (all.len() == 1).then(|| all.remove(0))?;
            self.is_up(&vm).await.then_some(vm)
        })
        .await
    }

    pub(crate) async fn is_up(&self, vm: &Instance) -> bool {
        let host = self.store.host_named(&vm.name).await.unwrap();
        let vm = self.row(vm).await;
        vm.state == InstanceState::Running && host.is_some_and(|host| host.status == HostStatus::Up)
    }

    /// Another start of the same VM, with its agent Up.
    pub(crate) async fn up_again(&self, before: &Instance) -> Instance {
        until(&format!("{} is Up again", before.name), async || {
            let vm = self.row(before).await;
            let is_new = vm.update_count > before.update_count;
            (is_new && self.is_up(&vm).await).then_some(vm)
        })
        .await
    }

    pub(crate) async fn address(&self, vm: &Instance, traffic: Traffic) -> Option<Ipv4Addr> {
        let nics = self.store.nics(vm.id).await.unwrap();
        let nic = nics.into_iter().find(|nic| nic.traffic == traffic)?;
        nic.address.map(|net| net.addr())
    }

    pub(crate) async fn diagnosis(&self, vm: &Instance) -> Option<Diagnosis> {
        let hosts = self.store.hosts().await.unwrap();
        let vm = self.row(vm).await;
        self.vms.diagnose(&vm, host_of(&hosts, &vm))
    }

    /// Number and text of all alerts.
    pub(crate) async fn alerts(&self) -> Vec<(i64, String)> {
        let (_, alerts) = self.store.alerts(AlertFilter::default(), 10_000, 0).await.unwrap();
        let alerts = alerts.into_iter();
        alerts.map(|alert| (alert.alert_type, alert.description)).collect()
    }

    pub(crate) async fn set(&self, name: &str, value: &str) {
        let setting = configuration::find(name).unwrap();
        self.configuration.set(setting, value).await.unwrap();
    }
}
