//! One link's life: startup, setup commands, ready, pings, until it is lost (agent-protocol.md §4).
//!
//! ```text
//! Starting --StartupAnswer--> Answered --ReadyCommand--> Ready        commands are answered in every state
//! ```

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use indexmap::IndexMap;
use protocol::answer::{Answer, AnswerBody};
use protocol::boot::HostList;
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::packet::{Packet, Request, Response};
use protocol::session::{
    AgentControlAnswer, HostType, MaintainAnswer, MigrateAgentConnectionAnswer, PingAnswer, PingCommand,
    PingStorageCommand, ReadyAnswer, ReadyCommand, SetupMSListAnswer, ShutdownCommand, StartupAnswer,
    StartupProxyCommand, StartupSecondaryStorageCommand,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::agent::{Agent, chain};
use crate::config::{Kind, seconds};
use crate::execution::Finished;
use crate::link::{Link, LinkError};
use crate::renewal;
use crate::service::{Question, Service};

/// Messages waiting to be sent; while there are more, finished commands and questions are not taken.
const MAX_OUTGOING: usize = 32;

/// Messages waiting to be sent, after which nothing more is read: a server that asks and asks but does not read the
/// answers must not fill our memory.
const MAX_UNSENT: usize = 1024;

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
    /// Repetitions, probes, work on files; those that can be are aborted with the link.
    helpers: JoinSet<()>,
    /// Commands that repeat, by sequence, and whether one is running.
    repeating: HashMap<i64, bool>,
    /// The look at another server that is under way.
    probing: Option<AbortHandle>,
    /// When patience was last renewed for the sake of a long message.
    bytes_sent: u64,
}

