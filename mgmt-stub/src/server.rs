//! The listener of port 8250.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use crate::agents::Agents;
use crate::ca::{Ca, IssueError, Presented};
use crate::certificates::{self, Provision};
use crate::client_auth::{self, BadTrustAnchor};
use crate::hooks::Hooks;
use crate::random;
use crate::session;
use crate::settings::Settings;
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
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Listen { address, source })?;
        let agents = Agents::new(store.clone());
        let sequence_base = fixed.sequence_base;
        let shared = Shared {
            store,
            agents,
            settings,
            hooks,
            tls,
            server_id,
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
        let stopping = CancellationToken::new();
        let mut background = JoinSet::new();
        background.spawn(keep_ping_times(Arc::clone(&shared), stopping.clone()));
        background.spawn(certificates::renew(
            provision,
            shared.settings.clone(),
            stopping.clone(),
        ));

        let mut links = JoinSet::new();
        let places = Arc::new(Semaphore::new(shared.settings.max_links));
        tokio::pin!(stop);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                            warn!(%peer, limit = shared.settings.max_links, "Too many links, closing a new one");
                            continue;
                        };
                        let shared = Arc::clone(&shared);
                        let span = info_span!("link", %peer);
                        links.spawn(async move {
                            let _place = place;
                            let (entry, end) = session::serve(shared, stream, peer).await;
                            let name = entry.as_ref().map(|entry| entry.host.name.as_str());
                            info!(name, reason = platform::logging::chain(&end).to_string(), "Link ended");
                        }.instrument(span));
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: wait until some links end instead of spinning.
                        error!(%error, "Cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_ended) = links.join_next() => {}
                () = &mut stop => break,
            }
        }
        drop(listener);
        info!(links = links.len(), "Stopping");
        shared.agents.close_all();
        stopping.cancel();
        let ended = tokio::time::timeout(STOP_LIMIT, async {
            while links.join_next().await.is_some() {}
            while background.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            warn!(links = links.len(), "Some links did not end in time");
        }
        if let Err(error) = shared
            .store
            .mark_all_disconnected("the management server was stopped")
            .await
        {
            warn!(%error, "Cannot record that the server stops");
        }
    }
}

/// Writes ping times now and then, all at once: 10,000 agents must not mean 10,000 transactions a minute.
async fn keep_ping_times(shared: Arc<Shared>, stopping: CancellationToken) {
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(shared.settings.ping_flush) => false,
            () = stopping.cancelled() => true,
        };
        if let Err(error) = shared.agents.flush_pings().await {
            warn!(%error, "Cannot record ping times");
        }
        if is_last {
            return;
        }
    }
}
