//! The guest agent of QEMU, as a hypervisor's host talks to it: lines of JSON over the socket of a virtio-serial port.
//!
//! Requests that were sent before the guest opened its port wait in the port and are answered in a burst, in order. So
//! the client asks for a sign of life with one id, again and again, and then throws away every answer until that to a
//! second, new id has come; after a call that was given up it does the latter again (vm-test-harness.md §4,
//! appliance.md §3.2).
//!
//! The guest may be hostile: every answer has a limit in bytes and in time, and nothing it says is believed before it has
//! a type.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::line::{BadLine, Lines};
use crate::plain::plain;

mod programs;

pub use programs::Ran;

/// For the answer to one request that does no work. A guest under emulation on a busy machine takes a second.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Between two signs of life that we ask for.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two tries of the host's script: patch.sh.
const HOST_PAUSE: Duration = Duration::from_millis(100);
/// The id that the host's script synchronises with: patch.sh.
const HOST_ID: u64 = 1_234_567_890;
/// Where the host leaves the boot arguments: patch.sh.
const CMDLINE: &str = "/var/cache/cloud/cmdline";
/// Bytes of a file in one request.
const CHUNK: usize = 128 * 1024;
/// Bytes of an answer: that with a piece of a file is the longest, unless a program's output is asked for.
const MAX_LINE: usize = 512 * 1024;
/// Bytes of a file that is read.
const MAX_FILE: usize = 64 * 1024 * 1024;
/// Stands before an answer when the two ends get in step: guest-sync-delimited.
const SENTINEL: u8 = 0xff;
/// Letters of a guest's words in our errors.
const MAX_WORDS: usize = 500;

/// A connection to the agent. QEMU serves one at a time.
#[derive(Debug)]
pub struct GuestAgent {
    lines: Lines<BufReader<UnixStream>>,
    socket: PathBuf,
    /// A call was given up: its answer may still come.
    is_behind: bool,
    next_id: u64,
}

/// Why the guest agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens.
    #[error("cannot connect to the port of the guest agent at {}; does the VM run?", .socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has never said anything.
    #[error("the guest agent did not answer within {0:?}")]
    Down(Duration),
    /// Not this time.
    #[error("the guest agent did not answer {command} within {limit:?}")]
    Silent {
        /// What it was asked for.
        command: String,
        /// How long we waited.
        limit: Duration,
    },
    /// It said no.
    #[error("the guest agent refuses {command}: {why}")]
    Refused {
        /// What it was asked for.
        command: String,
        /// Its words.
        why: String,
    },
    /// What it said has another form than the agent's answers.
    #[error("the guest agent answers {command} with something else: {what}")]
    Nonsense {
        /// What it was asked for.
        command: String,
        /// What is wrong.
        what: String,
    },
    /// The port.
    #[error("the port of the guest agent at {} was closed", .socket.display())]
    Closed {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: BadLine,
    },
    /// A file of the guest.
    #[error("opening {path} in the guest")]
    Open {
        /// Which.
        path: String,
        /// Why not.
        source: Box<AgentError>,
    },
    /// A program in the guest.
    #[error("starting `{command}` in the guest")]
    Start {
        /// Its words.
        command: String,
        /// Why not.
        source: Box<AgentError>,
    },
    /// A program in the guest.
    #[error("`{command}` has not ended in the guest within {limit:?}")]
    Endless {
        /// Its words.
        command: String,
        /// How long we waited.
        limit: Duration,
    },
    /// A program in the guest.
    #[error("`{command}` printed more in the guest than its agent keeps")]
    Cut {
        /// Its words.
        command: String,
    },
    /// A program in the guest.
    #[error("`{command}` failed in the guest (exit code {code:?}): {printed}")]
    Failed {
        /// Its words.
        command: String,
        /// `None`: a signal ended it.
        code: Option<i64>,
        /// What it printed.
        printed: String,
    },
    /// A file of the guest.
    #[error("{path} of the guest has more than {limit} bytes")]
    TooLarge {
        /// Which.
        path: String,
        /// Bytes.
        limit: usize,
    },
}

