//! The listener of port 8250.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::KeepAlive;
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use crate::agents::{Agents, Entry};
use crate::ca::{Ca, IssueError, Presented};
use crate::certificates::{self, Provision};
use crate::client_auth::{self, BadTrustAnchor};
use crate::hooks::Hooks;
use crate::host_status::{HostEvent, HostStatus};
use crate::random;
use crate::session::{self, End};
use crate::settings::Settings;
use crate::store::host::Host;
use crate::store::{Store, StoreError};

/// How long links may take to end when the server stops.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Setting with the id of this server: positive, 48 bits, made once.
const SERVER_ID: &str = "management.server.id";

/// What all links share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) agents: Agents,
    pub(crate) settings: Settings,
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) server_id: i64,
    pub(crate) stopping: CancellationToken,
    /// Fixed only by tests that compare whole sessions.
    pub(crate) sequence_base: Option<i64>,
}

/// The management server's end of all agent links.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
    ca: Ca,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port cannot be had.
    #[error("cannot listen on {address}; is another management server using the port?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server's certificate.
    #[error(transparent)]
    Certificate(#[from] IssueError),
    /// The check of client certificates.
    #[error(transparent)]
    TrustAnchor(#[from] BadTrustAnchor),
    /// The id in the store.
    #[error("setting {SERVER_ID} is {0:?}; a positive number is expected")]
    ServerId(String),
}

/// What is fixed only where whole sessions are compared with recorded ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fixed {
    /// Instead of the id in the store.
    pub server_id: Option<i64>,
    /// Sequence before the first request on each link, instead of a random one.
    pub sequence_base: Option<i64>,
}

