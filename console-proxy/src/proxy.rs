//! The program: obeys the management server, opens listeners when told to, ends when asked to.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use agent::service::Service;
use platform::http::{self, Handler, Limits};
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::console_proxy::{ConsoleProxyLoadAnswer, StartConsoleProxyAgentHttpHandlerCommand};
use protocol::session::CheckHealthAnswer;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::auth::Authorizer;
use crate::backend::Policy;
use crate::buffers::Buffers;
use crate::config::{Config, Console, TlsSource};
use crate::http::{Commands, Site, ToHttps};
use crate::metrics::Metrics;
use crate::page::Page;
use crate::sessions::{Sessions, keep_reporting};
use crate::tls::{self, NoTls, Tls};
use crate::token::{BadKeys, Keys};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How long sessions have to say goodbye when the program ends (§8).
const DRAIN: Duration = Duration::from_secs(5);

/// How long the last reports may take after that.
const LAST_REPORTS: Duration = Duration::from_secs(2);

/// Browsers' connections: the page takes a few for each viewer, and half-open ones are gone after ten seconds.
const LIMITS: Limits = Limits {
    connections: 4096,
    head: Duration::from_secs(10),
    head_bytes: 16 << 10,
    handshake: Duration::from_secs(10),
    farewell: Duration::from_secs(1),
};

/// What browsers can see there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// Page and consoles.
    Site,
    /// The same over TLS.
    EncryptedSite,
    /// The way to this port over TLS.
    ToHttps(u16),
    /// Status, for operators.
    Commands,
}

/// A port that is ours, on which nobody listens before the management server says so (§1).
struct Reserved {
    shows: Shows,
    address: SocketAddr,
    socket: TcpSocket,
}

/// What the management server has told us.
#[derive(Default)]
pub struct Access {
    /// Opens tokens; `None` before the first command.
    pub keys: Option<Keys>,
    /// A token is bound to the address of its viewer.
    pub is_source_ip_checked: bool,
}

/// Everything that sessions share.
pub struct Proxy {
    /// Own settings.
    pub settings: Console,
    /// Who is there.
    pub sessions: Sessions,
    /// Who decides.
    pub authorizer: Arc<dyn Authorizer>,
    /// How to go to hosts.
    pub policy: Policy,
    /// Memory for bytes on their way.
    pub buffers: Buffers,
    /// Files of the page.
    pub page: Page,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    config: Config,
    access: RwLock<Arc<Access>>,
    tls: watch::Sender<Option<Arc<ServerConfig>>>,
    reserved: Mutex<Vec<Reserved>>,
    running: TaskTracker,
    listening: TaskTracker,
    /// No new connections.
    stop: CancellationToken,
    /// No more reports.
    end: CancellationToken,
}

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is another program using the port?")]
pub struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

