//! The host's end of the guest channel (docs/guest-channel.md): what a VM tells before it has a network, and what a host may
//! ask. Written from the manual, not from the agent's own types: what both agree on is what the manual says.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Booted;

/// The name of the port; give it to a VM with [`Vm::port`](super::Vm::port).
pub const PORT: &str = "org.sysvm.agent.0";
/// For an answer that takes no work, of a guest under emulation on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// For checks and diagnostics.
const WORK_LIMIT: Duration = Duration::from_mins(2);
/// Bytes of a line, with its newline.
const MAX_LINE: u64 = 32 * 1024;
/// Messages that are kept while one of another name is waited for.
const MAX_KEPT: usize = 256;
/// Bytes of diagnostics.
const MAX_DIAGNOSTICS: usize = 4 * 1024 * 1024;

/// A host at the other end of a VM's channel.
#[derive(Debug)]
pub struct GuestChannel {
    stream: BufReader<UnixStream>,
    /// Messages that came while another was waited for.
    kept: VecDeque<Map<String, Value>>,
}

/// `boot-progress`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BootProgress {
    /// All is done.
    pub ready: bool,
    /// What stands in the way.
    pub problem: Option<String>,
    /// All steps that have begun.
    pub steps: Vec<Step>,
}

/// A step of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Step {
    /// Such as `line`.
    pub step: String,
    /// `running`, `waiting`, `done` or `failed`.
    pub outcome: String,
    /// Milliseconds since the kernel started.
    pub at_ms: u64,
    /// For people.
    pub detail: String,
}

/// `heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Heartbeat {
    /// MiB, as text.
    #[serde(rename = "free-ram")]
    pub free_ram: String,
    /// KiB, by oVirt's names.
    #[serde(rename = "memory-stat")]
    pub memory: Map<String, Value>,
    /// Milliseconds since the kernel started.
    #[serde(rename = "uptime-ms")]
    pub uptime_ms: u64,
    /// `unknown`, `bad`, `dropped`.
    pub counts: Map<String, Value>,
}

/// One of `network-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// MAC address.
    pub hw: String,
    /// IPv4 addresses.
    pub inet: Vec<String>,
    /// IPv6 addresses.
    pub inet6: Vec<String>,
}

/// The link to the management server, of `agent-state`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// `connecting`, `connected`, `ready` or `stopped`.
    pub state: String,
    /// `address:port`.
    pub server: Option<String>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// The report of `check-result`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Report {
    /// `ok`, `warning` or `error`.
    pub outcome: String,
    /// From the boot arguments.
    pub name: Option<String>,
    /// One or more for each check.
    pub findings: Vec<Finding>,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Finding {
    /// The check.
    pub check: String,
    /// `ok`, `warning` or `error`.
    pub outcome: String,
    /// What it is about.
    pub about: Option<String>,
    /// What was found.
    pub what: String,
    /// What to do.
    pub todo: Option<String>,
}

impl GuestChannel {
    /// Connects to the channel of a VM. Nobody may have answered yet: the guest may still start.
    ///
    /// # Errors
    /// The VM has no such port.
    pub async fn connect(vm: &Booted) -> anyhow::Result<Self> {
        Ok(Self {
            stream: BufReader::new(vm.port(PORT).await?),
            kept: VecDeque::new(),
        })
    }

    /// The next message of a name, as it is; those of other names are kept for later.
    ///
    /// # Errors
    /// None comes within `limit`, or what comes is no message.
    pub async fn next(&mut self, name: &str, limit: Duration) -> anyhow::Result<Map<String, Value>> {
        let is_it = |message: &Map<String, Value>| message.get("__name__").is_some_and(|found| *found == name);
        if let Some(place) = self.kept.iter().position(is_it) {
            return self.kept.remove(place).context("it was there");
        }
        let found = async {
            loop {
                let message = self.line().await?;
                if is_it(&message) {
                    return anyhow::Ok(message);
                }
                if self.kept.len() == MAX_KEPT {
                    self.kept.pop_front();
                }
                self.kept.push_back(message);
            }
        };
        timeout(limit, found)
            .await
            .with_context(|| format!("the guest has not said {name} within {limit:?}"))?
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
                let progress: BootProgress = typed(self.next("boot-progress", limit).await?)?;
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
        typed(self.next("heartbeat", ANSWER_LIMIT).await?)
    }

