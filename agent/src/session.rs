//! One link's life: startup, setup commands, ready, pings, until it is lost (agent-protocol.md §4).
//!
//! ```text
//! Starting --StartupAnswer--> Answered --ReadyCommand--> Ready        commands are answered in every state
//! ```

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use indexmap::IndexMap;
use protocol::answer::{Answer, AnswerBody};
use protocol::certificate::{
    SetupCertificateAnswer, SetupCertificateCommand, SetupKeyStoreCommand, SetupKeystoreAnswer,
};
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::packet::{Packet, Request, Response};
use protocol::secret::Secret;
use protocol::session::{
    HostType, MaintainAnswer, MigrateAgentConnectionAnswer, PingAnswer, PingCommand, PingStorageCommand, ReadyAnswer,
    ReadyCommand, SetupMSListAnswer, ShutdownCommand, StartupAnswer, StartupProxyCommand,
    StartupSecondaryStorageCommand,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::agent::{Agent, chain};
use crate::config::Kind;
use crate::execution::Finished;
use crate::keystore::Machine;
use crate::link::{Link, LinkError};
use crate::service::{Question, Service};

/// Messages waiting to be sent; while there are more, finished commands and questions are not taken.
const MAX_OUTGOING: usize = 32;

/// Most commands that repeat on one link. Current servers send none (agent-protocol.md §6).
const MAX_REPEATING: usize = 16;

/// Why a link ended.
#[derive(Debug)]
pub(crate) enum Lost {
    /// This program ends.
    Asked,
    /// The server does not want this agent any more.
    ByServer,
    /// To another server, at once.
    Moving(String),
    /// ReadyCommand with a reason.
    Refused(String),
    /// The startup command was not answered.
    NoStartupAnswer,
    /// Pings were not answered for this long.
    Silent(Duration),
    /// Network or TLS.
    Broken(LinkError),
}

enum Outgoing {
    Request(Request),
    Response(Finished),
}

/// What the link's own helpers report.
enum Notice {
    /// It is time to repeat a command.
    Repeat(Request),
    /// A request that was dealt with beside the link, but not by the service.
    Respond(Response),
    /// The preferred server listens, or the one to migrate to.
    Reachable { host: String, transferred: bool },
}

pub(crate) struct Session<'a, S> {
    agent: &'a mut Agent<S>,
    link: Link,
    host: &'a str,
    outgoing: VecDeque<Outgoing>,
    /// Given to the link, not known to be sent.
    sending: Option<Finished>,
    asked: HashMap<i64, oneshot::Sender<Answer>>,
    is_ready: bool,
    ping_interval: Option<Duration>,
    next_ping: Instant,
    /// When to give up: no StartupAnswer, later no PingAnswer.
    patience: Instant,
    next_check: Option<Instant>,
    notices: mpsc::Receiver<Notice>,
    notify: mpsc::Sender<Notice>,
    /// Repetitions and probes; aborted with the link.
    helpers: JoinSet<()>,
    repeating: usize,
    running: usize,
}

impl<'a, S: Service> Session<'a, S> {
    pub(crate) fn new(agent: &'a mut Agent<S>, link: Link, host: &'a str) -> Self {
        let (notify, notices) = mpsc::channel(MAX_REPEATING);
        let factor = if agent.startup_was_late { 2 } else { 1 };
        let now = Instant::now();
        Self {
            patience: now + agent.config.timing.startup * factor,
            agent,
            link,
            host,
            outgoing: VecDeque::new(),
            sending: None,
            asked: HashMap::new(),
            is_ready: false,
            ping_interval: None,
            next_ping: now,
            next_check: None,
            notices,
            notify,
            helpers: JoinSet::new(),
            repeating: 0,
            running: 0,
        }
    }

