//! What travels over the guest channel: one JSON object a line, its name in `__name__`. Names and members are those of
//! oVirt's guest agent where there is one for the matter (ovirt-guest-agent/OVirtAgentLogic.py, VirtIoChannel.py); all
//! others are ours. Described for people in docs/guest-channel.md.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::appliance::check::Report;
use crate::appliance::progress::Entry;
use crate::link_status::LinkStatus;

/// Bytes of one line with its newline, in either direction. Not more than the kernel gives to the host in one piece
/// (virtio_console.c: 32 KiB): a line is sent whole or not at all, so a host that connects never sees half of one.
pub const MAX_LINE: usize = 32 * 1024;

/// Bytes in one piece of diagnostics: as base64, with all around it, less than a line may have.
pub const PIECE: usize = 16 * 1024;

/// What hosts send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "__name__", rename_all = "kebab-case")]
pub enum FromHost {
    /// Say all you know. oVirt sends `apiVersion` along; there is only one version.
    Refresh,
    /// oVirt tells which version it speaks; there is only one.
    ApiVersion,
    /// Send me the same.
    Echo(serde_json::Map<String, serde_json::Value>),
    /// Power off, or reboot.
    Shutdown {
        /// Seconds until then. oVirt sends text.
        #[serde(default, deserialize_with = "number")]
        timeout: u64,
        /// For the log.
        #[serde(default)]
        message: String,
        /// Start again. oVirt sends text.
        #[serde(default, deserialize_with = "flag")]
        reboot: bool,
    },
    /// Set the clock.
    SetTime {
        /// Milliseconds since 1970.
        milliseconds: u64,
    },
    /// Run all checks; the answer is [`ToHost::CheckResult`].
    RunCheck {
        /// Comes back with the answer.
        #[serde(default)]
        id: u64,
    },
    /// Send all that helps to find a fault; answered by many [`ToHost::Diagnostics`].
    CollectDiagnostics {
        /// Comes back with the answers.
        #[serde(default)]
        id: u64,
    },
    /// Something that this agent does not know: counted, not an error, so that newer hosts can ask.
    #[serde(other)]
    Unknown,
}

/// What the guest sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "__name__", rename_all = "kebab-case")]
pub enum ToHost {
    /// Every few seconds: the guest lives.
    Heartbeat {
        /// MiB that could be used, as text.
        #[serde(rename = "free-ram")]
        free_ram: String,
        /// KiB, by oVirt's names.
        #[serde(rename = "memory-stat")]
        memory: Memory,
        /// oVirt's: versions are not used.
        #[serde(rename = "apiVersion")]
        api_version: u32,
        /// Milliseconds since the kernel started.
        #[serde(rename = "uptime-ms")]
        uptime_ms: u64,
        /// What was not understood, refused or left out since the agent started.
        counts: Counts,
    },
    /// The host name.
    HostName {
        /// As `hostname` prints it.
        name: String,
    },
    /// The kernel.
    OsVersion {
        /// As `uname -r` prints it.
        version: String,
    },
    /// Network interfaces that are up, without loopback.
    NetworkInterfaces {
        /// In order of their names.
        interfaces: Vec<Interface>,
    },
    /// Our programs.
    Applications {
        /// `name-version`.
        applications: Vec<String>,
    },
    /// File systems on disk.
    DisksUsage {
        /// One each.
        disks: Vec<Disk>,
    },
    /// Processors.
    NumberOfCpus {
        /// That are on.
        count: usize,
    },
    /// The machine goes down now.
    SessionShutdown,
    /// What the host sent in an echo.
    Echo(serde_json::Map<String, serde_json::Value>),
    /// How far the boot is, at every change.
    BootProgress {
        /// All is done.
        ready: bool,
        /// What stands in the way, with what to do.
        #[serde(skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
        /// All steps that have begun.
        steps: Vec<Entry>,
    },
    /// What the link to the management server is like, at every change; `None` where there is no agent (yet).
    AgentState {
        /// As in `/run/cloud/agent.json`.
        link: Option<LinkStatus>,
    },
    /// The answer to [`FromHost::RunCheck`].
    CheckResult {
        /// The question's.
        id: u64,
        /// All that was found.
        report: Report,
    },
    /// The answer to [`FromHost::SetTime`].
    TimeSet {
        /// Milliseconds by which the clock was moved.
        #[serde(rename = "moved-ms")]
        moved_ms: i64,
    },
    /// The answer to [`FromHost::Shutdown`].
    ShuttingDown {
        /// Seconds until then.
        timeout: u64,
        /// And up again.
        reboot: bool,
    },
    /// A piece of the answer to [`FromHost::CollectDiagnostics`].
    Diagnostics {
        /// The question's.
        id: u64,
        /// 0, 1, 2, …
        index: u64,
        /// The piece, as base64.
        data: Base64,
        /// There is no more.
        last: bool,
    },
    /// A message could not be read, or not be obeyed.
    Error {
        /// The message's name, when it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Why, and what to send instead.
        reason: String,
    },
}