    /// The interfaces, when they are told next.
    ///
    /// # Errors
    /// They are not.
    pub async fn interfaces(&mut self) -> anyhow::Result<Vec<Interface>> {
        let mut message = self.next("network-interfaces", ANSWER_LIMIT).await?;
        Ok(serde_json::from_value(message["interfaces"].take())?)
    }

    /// The state of the agent's link, when it is told next; `None` where there is no agent.
    ///
    /// # Errors
    /// It is not.
    pub async fn link(&mut self, limit: Duration) -> anyhow::Result<Option<Link>> {
        let mut message = self.next("agent-state", limit).await?;
        Ok(serde_json::from_value(message["link"].take())?)
    }

    /// Asks the guest to say everything it knows.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn refresh(&mut self) -> anyhow::Result<()> {
        self.send(json!({"__name__": "refresh"})).await
    }

    /// Runs all checks.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn run_check(&mut self, id: u64) -> anyhow::Result<Report> {
        self.send(json!({"__name__": "run-check", "id": id})).await?;
        let mut answer = self.next("check-result", WORK_LIMIT).await?;
        ensure!(answer["id"] == id, "an answer to another question: {answer:?}");
        Ok(serde_json::from_value(answer["report"].take())?)
    }

    /// All that helps to find a fault, as text.
    ///
    /// # Errors
    /// A piece is missing.
    pub async fn diagnostics(&mut self, id: u64) -> anyhow::Result<String> {
        self.send(json!({"__name__": "collect-diagnostics", "id": id})).await?;
        let mut bytes = Vec::new();
        for index in 0_u64.. {
            let piece = self.next("diagnostics", WORK_LIMIT).await?;
            ensure!(
                piece["id"] == id && piece["index"] == index,
                "a piece is missing before {piece:?}"
            );
            bytes.extend(BASE64_STANDARD.decode(piece["data"].as_str().context("no data")?)?);
            ensure!(
                bytes.len() <= MAX_DIAGNOSTICS,
                "more than {MAX_DIAGNOSTICS} bytes of diagnostics"
            );
            if piece["last"] == true {
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
        self.send(json!({"__name__": "set-time", "milliseconds": milliseconds}))
            .await?;
        let answer = self.next("time-set", ANSWER_LIMIT).await?;
        answer["moved-ms"].as_i64().context("no number")
    }

    /// Asks the guest to power off, and waits until it says that it will.
    ///
    /// # Errors
    /// It does not.
    pub async fn shut_down(&mut self) -> anyhow::Result<()> {
        let request = json!({"__name__": "shutdown", "timeout": "0", "message": "asked by a test", "reboot": "false"});
        self.send(request).await?;
        self.next("shutting-down", ANSWER_LIMIT).await.map(drop)
    }

    /// Sends any message.
    ///
    /// # Errors
    /// The guest does not take it.
    pub async fn send(&mut self, message: Value) -> anyhow::Result<()> {
        self.send_bytes(format!("{message}\n").as_bytes()).await
    }

    /// Sends what may be no message.
    ///
    /// # Errors
    /// The guest does not take it.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let sent = timeout(ANSWER_LIMIT, self.stream.get_mut().write_all(bytes)).await;
        Ok(sent.context("the guest does not read its channel")??)
    }

    async fn line(&mut self) -> anyhow::Result<Map<String, Value>> {
        let mut line = Vec::new();
        (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        ensure!(!line.is_empty(), "the channel was closed: QEMU has ended");
        ensure!(
            line.ends_with(b"\n"),
            "a line of the guest has no end within {MAX_LINE} bytes"
        );
        serde_json::from_slice(&line).with_context(|| format!("not a message: {}", String::from_utf8_lossy(&line)))
    }
}

fn typed<T: DeserializeOwned>(message: Map<String, Value>) -> anyhow::Result<T> {
    Ok(serde_json::from_value(Value::Object(message))?)
}
