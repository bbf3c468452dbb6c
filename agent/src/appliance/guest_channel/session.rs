//! One host at the other end of the channel, until it goes.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, SystemTime};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use platform::exec::Cmd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::diagnostics::{self, PIECE};
use super::machine;
use super::message::{BadMessage, Base64, Counts, FromHost, Lines, ToHost};
use crate::appliance::check;
use crate::appliance::progress;
use crate::appliance::root::Root;

/// Between two looks at what may have changed.
const TICK: Duration = Duration::from_secs(1);
/// Between two heartbeats, in ticks; oVirt's agent has 5 s.
const HEARTBEAT: u64 = 5;
/// Between two looks at what changes seldom, in ticks.
const SELDOM: u64 = 60;
/// Messages that a host may send in one second; those beyond wait, and with them the host.
const RATE: u32 = 50;
/// Lines that wait for a host that does not read. With so many, nothing is read from it either.
const MAX_WAITING: usize = 32;
/// Lines that wait, from which on news are left out: the next ones say the same and more.
const MAX_NEWS: usize = 16;
/// For the last lines, before the machine goes down.
const FAREWELL: Duration = Duration::from_secs(1);
/// Checks and collections at one time.
const MAX_WORK: usize = 1;
/// Seconds that a shutdown may be put off.
const MAX_DELAY: u64 = 3600;
/// Milliseconds since 1970 between which a clock may be set: 2025 and 2100.
const TIMES: std::ops::Range<u64> = 1_735_689_600_000..4_102_444_800_000;

/// What outlives a host.
#[derive(Debug)]
pub(super) struct Agent {
    root: Root,
    counts: Counts,
    /// The machine goes down when this has run to its end.
    going_down: Option<AbortHandle>,
}

/// A piece of work that takes longer than an answer may.
enum Done {
    Checked(u64, check::Report),
    Collected(u64, Vec<u8>),
}

/// Diagnostics that are being sent.
struct Sending {
    id: u64,
    bytes: Vec<u8>,
    sent: usize,
    index: u64,
}

struct Session<'a> {
    agent: &'a mut Agent,
    lines: Lines,
    /// Read, not dealt with.
    arrived: VecDeque<Result<FromHost, BadMessage>>,
    /// To be sent; of the first, `written` bytes are.
    waiting: VecDeque<Vec<u8>>,
    written: usize,
    /// What was said last, to say it again only when it is different.
    said: Vec<ToHost>,
    ticks: u64,
    /// Messages that may still be dealt with in this second.
    budget: u32,
    work: JoinSet<Done>,
    sending: Option<Sending>,
}

impl Agent {
    pub(super) fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            counts: Counts::default(),
            going_down: None,
        }
    }

    /// Serves a host until it goes, or until `stop` completes.
    pub(super) async fn serve(
        &mut self,
        port: impl AsyncRead + AsyncWrite + Unpin,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> io::Result<()> {
        let mut session = Session {
            agent: self,
            lines: Lines::default(),
            arrived: VecDeque::new(),
            waiting: VecDeque::new(),
            written: 0,
            said: Vec::new(),
            ticks: 0,
            budget: RATE,
            work: JoinSet::new(),
            sending: None,
        };
        session.work(port, stop).await
    }

    fn shut_down(&mut self, delay: Duration, reboot: bool) {
        if let Some(earlier) = self.going_down.take() {
            earlier.abort();
        }
        // It does not depend on the host that asked: that may go at once.
        let task = tokio::spawn(async move {
            sleep(delay).await;
            let verb = if reboot { "reboot" } else { "poweroff" };
            if let Err(error) = Cmd::new("systemctl").args(["--no-block", verb]).run().await {
                let error = platform::logging::chain(&error).to_string();
                warn!(error, "Cannot go down");
            }
        });
        self.going_down = Some(task.abort_handle());
    }
}

