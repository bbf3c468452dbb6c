//! One agent's link, from the handshake to its end (agent-protocol.md §4).
//!
//! ```text
//! handshake --StartupCommand--> registering --listeners, ReadyCommand--> Up --(close, silence, shutdown)--> end
//! ```
//! The link's task owns the socket and everything that waits for an answer; setting the agent up and answering its
//! questions run beside it and reach it through its mailbox.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use indexmap::IndexMap;
use protocol::answer::Answer;
use protocol::command::{Base, Command, CommandBody};
use protocol::console_proxy::ConsoleAccessAuthenticationCommand;
use protocol::gson::Charset;
use protocol::header::{Flags, NO_ID};
use protocol::message::MAX_MESSAGE;
use protocol::packet::{Packet, Request, Response};
use protocol::session::{AgentControlAnswer, EchoedPing, PingAnswer, PingCommand, ReadyCommand, StartupAnswer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument, debug, error, info_span, warn};

use crate::agents::{CloseReason, Closer, Entry, Mailbox, NoAnswer, Outbound, mailbox};
use crate::client_auth::{PresentedCertificate, Strictness, check_peer};
use crate::connect::{Connect, NotReady};
use crate::hooks;
use crate::host_status::HostEvent;
use crate::link::{Link, LinkError};
use crate::random;
use crate::server::Shared;
use crate::startup::{Startup, facts, printable};
use crate::store::StoreError;
use crate::store::host::{Host, StartupFacts};

/// Messages waiting for the socket; while there are more, nothing new is taken from the mailbox.
const MAX_OUTGOING: usize = 32;

/// Bytes waiting for the socket, after which nothing more is read; a single message may be longer.
const MAX_OUTGOING_BYTES: usize = 1 << 20;

/// For a decision on console access: the console proxy waits no longer (§6).
const QUESTION_LIMIT: Duration = Duration::from_secs(10);

/// Longest first message: a startup command has less than 2 KiB. Whoever has not said who he is gets no 64 MiB of memory.
const MAX_STARTUP: usize = 64 << 10;

/// Questions of one agent that are being answered. One more is answered "no" at once.
const MAX_QUESTIONS: usize = 64;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("no TLS handshake within {0:?}")]
    HandshakeTooSlow(Duration),
    #[error("the certificate is refused: {0}")]
    Certificate(String),
    #[error("no startup command within {0:?}")]
    NoStartup(Duration),
    #[error("the first message is not a startup command: {0}")]
    NotStartup(String),
    #[error("{0}")]
    Refused(String),
    #[error("no ping for {0:?}")]
    Silent(Duration),
    #[error("the agent shut down: {0}")]
    Shutdown(String),
    #[error("{0}")]
    Closed(CloseReason),
    #[error("the agent cannot be used")]
    NotReady(#[from] NotReady),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("internal error: {0}")]
    Panicked(tokio::task::JoinError),
}

/// A request that waits for its response.
struct Pending {
    reply: oneshot::Sender<Result<Vec<Answer>, NoAnswer>>,
    deadline: Instant,
    limit: Duration,
    in_sequence: bool,
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    peer: IpAddr,
    link: Link,
    outgoing: VecDeque<Vec<u8>>,
    outgoing_bytes: usize,
    pending: BTreeMap<i64, Pending>,
    /// In-sequence requests behind the one that is outstanding: one at a time per agent (§4.7).
    queue: VecDeque<Box<Outbound>>,
    sequence: i64,
    /// Set before the registry knows of this link, so that its end always finds it; requests are accepted from then on.
    entry: &'a OnceLock<Arc<Entry>>,
    /// Why the agent was refused. As upstream, the link stays open until the agent goes or falls silent.
    refusal: Option<String>,
    /// When silence becomes death.
    ping_deadline: Instant,
    /// Setting up, and answers to the agent's questions.
    helpers: JoinSet<Result<Done, End>>,
    /// The set-up that is running, if one is.
    setting_up: Option<AbortHandle>,
}

