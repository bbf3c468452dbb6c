//! The agent: keeps a link to a management server, for as long as the program lives.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use protocol::boot::HostList;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, error, info, info_span, warn};

use crate::config::Config;
use crate::execution::{Executor, Finished};
use crate::hosts::{Backoff, Hosts};
use crate::keystore::{KeyStore, KeyStoreError};
use crate::link::{Link, LinkError};
use crate::link_status::Publisher;
use crate::properties::Properties;
use crate::registration::{Note, Registration};
use crate::service::{Question, Server, Service};
use crate::session::{Lost, Session};
use crate::trust::{self, NoClientConfig};

/// Answers that could not be sent, kept until the next link is ready. More than that is more than a server waits for.
const MAX_HELD: usize = 256;

/// Requests of the service waiting for the link.
const MAX_QUESTIONS: usize = 64;

/// Notes that wait for the disk: a few at each link.
const MAX_NOTES: usize = 64;

/// For the notes that are not written yet when the agent ends.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// An agent that is not running yet.
pub struct Agent<S> {
    pub(crate) config: Config,
    pub(crate) registration: Registration,
    pub(crate) keystore: KeyStore,
    pub(crate) hosts: Hosts,
    pub(crate) executor: Executor<S>,
    pub(crate) finished: mpsc::Receiver<Finished>,
    pub(crate) questions: mpsc::Receiver<Question>,
    /// Finished on an earlier link.
    pub(crate) held: VecDeque<Finished>,
    /// Number of the next request of ours; starts at 0 with the process.
    pub(crate) sequence: i64,
    /// Number of the current link.
    pub(crate) link: u64,
    /// The next startup follows a MigrateAgentConnectionCommand.
    pub(crate) transferred: bool,
    /// The last link died without a StartupAnswer: wait longer for the next.
    pub(crate) startup_was_late: bool,
    pub(crate) backoff: Backoff,
    /// With the algorithm `shuffle` the preferred server is looked for only once.
    pub(crate) preferred_checked: bool,
    /// Seconds between looks for the preferred server; `None`: off.
    pub(crate) check_interval: Option<Duration>,
    /// What others may know of the link.
    pub(crate) status: Publisher,
    /// For the next start; written in turn, so that the last one counts.
    notes: mpsc::Sender<Note>,
    /// Their other end, until the agent runs.
    to_write: Option<mpsc::Receiver<Note>>,
}