impl Server {
    /// Takes the port and everything else that can fail.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub async fn bind(
        address: SocketAddr,
        store: Store,
        ca: Ca,
        presented: Presented,
        settings: Settings,
        hooks: Arc<dyn Hooks>,
        fixed: Fixed,
    ) -> Result<Self, StartError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Listen { address, source })?;
        Self::on(listener, store, ca, presented, settings, hooks, fixed).await
    }

    /// Likewise, on a port that is taken already, in another network for example.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub async fn on(
        listener: TcpListener,
        store: Store,
        ca: Ca,
        presented: Presented,
        settings: Settings,
        hooks: Arc<dyn Hooks>,
        fixed: Fixed,
    ) -> Result<Self, StartError> {
        let verifier = client_auth::verifier(&ca, settings.strictness, settings.expired)?;
        let tls = ca.server_config(presented, verifier)?;
        let server_id = store
            .setting_or_insert_with(SERVER_ID, || random::server_id().to_string())
            .await?;
        let server_id = match fixed.server_id {
            Some(id) => id,
            None => server_id
                .parse()
                .ok()
                .filter(|id| *id > 0)
                .ok_or(StartError::ServerId(server_id))?,
        };
        // Links do not survive a server: whoever was connected has to come again.
        let lost = store
            .mark_all_disconnected("the management server was restarted")
            .await?;
        if !lost.is_empty() {
            info!(count = lost.len(), "Hosts wait for their agents to connect again");
        }
        let agents = Agents::new(store.clone());
        let sequence_base = fixed.sequence_base;
        let shared = Shared {
            store,
            agents,
            settings,
            hooks,
            tls,
            server_id,
            stopping: CancellationToken::new(),
            sequence_base,
        };
        Ok(Self {
            listener,
            shared: Arc::new(shared),
            ca,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The id in the headers of this server's messages.
    pub fn id(&self) -> i64 {
        self.shared.server_id
    }

    /// The connected agents.
    pub fn agents(&self) -> Agents {
        self.shared.agents.clone()
    }

    /// Gives an agent a certificate over its link.
    pub fn provision(&self) -> Provision {
        Provision {
            ca: self.ca.clone(),
            store: self.shared.store.clone(),
            agents: self.shared.agents.clone(),
        }
    }

    /// Serves until `stop` completes; then ends all links, with the hosts' status saying why.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let provision = self.provision();
        let Self { listener, shared, .. } = self;
        let mut background = JoinSet::new();
        background.spawn(keep_ping_times(Arc::clone(&shared)));
        background.spawn(watch_disconnected(Arc::clone(&shared)));
        background.spawn(certificates::renew(
            provision,
            shared.settings.clone(),
            shared.stopping.clone(),
        ));

        let mut links = JoinSet::new();
        tokio::select! {
            () = accept_all(&listener, &shared, &mut links) => {}
            () = stop => {}
        }
        drop(listener);
        info!(links = links.len(), "Stopping");
        shared.stopping.cancel();
        let ended = tokio::time::timeout(STOP_LIMIT, async {
            while background.join_next().await.is_some() {}
            while links.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            warn!(links = links.len(), "Some links did not end in time");
        }
        if let Err(error) = shared
            .store
            .mark_all_disconnected("the management server was stopped")
            .await
        {
            warn!(error = chain(&error), "Cannot record that the server stops");
        }
    }
}

async fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, links: &mut JoinSet<()>) {
    let places = Arc::new(Semaphore::new(shared.settings.max_links));
    let strangers = Arc::new(Semaphore::new(shared.settings.max_strangers));
    let mut turned_away = TurnedAway::default();
    loop {
        while links.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait until some links end instead of spinning.
                turned_away.count(|| error!(%error, "Cannot accept connections"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned();
        let (Ok(place), Ok(stranger)) = (place, Arc::clone(&strangers).try_acquire_owned()) else {
            turned_away.count(|| warn!(%peer, links = links.len(), "Too many links, closing new ones"));
            continue;
        };
        if let Err(error) = setsockopt(&stream, KeepAlive, &true) {
            warn!(%peer, %error, "Cannot switch on TCP keep-alive");
        }
        let link = serve_link(Arc::clone(shared), stream, peer, stranger);
        links.spawn(
            async move {
                link.await;
                drop(place);
            }
            .instrument(info_span!("link", %peer)),
        );
    }
}

async fn serve_link(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, stranger: OwnedSemaphorePermit) {
    let slot = Arc::new(OnceLock::new());
    let served = tokio::spawn({
        let (shared, slot) = (Arc::clone(&shared), Arc::clone(&slot));
        async move { session::serve(shared, stream, peer, stranger, &slot).await }.in_current_span()
    });
    let end = served.await.unwrap_or_else(End::Panicked);
    let reason = chain(&end);
    let name = slot.get().map(|entry: &Arc<Entry>| entry.host.name.as_str());
    if let End::Panicked(_) = &end {
        error!(name, reason, "Link ended by a fault of this program");
    } else {
        info!(name, reason, "Link ended");
    }
    if let Some(entry) = slot.get() {
        session::record_end(&shared, entry, end.event(), &reason).await;
    }
}

/// Says at most once in ten seconds what could fill the log.
#[derive(Default)]
struct TurnedAway {
    last: Option<Instant>,
}

impl TurnedAway {
    fn count(&mut self, say: impl FnOnce()) {
        if self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(10)) {
            self.last = Some(Instant::now());
            say();
        }
    }
}

/// Writes ping times now and then, all at once: 10,000 agents must not mean 10,000 transactions a minute.
async fn keep_ping_times(shared: Arc<Shared>) {
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(shared.settings.ping_flush) => false,
            () = shared.stopping.cancelled() => true,
        };
        if let Err(error) = shared.agents.flush_pings().await {
            warn!(error = chain(&error), "Cannot record ping times");
        }
        if is_last {
            return;
        }
    }
}

/// A host that stays Disconnected for long is a matter for a person (management.md §13.3: WaitedTooLong).
async fn watch_disconnected(shared: Arc<Shared>) {
    let wait = shared.settings.alert_wait;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait.min(Duration::from_mins(1))) => {}
            () = shared.stopping.cancelled() => return,
        }
        if let Err(error) = raise_alerts(&shared, wait).await {
            warn!(
                error = chain(&error),
                "Cannot look for hosts that are disconnected for long"
            );
        }
    }
}

async fn raise_alerts(shared: &Shared, wait: Duration) -> Result<(), StoreError> {
    let now = OffsetDateTime::now_utc();
    let is_late = |host: &Host| {
        host.status == HostStatus::Disconnected && host.disconnected.is_some_and(|since| now - since > wait)
    };
    for host in shared.store.hosts().await?.iter().filter(|host| is_late(host)) {
        warn!(host = %host.id, name = host.name, ?wait, "Host in ALERT state: disconnected for too long");
        let reason = format!("disconnected for more than {wait:?}; before: {}", host.status_reason);
        shared
            .store
            .apply_host_event(host.id, HostEvent::WaitedTooLong, reason)
            .await?;
    }
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    platform::logging::chain(error).to_string()
}