enum Done {
    Found(Box<(Host, StartupFacts)>),
    SetUp,
    Answered(Response),
}

/// Serves one connection to its end; answers why it ended, for one line in the log. `slot` is filled at registration.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    stranger: OwnedSemaphorePermit,
    slot: &OnceLock<Arc<Entry>>,
) -> End {
    let link = match Link::new(stream, Arc::clone(&shared.tls)) {
        Ok(link) => link,
        Err(error) => return error.into(),
    };
    let mut session = Session {
        peer: peer.ip().to_canonical(),
        link,
        outgoing: VecDeque::new(),
        outgoing_bytes: 0,
        pending: BTreeMap::new(),
        queue: VecDeque::new(),
        sequence: shared.sequence_base.unwrap_or_else(random::sequence_base),
        entry: slot,
        refusal: None,
        ping_deadline: Instant::now() + shared.settings.handshake_limit,
        helpers: JoinSet::new(),
        setting_up: None,
        shared: &shared,
    };
    let end = tokio::select! {
        ended = session.run(stranger) => match ended {
            Ok(never) => match never {},
            Err(end) => end,
        },
        () = shared.stopping.cancelled() => End::Closed(CloseReason::Stopping),
    };
    // The socket and everybody who waits for an answer first; the database may take its time.
    let Session { mut helpers, .. } = session;
    helpers.shutdown().await;
    end
}

/// Records the end of a registered link.
pub(crate) async fn record_end(shared: &Shared, entry: &Entry, event: Option<HostEvent>, reason: &str) {
    if let Err(error) = shared.agents.unregister(entry, event, reason).await {
        warn!(error = chain(&error), "Cannot record the end of the link");
    }
}

impl End {
    /// What it means for the host (agent-protocol.md §4.6). `None`: its status is somebody else's business, that of a
    /// newer link or of the server that stops.
    pub(crate) fn event(&self) -> Option<HostEvent> {
        Some(match self {
            Self::Closed(CloseReason::Replaced | CloseReason::Stopping) => return None,
            Self::Closed(CloseReason::Reconnect | CloseReason::PoweredOff) | Self::Shutdown(_) => {
                HostEvent::ShutdownRequested
            }
            Self::Silent(_) => HostEvent::SystemVmPingTimeout,
            _ => HostEvent::AgentDisconnected,
        })
    }
}

enum Never {}

