//! QEMU's monitor protocol (QMP): JSON lines on a UNIX socket.
//!
//! One task owns the connection; handles send it requests and get answers, and whoever wants the events subscribes. QEMU
//! may hang (or be stopped): every call has a time limit, and a request that nobody waits for any more is forgotten.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, trace};

use crate::line::{BadLine, Lines};

mod event;

pub use event::{Event, Shutdown};

/// For an answer that takes no work: QEMU's main loop is busy for a moment at times, on a machine that is.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of an answer. The longest one, `query-qmp-schema`, has 220 KB.
const MAX_LINE: usize = 4 * 1024 * 1024;
/// Events that a subscriber has not taken yet; beyond that it misses the oldest.
const EVENTS: usize = 256;
/// Requests that wait for the connection.
const REQUESTS: usize = 16;
/// Requests that QEMU has not answered; a QEMU that hangs gets no more.
const MAX_OPEN: usize = 64;
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// A connection to the monitor. Clones are the same one. QEMU serves one connection at a time.
#[derive(Clone, Debug)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    /// Weak: subscribers learn that the connection is closed when its task is gone.
    events: broadcast::WeakSender<Event>,
    socket: Arc<Path>,
    _owner: Arc<AbortOnDropHandle<()>>,
}

/// Events from the moment of the subscription.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

/// Why QEMU did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error("cannot connect to QEMU at {}; does it run?", .socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not speak.
    #[error("QEMU did not greet at {} within {limit:?}; it hangs, or another program has its monitor", .socket.display())]
    NoGreeting {
        /// Its socket.
        socket: PathBuf,
        /// How long we waited.
        limit: Duration,
    },
    /// It speaks something else.
    #[error("what answers at {} is not QEMU's monitor: {what}", .socket.display())]
    NotQmp {
        /// Its socket.
        socket: PathBuf,
        /// What it said instead.
        what: String,
    },
    /// It said no.
    #[error("QEMU refuses {command}: {why}")]
    Refused {
        /// What it was asked for.
        command: String,
        /// Its words.
        why: String,
    },
    /// It says nothing.
    #[error("QEMU did not answer {command} within {limit:?}")]
    Silent {
        /// What it was asked for.
        command: String,
        /// How long we waited.
        limit: Duration,
    },
    /// Its end of the connection.
    #[error("QEMU has closed its monitor at {} before it answered {command}", .socket.display())]
    Closed {
        /// Its socket.
        socket: PathBuf,
        /// What it was asked for.
        command: String,
    },
}

#[derive(Debug)]
struct Request {
    command: String,
    arguments: Value,
    answer: oneshot::Sender<Result<Value, String>>,
}

/// What QEMU sends: a greeting, an answer, an error or an event.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(default, rename = "return", deserialize_with = "present")]
    answer: Option<Value>,
    error: Option<Failure>,
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

impl Qmp {
    /// Connects. Tries until `limit`: the socket has a file before anyone listens, and a QEMU that starts on a busy machine
    /// takes seconds.
    pub async fn connect(socket: &Path, limit: Duration) -> Result<Self, QmpError> {
        Self::connect_and_listen(socket, limit).await.map(|(qmp, _)| qmp)
    }

    /// As [`Qmp::connect`], with every event since then.
    pub async fn connect_and_listen(socket: &Path, limit: Duration) -> Result<(Self, Events), QmpError> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(_) if Instant::now() + CONNECT_PAUSE < deadline => sleep(CONNECT_PAUSE).await,
                Err(source) => {
                    let socket = socket.to_owned();
                    return Err(QmpError::Connect { socket, source });
                }
            }
        };
        let (reading, writing) = stream.into_split();
        let mut connection = Connection {
            lines: Lines::new(BufReader::new(reading), MAX_LINE),
            writing,
            open: BTreeMap::new(),
            next_id: 0,
        };
        let (events, first) = broadcast::channel(EVENTS);
        let greeted = timeout_at(deadline, connection.greet(&events)).await;
        let socket: Arc<Path> = socket.into();
        match greeted {
            Ok(Ok(())) => {}
            Ok(Err(what)) => {
                let socket = socket.to_path_buf();
                return Err(QmpError::NotQmp { socket, what });
            }
            Err(_) => {
                let socket = socket.to_path_buf();
                return Err(QmpError::NoGreeting { socket, limit });
            }
        }
        let (requests, waiting) = mpsc::channel(REQUESTS);
        let weak = events.downgrade();
        let owner = tokio::spawn(connection.serve(waiting, events));
        let qmp = Self {
            requests,
            events: weak,
            socket,
            _owner: Arc::new(AbortOnDropHandle::new(owner)),
        };
        Ok((qmp, Events(first)))
    }

    /// One command; its answer.
    pub async fn call(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.call_within(CALL_LIMIT, command, arguments).await
    }

    /// As [`Qmp::call`] with another limit than 20 s.
    pub async fn call_within(&self, limit: Duration, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let request = Request {
            command: command.to_owned(),
            arguments,
            answer,
        };
        let closed = || QmpError::Closed {
            socket: self.socket.to_path_buf(),
            command: command.to_owned(),
        };
        let asked = timeout(limit, async {
            self.requests.send(request).await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())
        });
        match asked.await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(why))) => Err(QmpError::Refused {
                command: command.to_owned(),
                why,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(QmpError::Silent {
                command: command.to_owned(),
                limit,
            }),
        }
    }

    /// All events from now on.
    pub fn events(&self) -> Events {
        let strong = self.events.upgrade().unwrap_or_else(|| broadcast::channel(1).0);
        Events(strong.subscribe())
    }

    /// Whether QEMU has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