impl Session<'_> {
    async fn work(
        &mut self,
        port: impl AsyncRead + AsyncWrite + Unpin,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(port);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; 4096];
        self.say_all();
        loop {
            self.deal_with_arrived();
            self.send_more();
            let may_read = self.arrived.is_empty();
            tokio::select! {
                read = reader.read(&mut buffer), if may_read => {
                    let length = read?;
                    if length == 0 {
                        return Ok(());
                    }
                    let arrived = &mut self.arrived;
                    self.lines.take(&buffer[..length], |message| arrived.push_back(message));
                }
                written = write_first(&mut writer, &self.waiting, self.written), if !self.waiting.is_empty() => {
                    self.wrote(written?);
                }
                _ = tick.tick() => self.tick(),
                Some(done) = self.work.join_next() => self.done(done),
                () = &mut *stop => {
                    self.say(ToHost::SessionShutdown);
                    let last = async {
                        while !self.waiting.is_empty() {
                            let length = write_first(&mut writer, &self.waiting, self.written).await?;
                            self.wrote(length);
                        }
                        io::Result::Ok(())
                    };
                    return timeout(FAREWELL, last).await.unwrap_or(Ok(()));
                }
            }
        }
    }

    fn wrote(&mut self, length: usize) {
        self.written += length;
        if self.waiting.front().is_some_and(|line| line.len() == self.written) {
            self.waiting.pop_front();
            self.written = 0;
        }
    }

    fn say(&mut self, message: ToHost) {
        self.waiting.push_back(message.line());
    }

    /// Says what is different from what was said last of the same kind.
    fn news(&mut self, message: ToHost) {
        let is_kind = |said: &&mut ToHost| std::mem::discriminant(*said) == std::mem::discriminant(&message);
        match self.said.iter_mut().find(is_kind) {
            Some(said) if *said == message => return,
            Some(said) => *said = message.clone(),
            None => self.said.push(message.clone()),
        }
        self.say(message);
    }

    fn say_all(&mut self) {
        self.said.clear();
        self.often();
        self.seldom();
        self.heartbeat();
    }

    fn often(&mut self) {
        self.news(machine::boot_progress(&self.agent.root));
        self.news(machine::agent_state(&self.agent.root));
    }

    fn seldom(&mut self) {
        let root = self.agent.root.clone();
        let facts = [
            machine::host_name,
            machine::os_version,
            machine::cpus,
            machine::applications,
            machine::interfaces,
            machine::disks,
        ];
        for fact in facts {
            self.news(fact(&root));
        }
    }

    fn heartbeat(&mut self) {
        let memory = machine::memory(&self.agent.root);
        self.say(ToHost::Heartbeat {
            free_ram: (memory.mem_available / 1024).to_string(),
            memory,
            api_version: 0,
            uptime_ms: progress::since_start(),
            counts: self.agent.counts,
        });
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.budget = RATE;
        if self.waiting.len() > MAX_NEWS {
            self.agent.counts.dropped += 1;
            return;
        }
        self.often();
        if self.ticks % HEARTBEAT == 0 {
            self.news(machine::host_name(&self.agent.root));
            self.news(machine::interfaces(&self.agent.root));
            self.heartbeat();
        }
        if self.ticks % SELDOM == 0 {
            self.seldom();
        }
    }

    fn deal_with_arrived(&mut self) {
        while self.budget > 0 && self.waiting.len() < MAX_WAITING {
            let Some(message) = self.arrived.pop_front() else {
                return;
            };
            self.budget -= 1;
            match message {
                Ok(message) => self.obey(message),
                Err(bad) => {
                    self.agent.counts.bad += 1;
                    let name = match &bad {
                        BadMessage::Text { name, .. } => name.clone(),
                        BadMessage::TooLong => None,
                    };
                    self.refuse(name.as_deref(), bad.to_string());
                }
            }
        }
    }

    fn refuse(&mut self, message: Option<&str>, reason: String) {
        self.say(ToHost::Error {
            message: message.map(str::to_owned),
            reason,
        });
    }

    fn obey(&mut self, message: FromHost) {
        match message {
            FromHost::Refresh => self.say_all(),
            FromHost::ApiVersion => {}
            FromHost::Echo(members) => self.say(ToHost::Echo(members)),
            FromHost::Shutdown {
                timeout,
                message,
                reboot,
            } => {
                let timeout = timeout.min(MAX_DELAY);
                let reason: String = message.chars().take(200).collect();
                info!(timeout, reboot, reason, "The host asks this machine to go down");
                self.agent.shut_down(Duration::from_secs(timeout), reboot);
                self.say(ToHost::ShuttingDown { timeout, reboot });
            }
            FromHost::SetTime { milliseconds } => match set_time(milliseconds) {
                Ok(moved_ms) => {
                    info!(moved_ms, "The host has set the clock");
                    self.say(ToHost::TimeSet { moved_ms });
                }
                Err(reason) => self.refuse(Some("set-time"), reason),
            },
            FromHost::RunCheck { .. } | FromHost::CollectDiagnostics { .. }
                if self.work.len() >= MAX_WORK || self.sending.is_some() =>
            {
                self.refuse(
                    None,
                    "a check or a collection is under way already; ask again after its answer".into(),
                );
            }
            FromHost::RunCheck { id } => {
                let root = self.agent.root.clone();
                self.work
                    .spawn(async move { Done::Checked(id, check::run(&root).await) });
            }
            FromHost::CollectDiagnostics { id } => {
                let root = self.agent.root.clone();
                self.work
                    .spawn(async move { Done::Collected(id, diagnostics::collect(&root).await) });
            }
            FromHost::Unknown => self.agent.counts.unknown += 1,
        }
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Checked(id, report)) => self.say(ToHost::CheckResult { id, report }),
            Ok(Done::Collected(id, bytes)) => {
                self.sending = Some(Sending {
                    id,
                    bytes,
                    sent: 0,
                    index: 0,
                });
            }
            Err(error) => self.refuse(None, format!("the work ended by itself: {error}")),
        }
    }

    /// One piece of the diagnostics whenever nothing else waits: a host that does not read gets no more.
    fn send_more(&mut self) {
        let Some(sending) = self.sending.as_mut().filter(|_| self.waiting.is_empty()) else {
            return;
        };
        let end = (sending.sent + PIECE).min(sending.bytes.len());
        let last = end == sending.bytes.len();
        let message = ToHost::Diagnostics {
            id: sending.id,
            index: sending.index,
            data: Base64(sending.bytes[sending.sent..end].to_vec()),
            last,
        };
        sending.sent = end;
        sending.index += 1;
        if last {
            self.sending = None;
        }
        self.say(message);
    }
}