/// Why a running agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to by its program.
    Asked,
    /// The server shut it down for good.
    ByServer,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `agent.properties` cannot be read.
    #[error(transparent)]
    Properties(#[from] platform::files::FileError),
    /// Nobody to connect to.
    #[error("there is no management server in the list; check the boot argument `host`")]
    NoHosts,
    /// No thread for the link.
    #[error("cannot start the thread of the agent link")]
    Thread(#[from] std::io::Error),
    /// The thread of the link panicked: a bug of ours.
    #[error("the agent link ended by a panic; the log says more")]
    Panicked,
}

/// Why one attempt failed or one link ended.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    #[error(transparent)]
    Trust(#[from] NoClientConfig),
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl<S: Service> Agent<S> {
    /// Prepares an agent. `make_service` is given the means to ask the server. Must be called on a tokio runtime: the
    /// service's commands run there.
    ///
    /// # Errors
    /// The configuration directory cannot be read.
    pub fn new(mut config: Config, make_service: impl FnOnce(Server) -> S) -> Result<Self, StartError> {
        if config.hosts.hosts.is_empty() {
            return Err(StartError::NoHosts);
        }
        let properties = Properties::load(config.directory.join("agent.properties"))?;
        config.timing = config.timing.with_properties(&properties);
        let resource = config.startup.resource_name.clone().unwrap_or_default();
        let registration = Registration::load(&config.directory, &resource)?;
        let (questions_to, questions) = mpsc::channel(MAX_QUESTIONS);
        let service = Arc::new(make_service(Server {
            questions: questions_to,
        }));
        let (notes, to_write) = mpsc::channel(MAX_NOTES);
        let (executor, finished) = Executor::new(service, config.workers, Handle::current());
        let keystore = KeyStore {
            system_ca: config.system_ca.clone(),
            ..KeyStore::in_directory(&config.directory)
        };
        Ok(Self {
            hosts: Hosts::new(config.hosts.clone()),
            keystore,
            backoff: Backoff::new(config.timing.backoff, config.timing.longest_backoff),
            check_interval: config.timing.host_check,
            status: Publisher::new(config.status.clone()),
            config,
            registration,
            executor,
            finished,
            questions,
            held: VecDeque::new(),
            sequence: 0,
            link: 0,
            transferred: false,
            startup_was_late: false,
            preferred_checked: false,
            notes,
            to_write: Some(to_write),
        })
    }

    /// Runs until `stop` completes or the server ends the agent.
    ///
    /// The link has a thread of its own: even commands that block every thread of the service's runtime stop no ping.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<Ended, StartError> {
        let (stop_it, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let span = tracing::Span::current();
        std::thread::Builder::new().name("agent-link".into()).spawn(move || {
            let to_write = self.to_write.take();
            let work = async {
                let writer = to_write.map(|notes| tokio::spawn(write(notes).in_current_span()));
                let outcome = self.keep_connected(stopped).await;
                if let Some(writer) = writer {
                    let _ = tokio::time::timeout(WRITE_LIMIT, writer).await;
                }
                outcome
            };
            let _ = end.send(runtime.block_on(work.instrument(span)));
        })?;
        tokio::pin!(stop, ended);
        let outcome = tokio::select! {
            outcome = &mut ended => outcome,
            () = &mut stop => {
                let _ = stop_it.send(());
                ended.await
            }
        };
        outcome.map_err(|_| StartError::Panicked)
    }

    async fn keep_connected(mut self, mut stop: oneshot::Receiver<()>) -> Ended {
        loop {
            let host = self
                .hosts
                .next_host()
                .expect("Agent::new refuses an empty list, and HostList::from_str, too");
            let peer = format!("{host}:{}", self.config.port);
            self.status.connecting(&peer);
            let span = info_span!("link", peer);
            let lost = self.connect_and_serve(&host, &mut stop).instrument(span.clone()).await;
            let entered = span.enter();
            let why = match lost {
                Ok(Lost::Asked) => {
                    self.status.stopped(None);
                    return Ended::Asked;
                }
                Ok(Lost::ByServer) => {
                    self.status
                        .stopped(Some("the management server does not want this agent any more"));
                    return Ended::ByServer;
                }
                Ok(Lost::Moving(to)) => {
                    info!(to, "Moving to another management server");
                    self.hosts.continue_with(&to);
                    continue;
                }
                Ok(Lost::Refused(reason)) => {
                    error!(error = reason, "The management server refused this agent");
                    format!("the management server refused this agent: {reason}")
                }
                Ok(Lost::NoStartupAnswer) => {
                    self.startup_was_late = true;
                    warn!("The management server did not answer the startup command");
                    "the management server did not answer the startup command".to_owned()
                }
                Ok(Lost::Silent(limit)) => {
                    warn!(?limit, "The management server does not answer pings");
                    format!("the management server did not answer pings for {limit:?}")
                }
                Ok(Lost::Broken(error)) => {
                    let error = chain(&error);
                    warn!(error, "Link lost");
                    error
                }
                Err(error) => {
                    let error = chain(&error);
                    warn!(error, "Cannot connect to the management server");
                    self.hosts.failed();
                    error
                }
            };
            drop(entered);
            if self.wait_before_next_attempt(&why, &mut stop).await {
                self.status.stopped(None);
                return Ended::Asked;
            }
        }
    }

    async fn connect_and_serve(&mut self, host: &str, stop: &mut oneshot::Receiver<()>) -> Result<Lost, Failed> {
        let timing = self.config.timing;
        // Read at every attempt: certificates may arrive or be renewed at any time.
        let identity = self.keystore.load()?;
        let tls = trust::client_config(identity.as_ref(), self.config.trust_unknown)?;
        let port = self.config.port;
        let opening = Link::open(host, port, tls, timing.connect, timing.handshake);
        let Some(link) = self.while_unconnected(opening, stop).await else {
            return Ok(Lost::Asked);
        };
        let link = link?;
        self.hosts.succeeded();
        self.link += 1;
        self.status.connected();
        info!(has_key_store = identity.is_some(), "Connected");
        let (lost, unsent) = Session::new(self, link, host).serve(stop).await;
        self.executor.disconnected();
        for finished in unsent {
            self.hold(finished);
        }
        Ok(lost)
    }

    /// Keeps an answer for the next link.
    pub(crate) fn hold(&mut self, finished: Finished) {
        if finished.repeats {
            return; // the next repetition tells the same and more
        }
        if self.held.len() == MAX_HELD {
            let dropped = self.held.pop_front().map(|finished| finished.response.header.sequence);
            warn!(
                sequence = dropped,
                MAX_HELD, "Too many answers wait for a link, dropping the oldest"
            );
        }
        self.held.push_back(finished);
    }

    /// Answers whether the agent shall stop.
    async fn wait_before_next_attempt(&mut self, why: &str, stop: &mut oneshot::Receiver<()>) -> bool {
        let mut jitter = [128];
        let _ = getrandom::fill(&mut jitter);
        let delay = self.backoff.next_delay(jitter[0]);
        self.status.lost(why, delay);
        info!(?delay, "Waiting before the next attempt");
        self.while_unconnected(tokio::time::sleep(delay), stop).await.is_none()
    }

    /// Waits for something without a link: work goes on, and requests of the service are refused at once. `None`: the
    /// agent shall stop.
    async fn while_unconnected<T>(
        &mut self,
        what: impl Future<Output = T>,
        stop: &mut oneshot::Receiver<()>,
    ) -> Option<T> {
        tokio::pin!(what);
        loop {
            tokio::select! {
                done = &mut what => return Some(done),
                _ = &mut *stop => return None,
                Some(question) = self.questions.recv() => drop(question),
                Some(finished) = self.finished.recv() => self.hold(finished),
            }
        }
    }

    /// Writes something down for the next start. The link does not wait for the disk, and its end does not undo it.
    pub(crate) fn keep(&self, note: Note) {
        if self.notes.try_send(note).is_err() {
            warn!(
                MAX_NOTES,
                "The disk is too slow to keep what the management server said"
            );
        }
    }

    /// The server list as the server sees it: what was persisted, else what we were started with.
    pub(crate) fn reported_hosts(&self) -> HostList {
        self.registration
            .hosts
            .clone()
            .unwrap_or_else(|| self.hosts.list().clone())
    }
}

/// Writes notes in the order in which they were made.
async fn write(mut notes: mpsc::Receiver<Note>) {
    while let Some(note) = notes.recv().await {
        if let Err(error) = blocking(move || note.write()).await {
            warn!(error, "Cannot keep for the next start what the management server said");
        }
    }
}

/// An error with everything that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    platform::logging::chain(error).to_string()
}

/// Work on files, which waits for disks and for others: on a thread for such work. The error is text for log or answer.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, String>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| chain(&error)),
        Err(error) => Err(error.to_string()),
    }
}
