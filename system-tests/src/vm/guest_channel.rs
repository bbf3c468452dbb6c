//! The host's end of a VM's guest channel (docs/guest-channel.md), for tests: waits for one message after the other.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hypervisor::guest_channel::{BootProgress, Connection, Heartbeat, Message, Report, Request};
use hypervisor::machine::GUEST_CHANNEL_PORT;
use tokio::time::timeout;

use super::Booted;

/// The name of the port; give it to a VM with [`Vm::port`](super::Vm::port).
pub const PORT: &str = GUEST_CHANNEL_PORT;
/// For an answer that takes no work, of a guest under emulation on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// For checks and diagnostics.
const WORK_LIMIT: Duration = Duration::from_mins(2);
/// Messages that are kept while another is waited for.
const MAX_KEPT: usize = 256;
/// Bytes of diagnostics.
const MAX_DIAGNOSTICS: usize = 4 * 1024 * 1024;

/// A host at the other end of a VM's channel.
#[derive(Debug)]
pub struct GuestChannel {
    connection: Connection,
    /// Messages that came while another was waited for.
    kept: VecDeque<Message>,
}

impl GuestChannel {
    /// Connects to the channel of a VM. Nobody may have answered yet: the guest may still start.
    ///
    /// # Errors
    /// The VM has no such port.
    pub async fn connect(vm: &Booted) -> anyhow::Result<Self> {
        Ok(Self {
            connection: Connection::open(&vm.socket(PORT)?).await?,
            kept: VecDeque::new(),
        })
    }

    /// The next message that `find` finds something in; those before it are kept for later.
    ///
    /// # Errors
    /// None comes within `limit`, or what comes is no message.
    pub async fn next<T>(&mut self, limit: Duration, find: impl Fn(&Message) -> Option<T>) -> anyhow::Result<T> {
        if let Some((place, found)) = self
            .kept
            .iter()
            .enumerate()
            .find_map(|(place, it)| Some((place, find(it)?)))
        {
            self.kept.remove(place);
            return Ok(found);
        }
        let found = async {
            loop {
                let message = self.connection.next().await??;
                if let Some(found) = find(&message) {
                    return anyhow::Ok(found);
                }
                if self.kept.len() == MAX_KEPT {
                    self.kept.pop_front();
                }
                self.kept.push_back(message);
            }
        };
        let found = timeout(limit, found).await;
        found.with_context(|| format!("the guest has not said what was waited for within {limit:?}"))?
    }

    /// Drops everything that came and was not asked for.
    pub fn forget(&mut self) {
        self.kept.clear();
    }

    /// Waits until the boot is as wanted; how it is then.
    ///
    /// # Errors
    /// It is not within `limit`; the error says how it was last.
    pub async fn boot_until(
        &mut self,
        limit: Duration,
        is_wanted: impl Fn(&BootProgress) -> bool,
    ) -> anyhow::Result<BootProgress> {
        let mut last = None;
        let reached = timeout(limit, async {
            loop {
                let progress = self.next(limit, |message| match message {
                    Message::BootProgress(progress) => Some(progress.clone()),
                    _ => None,
                });
                let progress = progress.await?;
                if is_wanted(&progress) {
                    return anyhow::Ok(progress);
                }
                last = Some(progress);
            }
        });
        match reached.await {
            Ok(Ok(progress)) => Ok(progress),
            Ok(Err(error)) => Err(error.context(format!("the boot was last like this: {last:?}"))),
            Err(_) => bail!("the boot is not as wanted within {limit:?}; it was last like this: {last:?}"),
        }
    }

    /// The next heartbeat.
    ///
    /// # Errors
    /// There is none.
    pub async fn heartbeat(&mut self) -> anyhow::Result<Heartbeat> {
        let beat = |message: &Message| match message {
            Message::Heartbeat(beat) => Some(beat.clone()),
            _ => None,
        };
        self.next(ANSWER_LIMIT, beat).await
    }

    /// Runs all checks.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn run_check(&mut self, id: u64) -> anyhow::Result<Report> {
        self.send(&Request::RunCheck { id }).await?;
        let result = |message: &Message| match message {
            Message::CheckResult { id, report } => Some((*id, report.clone())),
            _ => None,
        };
        let (answered, report) = self.next(WORK_LIMIT, result).await?;
        ensure!(answered == id, "an answer to question {answered}, not {id}");
        Ok(report)
    }

    /// All that helps to find a fault, as text.
    ///
    /// # Errors
    /// A piece is missing.
    pub async fn diagnostics(&mut self, id: u64) -> anyhow::Result<String> {
        self.send(&Request::CollectDiagnostics { id }).await?;
        let mut bytes = Vec::new();
        for wanted in 0_u64.. {
            let piece = |message: &Message| match message {
                Message::Diagnostics { id, index, data, last } => Some((*id, *index, data.clone(), *last)),
                _ => None,
            };
            let (answered, index, data, is_last) = self.next(WORK_LIMIT, piece).await?;
            ensure!(
                (answered, index) == (id, wanted),
                "a piece is missing before piece {index} of answer {answered}"
            );
            bytes.extend(data);
            ensure!(
                bytes.len() <= MAX_DIAGNOSTICS,
                "more than {MAX_DIAGNOSTICS} bytes of diagnostics"
            );
            if is_last {
                break;
            }
        }
        Ok(String::from_utf8(bytes)?)
    }

    /// Sets the guest's clock; by how many milliseconds it moved.
    ///
    /// # Errors
    /// The guest refuses.
    pub async fn set_time(&mut self, milliseconds: u64) -> anyhow::Result<i64> {
        self.send(&Request::SetTime { milliseconds }).await?;
        let moved = |message: &Message| match message {
            Message::TimeSet { moved_ms } => Some(*moved_ms),
            _ => None,
        };
        self.next(ANSWER_LIMIT, moved).await
    }

    /// Asks the guest to power off, and waits until it says that it will.
    ///
    /// # Errors
    /// It does not.
    pub async fn shut_down(&mut self) -> anyhow::Result<()> {
        // As oVirt sends it: numbers and truth values as text.
        let request = "{\"__name__\": \"shutdown\", \"timeout\": \"0\", \"message\": \"asked by a test\", \
                       \"reboot\": \"false\"}\n";
        self.send_bytes(request.as_bytes()).await?;
        let will = |message: &Message| matches!(message, Message::ShuttingDown { .. }).then_some(());
        self.next(ANSWER_LIMIT, will).await
    }

    /// Asks the guest.
    ///
    /// # Errors
    /// It does not read.
    pub async fn send(&mut self, request: &Request) -> anyhow::Result<()> {
        Ok(self.connection.send(request).await?)
    }

    /// Sends what may be no message.
    ///
    /// # Errors
    /// The guest does not take it.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.connection.send_bytes(bytes).await?)
    }
}