/// What the link itself says to a command.
enum LinkAnswer {
    Answer(Answer),
    /// And then the agent ends.
    Last(Answer),
    /// No answer: the server does not want this agent.
    Refused(String),
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
            repeating: HashMap::new(),
            probing: None,
            bytes_sent: 0,
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
            let may_read = self.outgoing.len() < MAX_UNSENT;
            let ping_at = self.ping_interval.map(|_| self.next_ping);
            tokio::select! {
                received = self.link.next_if(may_read) => match received.map_err(Lost::Broken)? {
                    Some(message) => {
                        self.receive(&message)?;
                        // A server that never stops sending must not keep the timers from running.
                        tokio::task::yield_now().await;
                    }
                    None => self.sending = None,
                },
                Some(finished) = self.agent.finished.recv(), if has_room => self.finished(finished),
                Some(question) = self.agent.questions.recv(), if has_room => self.ask(question),
                Some(notice) = self.notices.recv(), if has_room => {
                    if let Some(lost) = self.notice(notice) {
                        return Ok(lost);
                    }
                }
                Some(Err(error)) = self.helpers.join_next() => {
                    // A probe that a newer one replaced is cancelled; that is no failure.
                    if !error.is_cancelled() {
                        error!(error = error.to_string(), "A task of the link failed");
                    }
                }
                () = at(ping_at) => self.ping(),
                () = at(self.next_check) => self.check_preferred(),
                () = sleep_until(self.patience) => {
                    if let Some(lost) = self.out_of_patience() {
                        return Ok(lost);
                    }
                }
                _ = &mut *stop => return Ok(Lost::Asked),
            }
        }
    }

    /// Nothing was heard for long. No reason to give up while a long message is visibly on its way: no ping gets past it.
    fn out_of_patience(&mut self) -> Option<Lost> {
        let Some(interval) = self.ping_interval else {
            return Some(Lost::NoStartupAnswer);
        };
        let sent = self.link.bytes_sent();
        if !self.link.is_idle() && sent > self.bytes_sent {
            self.bytes_sent = sent;
            self.be_patient();
            return None;
        }
        Some(Lost::Silent(interval * (self.agent.config.timing.missed_pings + 1)))
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
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    self.replace_unsendable(next, &error);
                    continue;
                }
            };
            if let Outgoing::Response(finished) = next {
                self.sending = Some(finished); // until it is with the kernel; else it is held for the next link
            }
            self.link.send(&message).map_err(|error| Lost::Broken(error.into()))?;
        }
        Ok(())
    }

    /// An answer too long for the protocol becomes one that says so.
    fn replace_unsendable(&mut self, unsendable: Outgoing, error: &dyn std::error::Error) {
        warn!(error = chain(error), "A message cannot be sent");
        let Outgoing::Response(mut finished) = unsendable else {
            return;
        };
        let text = format!("the answer cannot be sent: {}", chain(error));
        finished.response.answers = finished
            .response
            .answers
            .iter()
            .map(|_| Answer::failure(text.clone()))
            .collect();
        if finished.response.encode(Charset::Ascii).is_ok() {
            self.outgoing.push_front(Outgoing::Response(finished));
        }
    }

    fn receive(&mut self, message: &[u8]) -> Result<(), Lost> {
        self.be_patient();
        match Packet::decode(message) {
            Ok(Packet::Request(request)) => self.request(request, message.len()),
            Ok(Packet::Response(response)) => self.response(response),
            Err(error) => {
                warn!(error = chain(&error), "Message cannot be read, dropping it");
                Ok(())
            }
        }
    }

    // ---- requests of the server ------------------------------------------------------------------------------------

    fn request(&mut self, request: Request, size: usize) -> Result<(), Lost> {
        let sequence = request.header.sequence;
        for command in &request.commands {
            let (class, logid) = (command.body.class().name, command.base.log_id());
            if let CommandBody::Bad(bad) = &command.body {
                warn!(sequence, error = bad.reason, "Request cannot be read");
            } else {
                debug!(sequence, class, logid, "Request");
            }
        }
        if request.header.agent_id > 0 {
            self.agent.registration.host_id = request.header.agent_id; // pings need it before ReadyCommand
        }
        // What belongs to the link is done at once, beside the workers: it must work when they are all busy.
        match request.commands.as_slice() {
            [command] if renewal::is_work(command) => self.work_on_keys(command.clone(), request),
            [command] => match self.link_command(command) {
                Some(LinkAnswer::Answer(answer)) => {
                    self.respond(request.response(vec![answer]));
                    self.after(command, &request);
                }
                Some(LinkAnswer::Last(answer)) => {
                    self.respond(request.response(vec![answer]));
                    return Err(Lost::ByServer);
                }
                Some(LinkAnswer::Refused(reason)) => return Err(Lost::Refused(reason)),
                None => self.execute(request, size, false),
            },
            _ => self.execute(request, size, false),
        }
        Ok(())
    }

    fn execute(&mut self, request: Request, size: usize, repeats: bool) {
        if let Some(refused) = self.agent.executor.start(self.agent.link, request, size, repeats) {
            self.respond(refused);
        }
    }

    /// Commands of the agent layer (agent-protocol.md §4.7); `None`: the service's business.
    fn link_command(&mut self, command: &Command) -> Option<LinkAnswer> {
        Some(LinkAnswer::Answer(match &command.body {
            CommandBody::Ready(ready) => match &ready.details {
                Some(reason) => return Some(LinkAnswer::Refused(reason.clone())),
                None => self.ready(ready),
            },
            CommandBody::Shutdown(shutdown) => return Some(LinkAnswer::Last(self.shut_down(shutdown))),
            CommandBody::Maintain(_) => Answer::new(MaintainAnswer { will_migrate: true }),
            CommandBody::SetupMSList(list) => {
                let list = list.clone();
                self.server_list(
                    list.ms_list,
                    list.avoid_ms_list,
                    list.lb_algorithm,
                    list.lb_check_interval,
                );
                Answer::new(SetupMSListAnswer {})
            }
            CommandBody::MigrateAgentConnection(list) => {
                let list = list.clone();
                self.server_list(
                    list.ms_list,
                    list.avoid_ms_list,
                    list.lb_algorithm,
                    list.lb_check_interval,
                );
                Answer::new(MigrateAgentConnectionAnswer {})
            }
            CommandBody::AgentControl(_) => Answer::new(AgentControlAnswer {}),
            CommandBody::WatchConsoleProxyLoad(_) if self.repeating.len() < MAX_REPEATING => Answer::success(),
            CommandBody::WatchConsoleProxyLoad(_) => {
                Answer::failure(format!("{MAX_REPEATING} commands repeat already on this link"))
            }
            _ => return None,
        }))
    }

    /// What follows once the answer is on its way.
    fn after(&mut self, command: &Command, request: &Request) {
        match &command.body {
            CommandBody::Ready(_) if !self.is_ready => self.become_ready(),
            CommandBody::SetupMSList(list) if list.trigger_host_lb == Some(true) => self.check_preferred(),
            CommandBody::MigrateAgentConnection(_) => self.migrate(),
            CommandBody::WatchConsoleProxyLoad(watch) if self.repeating.len() < MAX_REPEATING => {
                self.repeat(
                    request.clone(),
                    seconds(watch.interval).unwrap_or(Duration::from_secs(1)),
                );
            }
            _ => {}
        }
    }

    fn ready(&mut self, ready: &ReadyCommand) -> Answer {
        if let Some(note) = self.agent.registration.accept(ready) {
            self.agent.keep(note);
        }
        let here = std::env::consts::ARCH;
        if let Some(expected) = ready.arch.as_deref().filter(|expected| *expected != here) {
            warn!(expected, here, "The management server expects another architecture");
        }
        let ready = ready.clone();
        self.server_list(
            ready.ms_host_list,
            ready.avoid_ms_host_list,
            ready.lb_algorithm,
            ready.lb_check_interval,
        );
        Answer::new(ReadyAnswer::default())
    }

    /// The link is good: everything that waited for it goes out.
    fn become_ready(&mut self) {
        self.is_ready = true;
        self.agent.transferred = false;
        self.agent.backoff.reset();
        self.agent.status.ready();
        let host_id = self.agent.registration.host_id;
        // Sent again only to the same host row: the sequence means nothing to another one. A server that has given up
        // waiting ignores an unknown sequence (agent-protocol.md §4.6).
        let (valid, foreign): (Vec<_>, Vec<_>) = std::mem::take(&mut self.agent.held)
            .into_iter()
            .partition(|finished| finished.response.header.agent_id == host_id);
        info!(host_id, held = valid.len(), dropped = foreign.len(), "Ready");
        self.outgoing.extend(valid.into_iter().map(Outgoing::Response));
    }

    fn server_list(
        &mut self,
        hosts: Option<Vec<String>>,
        avoid: Option<Vec<String>>,
        algorithm: Option<String>,
        check_interval: Option<i64>,
    ) {
        if let Some(avoid) = avoid {
            self.agent.hosts.avoid(avoid);
        }
        // Both are needed for a new list (agent-protocol.md §10).
        if let (Some(hosts), Some(algorithm)) = (hosts, algorithm)
            && !hosts.is_empty()
            && !algorithm.is_empty()
        {
            self.new_hosts(&hosts, &algorithm);
        }
        if let (Some(interval), None) = (check_interval, self.agent.config.timing.host_check) {
            self.agent.check_interval = seconds(interval);
        }
        self.next_check = self.agent.check_interval.map(|interval| Instant::now() + interval);
    }

    fn new_hosts(&mut self, hosts: &[String], algorithm: &str) {
        let text = format!("{}@{algorithm}", hosts.join(","));
        let list = match text.parse::<HostList>() {
            Ok(list) if list.hosts.len() == hosts.len() => list,
            Ok(_) => {
                return warn!(
                    hosts = text,
                    "The new list of management servers is ambiguous, ignoring it"
                );
            }
            Err(error) => {
                return warn!(
                    error = chain(&error),
                    "The new list of management servers is wrong, ignoring it"
                );
            }
        };
        if self.agent.hosts.replace(list.clone()) {
            info!(hosts = %list, "New list of management servers");
            self.agent.preferred_checked = false;
        }
        let note = self.agent.registration.accept_hosts(&list);
        self.agent.keep(note);
    }

    fn shut_down(&mut self, shutdown: &ShutdownCommand) -> Answer {
        let reason = shutdown.reason.as_deref().unwrap_or("unknown");
        warn!(
            reason,
            detail = shutdown.detail.as_deref(),
            "The management server ends this agent"
        );
        if shutdown.remove_host
            && let Err(error) = self.agent.registration.forget_place().write()
        {
            return Answer::failure(chain(&error));
        }
        Answer::success()
    }

    /// SetupKeyStoreCommand and SetupCertificateCommand, beside the link: asking the system for its name takes time, and
    /// others may hold the files.
    fn work_on_keys(&mut self, command: Command, request: Request) {
        let keystore = self.agent.keystore.clone();
        let notify = self.notify.clone();
        self.helpers.spawn(async move {
            let answer = renewal::work(keystore, command).await;
            let _ = notify.send(Notice::Respond(request.response(vec![answer]))).await;
        });
    }

    // ---- repetitions, preferred server, migration ------------------------------------------------------------------

    fn repeat(&mut self, request: Request, interval: Duration) {
        self.repeating.insert(request.header.sequence, false);
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
        // The first that is not to be avoided: a server in maintenance still listens.
        let Some(preferred) = self.agent.hosts.first_usable() else {
            return;
        };
        let is_busy = self.agent.executor.in_progress() > 0;
        if preferred == self.host || is_busy || (shuffled && self.agent.preferred_checked) {
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
        if let Some(earlier) = self.probing.take() {
            earlier.abort();
        }
        self.probing = Some(self.helpers.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Ok(Ok(_)) = timeout(limit, TcpStream::connect((host.as_str(), port))).await {
                let _ = notify.send(Notice::Reachable { host, transferred }).await;
            } else {
                info!(host, port, "The other management server does not listen; staying here");
            }
        }));
    }

    fn notice(&mut self, notice: Notice) -> Option<Lost> {
        match notice {
            Notice::Repeat(request) => {
                // One at a time: a service slower than the interval must not fill the queue.
                let is_running = self.repeating.insert(request.header.sequence, true);
                if is_running != Some(true) {
                    self.execute(request, 0, true);
                }
                None
            }
            Notice::Respond(response) => {
                self.respond(response);
                None
            }
            Notice::Reachable { transferred: false, .. } if self.agent.executor.in_progress() > 0 => None,
            Notice::Reachable { host, transferred } => {
                self.agent.transferred = transferred;
                Some(Lost::Moving(host))
            }
        }
    }

    // ---- answers ---------------------------------------------------------------------------------------------------

    fn finished(&mut self, finished: Finished) {
        let header = finished.response.header;
        if finished.link == self.agent.link {
            if let Some(is_running) = self.repeating.get_mut(&header.sequence) {
                *is_running = false;
            }
            self.outgoing.push_back(Outgoing::Response(finished));
        } else if self.is_ready && !finished.repeats && header.agent_id == self.agent.registration.host_id {
            self.outgoing.push_back(Outgoing::Response(finished));
        } else {
            self.agent.hold(finished);
        }
    }

    fn respond(&mut self, response: Response) {
        let finished = Finished {
            link: self.agent.link,
            response,
            repeats: false,
        };
        self.outgoing.push_back(Outgoing::Response(finished));
    }

    fn response(&mut self, response: Response) -> Result<(), Lost> {
        let Some(answer) = response.answers.into_iter().next() else {
            return Ok(());
        };
        match answer.body {
            AnswerBody::Startup(startup) if answer.result => self.started(&startup),
            AnswerBody::Startup(_) => {
                return Err(Lost::Refused(
                    answer
                        .details
                        .unwrap_or_else(|| "StartupAnswer with result=false".into()),
                ));
            }
            AnswerBody::Ping(ping) => self.pinged(&ping),
            _ => {
                let sequence = response.header.sequence;
                let waiting = self.asked.remove(&sequence);
                if waiting.is_none_or(|waiting| waiting.send(answer).is_err()) {
                    debug!(sequence, "Answer that nobody waits for");
                }
            }
        }
        Ok(())
    }

    fn started(&mut self, startup: &StartupAnswer) {
        if self.ping_interval.is_some() {
            return; // a startup on a live link is answered twice (agent-protocol.md §4.3)
        }
        self.agent.startup_was_late = false;
        if startup.host_id > 0 {
            self.agent.registration.host_id = startup.host_id;
        }
        let interval = seconds(startup.ping_interval).unwrap_or(Duration::from_mins(1));
        self.ping_interval = Some(interval);
        self.next_ping = Instant::now() + interval;
        self.be_patient();
        info!(?interval, "The management server answers");
    }

    fn pinged(&mut self, answer: &PingAnswer) {
        if let Some(avoid) = &answer.avoid_ms_list {
            self.agent.hosts.avoid(avoid.clone());
        }
        if answer.send_startup {
            info!("The management server asks for the startup command again");
            self.send_startup();
        }
    }

    /// Something was heard: the next ping, in one interval, and then all that may be missed have time again.
    fn be_patient(&mut self) {
        if let Some(interval) = self.ping_interval {
            self.patience = Instant::now() + interval * (self.agent.config.timing.missed_pings + 1);
        }
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
        let (next, now) = (self.next_ping + interval, Instant::now());
        self.next_ping = if next > now { next } else { now + interval };
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
        if !self.is_ready || question.answer.is_closed() {
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