/// KiB, by oVirt's names (GuestAgentLinux2.py).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    /// What the kernel has.
    pub mem_total: u64,
    /// Used for nothing.
    pub mem_unused: u64,
    /// The same, with buffers and caches.
    pub mem_free: u64,
    /// What programs can have before anything is swapped. Ours; oVirt has no name for it.
    pub mem_available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Of it in use.
    pub swap_usage: u64,
}

/// What did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Messages with a name that this agent does not know.
    pub unknown: u64,
    /// Lines that are no message, or too long.
    pub bad: u64,
    /// Messages of ours that the host did not take in time.
    pub dropped: u64,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// Its MAC address.
    pub hw: String,
    /// IPv4 addresses.
    pub inet: Vec<String>,
    /// IPv6 addresses.
    pub inet6: Vec<String>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Where it is mounted.
    pub path: String,
    /// Its type.
    pub fs: String,
    /// Bytes, as text.
    pub total: String,
    /// Bytes, as text.
    pub used: String,
}

/// Bytes, written as base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl ToHost {
    /// The line for it. One that would be too long becomes an error that says so.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("plain data");
        if line.len() >= MAX_LINE {
            let error = Self::Error {
                message: None,
                reason: format!(
                    "an answer of {} bytes is longer than a line may be ({MAX_LINE})",
                    line.len()
                ),
            };
            line = serde_json::to_vec(&error).expect("plain data");
        }
        line.push(b'\n');
        line
    }
}

/// Why a line is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// It has no end, for too long.
    #[error("a line of more than {MAX_LINE} bytes was thrown away")]
    TooLong,
    /// It is no JSON object with a name, or its members are not what they should be.
    #[error("not a message, which is one JSON object in a line such as {{\"__name__\": \"refresh\"}}: {reason}")]
    Text {
        /// Its name, when it has one.
        name: Option<String>,
        /// What is wrong.
        reason: String,
    },
}

impl FromHost {
    /// Reads a line.
    ///
    /// # Errors
    /// It is no message.
    pub fn parse(line: &[u8]) -> Result<Self, BadMessage> {
        serde_json::from_slice(line).map_err(|error| {
            let name = serde_json::from_slice::<serde_json::Value>(line).ok();
            let name = name.and_then(|value| Some(value.get("__name__")?.as_str()?.chars().take(64).collect()));
            let reason = error.to_string();
            BadMessage::Text { name, reason }
        })
    }
}

/// Cuts what arrives into lines, and holds at most one.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// In a line that is too long already.
    is_skipping: bool,
}

impl Lines {
    /// Takes bytes, and gives each message or problem that is whole with them. Empty lines are none.
    pub fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(Result<FromHost, BadMessage>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.buffer);
            if std::mem::take(&mut self.is_skipping) {
                each(Err(BadMessage::TooLong));
            } else if !line.trim_ascii().is_empty() {
                each(FromHost::parse(&line));
            }
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_skipping || self.buffer.len() + bytes.len() >= MAX_LINE {
            self.is_skipping = true;
            self.buffer = Vec::new();
        } else {
            self.buffer.extend_from_slice(bytes);
        }
    }
}

/// A number, or text that is one.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text
            .trim()
            .parse()
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is not a number of seconds"))),
    }
}

