//! One agent's link, from the handshake to its end (agent-protocol.md §4).
//!
//! ```text
//! handshake --StartupCommand--> registering --listeners, ReadyCommand--> Up --(close, silence, shutdown)--> end
//! ```
//! The link's task owns the socket and everything that waits for an answer; setting the agent up and answering its
//! questions run beside it and reach it through its mailbox.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use protocol::answer::Answer;
use protocol::command::{Base, Command, CommandBody};
use protocol::gson::Charset;
use protocol::header::{Flags, NO_ID};
use protocol::message::MAX_MESSAGE;
use protocol::packet::{Packet, Request, Response};
use protocol::session::{
    AgentControlAnswer, EchoedPing, PingAnswer, PingCommand, ReadyCommand, StartupAnswer, StartupCommand,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::agents::{CloseReason, Closer, Entry, Mailbox, NoAnswer, Outbound, mailbox};
use crate::client_auth::{PresentedCertificate, Strictness, check_peer};
use crate::connect::{Connect, NotReady};
use crate::host_status::HostEvent;
use crate::link::{Link, LinkError};
use crate::random;
use crate::server::Shared;
use crate::store::StoreError;
use crate::store::host::{HostNic, HostType, StartupFacts};

/// Messages waiting for the socket; while there are more, nothing new is taken from the mailbox.
const MAX_OUTGOING: usize = 32;

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
    #[error("this server closed the link: {0:?}")]
    Closed(CloseReason),
    #[error("not set up: {0}")]
    NotReady(#[from] NotReady),
    #[error(transparent)]
    Store(#[from] StoreError),
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
    link: Link,
    outgoing: VecDeque<Vec<u8>>,
    pending: BTreeMap<i64, Pending>,
    /// In-sequence requests behind the one that is outstanding: one at a time per agent (§4.7).
    queue: VecDeque<Box<Outbound>>,
    sequence: i64,
    entry: Option<Arc<Entry>>,
    /// Why the agent was refused. As upstream, the link stays open until the agent goes or falls silent.
    refusal: Option<String>,
    /// When silence becomes death.
    ping_deadline: Instant,
    /// Setting up, and answers to the agent's questions.
    helpers: JoinSet<Result<Done, End>>,
}

enum Done {
    Registered(Arc<Entry>),
    SetUp,
    Answered(Response),
}

/// Serves one connection to its end; answers why it ended, for one line in the log.
pub(crate) async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) -> (Option<Arc<Entry>>, End) {
    let link = match Link::new(stream, Arc::clone(&shared.tls)) {
        Ok(link) => link,
        Err(error) => return (None, error.into()),
    };
    let mut session = Session {
        link,
        outgoing: VecDeque::new(),
        pending: BTreeMap::new(),
        queue: VecDeque::new(),
        sequence: shared.sequence_base.unwrap_or_else(random::sequence_base),
        entry: None,
        refusal: None,
        ping_deadline: Instant::now() + shared.settings.handshake_limit,
        helpers: JoinSet::new(),
        shared: &shared,
    };
    let end = match session.run(peer).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    let Session { entry, mut helpers, .. } = session;
    helpers.abort_all();
    if let Some(entry) = &entry
        && let Some(event) = event_of(&end)
        && let Err(error) = shared.agents.unregister(entry, event, &end.to_string()).await
    {
        warn!(%error, "Cannot record the end of the link");
    }
    (entry, end)
}

/// What the end of a link means for its host (agent-protocol.md §4.6).
fn event_of(end: &End) -> Option<HostEvent> {
    Some(match end {
        End::Closed(CloseReason::Replaced) => return None,
        End::Closed(CloseReason::Reconnect) | End::Shutdown(_) => HostEvent::ShutdownRequested,
        End::Closed(CloseReason::Stopping) => HostEvent::ManagementServerDown,
        End::Silent(_) => HostEvent::SystemVmPingTimeout,
        _ => HostEvent::AgentDisconnected,
    })
}

enum Never {}

impl Session<'_> {
    async fn run(&mut self, peer: SocketAddr) -> Result<Never, End> {
        let settings = &self.shared.settings;
        let handshake = timeout(settings.handshake_limit, self.link.handshake());
        handshake
            .await
            .map_err(|_| End::HandshakeTooSlow(settings.handshake_limit))??;
        let certificate = self.certificate(peer.ip()).await?;
        self.link.limit_messages(MAX_STARTUP);
        let startup = timeout(settings.startup_limit, self.first_message());
        let (request, startup) = startup.await.map_err(|_| End::NoStartup(settings.startup_limit))??;

        self.link.limit_messages(MAX_MESSAGE);
        // At once, before any check (§4.3): the agent's watchdog is running.
        self.answer_startup(&request, 0, NO_ID);
        let (to_link, mut mailbox) = mailbox();
        let closer = Closer::default();
        self.register(startup, certificate, to_link, closer.clone());
        self.work(&mut mailbox, &closer).await
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
        match Packet::decode(&message) {
            Ok(Packet::Request(request)) => match Startup::of(&request) {
                Some(startup) => Ok((request, startup)),
                None => Err(End::NotStartup(names(&request))),
            },
            Ok(Packet::Response(_)) => Err(End::NotStartup("a response".into())),
            Err(error) => Err(End::NotStartup(error.to_string())),
        }
    }

    async fn work(&mut self, mailbox: &mut Mailbox, closer: &Closer) -> Result<Never, End> {
        self.ping_deadline = Instant::now() + self.patience();
        loop {
            self.send_next()?;
            let has_room = self.outgoing.len() < MAX_OUTGOING;
            let deadline = self.next_deadline();
            tokio::select! {
                received = self.link.next() => {
                    if let Some(message) = received? {
                        self.receive(&message)?;
                    }
                }
                Some(outbound) = mailbox.recv(), if has_room => self.send(outbound),
                Some(done) = self.helpers.join_next() => self.done(done)?,
                reason = closer.closed() => {
                    return Err(End::Closed(reason));
                }
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
        self.pending
            .values()
            .map(|pending| pending.deadline)
            .fold(self.ping_deadline, Instant::min)
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
        self.send_queued();
        Ok(())
    }

    // ---- to the agent ----------------------------------------------------------------------------------------------

    fn send_next(&mut self) -> Result<(), End> {
        while self.link.is_idle() {
            let Some(message) = self.outgoing.pop_front() else {
                break;
            };
            self.link.send(&message)?;
        }
        Ok(())
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
                Some(outbound) => self.send_now(*outbound, true),
                None => return,
            }
        }
    }

    fn send_now(&mut self, outbound: Outbound, in_sequence: bool) {
        let Some(entry) = &self.entry else { return }; // dropping the reply says: disconnected
        self.sequence += 1;
        let Outbound { commands, limit, reply } = outbound;
        let request = Request::from_server(self.sequence, self.shared.server_id, entry.host.id.0, commands);
        let Ok(message) = request.encode(Charset::Ascii) else {
            let _ = reply.send(Err(NoAnswer::TooLong));
            return;
        };
        debug!(sequence = self.sequence, names = names(&request), "Request");
        self.outgoing.push_back(message);
        let deadline = Instant::now() + limit;
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
            Ok(message) => self.outgoing.push_back(message),
            Err(error) => warn!(%error, "A response cannot be sent"),
        }
    }

    fn answer_startup(&mut self, request: &Request, host_id: i64, via: i64) {
        let ping_interval = i64::try_from(self.shared.settings.ping_interval.as_secs())
            .unwrap_or(60)
            .max(1);
        let answer = Answer::new(StartupAnswer {
            host_id,
            host_name: Some(String::new()),
            host_uuid: Some(String::new()),
            ping_interval,
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
                warn!(%error, "Message cannot be read, dropping it");
                Ok(())
            }
        }
    }

    fn response(&mut self, response: Response) {
        let header = response.header;
        let Some(pending) = self.pending.remove(&header.sequence) else {
            debug!(sequence = header.sequence, "Answer that nobody waits for");
            return;
        };
        let _ = pending.reply.send(Ok(response.answers));
        self.send_queued();
    }

    fn request(&mut self, request: &Request) -> Result<(), End> {
        let Some(entry) = self.entry.clone() else {
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
            // On a link that is registered already, two answers follow (§4.3).
            self.answer_startup(request, 0, NO_ID);
            self.answer_startup(request, host_id, host_id);
            self.set_up(Arc::clone(&entry));
            return Ok(());
        }
        let mut answers = Vec::with_capacity(request.commands.len());
        for command in &request.commands {
            match &command.body {
                CommandBody::Shutdown(shutdown) => {
                    return Err(End::Shutdown(
                        shutdown.reason.clone().unwrap_or_else(|| "no reason given".into()),
                    ));
                }
                CommandBody::ConsoleAccessAuthentication(_) => {
                    self.decide_console_access(&entry, request, command.clone());
                    return Ok(());
                }
                CommandBody::Ping(ping) => answers.push(self.pinged(&entry, ping, None, &command.base)),
                CommandBody::PingStorage(storage) => {
                    answers.push(self.pinged(&entry, &storage.ping, Some(storage), &command.base));
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
        storage: Option<&protocol::session::PingStorageCommand>,
        base: &Base,
    ) -> Answer {
        self.ping_deadline = Instant::now() + self.patience();
        // While it is being set up its host is not Up either, but the startup command is being dealt with.
        let send_startup = !entry.heard() && self.helpers.is_empty();
        Answer::new(PingAnswer {
            command: Some(EchoedPing {
                changes: storage.map(|storage| storage.changes.clone()),
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

    fn decide_console_access(&mut self, entry: &Arc<Entry>, request: &Request, command: Command) {
        let hooks = Arc::clone(&self.shared.hooks);
        let host_id = entry.host.id.0;
        let server_id = self.shared.server_id;
        let request = request.clone();
        if self.helpers.len() >= MAX_QUESTIONS {
            let response = request
                .response(vec![crate::hooks::denied(false)])
                .by_server(server_id, host_id);
            self.respond(&response);
            return;
        }
        self.helpers.spawn(async move {
            let CommandBody::ConsoleAccessAuthentication(question) = command.body else {
                return Ok(Done::SetUp);
            };
            let answer = hooks.console_access(question).await;
            Ok(Done::Answered(
                request.response(vec![answer]).by_server(server_id, host_id),
            ))
        });
    }

    // ---- registration ----------------------------------------------------------------------------------------------

    fn register(
        &mut self,
        startup: Startup,
        certificate: Option<PresentedCertificate>,
        to_link: mpsc::Sender<Box<Outbound>>,
        closer: Closer,
    ) {
        let shared = Arc::clone(self.shared);
        self.helpers.spawn(async move {
            let facts = facts(&shared, startup).await?;
            let host = shared.store.find_or_create_host(facts).await?;
            let entry = Arc::new(Entry::new(
                shared.agents.next_link(),
                host,
                certificate,
                to_link,
                closer,
            ));
            shared.agents.register(Arc::clone(&entry)).await?;
            Ok(Done::Registered(entry))
        });
    }

    fn set_up(&mut self, entry: Arc<Entry>) {
        let shared = Arc::clone(self.shared);
        self.helpers.spawn(async move {
            let connect = Connect {
                store: &shared.store,
                agents: &shared.agents,
                settings: &shared.settings,
                entry: &entry,
                log_id: random::log_id(),
            };
            connect.listeners().await?;
            connect.ready().await?;
            shared
                .agents
                .change_status(&entry, HostEvent::Ready, "agent is ready")
                .await?;
            connect.ready_again().await;
            Ok(Done::SetUp)
        });
    }

    fn done(&mut self, done: Result<Result<Done, End>, tokio::task::JoinError>) -> Result<(), End> {
        let done = done.map_err(|error| End::Refused(format!("internal error: {error}")))?;
        match done {
            Ok(Done::Registered(entry)) => {
                info!(host = %entry.host.id, name = entry.host.name, "Agent connected");
                self.entry = Some(Arc::clone(&entry));
                self.set_up(entry);
                Ok(())
            }
            Ok(Done::SetUp) => {
                if let Some(entry) = &self.entry {
                    info!(host = %entry.host.id, name = entry.host.name, "Agent is ready");
                }
                Ok(())
            }
            Ok(Done::Answered(response)) => {
                self.respond(&response);
                Ok(())
            }
            Err(End::Refused(reason)) => {
                warn!(reason, "Agent refused");
                self.refuse(&reason);
                self.refusal = Some(reason);
                Ok(())
            }
            Err(end) => Err(end),
        }
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
            self.outgoing.push_back(message);
        }
    }
}

/// A startup command of one of the two kinds.
struct Startup {
    host_type: HostType,
    startup: StartupCommand,
}

impl Startup {
    fn of(request: &Request) -> Option<Self> {
        request.commands.iter().find_map(|command| match &command.body {
            CommandBody::StartupSecondaryStorage(ssvm) => Some(Self {
                host_type: HostType::SecondaryStorageVm,
                startup: ssvm.startup.clone(),
            }),
            CommandBody::StartupProxy(cpvm) => Some(Self {
                host_type: HostType::ConsoleProxy,
                startup: cpvm.startup.clone(),
            }),
            _ => None,
        })
    }
}

/// The architectures a host may have (agent-protocol.md §4.2).
const ARCHITECTURES: [&str; 4] = ["x86_64", "aarch64", "i686", "s390x"];

/// Longest text of a startup member that is kept.
const MAX_FACT: usize = 1024;

/// Checks what an agent says of itself.
async fn facts(shared: &Shared, Startup { host_type, startup }: Startup) -> Result<StartupFacts, End> {
    let refused = |text: String| End::Refused(text);
    let required = |value: Option<String>, member: &str| match value {
        Some(value) if !value.is_empty() && value.len() <= MAX_FACT => Ok(value),
        Some(value) if !value.is_empty() => Err(refused(format!(
            "startup member `{member}` is longer than {MAX_FACT} bytes"
        ))),
        _ => Err(refused(format!("startup member `{member}` is missing"))),
    };
    let guid = required(startup.guid, "guid")?;
    let name = required(startup.name, "name")?;
    let arch = startup
        .arch
        .filter(|arch| !arch.trim().is_empty())
        .unwrap_or_else(|| "x86_64".into());
    if !ARCHITECTURES.contains(&arch.as_str()) {
        return Err(refused(format!(
            "{name} has CPU architecture {arch:?}; one of {} is expected",
            ARCHITECTURES.join(", ")
        )));
    }
    let zone = required(startup.data_center, "dataCenter")?;
    let Some(zone) = shared.store.find_zone(zone.clone()).await? else {
        return Err(refused(format!("Host {name} sent incorrect data center: {zone}")));
    };
    let pod = match startup.pod {
        Some(pod) => shared.store.find_pod(zone.id, pod).await?,
        None => None,
    };
    let nic = |ip: Option<String>, mac: Option<String>, netmask: Option<String>| HostNic {
        ip: ip.and_then(|ip| ip.parse().ok()),
        mac: mac.filter(|mac| mac.len() <= MAX_FACT),
        netmask: netmask.filter(|netmask| netmask.len() <= MAX_FACT),
    };
    Ok(StartupFacts {
        guid,
        resource_name: startup.resource_name,
        host_type,
        name,
        zone: zone.id,
        pod: pod.map(|pod| pod.id),
        version: startup.version.unwrap_or_default(),
        arch,
        private: nic(
            startup.private_ip_address,
            startup.private_mac_address,
            startup.private_netmask,
        ),
        public: nic(
            startup.public_ip_address,
            startup.public_mac_address,
            startup.public_netmask,
        ),
        storage: nic(
            startup.storage_ip_address,
            startup.storage_mac_address,
            startup.storage_netmask,
        ),
        ms_host_list: startup.ms_host_list,
    })
}

fn names(request: &Request) -> String {
    let names: Vec<&str> = request
        .commands
        .iter()
        .map(|command| command.body.class().name)
        .collect();
    names.join(", ")
}