/// Why a StartConsoleProxyAgentHttpHandlerCommand could not be carried out.
#[derive(Debug, thiserror::Error)]
enum NotStarted {
    #[error(transparent)]
    Keys(#[from] BadKeys),
    #[error(transparent)]
    Listen(#[from] CannotListen),
}

/// Ports that nobody else can take from here on.
pub struct Ports(Vec<Reserved>);

impl Ports {
    /// Takes every port of the configuration, and listens on none.
    ///
    /// # Errors
    /// One of them is not to be had.
    pub fn reserve(config: &Config) -> Result<Self, CannotListen> {
        let reserve = |(shows, address): &(Shows, SocketAddr)| {
            let bound = || {
                let socket = if address.is_ipv4() {
                    TcpSocket::new_v4()
                } else {
                    TcpSocket::new_v6()
                }?;
                socket.set_reuseaddr(true)?; // old connections of an earlier run do not count
                socket.bind(*address)?;
                Ok(socket)
            };
            let named = |source| CannotListen {
                address: *address,
                source,
            };
            let socket = bound().map_err(named)?;
            let address = socket.local_addr().map_err(named)?; // port 0 has become a real one
            Ok(Reserved {
                shows: *shows,
                address,
                socket,
            })
        };
        config.listeners.iter().map(reserve).collect::<Result<_, _>>().map(Self)
    }

    /// What will be shown where.
    pub fn addresses(&self) -> Vec<(Shows, SocketAddr)> {
        self.0
            .iter()
            .map(|reserved| (reserved.shows, reserved.address))
            .collect()
    }
}

impl Proxy {
    /// A proxy that waits for its first command. Must be called on a tokio runtime: reports begin at once.
    pub fn new(config: Config, page: Page, ports: Ports, authorizer: Arc<dyn Authorizer>) -> Arc<Self> {
        let sessions = Sessions::new(config.settings.console.session_limit());
        let metrics = Arc::new(Metrics::new());
        let reports = keep_reporting(
            sessions.clone(),
            Arc::clone(&authorizer),
            config.proxy_vm_id,
            Arc::clone(&metrics),
        );
        let stop = CancellationToken::new();
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(reports));
        Arc::new(Self {
            settings: config.settings.console.clone(),
            sessions,
            authorizer,
            policy: config.policy(),
            buffers: Buffers::default(),
            page,
            metrics,
            config,
            access: RwLock::default(),
            tls: watch::Sender::new(None),
            reserved: Mutex::new(ports.0),
            running: TaskTracker::new(),
            listening: TaskTracker::new(),
            stop,
            end,
        })
    }

    /// What the management server has told us, as of now.
    pub fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where sessions run.
    pub fn sessions_tracker(&self) -> &TaskTracker {
        &self.running
    }

    /// Port of the WebSocket, for a page that came over TLS or not.
    pub fn console_port(&self, is_tls: bool) -> u16 {
        self.config.console_port(is_tls)
    }

    /// Ends all sessions and listeners.
    pub async fn drain(&self) {
        info!(sessions = self.sessions.count(), "Ending all sessions");
        self.stop.cancel();
        self.listening.close();
        self.running.close();
        self.sessions.close_all();
        let ended = timeout(DRAIN, self.running.wait()).await;
        if ended.is_err() {
            warn!(sessions = self.sessions.count(), "Some sessions did not end in time");
        }
        let reported = async {
            while self.sessions.unreported() > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = timeout(LAST_REPORTS, reported).await; // the server may be away
        self.end.cancel();
        self.listening.wait().await;
    }

    /// Takes new secrets, a new certificate, and opens what is not open yet.
    fn start(self: &Arc<Self>, command: &StartConsoleProxyAgentHttpHandlerCommand) -> Result<(), NotStarted> {
        let password = command.encryptor_password.clone().unwrap_or_default();
        let access = Access {
            keys: Some(Keys::parse(password.expose(), self.settings.legacy_cbc_tokens)?),
            is_source_ip_checked: command.is_source_ip_check_enabled.unwrap_or(false),
        };
        let is_source_ip_checked = access.is_source_ip_checked;
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(access);
        info!(
            is_source_ip_checked,
            has_key_store = command.keystore_bits.is_some(),
            "Secrets received"
        );
        if self.config.needs_tls() {
            self.take_certificate(command);
        }
        Ok(self.listen()?)
    }

    /// A bad key store leaves the certificate of before (§12).
    fn take_certificate(&self, command: &StartConsoleProxyAgentHttpHandlerCommand) {
        let made = match (&command.keystore_bits, self.config.settings.tls) {
            (_, Some(TlsSource::SelfSigned)) => self.self_signed(),
            (Some(bits), None) => {
                let password = command.keystore_password.clone().unwrap_or_default();
                tls::from_key_store(bits, &password)
            }
            (None, None) => {
                if self.tls.borrow().is_none() {
                    warn!(
                        "The management server sent no key store, so the ports with TLS stay closed; tls = \"self-signed\" makes a certificate here"
                    );
                }
                return;
            }
        };
        match made {
            Ok(Tls { config, not_after }) => {
                self.metrics.certificate(not_after);
                self.tls.send_replace(Some(config));
                info!(not_after, "Certificate for browsers taken into use");
            }
            Err(bad) => {
                let keeps_old = self.tls.borrow().is_some();
                error!(
                    error = platform::logging::chain(&bad).to_string(),
                    keeps_old, "Certificate for browsers not usable"
                );
            }
        }
    }

    fn self_signed(&self) -> Result<Tls, NoTls> {
        tls::self_signed(&self.config.settings.state_dir, &self.config.certificate_names)
    }

    fn listen(self: &Arc<Self>) -> Result<(), CannotListen> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        for Reserved { shows, address, socket } in std::mem::take(&mut *reserved) {
            if shows == Shows::EncryptedSite && self.tls.borrow().is_none() {
                reserved.push(Reserved { shows, address, socket });
                continue;
            }
            let listener = socket
                .listen(BACKLOG)
                .map_err(|source| CannotListen { address, source })?;
            info!(%address, ?shows, "Listening");
            match shows {
                Shows::Site => self.serve(listener, None, Site(Arc::clone(self))),
                Shows::EncryptedSite => self.serve(listener, self.live_tls(), Site(Arc::clone(self))),
                Shows::ToHttps(port) => self.serve(listener, None, ToHttps { port }),
                Shows::Commands => self.serve(listener, None, Commands(Arc::clone(self))),
            }
        }
        Ok(())
    }

    fn serve(&self, listener: TcpListener, tls: Option<http::Tls>, handler: impl Handler) {
        self.listening
            .spawn(http::serve(listener, tls, LIMITS, Arc::new(handler), self.stop.clone()));
    }

    /// Follows the certificate; there is one already.
    fn live_tls(&self) -> Option<http::Tls> {
        let mut certificate = self.tls.subscribe();
        let first = certificate.borrow_and_update().clone()?;
        let (live, follower) = watch::channel(first);
        let follow = async move {
            while certificate.changed().await.is_ok() {
                if let Some(config) = certificate.borrow_and_update().clone() {
                    live.send_replace(config);
                }
            }
        };
        self.listening
            .spawn(self.stop.clone().run_until_cancelled_owned(follow));
        Some(follower)
    }

    fn load(&self, proxy_vm_id: i64, proxy_vm_name: Option<String>) -> Answer {
        let answer = ConsoleProxyLoadAnswer {
            proxy_vm_id,
            proxy_vm_name,
        };
        Answer::new(answer).with_details(self.sessions.status())
    }
}

/// What the agent hands commands to.
pub struct Commanded(pub Arc<Proxy>);

impl Service for Commanded {
    async fn execute(&self, command: Command) -> Option<Answer> {
        Some(match command.body {
            CommandBody::StartConsoleProxyAgentHttpHandler(start) => match self.0.start(&start) {
                Ok(()) => Answer::success(),
                Err(not_started) => {
                    let text = platform::logging::chain(&not_started).to_string();
                    error!(error = text, "Cannot serve consoles");
                    Answer::failure(text)
                }
            },
            CommandBody::AllowConsoleAccess(allow) => {
                self.0.sessions.allow(&allow.session_uuid.unwrap_or_default());
                Answer::success()
            }
            CommandBody::CheckConsoleProxyLoad(check) => self.0.load(check.proxy_vm_id, check.proxy_vm_name),
            CommandBody::WatchConsoleProxyLoad(watch) => self.0.load(watch.proxy_vm_id, watch.proxy_vm_name),
            CommandBody::CheckHealth(_) => Answer::new(CheckHealthAnswer::default()),
            _ => return None,
        })
    }
}