async fn write_first(
    writer: &mut (impl AsyncWrite + Unpin),
    waiting: &VecDeque<Vec<u8>>,
    written: usize,
) -> io::Result<usize> {
    let first = waiting.front().map(|line| &line[written..]).unwrap_or_default();
    match writer.write(first).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        length => Ok(length),
    }
}

/// Sets the clock; answers by how many milliseconds it moved.
fn set_time(milliseconds: u64) -> Result<i64, String> {
    if !TIMES.contains(&milliseconds) {
        return Err(format!(
            "{milliseconds} ms since 1970 is not between the years 2025 and 2100"
        ));
    }
    let before = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let time = TimeSpec::from_duration(Duration::from_millis(milliseconds));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|error| format!("the clock cannot be set: {error}"))?;
    let before = i64::try_from(before.as_millis()).unwrap_or(i64::MAX);
    Ok(i64::try_from(milliseconds).unwrap_or(i64::MAX).saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::appliance::progress::{Outcome, Progress, Step};
    use crate::appliance::root::RUN;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A host at the other end of a socket.
    struct Host {
        stream: BufReader<UnixStream>,
        root: Root,
        session: JoinHandle<io::Result<()>>,
        stop: Option<oneshot::Sender<()>>,
        _directory: tempfile::TempDir,
    }

    impl Host {
        fn connect() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = Root::new(directory.path());
            std::fs::create_dir_all(root.path(RUN)).unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut agent = Agent::new(&root);
            let (stop, stopped) = oneshot::channel();
            let session = tokio::spawn(async move {
                let mut stop = std::pin::pin!(async {
                    if stopped.await.is_err() {
                        pending::<()>().await;
                    }
                });
                agent.serve(theirs, &mut stop).await
            });
            Self {
                stream: BufReader::new(ours),
                root,
                session,
                stop: Some(stop),
                _directory: directory,
            }
        }

        async fn send(&mut self, text: impl AsRef<[u8]>) {
            self.stream.get_mut().write_all(text.as_ref()).await.unwrap();
        }

        /// The next message of this name.
        async fn next(&mut self, name: &str) -> Value {
            let found = async {
                loop {
                    let mut line = String::new();
                    assert_ne!(self.stream.read_line(&mut line).await.unwrap(), 0, "the agent has gone");
                    let message: Value = serde_json::from_str(&line).unwrap();
                    if message["__name__"] == name {
                        return message;
                    }
                }
            };
            timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no {name}"))
        }
    }

    #[tokio::test]
    async fn a_host_hears_everything_at_once_and_then_what_changes() {
        let mut host = Host::connect();
        let progress = host.next("boot-progress").await;
        assert_eq!(
            progress,
            json!({"__name__": "boot-progress", "ready": false, "steps": []})
        );
        assert_eq!(host.next("agent-state").await["link"], Value::Null);
        for name in [
            "host-name",
            "os-version",
            "number-of-cpus",
            "applications",
            "network-interfaces",
            "disks-usage",
        ] {
            host.next(name).await;
        }
        host.next("heartbeat").await;

        let mut boot = Progress::new(&host.root, "boot");
        boot.set(Step::Line, Outcome::Waiting, "no boot arguments on any channel");
        let waits = host.next("boot-progress").await;
        assert_eq!(waits["problem"], "boot arguments: no boot arguments on any channel");
        assert_eq!(waits["steps"][0]["step"], "line");
        assert_eq!(waits["steps"][0]["outcome"], "waiting");
        host.next("heartbeat").await;
    }

    #[tokio::test]
    async fn every_question_is_answered_and_what_is_unknown_is_counted() {
        let mut host = Host::connect();
        host.send("{\"__name__\": \"echo\", \"n\": 7}\nnonsense\n{\"__name__\": \"hibernate\"}\n")
            .await;
        assert_eq!(host.next("echo").await["n"], 7);
        assert!(
            host.next("error").await["reason"]
                .as_str()
                .unwrap()
                .contains("not a message")
        );
        host.send("{\"__name__\": \"set-time\", \"milliseconds\": 1}\n").await;
        let refused = host.next("error").await;
        assert_eq!(refused["message"], "set-time");
        assert_eq!(
            refused["reason"],
            "1 ms since 1970 is not between the years 2025 and 2100"
        );
        assert_eq!(
            host.next("heartbeat").await["counts"],
            json!({"unknown": 1, "bad": 1, "dropped": 0})
        );
        host.send("{\"__name__\": \"run-check\", \"id\": 5}\n{\"__name__\": \"run-check\", \"id\": 6}\n")
            .await;
        assert!(
            host.next("error").await["reason"]
                .as_str()
                .unwrap()
                .contains("under way")
        );
        let result = host.next("check-result").await;
        assert_eq!(
            (&result["id"], &result["report"]["outcome"]),
            (&json!(5), &json!("error"))
        );
    }

    #[tokio::test]
    async fn diagnostics_come_in_pieces_that_fit_together() {
        let mut host = Host::connect();
        host.send("{\"__name__\": \"collect-diagnostics\", \"id\": 9}\n").await;
        let mut text = Vec::new();
        for index in 0.. {
            let piece = host.next("diagnostics").await;
            assert_eq!((&piece["id"], &piece["index"]), (&json!(9), &json!(index)));
            use base64::Engine as _;
            let data = base64::prelude::BASE64_STANDARD
                .decode(piece["data"].as_str().unwrap())
                .unwrap();
            text.extend(data);
            if piece["last"] == true {
                break;
            }
        }
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("==== agent check\n") && text.contains("==== ip rule\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_host_that_asks_and_does_not_read_costs_no_memory_and_loses_nothing() {
        let mut host = Host::connect();
        // More questions than fit into both sockets: the agent must stop reading.
        let question = format!("{{\"__name__\": \"echo\", \"n\": \"{}\"}}\n", "x".repeat(20_000));
        let flood = async {
            let mut sent = 0;
            while timeout(
                Duration::from_millis(500),
                host.stream.get_mut().write_all(question.as_bytes()),
            )
            .await
            .is_ok()
            {
                sent += 1;
            }
            sent
        };
        let sent = timeout(LIMIT, flood).await.expect("the agent reads without end");
        assert!(sent > 1);
        assert!(!host.session.is_finished());
        for _ in 0..sent {
            host.next("echo").await;
        }
    }

    #[tokio::test]
    async fn a_host_that_goes_ends_its_session_and_a_machine_that_goes_says_so() {
        let mut host = Host::connect();
        host.next("heartbeat").await;
        host.stop.take().unwrap().send(()).unwrap();
        host.next("session-shutdown").await;
        timeout(LIMIT, &mut host.session).await.unwrap().unwrap().unwrap();

        let Host {
            stream,
            session,
            stop: _stop,
            ..
        } = Host::connect();
        drop(stream);
        let _gone = timeout(LIMIT, session)
            .await
            .expect("the session goes on without a host")
            .unwrap();
    }
}
