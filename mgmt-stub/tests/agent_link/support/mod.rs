//! A real server and real agents on loopback, with short times.

pub(crate) mod raw;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent::agent::{Agent, Ended, StartError};
use agent::config::{Config, Kind, Timing};
use agent::service::{Server as ServerHandle, Service};
use agent::trust::TrustUnknown;
use mgmt_stub::agents::Agents;
use mgmt_stub::ca::{Ca, Presented};
use mgmt_stub::certificates::Provision;
use mgmt_stub::hooks::{Hooks, NoInstances};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::server::{Fixed, Server};
use mgmt_stub::settings::Settings;
use mgmt_stub::store::Store;
use mgmt_stub::store::host::Host;
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::session::{CheckHealthAnswer, HostType, StartupCommand};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a condition may take to become true; on a slow machine nothing here needs a tenth of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not within {LIMIT:?}");
}

/// Settings with times for tests.
pub(crate) fn quick() -> Settings {
    Settings {
        ping_interval: Duration::from_secs(1),
        ping_flush: Duration::from_millis(50),
        ..Settings::default()
    }
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) agents: Agents,
    pub(crate) store: Store,
    pub(crate) provision: Provision,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start(directory: &Path, settings: Settings) -> Self {
        Self::start_at(
            "127.0.0.1:0".parse().unwrap(),
            directory,
            settings,
            Arc::new(NoInstances),
            Fixed::default(),
        )
        .await
    }

    pub(crate) async fn start_at(
        address: SocketAddr,
        directory: &Path,
        settings: Settings,
        hooks: Arc<dyn Hooks>,
        fixed: Fixed,
    ) -> Self {
        platform::crypto::install();
        let store = Store::open(directory).unwrap();
        let ca = Ca::open_or_create(directory.join("ca")).unwrap();
        let presented = Presented::Leaf {
            names: vec!["mgmt".into()],
            addresses: vec![],
        };
        let server = Server::bind(address, store.clone(), ca, presented, settings, hooks, fixed)
            .await
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let address = server.local_addr().unwrap();
        let (agents, provision) = (server.agents(), server.provision());
        let running = tokio::spawn(server.serve(async move { drop(stopped.await) }));
        Self {
            address,
            agents,
            store,
            provision,
            stop: Some(stop),
            running,
        }
    }

    /// Ends in an orderly way and gives the database back.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.running.await.unwrap();
        drop((self.agents, self.provision, self.store));
    }

    /// The only host, in this status.
    pub(crate) async fn host_in(&self, status: HostStatus) -> Host {
        until(&format!("one host {status}"), || async {
            matches!(self.store.hosts().await.unwrap().as_slice(), [host] if host.status == status)
        })
        .await;
        self.store.hosts().await.unwrap().remove(0)
    }
}

/// A service for tests: answers health checks, and does what the members of other commands say.
#[derive(Clone, Default)]
pub(crate) struct TestService(Arc<Seen>);

/// What a service has seen.
#[derive(Default)]
struct Seen {
    started: AtomicUsize,
    lost: AtomicUsize,
}

impl TestService {
    /// Commands that were started.
    pub(crate) fn started(&self) -> usize {
        self.0.started.load(Ordering::SeqCst)
    }

    /// Links that were lost.
    pub(crate) fn lost(&self) -> usize {
        self.0.lost.load(Ordering::SeqCst)
    }
}

/// `MoveVolumeCommand.srcPath` says what [`TestService`] does.
pub(crate) const PANIC: &str = "panic";
pub(crate) const BLOCK_A_THREAD_FOR_MS: &str = "block ";
pub(crate) const SLEEP_FOR_MS: &str = "sleep ";

impl Service for TestService {
    async fn execute(&self, command: Command) -> Option<Answer> {
        self.0.started.fetch_add(1, Ordering::SeqCst);
        match command.body {
            CommandBody::CheckHealth(_) => Some(Answer::new(CheckHealthAnswer {}).with_details("resource is alive")),
            CommandBody::MoveVolume(what) => {
                let what = what.src_path.unwrap_or_default();
                let milliseconds = |prefix| {
                    what.strip_prefix(prefix)
                        .map(|ms: &str| Duration::from_millis(ms.parse().unwrap()))
                };
                assert_ne!(what, PANIC, "as asked");
                if let Some(duration) = milliseconds(BLOCK_A_THREAD_FOR_MS) {
                    std::thread::sleep(duration);
                }
                if let Some(duration) = milliseconds(SLEEP_FOR_MS) {
                    tokio::time::sleep(duration).await;
                }
                Some(Answer::success().with_details(what))
            }
            _ => None,
        }
    }

    fn disconnected(&self) {
        self.0.lost.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) struct TestAgent {
    pub(crate) service: TestService,
    pub(crate) server: ServerHandle,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) running: JoinHandle<Result<Ended, StartError>>,
}

impl TestAgent {
    pub(crate) fn start(config: Config) -> Self {
        let service = TestService::default();
        let mut handle = None;
        let agent = Agent::new(config, |server| {
            handle = Some(server);
            service.clone()
        })
        .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(agent.run(async move { drop(stopped.await) }));
        Self {
            service,
            server: handle.unwrap(),
            stop: Some(stop),
            running,
        }
    }

    pub(crate) async fn stop(mut self) -> Ended {
        drop(self.stop.take());
        self.running.await.unwrap().unwrap()
    }
}

/// Agent `s-<number>-VM` with its files in `directory`.
pub(crate) fn ssvm(number: u32, server: SocketAddr, directory: &TempDir) -> Config {
    Config {
        kind: Kind::SecondaryStorage,
        hosts: server.ip().to_string().parse().unwrap(),
        port: server.port(),
        startup: StartupCommand {
            kind: Some(HostType::SecondaryStorage),
            data_center: Some("1".into()),
            pod: Some("1".into()),
            guid: Some(format!("s-{number}-VM-NfsSecondaryStorageResource")),
            name: Some(format!("s-{number}-VM")),
            version: Some("0.1.0".into()),
            iqn: Some("NoIqn".into()),
            public_ip_address: Some(format!("203.0.113.{number}")),
            private_ip_address: Some("127.0.0.1".into()),
            resource_name: Some("NfsSecondaryStorageResource".into()),
            arch: Some("x86_64".into()),
            ..StartupCommand::default()
        },
        workers: 5,
        directory: directory.path().to_owned(),
        trust_unknown: TrustUnknown::Accept,
        system_ca: None,
        status: None,
        timing: Timing {
            backoff: Duration::from_millis(20),
            longest_backoff: Duration::from_millis(100),
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            startup: Duration::from_secs(5),
            migrate: Duration::from_millis(50),
            ..Timing::default()
        },
    }
}
