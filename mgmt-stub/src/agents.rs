//! The agents that are connected, and how to ask them something.
//!
//! A host's status follows this registry: both change under one lock, so a link that ends cannot overwrite the status
//! that its successor has just got.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use protocol::answer::Answer;
use protocol::command::Command;
use time::OffsetDateTime;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client_auth::PresentedCertificate;
use crate::host_status::{HostEvent, HostStatus};
use crate::store::host::{Host, HostType, StartupFacts};
use crate::store::id::HostId;
use crate::store::{Store, StoreError};

/// Requests that may wait in front of one link; whoever sends more waits.
const MAX_QUEUED: usize = 32;

/// Hosts whose status may change at the same time: the store commits them together.
const CHANGE_LOCKS: usize = 256;

/// The connected agents; cheap to clone.
#[derive(Clone)]
pub struct Agents {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    connected: RwLock<HashMap<HostId, Arc<Entry>>>,
    /// Held while a link and the status of its host change together; by host, so that many can change at once.
    changes: [Mutex<()>; CHANGE_LOCKS],
    next_link: AtomicU64,
}

/// One registered link.
pub(crate) struct Entry {
    pub(crate) link: u64,
    pub(crate) host: Host,
    /// Where the link comes from.
    pub(crate) peer: IpAddr,
    pub(crate) certificate: Option<Arc<PresentedCertificate>>,
    mailbox: mpsc::Sender<Box<Outbound>>,
    closer: Closer,
    /// Unix seconds of the last ping, 0 before the first.
    heard: AtomicI64,
    is_heard_new: AtomicBool,
    is_up: AtomicBool,
}

/// A request on its way to an agent.
pub(crate) struct Outbound {
    pub(crate) commands: Vec<Command>,
    pub(crate) limit: Duration,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Vec<Answer>, NoAnswer>>,
}

/// Ends a link from outside.
#[derive(Clone, Default)]
pub(crate) struct Closer {
    token: CancellationToken,
    reason: Arc<OnceLock<CloseReason>>,
}

/// Why a link was ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The same agent has connected again; the status belongs to the new link.
    Replaced,
    /// An operator or a certificate renewal wants a new connection.
    Reconnect,
    /// Its VM has been powered off: nobody is there any more to close the connection.
    PoweredOff,
    /// This server ends.
    Stopping,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "the agent has connected again",
            Self::Reconnect => "the agent was asked to connect again",
            Self::PoweredOff => "its VM was powered off",
            Self::Stopping => "the management server was stopped",
        })
    }
}

/// Why a command has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// There is no link to this host.
    #[error("the agent is not connected")]
    NotConnected,
    /// The link ended before the answer came.
    #[error("the agent disconnected before it answered")]
    Disconnected,
    /// The agent took too long. It may still carry out the command.
    #[error("the agent did not answer within {0:?}")]
    TimedOut(Duration),
    /// There are not as many answers as commands.
    #[error("the agent sent {got} answers to {wanted} commands")]
    WrongNumber {
        /// Answers.
        got: usize,
        /// Commands.
        wanted: usize,
    },
    /// The request is longer than the protocol allows.
    #[error("the request is too long to be sent")]
    TooLong,
}

impl Closer {
    pub(crate) fn close(&self, reason: CloseReason) {
        let _ = self.reason.set(reason); // the first reason counts
        self.token.cancel();
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        self.token.cancelled().await;
        self.reason.get().copied().unwrap_or(CloseReason::Stopping)
    }
}

/// The receiving end of a link's mailbox.
pub(crate) type Mailbox = mpsc::Receiver<Box<Outbound>>;

/// A mailbox for a new link.
pub(crate) fn mailbox() -> (mpsc::Sender<Box<Outbound>>, Mailbox) {
    mpsc::channel(MAX_QUEUED)
}

impl Inner {
    fn changes_of(&self, host: HostId) -> &Mutex<()> {
        let index = usize::try_from(host.0.unsigned_abs()).unwrap_or_default() % CHANGE_LOCKS;
        &self.changes[index]
    }
}