    /// Works until the link is lost; answers why, and which finished commands could not be reported.
    pub(crate) async fn serve(mut self, stop: &mut oneshot::Receiver<()>) -> (Lost, Vec<Finished>) {
        self.send_startup();
        let lost = match self.work(stop).await {
            Ok(lost) | Err(lost) => lost,
        };
        match lost {
            Lost::Asked => self.say_goodbye().await,
            Lost::ByServer => self.send_last_answers().await,
            _ => {}
        }
        let waiting = self.outgoing.into_iter().filter_map(|outgoing| match outgoing {
            Outgoing::Response(finished) => Some(finished),
            Outgoing::Request(_) => None,
        });
        (lost, self.sending.into_iter().chain(waiting).collect())
    }

    async fn work(&mut self, stop: &mut oneshot::Receiver<()>) -> Result<Lost, Lost> {
        loop {
            self.send_next()?;
            let has_room = self.outgoing.len() < MAX_OUTGOING;
            let ping_at = self.ping_interval.map(|_| self.next_ping);
            tokio::select! {
                received = self.link.next() => match received.map_err(Lost::Broken)? {
                    Some(message) => self.receive(&message)?,
                    None => self.sending = None,
                },
                Some(finished) = self.agent.finished.recv(), if has_room => self.finished(finished),
                Some(question) = self.agent.questions.recv(), if has_room => self.ask(question),
                Some(notice) = self.notices.recv(), if has_room => {
                    if let Some(lost) = self.notice(notice) {
                        return Ok(lost);
                    }
                }
                () = at(ping_at) => self.ping(),
                () = at(self.next_check) => self.check_preferred(),
                () = sleep_until(self.patience) => return Ok(match self.ping_interval {
                    Some(interval) => Lost::Silent(interval * self.agent.config.timing.missed_pings),
                    None => Lost::NoStartupAnswer,
                }),
                _ = &mut *stop => return Ok(Lost::Asked),
            }
        }
    }

    /// Gives the next message to the link when it has sent the one before.
    fn send_next(&mut self) -> Result<(), Lost> {
        while self.link.is_idle() {
            self.sending = None;
            let Some(next) = self.outgoing.pop_front() else {
                return Ok(());
            };
            // Non-ASCII text is escaped: a Java server under a POSIX locale would misread it.
            let message = match &next {
                Outgoing::Request(request) => request.encode(Charset::Ascii),
                Outgoing::Response(finished) => finished.response.encode(Charset::Ascii),
            };
            match message {
                Ok(message) => self.link.send(&message).map_err(|error| Lost::Broken(error.into()))?,
                Err(error) => self.replace_unsendable(next, &error),
            }
        }
        Ok(())
    }

    /// An answer too long for the protocol becomes one that says so.
    fn replace_unsendable(&mut self, unsendable: Outgoing, error: &dyn std::error::Error) {
        warn!(error = chain(error), "A message cannot be sent");
        if let Outgoing::Response(mut finished) = unsendable {
            for answer in &mut finished.response.answers {
                *answer = Answer::failure(format!("the answer cannot be sent: {}", chain(error)));
            }
            self.outgoing.push_front(Outgoing::Response(finished));
        }
    }