/// A truth value, or text that is one in any case: Python writes `True`.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Flag(bool),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Flag(flag) => Ok(flag),
        Either::Text(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Either::Text(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Either::Text(text) => Err(serde::de::Error::custom(format!("{text:?} is neither true nor false"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> FromHost {
        FromHost::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn what_ovirt_sends_is_understood() {
        assert_eq!(parse(r#"{"__name__": "refresh", "apiVersion": 3}"#), FromHost::Refresh);
        assert_eq!(
            parse(r#"{"apiVersion": 0, "__name__": "api-version"}"#),
            FromHost::ApiVersion
        );
        let shutdown = r#"{"__name__": "shutdown", "timeout": "30", "message": "maintenance", "reboot": "False"}"#;
        let expected = FromHost::Shutdown {
            timeout: 30,
            message: "maintenance".into(),
            reboot: false,
        };
        assert_eq!(parse(shutdown), expected);
        let now = FromHost::Shutdown {
            timeout: 0,
            message: String::new(),
            reboot: true,
        };
        assert_eq!(parse(r#"{"__name__": "shutdown", "reboot": true}"#), now);
        for unknown in ["lock-screen", "login", "hibernate", "lifecycle-event"] {
            assert_eq!(
                parse(&format!(r#"{{"__name__": "{unknown}", "x": []}}"#)),
                FromHost::Unknown
            );
        }
    }

    #[test]
    fn an_echo_keeps_its_members() {
        let FromHost::Echo(members) = parse(r#"{"__name__": "echo", "a": 1, "b": ["x"]}"#) else {
            panic!("no echo");
        };
        let line = String::from_utf8(ToHost::Echo(members).line()).unwrap();
        assert_eq!(line, "{\"__name__\":\"echo\",\"a\":1,\"b\":[\"x\"]}\n");
    }

    #[test]
    fn a_bad_message_is_named_with_what_is_wrong() {
        let error = |line: &str| FromHost::parse(line.as_bytes()).unwrap_err().to_string();
        assert!(
            error(r#"{"__name__": "shutdown", "timeout": "soon"}"#).contains("\"soon\" is not a number of seconds")
        );
        assert!(error(r#"{"__name__": "set-time"}"#).contains("missing field `milliseconds`"));
        assert!(error("hello").contains("\"__name__\": \"refresh\""));
        let named = FromHost::parse(br#"{"__name__": "set-time"}"#).unwrap_err();
        assert!(matches!(named, BadMessage::Text { name: Some(name), .. } if name == "set-time"));
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_the_next_one_counts() {
        let mut lines = Lines::default();
        let mut got = Vec::new();
        for _ in 0..100 {
            lines.take(&[b'x'; 1000], |message| got.push(message));
            assert!(lines.buffer.len() < MAX_LINE);
        }
        lines.take(b"\n\n{\"__name__\":\"refresh\"}\n{", |message| got.push(message));
        assert_eq!(got, [Err(BadMessage::TooLong), Ok(FromHost::Refresh)]);
        assert_eq!(lines.buffer, b"{");
    }

    #[test]
    fn no_line_of_ours_is_longer_than_the_kernel_passes_on_whole() {
        let reason = "x".repeat(MAX_LINE);
        let line = ToHost::Error { message: None, reason }.line();
        assert!(line.len() < 200, "{}", line.len());
        let full = ToHost::Diagnostics {
            id: u64::MAX,
            index: u64::MAX,
            data: Base64(vec![0xff; PIECE]),
            last: false,
        };
        assert!(String::from_utf8(full.line()).unwrap().contains("diagnostics"));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_messages_and_no_panic(
            bytes in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..2000),
            piece in 1..100_usize,
        ) {
            let mut whole = Vec::new();
            Lines::default().take(&bytes, |message| whole.push(message));
            let mut lines = Lines::default();
            let mut cut = Vec::new();
            for piece in bytes.chunks(piece) {
                lines.take(piece, |message| cut.push(message));
            }
            prop_assert_eq!(whole, cut);
        }

        #[test]
        fn any_json_is_read_or_refused_without_a_panic(name in "[a-z-]{0,12}", key in "[a-z]{0,8}", value in "\\PC{0,30}") {
            let text = serde_json::json!({"__name__": name, key: value}).to_string();
            let _ = FromHost::parse(text.as_bytes());
        }
    }
}
