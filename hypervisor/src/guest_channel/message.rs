//! What travels over the guest channel: one JSON object a line, its name in `__name__`; docs/guest-channel.md.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::plain::plain;

/// Letters of one text: of a detail, a problem, a name.
const MAX_TEXT: usize = 4096;
/// Letters of a bad line in an error.
const MAX_SHOWN: usize = 200;

/// What a guest says. Names that the manual does not have are [`Message::Unknown`].
#[derive(Clone, PartialEq, Debug)]
pub enum Message {
    /// How far its boot is.
    BootProgress(BootProgress),
    /// What its agent's link to the management server is like; `None` where there is no agent.
    AgentState(Option<Link>),
    /// It lives.
    Heartbeat(Heartbeat),
    /// Its host name.
    HostName(String),
    /// The version of its kernel.
    OsVersion(String),
    /// Its processors.
    NumberOfCpus(u32),
    /// `name-version` of its programs.
    Applications(Vec<String>),
    /// Interfaces that are up.
    NetworkInterfaces(Vec<Interface>),
    /// File systems on disk.
    DisksUsage(Vec<DiskUsage>),
    /// What it was sent in an echo.
    Echo(Map<String, Value>),
    /// The answer to [`Request::RunCheck`].
    CheckResult {
        /// The question's.
        id: u64,
        /// All that was found.
        report: Report,
    },
    /// A piece of the answer to [`Request::CollectDiagnostics`].
    Diagnostics {
        /// The question's.
        id: u64,
        /// 0, 1, 2, …
        index: u64,
        /// Text, in pieces that may end within a letter.
        data: Vec<u8>,
        /// There is no more.
        last: bool,
    },
    /// The answer to [`Request::SetTime`].
    TimeSet {
        /// Milliseconds by which its clock was moved.
        moved_ms: i64,
    },
    /// The answer to [`Request::Shutdown`].
    ShuttingDown {
        /// Seconds until then.
        timeout: u64,
        /// And up again.
        reboot: bool,
    },
    /// It goes down now.
    SessionShutdown,
    /// It could not read or obey a request.
    Error {
        /// The request's name, when it has one.
        message: Option<String>,
        /// Why, and what to send instead.
        reason: String,
    },
    /// Another one.
    Unknown {
        /// Its name.
        name: String,
    },
}

/// A line that is no message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a message of the guest channel ({why}): {line:?}")]
pub struct BadMessage {
    /// What is wrong with it.
    pub why: String,
    /// Its beginning.
    pub line: String,
}

/// What a host asks.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "__name__", rename_all = "kebab-case")]
pub enum Request {
    /// Say everything again.
    Refresh,
    /// Say this back.
    Echo(Map<String, Value>),
    /// Power off, or reboot.
    Shutdown {
        /// Seconds until then; at most 3600.
        timeout: u64,
        /// For the guest's log.
        message: String,
        /// And up again.
        reboot: bool,
    },
    /// Set the clock.
    SetTime {
        /// Milliseconds since 1970, in the years 2025 to 2099.
        milliseconds: u64,
    },
    /// Run all checks.
    RunCheck {
        /// Comes back with the answer.
        id: u64,
    },
    /// Send all that helps to find a fault.
    CollectDiagnostics {
        /// Comes back with the answers.
        id: u64,
    },
}

/// `boot-progress`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BootProgress {
    /// All is done.
    pub ready: bool,
    /// What stands in the way, with what to do.
    #[serde(default, deserialize_with = "some_text")]
    pub problem: Option<String>,
    /// All steps that have begun.
    pub steps: Vec<Step>,
}

/// A step of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Step {
    /// Such as `line`.
    #[serde(deserialize_with = "text")]
    pub step: String,
    /// How it is.
    pub outcome: Outcome,
    /// Milliseconds since the kernel started.
    pub at_ms: u64,
    /// For people.
    #[serde(default, deserialize_with = "text")]
    pub detail: String,
}

/// How a step of a boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It goes on.
    Running,
    /// It waits for somebody else.
    Waiting,
    /// It is over.
    Done,
    /// It has failed; it may be tried again.
    Failed,
}

/// `heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Heartbeat {
    /// MiB that could be used.
    #[serde(rename = "free-ram", deserialize_with = "number")]
    pub free_ram_mib: u64,
    /// Of the guest.
    #[serde(default, rename = "memory-stat")]
    pub memory: Memory,
    /// Milliseconds since the kernel started.
    #[serde(rename = "uptime-ms")]
    pub uptime_ms: u64,
    /// What did not get through.
    #[serde(default)]
    pub counts: Counts,
}

/// KiB, by oVirt's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What the kernel has.
    pub mem_total: u64,
    /// Used for nothing.
    pub mem_unused: u64,
    /// The same, with buffers and caches.
    pub mem_free: u64,
    /// What programs can have before anything is swapped.
    pub mem_available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Of it in use.
    pub swap_usage: u64,
}

/// What did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Requests with a name that the guest does not know.
    pub unknown: u64,
    /// Lines that are none.
    pub bad: u64,
    /// Messages of the guest that were not taken in time.
    pub dropped: u64,
}

/// One of `network-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Such as `eth0`.
    #[serde(deserialize_with = "text")]
    pub name: String,
    /// MAC address.
    #[serde(deserialize_with = "text")]
    pub hw: String,
    /// IPv4 addresses.
    #[serde(default, deserialize_with = "texts")]
    pub inet: Vec<String>,
    /// IPv6 addresses.
    #[serde(default, deserialize_with = "texts")]
    pub inet6: Vec<String>,
}