impl Session<'_> {
    async fn run(&mut self, stranger: OwnedSemaphorePermit) -> Result<Never, End> {
        let settings = &self.shared.settings;
        let handshake = timeout(settings.handshake_limit, self.link.handshake());
        handshake
            .await
            .map_err(|_| End::HandshakeTooSlow(settings.handshake_limit))??;
        let certificate = self.certificate(self.peer).await?;
        self.link.limit_messages(MAX_STARTUP);
        let startup = timeout(settings.startup_limit, self.first_message());
        let (request, startup) = startup.await.map_err(|_| End::NoStartup(settings.startup_limit))??;

        // At once, before any check (§4.3): the agent's watchdog is running.
        self.answer_startup(&request, 0, NO_ID);
        let certificate = certificate.map(Arc::new);
        self.find_host(startup, certificate.clone());
        let (to_link, mut mailbox) = mailbox();
        let closer = Closer::default();
        let new = NewLink {
            certificate,
            to_link,
            closer: closer.clone(),
            stranger,
        };
        self.work(new, &mut mailbox, &closer).await
    }

    async fn certificate(&self, peer: IpAddr) -> Result<Option<PresentedCertificate>, End> {
        let Some(der) = self.link.peer_certificate() else {
            return Ok(None);
        };
        let refused = |error: &dyn std::error::Error| End::Certificate(error.to_string());
        let certificate = PresentedCertificate::parse(der).map_err(|error| refused(&error))?;
        if self.shared.settings.strictness == Strictness::Required {
            let is_revoked = self.shared.store.is_revoked(&certificate.serial).await?;
            check_peer(&certificate, peer, is_revoked, Strictness::Required).map_err(|error| refused(&error))?;
        }
        Ok(Some(certificate))
    }

    /// Only a startup command is accepted before registration.
    async fn first_message(&mut self) -> Result<(Request, Startup), End> {
        let message = loop {
            if let Some(message) = self.link.next().await? {
                break message;
            }
        };
        match Packet::decode_up_to(&message, MAX_STARTUP) {
            Ok(Packet::Request(request)) => match Startup::of(&request) {
                Some(startup) => Ok((request, startup)),
                None => Err(End::NotStartup(names(&request))),
            },
            Ok(Packet::Response(_)) => Err(End::NotStartup("a response".into())),
            Err(error) => Err(End::NotStartup(chain(&error))),
        }
    }

    async fn work(&mut self, new: NewLink, mailbox: &mut Mailbox, closer: &Closer) -> Result<Never, End> {
        let mut new = Some(new);
        self.ping_deadline = Instant::now() + self.patience();
        loop {
            self.send_next()?;
            // An agent that does not read is not read either: its pings would fill our memory with answers.
            let has_room = self.outgoing.len() < MAX_OUTGOING && self.outgoing_bytes < MAX_OUTGOING_BYTES;
            let takes_requests = has_room && self.queue.len() < MAX_OUTGOING && self.entry.get().is_some();
            let deadline = self.next_deadline();
            tokio::select! {
                received = self.link.next_if(has_room) => {
                    if let Some(message) = received? {
                        self.receive(&message)?;
                        tokio::task::yield_now().await; // one agent that never stops sending is not alone
                    }
                }
                Some(outbound) = mailbox.recv(), if takes_requests => self.send(outbound),
                Some(done) = self.helpers.join_next() => self.done(done, &mut new)?,
                reason = closer.closed() => return Err(End::Closed(reason)),
                () = sleep_until(deadline) => self.expire()?,
            }
        }
    }

    /// `ping.interval` × `ping.timeout`.
    fn patience(&self) -> Duration {
        self.shared
            .settings
            .ping_interval
            .mul_f64(self.shared.settings.ping_timeout)
    }

    fn next_deadline(&self) -> Instant {
        let pending = self.pending.values().map(|pending| pending.deadline);
        let queued = self.queue.iter().map(|outbound| outbound.deadline);
        pending.chain(queued).fold(self.ping_deadline, Instant::min)
    }

    fn expire(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.ping_deadline <= now {
            return Err(self
                .refusal
                .take()
                .map_or_else(|| End::Silent(self.patience()), End::Refused));
        }
        for (sequence, expired) in self.pending.extract_if(.., |_, pending| pending.deadline <= now) {
            warn!(sequence, limit = ?expired.limit, "The agent did not answer in time");
            let _ = expired.reply.send(Err(NoAnswer::TimedOut(expired.limit)));
        }
        let (waiting, expired): (VecDeque<_>, VecDeque<_>) =
            self.queue.drain(..).partition(|outbound| outbound.deadline > now);
        self.queue = waiting;
        for outbound in expired {
            let _ = outbound.reply.send(Err(NoAnswer::TimedOut(outbound.limit)));
        }
        self.send_queued();
        Ok(())
    }

    // ---- to the agent ----------------------------------------------------------------------------------------------

    fn send_next(&mut self) -> Result<(), End> {
        while self.link.is_idle() {
            let Some(message) = self.outgoing.pop_front() else {
                break;
            };
            self.outgoing_bytes -= message.len();
            self.link.send(&message)?;
        }
        Ok(())
    }

    fn enqueue(&mut self, message: Vec<u8>) {
        self.outgoing_bytes += message.len();
        self.outgoing.push_back(message);
    }

    fn send(&mut self, outbound: Box<Outbound>) {
        if outbound.commands.iter().any(Command::is_in_sequence) {
            self.queue.push_back(outbound);
            self.send_queued();
        } else {
            self.send_now(*outbound, false);
        }
    }

    fn send_queued(&mut self) {
        while !self.pending.values().any(|pending| pending.in_sequence) {
            match self.queue.pop_front() {
                Some(outbound) if outbound.reply.is_closed() => {} // nobody waits for it any more
                Some(outbound) => self.send_now(*outbound, true),
                None => return,
            }
        }
    }

    fn send_now(&mut self, outbound: Outbound, in_sequence: bool) {
        let Some(entry) = self.entry.get() else { return }; // dropping the reply says: disconnected
        self.sequence += 1;
        let Outbound {
            commands,
            limit,
            deadline,
            reply,
        } = outbound;
        let request = Request::from_server(self.sequence, self.shared.server_id, entry.host.id.0, commands);
        let Ok(message) = request.encode(Charset::Ascii) else {
            let _ = reply.send(Err(NoAnswer::TooLong));
            return;
        };
        debug!(sequence = self.sequence, names = names(&request), "Request");
        self.enqueue(message);
        self.pending.insert(
            self.sequence,
            Pending {
                reply,
                deadline,
                limit,
                in_sequence,
            },
        );
    }

    fn respond(&mut self, response: &Response) {
        match response.encode(Charset::Ascii) {
            Ok(message) => self.enqueue(message),
            Err(error) => warn!(error = chain(&error), "A response cannot be sent"),
        }
    }

    fn answer_startup(&mut self, request: &Request, host_id: i64, via: i64) {
        let ping_interval = i64::try_from(self.shared.settings.ping_interval.as_secs()).unwrap_or(60);
        let answer = Answer::new(StartupAnswer {
            host_id,
            host_name: Some(String::new()),
            host_uuid: Some(String::new()),
            ping_interval: ping_interval.max(1),
        });
        let response = request.response(vec![answer]).by_server(self.shared.server_id, via);
        self.respond(&response);
    }

    // ---- from the agent --------------------------------------------------------------------------------------------

    fn receive(&mut self, message: &[u8]) -> Result<(), End> {
        match Packet::decode(message) {
            Ok(Packet::Request(request)) => self.request(&request),
            Ok(Packet::Response(response)) => {
                self.response(response);
                Ok(())
            }
            Err(error) => {
                warn!(error = chain(&error), "Message cannot be read, dropping it");
                Ok(())
            }
        }
    }

    /// An answer is ours if its header repeats the request's (§2 "Building a response"): a real server would look for
    /// any other one at another agent or another server.
    fn response(&mut self, response: Response) {
        let header = response.header;
        let host_id = self.entry.get().map_or(NO_ID, |entry| entry.host.id.0);
        let is_ours = !header.flags.contains(Flags::FROM_SERVER)
            && (header.mgmt_id, header.agent_id) == (self.shared.server_id, host_id);
        if !is_ours {
            warn!(
                ?header,
                "The header of a response does not repeat that of its request, dropping it"
            );
            return;
        }
        let Some(pending) = self.pending.remove(&header.sequence) else {
            debug!(sequence = header.sequence, "Answer that nobody waits for");
            return;
        };
        let _ = pending.reply.send(Ok(response.answers));
        self.send_queued();
    }

    fn request(&mut self, request: &Request) -> Result<(), End> {
        let is_ping = |command: &Command| matches!(command.body, CommandBody::Ping(_) | CommandBody::PingStorage(_));
        let Some(entry) = self.entry.get().cloned() else {
            if self.refusal.is_none() && request.commands.iter().any(is_ping) {
                self.ping_deadline = Instant::now() + self.patience(); // registration takes long, and it is there
            }
            debug!(names = names(request), "Request before registration, dropping it");
            return Ok(());
        };
        let host_id = entry.host.id.0;
        if request.header.flags.contains(Flags::FROM_SERVER) {
            debug!(
                names = names(request),
                "Request of another management server, dropping it"
            );
            return Ok(());
        }
        if Startup::of(request).is_some() {
            // On a link that is registered already, two answers follow (§4.3), and everything starts again.
            self.answer_startup(request, 0, NO_ID);
            self.answer_startup(request, host_id, host_id);
            self.set_up(entry, None);
            return Ok(());
        }
        let mut answers = Vec::with_capacity(request.commands.len());
        for command in &request.commands {
            match &command.body {
                CommandBody::Shutdown(shutdown) => {
                    let reason = shutdown.reason.as_deref().unwrap_or("no reason given");
                    return Err(End::Shutdown(printable(reason)));
                }
                CommandBody::ConsoleAccessAuthentication(question) => {
                    self.decide_console_access(request, question.clone());
                    return Ok(());
                }
                CommandBody::Ping(ping) => answers.push(self.pinged(&entry, ping, None, &command.base)),
                CommandBody::PingStorage(storage) => {
                    answers.push(self.pinged(&entry, &storage.ping, Some(&storage.changes), &command.base));
                }
                CommandBody::ConsoleProxyLoadReport(report) => {
                    self.shared.hooks.console_load(&entry.host, report);
                    answers.push(Answer::new(AgentControlAnswer {}));
                }
                CommandBody::AgentControl(_) => answers.push(Answer::new(AgentControlAnswer {})),
                CommandBody::Bad(bad) => {
                    warn!(error = bad.reason, "The agent sent a request that cannot be read");
                    answers.push(Answer::failure("the request cannot be read"));
                }
                _ => answers.push(Answer::success()),
            }
        }
        let response = request.response(answers).by_server(self.shared.server_id, host_id);
        self.respond(&response);
        Ok(())
    }

    fn pinged(
        &mut self,
        entry: &Entry,
        ping: &PingCommand,
        changes: Option<&IndexMap<String, bool>>,
        base: &Base,
    ) -> Answer {
        self.ping_deadline = Instant::now() + self.patience();
        if ping.host_id != entry.host.id.0 {
            warn!(sent = ping.host_id, host = %entry.host.id, "The agent pings with another host's id");
        }
        // While it is being set up its host is not Up either, but the startup command is being dealt with.
        let send_startup = !entry.heard() && self.setting_up.is_none();
        Answer::new(PingAnswer {
            command: Some(EchoedPing {
                changes: changes.cloned(),
                host_type: ping.host_type,
                host_id: ping.host_id,
                out_of_band: ping.out_of_band,
                command_infos: ping.command_infos.clone(),
                base: base.clone(),
            }),
            send_startup,
            avoid_ms_list: Some(Vec::new()),
            reconcile_commands: Some(Vec::new()),
        })
    }

    fn decide_console_access(&mut self, request: &Request, question: ConsoleAccessAuthenticationCommand) {
        let again = question.is_reauthenticating;
        let host_id = self.entry.get().map_or(NO_ID, |entry| entry.host.id.0);
        let server_id = self.shared.server_id;
        let request = request.clone();
        let answered = move |answer| request.response(vec![answer]).by_server(server_id, host_id);
        if self.helpers.len() >= MAX_QUESTIONS {
            self.respond(&answered(hooks::denied(again)));
            return;
        }
        let hooks = Arc::clone(&self.shared.hooks);
        let decide = async move {
            // In a task of its own: a panic in there denies this question and ends nothing else.
            let decision = tokio::spawn(async move { hooks.console_access(question).await });
            let answer = match timeout(QUESTION_LIMIT, decision).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    error!(error = error.to_string(), "The decision on console access failed");
                    hooks::denied(again)
                }
                Err(_) => hooks::denied(again),
            };
            Ok(Done::Answered(answered(answer)))
        };
        self.helpers.spawn(decide.in_current_span());
    }

    // ---- registration ----------------------------------------------------------------------------------------------

    fn find_host(&mut self, startup: Startup, certificate: Option<Arc<PresentedCertificate>>) {
        let shared = Arc::clone(self.shared);
        let find = async move {
            let facts = facts(&shared, startup, certificate.as_deref()).await?;
            let host = shared
                .store
                .find_or_create_host(facts.clone())
                .await
                .map_err(|error| match error {
                    StoreError::GuidTaken { .. } => End::Refused(chain(&error)),
                    error => error.into(),
                })?;
            Ok(Done::Found(Box::new((host, facts))))
        };
        self.helpers.spawn(find.in_current_span());
    }

    /// The host is found: from here on this link is its link.
    fn register(&mut self, host: Host, facts: StartupFacts, new: NewLink) {
        let NewLink {
            certificate,
            to_link,
            closer,
            stranger,
        } = new;
        self.link.limit_messages(MAX_MESSAGE);
        drop(stranger);
        let link = self.shared.agents.next_link();
        let entry = Arc::new(Entry::new(link, host, self.peer, certificate, to_link, closer));
        if self.entry.set(Arc::clone(&entry)).is_ok() {
            self.set_up(entry, Some(facts));
        }
    }

    /// Starts setting up, and ends a set-up that is running. `facts`: of a new link, what the agent says of itself.
    fn set_up(&mut self, entry: Arc<Entry>, facts: Option<StartupFacts>) {
        if let Some(running) = self.setting_up.take() {
            running.abort();
        }
        let shared = Arc::clone(self.shared);
        let log_id = random::log_id();
        let span = info_span!("set-up", host = %entry.host.id, name = entry.host.name, logid = log_id);
        let set_up = async move {
            if let Some(facts) = facts {
                shared.agents.register(Arc::clone(&entry), facts).await?;
            } else {
                shared
                    .agents
                    .change_status(&entry, HostEvent::AgentConnected, "agent sent startup again")
                    .await?;
            }
            let connect = Connect {
                store: &shared.store,
                agents: &shared.agents,
                settings: &shared.settings,
                entry: &entry,
                log_id,
            };
            connect.listeners().await?;
            connect.ready().await?;
            shared
                .agents
                .change_status(&entry, HostEvent::Ready, "agent is ready")
                .await?;
            shared.hooks.agent_up(&entry.host);
            connect.ready_again().await;
            Ok(Done::SetUp)
        };
        self.setting_up = Some(self.helpers.spawn(set_up.instrument(span)));
    }

    fn done(
        &mut self,
        done: Result<Result<Done, End>, tokio::task::JoinError>,
        new: &mut Option<NewLink>,
    ) -> Result<(), End> {
        match done {
            Err(error) if error.is_cancelled() => {} // a set-up that was started again
            Err(error) => return Err(End::Panicked(error)),
            Ok(Ok(Done::Found(found))) => {
                if let Some(new) = new.take() {
                    let (host, facts) = *found;
                    self.register(host, facts, new);
                }
            }
            Ok(Ok(Done::SetUp)) => self.setting_up = None,
            Ok(Ok(Done::Answered(response))) => self.respond(&response),
            Ok(Err(End::Refused(reason))) => {
                warn!(reason, "Agent refused");
                self.refuse(&reason);
                self.refusal = Some(reason);
            }
            Ok(Err(end)) => return Err(end),
        }
        Ok(())
    }

    /// ReadyCommand with a reason, all ids -1 and, as upstream sends it, without FROM_SERVER (§4.4).
    fn refuse(&mut self, reason: &str) {
        let ready = ReadyCommand {
            details: Some(reason.to_owned()),
            ..ReadyCommand::default()
        };
        let mut request = Request::from_server(NO_ID, NO_ID, NO_ID, vec![Command::new(ready)]);
        request.header.flags = request.header.flags.with(Flags::FROM_SERVER, false);
        if let Ok(message) = request.encode(Charset::Ascii) {
            self.enqueue(message);
        }
    }
}

/// What becomes a registered link.
struct NewLink {
    certificate: Option<Arc<PresentedCertificate>>,
    to_link: mpsc::Sender<Box<Outbound>>,
    closer: Closer,
    /// A place among those who have not said who they are.
    stranger: OwnedSemaphorePermit,
}

fn names(request: &Request) -> String {
    let names: Vec<&str> = request
        .commands
        .iter()
        .map(|command| command.body.class().name)
        .collect();
    names.join(", ")
}

fn chain(error: &dyn std::error::Error) -> String {
    platform::logging::chain(error).to_string()
}