impl Events {
    /// Those of a sender of our own.
    pub(crate) fn of(events: &broadcast::Sender<Event>) -> Self {
        Self(events.subscribe())
    }

    /// The next one; `None` when the connection is closed. What nobody took in time is missing. May be dropped and called
    /// again.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    debug!(missed, "Events of QEMU were not taken in time");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// What the task owns.
struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writing: OwnedWriteHalf,
    open: BTreeMap<u64, oneshot::Sender<Result<Value, String>>>,
    next_id: u64,
}

impl Connection {
    async fn greet(&mut self, events: &broadcast::Sender<Event>) -> Result<(), String> {
        let line = self.line().await?;
        if line.greeting.is_none() {
            return Err("it does not greet".to_owned());
        }
        let request = format!("{}\n", json!({"execute": "qmp_capabilities"}));
        let sent = self.writing.write_all(request.as_bytes()).await;
        sent.map_err(|error| error.to_string())?;
        loop {
            let line = self.line().await?;
            if let Some(error) = line.error {
                return Err(error.desc);
            }
            if line.answer.is_some() {
                return Ok(());
            }
            tell(line, events);
        }
    }

    /// Until QEMU closes the connection or all handles are gone.
    async fn serve(mut self, mut requests: mpsc::Receiver<Request>, events: broadcast::Sender<Event>) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => request,
                line = self.line() => match line {
                    Ok(line) => {
                        self.take(line, &events);
                        continue;
                    }
                    Err(why) => {
                        debug!(why, "QEMU's monitor is closed");
                        return;
                    }
                },
            };
            let Some(request) = request else { return };
            if self.ask(request).await.is_err() {
                return;
            }
        }
    }

    async fn ask(&mut self, request: Request) -> io::Result<()> {
        self.open.retain(|_, answer| !answer.is_closed());
        let Request {
            command,
            arguments,
            answer,
        } = request;
        if self.open.len() >= MAX_OPEN {
            answer
                .send(Err(format!("it has not answered {MAX_OPEN} requests before")))
                .ok();
            return Ok(());
        }
        self.next_id += 1;
        self.open.insert(self.next_id, answer);
        let line = format!(
            "{}\n",
            json!({"execute": command, "arguments": arguments, "id": self.next_id})
        );
        // A QEMU that hangs lets the socket fill up; then those who wait run into their limits, and this connection is over.
        timeout(CALL_LIMIT, self.writing.write_all(line.as_bytes()))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn take(&mut self, line: Line, events: &broadcast::Sender<Event>) {
        if let Some(answer) = line.id.and_then(|id| self.open.remove(&id)) {
            let result = match (line.answer, line.error) {
                (_, Some(error)) => Err(error.desc),
                (answer, None) => Ok(answer.unwrap_or_default()),
            };
            answer.send(result).ok(); // nobody may wait any more
            return;
        }
        tell(line, events);
    }

    /// The next line. May be dropped and called again.
    async fn line(&mut self) -> Result<Line, String> {
        let line = self.lines.next().await;
        let line = line
            .map_err(|error: BadLine| error.to_string())?
            .ok_or("it was closed")?;
        serde_json::from_slice(line).map_err(|error| error.to_string())
    }
}

fn tell(line: Line, events: &broadcast::Sender<Event>) {
    if let Some(name) = line.event {
        trace!(name, data = %line.data, "Event of QEMU");
        events.send(Event::new(name, line.data)).ok(); // nobody may listen
    }
}

/// `null` is an answer, too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}