/// What the agent sends.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default, rename = "return")]
    value: Value,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

/// `guest-file-write`.
#[derive(Deserialize)]
struct Written {
    count: usize,
}

/// `guest-file-read`.
#[derive(Deserialize)]
struct Piece {
    #[serde(rename = "buf-b64")]
    bytes: String,
    count: usize,
    eof: bool,
}

impl GuestAgent {
    /// Connects to the socket, once it is there. Nobody may have answered yet: see [`GuestAgent::up`].
    pub async fn connect(socket: &Path, limit: Duration) -> Result<Self, AgentError> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => sleep(HOST_PAUSE).await,
                Err(source) => {
                    let socket = socket.to_owned();
                    return Err(AgentError::Connect { socket, source });
                }
            }
        };
        // Two clients of one agent, one after the other, must not take each other's answers for their own.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        Ok(Self {
            lines: Lines::new(BufReader::new(stream), MAX_LINE),
            socket: socket.to_owned(),
            is_behind: false,
            next_id: now.as_secs() << 20 | u64::from(now.subsec_micros()),
        })
    }

    /// Waits until the agent answers, and drops what it answers to others. After an error that is not
    /// [`AgentError::Closed`] it may be called again.
    pub async fn up(&mut self, limit: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + limit;
        let id = self.fresh_id();
        self.is_behind = true;
        let first_sign = async {
            loop {
                self.send("guest-sync", &json!({"id": id})).await?;
                let again = Instant::now() + ASK_AGAIN;
                while let Ok(line) = timeout_at(again, self.line()).await {
                    if line?.value == id {
                        return Ok(());
                    }
                }
            }
        };
        let answered = timeout_at(deadline, first_sign).await;
        answered.unwrap_or(Err(AgentError::Down(limit)))?;
        self.catch_up().await
    }

    /// One request; its answer. It has 30 s.
    pub async fn call(&mut self, command: &str, arguments: Value) -> Result<Value, AgentError> {
        if self.is_behind {
            self.catch_up().await?;
        }
        self.is_behind = true;
        let answered = timeout(CALL_LIMIT, async {
            self.send(command, &arguments).await?;
            self.line().await
        });
        let answer = answered.await.unwrap_or_else(|_| Err(silent(command)))?;
        self.is_behind = false;
        match answer.error {
            None => Ok(answer.value),
            Some(Failure { desc }) => Err(AgentError::Refused {
                command: command.to_owned(),
                why: plain(&desc, MAX_WORDS),
            }),
        }
    }

    /// As [`GuestAgent::call`], when the answer has a form.
    async fn ask<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T, AgentError> {
        let answer = self.call(command, arguments).await?;
        serde_json::from_value(answer).map_err(|error| nonsense(command, &error))
    }

    /// Asks for a sign of life.
    pub async fn ping(&mut self) -> Result<(), AgentError> {
        self.call("guest-ping", json!({})).await.map(drop)
    }

    /// Writes a whole file. An existing one keeps its mode; a new one can be written by everybody.
    pub async fn write(&mut self, path: &str, contents: &[u8]) -> Result<(), AgentError> {
        let handle = self.open(path, "w").await?;
        for chunk in contents.chunks(CHUNK) {
            self.write_chunk(handle, chunk).await?;
        }
        self.close(handle).await
    }

    /// Reads a whole file of at most 64 MiB.
    pub async fn read(&mut self, path: &str) -> Result<Vec<u8>, AgentError> {
        const COMMAND: &str = "guest-file-read";
        let handle = self.open(path, "r").await?;
        let mut contents = Vec::new();
        loop {
            let piece: Piece = self.ask(COMMAND, json!({"handle": handle, "count": CHUNK})).await?;
            let bytes = BASE64_STANDARD.decode(piece.bytes);
            contents.extend(bytes.map_err(|error| nonsense(COMMAND, &error))?);
            if contents.len() > MAX_FILE {
                return Err(AgentError::TooLarge {
                    path: path.to_owned(),
                    limit: MAX_FILE,
                });
            }
            if piece.eof || piece.count == 0 {
                break;
            }
        }
        self.close(handle).await?;
        Ok(contents)
    }

    /// Gives the guest its boot arguments exactly as the script of a KVM host does (appliance.md §3.2, 2b–2f): ping,
    /// synchronise, open, one write of the line and a newline, close. The first two are tried again until `limit`.
    pub async fn pass_cmdline(&mut self, line: &str, limit: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.ping().await {
                Ok(()) => break,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(HOST_PAUSE).await,
            }
        }
        loop {
            let answer = self.call("guest-sync", json!({"id": HOST_ID})).await;
            match answer {
                Ok(id) if id == HOST_ID => break,
                Ok(other) if Instant::now() >= deadline => return Err(nonsense("guest-sync", &other)),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Ok(_) | Err(_) => sleep(HOST_PAUSE).await,
            }
        }
        let handle = self.open(CMDLINE, "w+").await?;
        self.write_chunk(handle, format!("{line}\n").as_bytes()).await?;
        self.close(handle).await
    }

    /// Asks the guest to power off. There is no answer: QEMU ends.
    pub async fn shutdown(&mut self) -> Result<(), AgentError> {
        if self.is_behind {
            self.catch_up().await?;
        }
        self.is_behind = true;
        self.send("guest-shutdown", &json!({"mode": "powerdown"})).await
    }

    async fn open(&mut self, path: &str, mode: &str) -> Result<i64, AgentError> {
        let handle = self.ask("guest-file-open", json!({"path": path, "mode": mode})).await;
        handle.map_err(|source| AgentError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    async fn write_chunk(&mut self, handle: i64, chunk: &[u8]) -> Result<(), AgentError> {
        const COMMAND: &str = "guest-file-write";
        let request = json!({"handle": handle, "buf-b64": BASE64_STANDARD.encode(chunk)});
        let written: Written = self.ask(COMMAND, request).await?;
        if written.count == chunk.len() {
            return Ok(());
        }
        let what = format!("it took {} of {} bytes", written.count, chunk.len());
        Err(nonsense(COMMAND, &what))
    }

    async fn close(&mut self, handle: i64) -> Result<(), AgentError> {
        self.call("guest-file-close", json!({"handle": handle})).await.map(drop)
    }

    /// Drops what the agent answers to requests that nobody waits for any more.
    async fn catch_up(&mut self) -> Result<(), AgentError> {
        let id = self.fresh_id();
        let in_step = async {
            self.send("guest-sync", &json!({"id": id})).await?;
            while self.line().await?.value != id {}
            Ok(())
        };
        timeout(CALL_LIMIT, in_step)
            .await
            .unwrap_or_else(|_| Err(silent("guest-sync")))?;
        self.is_behind = false;
        Ok(())
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    async fn send(&mut self, command: &str, arguments: &Value) -> Result<(), AgentError> {
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let sent = timeout(CALL_LIMIT, self.lines.get_mut().get_mut().write_all(request.as_bytes()));
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.closed(error.into())),
            Err(_) => Err(silent(command)),
        }
    }

    /// The next answer. Lines that are none come from a client before us that left in the middle of one.
    async fn line(&mut self) -> Result<Answer, AgentError> {
        loop {
            match self.lines.next().await {
                Ok(Some(line)) => {
                    let start = line.iter().position(|byte| *byte != SENTINEL).unwrap_or_default();
                    if let Ok(answer) = serde_json::from_slice(&line[start..]) {
                        return Ok(answer);
                    }
                }
                Ok(None) => return Err(self.closed(BadLine::Cut)),
                Err(error) => return Err(self.closed(error)),
            }
        }
    }

    fn closed(&self, source: BadLine) -> AgentError {
        AgentError::Closed {
            socket: self.socket.clone(),
            source,
        }
    }
}

fn silent(command: &str) -> AgentError {
    AgentError::Silent {
        command: command.to_owned(),
        limit: CALL_LIMIT,
    }
}

fn nonsense(command: &str, what: &impl ToString) -> AgentError {
    AgentError::Nonsense {
        command: command.to_owned(),
        what: plain(&what.to_string(), MAX_WORDS),
    }
}