impl Agents {
    /// Nobody is connected yet.
    pub fn new(store: Store) -> Self {
        let inner = Inner {
            store,
            connected: RwLock::default(),
            changes: std::array::from_fn(|_| Mutex::new(())),
            next_link: AtomicU64::new(1),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn next_link(&self) -> u64 {
        self.inner.next_link.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends commands as one request and waits for the answers, one for each command in order.
    ///
    /// Waits as the stock server does: twice the longest `wait` of the commands, or `limit` when none says anything.
    ///
    /// # Errors
    /// There is no answer; the agent may still carry out the commands.
    pub async fn send(&self, host: HostId, commands: Vec<Command>, limit: Duration) -> Result<Vec<Answer>, NoAnswer> {
        let entry = self.entry(host).ok_or(NoAnswer::NotConnected)?;
        entry.send(commands, limit).await
    }

    /// Whether this host has a link that was accepted.
    pub fn is_up(&self, host: HostId) -> bool {
        self.entry(host).is_some_and(|entry| entry.is_up())
    }

    /// Whether this host has a link, accepted or being set up.
    pub fn is_connected(&self, host: HostId) -> bool {
        self.entry(host).is_some()
    }

    /// Connected agents, registered or being set up.
    pub fn count(&self) -> usize {
        self.inner
            .connected
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Ends the link of a host; a working agent comes back at once. Answers whether there was one.
    pub fn reconnect(&self, host: HostId) -> bool {
        let entry = self.entry(host);
        entry
            .inspect(|entry| entry.closer.close(CloseReason::Reconnect))
            .is_some()
    }

    /// Ends the link of a host whose VM is off. A VM that loses its power says nothing; its host would seem Up until it
    /// is behind on ping.
    pub(crate) fn powered_off(&self, host: HostId) {
        if let Some(entry) = self.entry(host) {
            entry.closer.close(CloseReason::PoweredOff);
        }
    }

    pub(crate) fn entry(&self, host: HostId) -> Option<Arc<Entry>> {
        self.inner
            .connected
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&host)
            .cloned()
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.inner
            .connected
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Other connected agents of a type in the same zone.
    pub(crate) fn others(&self, host: &Host, host_type: HostType) -> Vec<Arc<Entry>> {
        let is_other = |entry: &Arc<Entry>| {
            entry.host.id != host.id && entry.host.host_type == host_type && entry.host.zone == host.zone
        };
        self.entries().into_iter().filter(is_other).collect()
    }

    /// Takes a link in, in place of an older one of the same host, and makes the host Connecting. Whoever calls this
    /// also calls [`Agents::unregister`], whatever came of it.
    pub(crate) async fn register(&self, entry: Arc<Entry>, facts: StartupFacts) -> Result<(), StoreError> {
        let _lock = self.inner.changes_of(entry.host.id).lock().await;
        let replaced = self.write().insert(entry.host.id, Arc::clone(&entry));
        if let Some(replaced) = replaced {
            warn!(host = %entry.host.id, name = entry.host.name, "The agent connected again, closing its older link");
            replaced.closer.close(CloseReason::Replaced);
            // The other one may have been found later than this one: the row is to say what the last link says.
            self.inner.store.record_facts(entry.host.id, facts).await?;
        }
        self.apply(&entry, HostEvent::AgentConnected, "agent connected")
            .await
            .map(drop)
    }

    /// Changes the status of a host, unless another link has taken over.
    pub(crate) async fn change_status(&self, entry: &Entry, event: HostEvent, reason: &str) -> Result<(), StoreError> {
        let _lock = self.inner.changes_of(entry.host.id).lock().await;
        if self.is_current(entry) {
            let status = self.apply(entry, event, reason).await?;
            entry.is_up.store(status == HostStatus::Up, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes a link out and changes the status of its host, unless another link has taken over.
    pub(crate) async fn unregister(
        &self,
        entry: &Entry,
        event: Option<HostEvent>,
        reason: &str,
    ) -> Result<(), StoreError> {
        let _lock = self.inner.changes_of(entry.host.id).lock().await;
        if !self.is_current(entry) {
            return Ok(());
        }
        self.write().remove(&entry.host.id);
        if let Some(time) = entry.new_ping_time() {
            self.inner.store.record_pings(vec![(entry.host.id, time)]).await?;
        }
        match event {
            Some(event) => self.apply(entry, event, reason).await.map(drop),
            None => Ok(()),
        }
    }

    async fn apply(&self, entry: &Entry, event: HostEvent, reason: &str) -> Result<HostStatus, StoreError> {
        let host = entry.host.id;
        let status = self.inner.store.apply_host_event(host, event, reason).await?;
        let name = entry.host.name.as_str();
        if status == HostStatus::Alert {
            warn!(%host, name, %status, reason, "Host in ALERT state");
        } else {
            info!(%host, name, %status, reason, "Host status");
        }
        Ok(status)
    }

    /// Writes the times of the last pings to the store, all in one transaction.
    pub(crate) async fn flush_pings(&self) -> Result<(), StoreError> {
        let entries = self.entries();
        let times: Vec<_> = entries
            .iter()
            .filter_map(|entry| Some((entry.host.id, entry.new_ping_time()?)))
            .collect();
        if times.is_empty() {
            Ok(())
        } else {
            self.inner.store.record_pings(times).await
        }
    }

    fn is_current(&self, entry: &Entry) -> bool {
        self.entry(entry.host.id)
            .is_some_and(|current| current.link == entry.link)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<HostId, Arc<Entry>>> {
        self.inner.connected.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(crate) fn new(
        link: u64,
        host: Host,
        peer: IpAddr,
        certificate: Option<Arc<PresentedCertificate>>,
        mailbox: mpsc::Sender<Box<Outbound>>,
        closer: Closer,
    ) -> Self {
        Self {
            link,
            host,
            peer,
            certificate,
            mailbox,
            closer,
            heard: AtomicI64::new(0),
            is_heard_new: AtomicBool::new(false),
            is_up: AtomicBool::new(false),
        }
    }

    /// The agent has pinged; answers whether it is accepted (else it is asked for its startup command again).
    pub(crate) fn heard(&self) -> bool {
        self.heard
            .store(OffsetDateTime::now_utc().unix_timestamp(), Ordering::Relaxed);
        self.is_heard_new.store(true, Ordering::Relaxed);
        self.is_up.load(Ordering::Relaxed)
    }

    /// When the agent pinged last, if that was not asked before.
    fn new_ping_time(&self) -> Option<OffsetDateTime> {
        let is_new = self.is_heard_new.swap(false, Ordering::Relaxed);
        let seconds = is_new.then(|| self.heard.load(Ordering::Relaxed))?;
        OffsetDateTime::from_unix_timestamp(seconds).ok()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    pub(crate) async fn send(&self, commands: Vec<Command>, limit: Duration) -> Result<Vec<Answer>, NoAnswer> {
        let longest = commands
            .iter()
            .map(|command| command.base.wait)
            .max()
            .unwrap_or_default();
        let limit = match u64::try_from(longest) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds.saturating_mul(2)),
            _ => limit,
        };
        let (reply, replied) = oneshot::channel();
        let wanted = commands.len();
        let deadline = Instant::now() + limit;
        let outbound = Box::new(Outbound {
            commands,
            limit,
            deadline,
            reply,
        });
        self.mailbox.send(outbound).await.map_err(|_| NoAnswer::NotConnected)?;
        let answers = replied.await.unwrap_or(Err(NoAnswer::Disconnected))?;
        if answers.len() == wanted {
            return Ok(answers);
        }
        Err(NoAnswer::WrongNumber {
            got: answers.len(),
            wanted,
        })
    }
}