    fn receive(&mut self, message: &[u8]) -> Result<(), Lost> {
        match Packet::decode(message) {
            Ok(Packet::Request(request)) => self.request(request),
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

    // ---- requests of the server ------------------------------------------------------------------------------------

    fn request(&mut self, request: Request) -> Result<(), Lost> {
        let names: Vec<&str> = request
            .commands
            .iter()
            .map(|command| command.body.class().name)
            .collect();
        debug!(sequence = request.header.sequence, ?names, "Request");
        if self.agent.registration.host_id <= 0 && request.header.agent_id > 0 {
            self.agent.registration.host_id = request.header.agent_id; // pings need it before ReadyCommand
        }
        if let [
            Command {
                body: CommandBody::SetupKeyStore(setup),
                ..
            },
        ] = request.commands.as_slice()
            && setup.handle_by_agent
        {
            self.setup_keystore(setup.clone(), request);
            return Ok(());
        }
        // What belongs to the link is done at once, beside the workers: it must work when they are all busy.
        if let [command] = request.commands.as_slice()
            && let Some(done) = self.link_command(command)
        {
            let (answer, lost) = done?;
            self.respond(request.response(vec![answer]));
            self.after(command, &request);
            return lost.map_or(Ok(()), Err);
        }
        if let Some(refused) = self.agent.executor.start(self.agent.link, request, false) {
            self.respond(refused);
        } else {
            self.running += 1;
        }
        Ok(())
    }

    /// Commands of the agent layer (agent-protocol.md §4.7); `None`: the service's business.
    fn link_command(&mut self, command: &Command) -> Option<Result<(Answer, Option<Lost>), Lost>> {
        let answer = match &command.body {
            CommandBody::Ready(ready) => match &ready.details {
                Some(reason) => return Some(Err(Lost::Refused(reason.clone()))),
                None => self.ready(ready),
            },
            CommandBody::Shutdown(shutdown) => {
                return Some(Ok((self.shut_down(shutdown), Some(Lost::ByServer))));
            }
            CommandBody::Maintain(_) => Answer::new(MaintainAnswer { will_migrate: true }),
            CommandBody::SetupMSList(list) => {
                self.server_list(
                    list.ms_list.as_deref(),
                    list.avoid_ms_list.as_deref(),
                    list.lb_algorithm.as_deref(),
                    list.lb_check_interval,
                );
                Answer::new(SetupMSListAnswer {})
            }
            CommandBody::MigrateAgentConnection(list) => {
                self.server_list(
                    list.ms_list.as_deref(),
                    list.avoid_ms_list.as_deref(),
                    list.lb_algorithm.as_deref(),
                    list.lb_check_interval,
                );
                Answer::new(MigrateAgentConnectionAnswer {})
            }
            CommandBody::SetupCertificate(setup) if setup.handle_by_agent => self.setup_certificate(setup),
            CommandBody::AgentControl(_) => Answer::new(protocol::session::AgentControlAnswer {}),
            CommandBody::WatchConsoleProxyLoad(_) if self.repeating < MAX_REPEATING => Answer::success(),
            _ => return None,
        };
        Some(Ok((answer, None)))
    }

    /// What follows once the answer is on its way.
    fn after(&mut self, command: &Command, request: &Request) {
        match &command.body {
            CommandBody::Ready(_) if !self.is_ready => self.become_ready(),
            CommandBody::SetupMSList(list) if list.trigger_host_lb == Some(true) => self.check_preferred(),
            CommandBody::MigrateAgentConnection(_) => self.migrate(),
            CommandBody::WatchConsoleProxyLoad(watch) => {
                let seconds = u64::try_from(watch.interval).unwrap_or_default().max(1);
                self.repeat(request.clone(), Duration::from_secs(seconds));
            }
            _ => {}
        }
    }

    fn ready(&mut self, ready: &ReadyCommand) -> Answer {
        match self.agent.registration.accept(ready) {
            Ok(true) => info!(host_id = self.agent.registration.host_id, "Registered"),
            Ok(false) => {}
            Err(error) => warn!(error = chain(&error), "Cannot keep the host id for the next start"),
        }
        let here = std::env::consts::ARCH;
        if let Some(expected) = ready.arch.as_deref().filter(|expected| *expected != here) {
            warn!(expected, here, "The management server expects another architecture");
        }
        self.server_list(
            ready.ms_host_list.as_deref(),
            ready.avoid_ms_host_list.as_deref(),
            ready.lb_algorithm.as_deref(),
            ready.lb_check_interval,
        );
        Answer::new(ReadyAnswer::default())
    }

    /// The link is good: everything that waited for it goes out.
    fn become_ready(&mut self) {
        self.is_ready = true;
        self.agent.transferred = false;
        self.agent.backoff.reset();
        info!(held = self.agent.held.len(), "Ready");
        // Sent again only to the same host row: the sequence means nothing to another one. A server that has given up
        // waiting ignores an unknown sequence (agent-protocol.md §4.6).
        let host_id = self.agent.registration.host_id;
        let held = std::mem::take(&mut self.agent.held).into_iter();
        let still_valid = held.filter(|finished| finished.response.header.agent_id == host_id);
        self.outgoing.extend(still_valid.map(Outgoing::Response));
    }

    fn server_list(
        &mut self,
        hosts: Option<&[String]>,
        avoid: Option<&[String]>,
        algorithm: Option<&str>,
        check_interval: Option<i64>,
    ) {
        if let Some(avoid) = avoid {
            self.agent.hosts.avoid(avoid.to_vec());
        }
        if let Some(hosts) = hosts
            && self.agent.hosts.replace(hosts.to_vec(), algorithm.map(str::to_owned))
        {
            info!(hosts = %self.agent.hosts.list(), "New list of management servers");
            self.agent.preferred_checked = false;
        }
        if hosts.is_some_and(|hosts| !hosts.is_empty()) {
            let list = self.agent.hosts.list().clone();
            if let Err(error) = self.agent.registration.keep_hosts(&list) {
                warn!(
                    error = chain(&error),
                    "Cannot keep the list of management servers for the next start"
                );
            }
        }
        if let (Some(seconds), None) = (check_interval, self.agent.config.host_check_interval) {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            self.agent.check_interval = (seconds > 0).then(|| Duration::from_secs(seconds));
        }
        self.next_check = self.agent.check_interval.map(|interval| Instant::now() + interval);
    }

    fn shut_down(&mut self, shutdown: &ShutdownCommand) -> Answer {
        let reason = shutdown.reason.as_deref().unwrap_or("unknown");
        warn!(
            reason,
            detail = shutdown.detail.as_deref(),
            "The management server ends this agent"
        );
        if shutdown.remove_host
            && let Err(error) = self.agent.registration.forget_place()
        {
            return Answer::failure(chain(&error));
        }
        Answer::success()
    }

    /// Beside the link: asking the system for its name may take time.
    fn setup_keystore(&mut self, setup: SetupKeyStoreCommand, request: Request) {
        let keystore = self.agent.keystore.clone();
        let notify = self.notify.clone();
        self.helpers.spawn(async move {
            let password = setup.keystore_password.unwrap_or_default();
            let made = Machine::inspect().await.and_then(|machine| {
                keystore.setup_keystore(&password, setup.validity_days, &machine.fqdn, &machine.addresses)
            });
            let answer = match made {
                Ok(csr) => Answer::new(SetupKeystoreAnswer { csr: Some(csr) }),
                Err(error) => Answer::failure(chain(&error)),
            };
            let _ = notify.send(Notice::Respond(request.response(vec![answer]))).await;
        });
    }

    fn setup_certificate(&mut self, setup: &SetupCertificateCommand) -> Answer {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let key = setup.private_key.clone().unwrap_or_else(|| Secret::new(String::new()));
        let certificate = text(&setup.certificate);
        match self
            .agent
            .keystore
            .setup_certificate(&certificate, &key, &text(&setup.ca_certificates))
        {
            Ok(import) => {
                info!(?import, "Certificate set up; it is used at the next connection");
                Answer::new(SetupCertificateAnswer {})
            }
            Err(error) => Answer::failure(chain(&error)),
        }
    }

    // ---- repetitions, preferred server, migration ------------------------------------------------------------------

    fn repeat(&mut self, request: Request, interval: Duration) {
        self.repeating += 1;
        let notify = self.notify.clone();
        self.helpers.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                if notify.send(Notice::Repeat(request.clone())).await.is_err() {
                    return;
                }
            }
        });
    }

    fn check_preferred(&mut self) {
        self.next_check = self.agent.check_interval.map(|interval| Instant::now() + interval);
        let shuffled = self.agent.hosts.list().algorithm.as_deref() == Some("shuffle");
        let Some(preferred) = self.agent.hosts.preferred() else {
            return;
        };
        if preferred == self.host || self.running > 0 || (shuffled && self.agent.preferred_checked) {
            return;
        }
        let preferred = preferred.to_owned();
        self.agent.preferred_checked = true;
        self.probe(Duration::ZERO, preferred, false);
    }

    fn migrate(&mut self) {
        match self.agent.hosts.first_usable() {
            Some(host) if host != self.host => {
                let host = host.to_owned();
                self.probe(self.agent.config.timing.migrate, host, true);
            }
            _ => warn!("Asked to move to another management server, but there is none to move to"),
        }
    }

    /// Looks, later, whether a server listens.
    fn probe(&mut self, delay: Duration, host: String, transferred: bool) {
        let notify = self.notify.clone();
        let port = self.agent.config.port;
        let limit = self.agent.config.timing.probe;
        self.helpers.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Ok(Ok(_)) = timeout(limit, TcpStream::connect((host.as_str(), port))).await {
                let _ = notify.send(Notice::Reachable { host, transferred }).await;
            } else {
                info!(host, port, "The other management server does not listen; staying here");
            }
        });
    }

    fn notice(&mut self, notice: Notice) -> Option<Lost> {
        match notice {
            Notice::Repeat(request) => {
                let refused = self.agent.executor.start(self.agent.link, request, true);
                if refused.is_none() {
                    self.running += 1;
                }
                None
            }
            Notice::Respond(response) => {
                self.respond(response);
                None
            }
            Notice::Reachable { transferred: false, .. } if self.running > 0 => None,
            Notice::Reachable { host, transferred } => {
                self.agent.transferred = transferred;
                Some(Lost::Moving(host))
            }
        }
    }

    // ---- answers ---------------------------------------------------------------------------------------------------

    fn finished(&mut self, finished: Finished) {
        if finished.link != self.agent.link {
            if self.is_ready && finished.response.header.agent_id == self.agent.registration.host_id {
                self.outgoing.push_back(Outgoing::Response(finished));
            } else {
                self.agent.hold(finished);
            }
            return;
        }
        self.running = self.running.saturating_sub(1);
        self.outgoing.push_back(Outgoing::Response(finished));
    }

    fn respond(&mut self, response: Response) {
        let finished = Finished {
            link: self.agent.link,
            response,
            repeats: false,
        };
        self.outgoing.push_back(Outgoing::Response(finished));
    }

    fn response(&mut self, response: Response) {
        let Some(answer) = response.answers.into_iter().next() else {
            return;
        };
        match answer.body {
            AnswerBody::Startup(startup) => self.started(&startup, answer.result, answer.details.as_deref()),
            AnswerBody::Ping(ping) => self.pinged(&ping),
            _ => {
                let sequence = response.header.sequence;
                let is_late = self
                    .asked
                    .remove(&sequence)
                    .is_none_or(|waiting| waiting.send(answer).is_err());
                if is_late {
                    debug!(sequence, "Answer that nobody waits for");
                }
            }
        }
    }

    fn started(&mut self, startup: &StartupAnswer, accepted: bool, details: Option<&str>) {
        if self.ping_interval.is_some() {
            return; // a startup on a live link is answered twice (agent-protocol.md §4.3)
        }
        if !accepted {
            warn!(details, "The startup command was answered with a failure");
            return;
        }
        self.agent.startup_was_late = false;
        if startup.host_id > 0 {
            self.agent.registration.host_id = startup.host_id;
        }
        // Less than a second, or nonsense, would make us a nuisance.
        let seconds = u64::try_from(startup.ping_interval)
            .unwrap_or_default()
            .clamp(1, 24 * 3600);
        let interval = Duration::from_secs(seconds);
        self.ping_interval = Some(interval);
        self.next_ping = Instant::now() + interval;
        self.be_patient(interval);
        info!(?interval, "The management server answers");
    }

    fn pinged(&mut self, answer: &PingAnswer) {
        if let Some(interval) = self.ping_interval {
            self.be_patient(interval);
        }
        if let Some(avoid) = &answer.avoid_ms_list {
            self.agent.hosts.avoid(avoid.clone());
        }
        if answer.send_startup {
            info!("The management server asks for the startup command again");
            self.send_startup();
        }
    }

    /// A ping that follows in one interval has until the end of the last allowed one.
    fn be_patient(&mut self, interval: Duration) {
        self.patience = Instant::now() + interval * (self.agent.config.timing.missed_pings + 1);
    }

    // ---- requests of ours ------------------------------------------------------------------------------------------

    fn next_sequence(&mut self) -> i64 {
        let sequence = self.agent.sequence;
        self.agent.sequence += 1;
        sequence
    }

    fn send_startup(&mut self) {
        let host_id = self.agent.registration.host_id;
        let mut startup = self.agent.config.startup.clone();
        startup.id = (host_id > 0).then_some(host_id);
        startup.ms_host_list = Some(self.agent.reported_hosts().to_string());
        startup.connection_transferred = self.agent.transferred;
        let command = match self.agent.config.kind {
            Kind::SecondaryStorage => Command::new(StartupSecondaryStorageCommand { startup }),
            Kind::ConsoleProxy {
                proxy_port,
                proxy_vm_id,
            } => Command::new(StartupProxyCommand {
                proxy_port: proxy_port.into(),
                proxy_vm_id,
                startup,
            }),
        };
        let request = Request::startup(self.next_sequence(), host_id, command);
        self.outgoing.push_back(Outgoing::Request(request));
    }

    fn ping(&mut self) {
        let interval = self.ping_interval.unwrap_or(Duration::from_mins(1));
        // At a fixed rate, but never several at once after a suspended machine woke up.
        self.next_ping = (self.next_ping + interval).max(Instant::now());
        self.asked.retain(|_, waiting| !waiting.is_closed());
        let host_id = self.agent.registration.host_id;
        let ping = |host_type| PingCommand {
            host_type: Some(host_type),
            host_id,
            ..PingCommand::default()
        };
        let command = match self.agent.config.kind {
            Kind::SecondaryStorage => Command::new(PingStorageCommand {
                changes: IndexMap::new(),
                ping: ping(HostType::Storage),
            }),
            Kind::ConsoleProxy { .. } => Command::new(ping(HostType::ConsoleProxy)),
        };
        let request = Request::from_agent(self.next_sequence(), host_id, command);
        self.outgoing.push_front(Outgoing::Request(request)); // not behind a long answer
    }

    fn ask(&mut self, question: Question) {
        if !self.is_ready {
            return; // dropping the question answers it: not connected
        }
        let sequence = self.next_sequence();
        self.asked.insert(sequence, question.answer);
        let request = Request::from_agent(sequence, self.agent.registration.host_id, question.command);
        self.outgoing.push_back(Outgoing::Request(request));
    }

    async fn send_last_answers(&mut self) {
        let limit = self.agent.config.timing.farewell;
        let answers = async {
            while !(self.link.is_idle() && self.outgoing.is_empty()) {
                self.send_next()?;
                self.link.drain().await.map_err(Lost::Broken)?;
            }
            Ok::<(), Lost>(())
        };
        if !matches!(timeout(limit, answers).await, Ok(Ok(()))) {
            warn!("The last answers could not be sent");
        }
    }

    /// ShutdownCommand `sig.kill`: the server then knows that this is no accident (agent-protocol.md §4.6).
    async fn say_goodbye(&mut self) {
        let shutdown = ShutdownCommand {
            reason: Some("sig.kill".into()),
            ..ShutdownCommand::default()
        };
        let request = Request::from_agent(-1, self.agent.registration.host_id, Command::new(shutdown));
        let farewell = async {
            self.link.drain().await?;
            if let Ok(message) = request.encode(Charset::Ascii) {
                self.link.send(&message)?;
            }
            self.link.drain().await
        };
        if let Ok(Ok(())) = timeout(self.agent.config.timing.farewell, farewell).await {
            info!("Said good-bye to the management server");
        } else {
            warn!("Could not say good-bye to the management server");
        }
    }
}

/// Completes at that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
