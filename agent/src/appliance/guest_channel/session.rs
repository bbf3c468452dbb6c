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

use super::machine;
use super::message::{BadMessage, Base64, Counts, FromHost, Lines, PIECE, ToHost};
use super::work::Work;
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
    work: Work,
    counts: Counts,
    /// The machine goes down when this has run to its end.
    going_down: Option<AbortHandle>,
}

/// A piece of work that takes longer than an answer may.
enum Done {
    Checked(u64, Result<check::Report, String>),
    Collected(u64, Result<Vec<u8>, String>),
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
    pub(super) fn new(root: &Root, work: Work) -> Self {
        Self {
            root: root.clone(),
            work,
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
                    self.say(&ToHost::SessionShutdown);
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

    fn say(&mut self, message: &ToHost) {
        self.waiting.push_back(message.line());
    }

    /// Says what is different from what was said last of the same kind.
    fn news(&mut self, message: ToHost) {
        let is_kind = |said: &&mut ToHost| std::mem::discriminant(*said) == std::mem::discriminant(&message);
        let known = self.said.iter_mut().find(is_kind);
        if known.as_deref() == Some(&message) {
            return;
        }
        self.waiting.push_back(message.line());
        match known {
            Some(said) => *said = message,
            None => self.said.push(message),
        }
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
        self.say(&ToHost::Heartbeat {
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
        if self.ticks.is_multiple_of(HEARTBEAT) {
            self.news(machine::host_name(&self.agent.root));
            self.news(machine::interfaces(&self.agent.root));
            self.heartbeat();
        }
        if self.ticks.is_multiple_of(SELDOM) {
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
        self.say(&ToHost::Error {
            message: message.map(str::to_owned),
            reason,
        });
    }

    fn obey(&mut self, message: FromHost) {
        match message {
            FromHost::Refresh => self.say_all(),
            FromHost::ApiVersion => {}
            FromHost::Echo(members) => self.say(&ToHost::Echo(members)),
            FromHost::Shutdown {
                timeout,
                message,
                reboot,
            } => {
                let timeout = timeout.min(MAX_DELAY);
                let reason: String = message.chars().take(200).collect();
                info!(timeout, reboot, reason, "The host asks this machine to go down");
                self.agent.shut_down(Duration::from_secs(timeout), reboot);
                self.say(&ToHost::ShuttingDown { timeout, reboot });
            }
            FromHost::SetTime { milliseconds } => match set_time(milliseconds) {
                Ok(moved_ms) => {
                    info!(moved_ms, "The host has set the clock");
                    self.say(&ToHost::TimeSet { moved_ms });
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
                let (root, work) = (self.agent.root.clone(), self.agent.work);
                self.work
                    .spawn(async move { Done::Checked(id, work.check(&root).await) });
            }
            FromHost::CollectDiagnostics { id } => {
                let (root, work) = (self.agent.root.clone(), self.agent.work);
                self.work
                    .spawn(async move { Done::Collected(id, work.diagnostics(&root).await) });
            }
            FromHost::Unknown => self.agent.counts.unknown += 1,
        }
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Checked(id, Ok(report))) => self.say(&ToHost::CheckResult { id, report }),
            Ok(Done::Collected(id, Ok(bytes))) => {
                self.sending = Some(Sending {
                    id,
                    bytes,
                    sent: 0,
                    index: 0,
                });
            }
            Ok(Done::Checked(_, Err(reason))) => self.refuse(Some("run-check"), reason),
            Ok(Done::Collected(_, Err(reason))) => self.refuse(Some("collect-diagnostics"), reason),
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
        self.say(&message);
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
mod tests;