/// One of `disks-usage`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DiskUsage {
    /// Where it is mounted.
    #[serde(deserialize_with = "text")]
    pub path: String,
    /// Its type.
    #[serde(deserialize_with = "text")]
    pub fs: String,
    /// Bytes.
    #[serde(deserialize_with = "number")]
    pub total: u64,
    /// Bytes.
    #[serde(deserialize_with = "number")]
    pub used: u64,
}

/// `link` of `agent-state`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// How far it is.
    pub state: LinkState,
    /// `address:port`.
    #[serde(default, deserialize_with = "some_text")]
    pub server: Option<String>,
    /// Since when it is so; seconds since 1970.
    #[serde(default)]
    pub since: u64,
    /// Why the last attempt failed.
    #[serde(default, deserialize_with = "some_text")]
    pub last_error: Option<String>,
    /// When the next attempt begins; seconds since 1970.
    #[serde(default)]
    pub next_attempt: Option<u64>,
    /// Attempts so far.
    #[serde(default)]
    pub attempts: u64,
    /// Links that became ready so far.
    #[serde(default)]
    pub links: u64,
}

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Not there.
    Connecting,
    /// The server has not said that it is ready.
    Connected,
    /// It has.
    Ready,
    /// The agent has ended.
    Stopped,
}

/// `report` of `check-result`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Report {
    /// The worst of all findings.
    pub outcome: CheckOutcome,
    /// From the boot arguments.
    #[serde(default, deserialize_with = "some_text")]
    pub name: Option<String>,
    /// One or more for each check.
    pub findings: Vec<Finding>,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Finding {
    /// The check.
    #[serde(deserialize_with = "text")]
    pub check: String,
    /// How it is.
    pub outcome: CheckOutcome,
    /// What it is about.
    #[serde(default, deserialize_with = "some_text")]
    pub about: Option<String>,
    /// What was found.
    #[serde(deserialize_with = "text")]
    pub what: String,
    /// What to do.
    #[serde(default, deserialize_with = "some_text")]
    pub todo: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    /// Nothing to do.
    Ok,
    /// It works, but.
    Warning,
    /// It does not.
    Error,
}

impl Message {
    /// Reads a line, without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, BadMessage> {
        read(line).map_err(|error| {
            let line = String::from_utf8_lossy(line);
            BadMessage {
                why: plain(&error.to_string(), MAX_SHOWN),
                line: plain(&line, MAX_SHOWN),
            }
        })
    }
}

impl Request {
    /// As it is sent, with its newline.
    pub fn line(&self) -> String {
        // Maps with text for keys, numbers and text: all of it has a form in JSON.
        format!("{}\n", json!(self))
    }
}

fn read(line: &[u8]) -> Result<Message, serde_json::Error> {
    let mut message: Map<String, Value> = serde_json::from_slice(line)?;
    let Some(Value::String(name)) = message.remove("__name__") else {
        return Err(serde_json::Error::missing_field("__name__"));
    };
    Ok(match name.as_str() {
        "boot-progress" => Message::BootProgress(all(message)?),
        "agent-state" => Message::AgentState(member(&mut message, "link")?),
        "heartbeat" => Message::Heartbeat(all(message)?),
        "host-name" => Message::HostName(member_text(&mut message, "name")?),
        "os-version" => Message::OsVersion(member_text(&mut message, "version")?),
        "number-of-cpus" => Message::NumberOfCpus(member(&mut message, "count")?),
        "applications" => Message::Applications(texts(take(&mut message, "applications"))?),
        "network-interfaces" => Message::NetworkInterfaces(member(&mut message, "interfaces")?),
        "disks-usage" => Message::DisksUsage(member(&mut message, "disks")?),
        "echo" => Message::Echo(message),
        "check-result" => Message::CheckResult {
            id: member(&mut message, "id")?,
            report: member(&mut message, "report")?,
        },
        "diagnostics" => Message::Diagnostics {
            id: member(&mut message, "id")?,
            index: member(&mut message, "index")?,
            data: BASE64_STANDARD
                .decode(member::<String>(&mut message, "data")?)
                .map_err(serde_json::Error::custom)?,
            last: member(&mut message, "last")?,
        },
        "time-set" => Message::TimeSet {
            moved_ms: member(&mut message, "moved-ms")?,
        },
        "shutting-down" => Message::ShuttingDown {
            timeout: member(&mut message, "timeout")?,
            reboot: member(&mut message, "reboot")?,
        },
        "session-shutdown" => Message::SessionShutdown,
        "error" => Message::Error {
            message: some_text(take(&mut message, "message"))?,
            reason: member_text(&mut message, "reason")?,
        },
        _ => Message::Unknown {
            name: plain(&name, MAX_SHOWN),
        },
    })
}

fn all<T: DeserializeOwned>(message: Map<String, Value>) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(message))
}

fn take(message: &mut Map<String, Value>, name: &str) -> Value {
    message.remove(name).unwrap_or_default()
}

fn member<T: DeserializeOwned>(message: &mut Map<String, Value>, name: &str) -> Result<T, serde_json::Error> {
    let member = serde_json::from_value(take(message, name));
    member.map_err(|error| serde_json::Error::custom(format!("{name}: {error}")))
}

fn member_text(message: &mut Map<String, Value>, name: &str) -> Result<String, serde_json::Error> {
    member::<String>(message, name).map(|text| plain(&text, MAX_TEXT))
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| plain(&text, MAX_TEXT))
}

fn some_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| plain(&text, MAX_TEXT)))
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    Ok(texts.iter().map(|text| plain(text, MAX_TEXT)).collect())
}

/// A number, or text that is one: oVirt's agents send text.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_u64().ok_or_else(|| D::Error::custom("not a whole number")),
        Value::String(text) => text.parse().map_err(D::Error::custom),
        _ => Err(D::Error::custom("not a number")),
    }
}

#[cfg(test)]
mod tests;
