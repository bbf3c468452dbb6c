//! The host's end of the guest channel (docs/guest-channel.md): what a VM tells before it has a network, and what its host
//! may ask. Written from the manual, not from the agent's own types: what both agree on is what the manual says.
//!
//! The guest may be hostile. A line has a limit, so has what waits to be read here and how much a guest may say in a second;
//! a guest that says more waits. What a guest says is text for people without anything that a terminal or a log would take
//! for its own.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, trace};

use crate::line::{BadLine, Lines};

mod message;

pub use message::{
    BadMessage, BootProgress, CheckOutcome, Counts, DiskUsage, Finding, Heartbeat, Interface, Link, LinkState, Memory,
    Message, Outcome, Report, Request, Step,
};

/// Bytes of a line, with its newline.
pub const MAX_LINE: usize = 32 * 1024;
/// For QEMU to take what we send. It does not read on while the guest does not.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries to connect: the first, and the longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Messages that nobody has taken yet. Then the guest waits.
const WAITING: usize = 64;
/// Requests that the guest has not taken yet.
const REQUESTS: usize = 16;
/// Messages in a second. A guest says a few, and all it knows (a dozen) when a host connects.
const MAX_RATE: u32 = 100;

/// The channel of a VM. A task keeps it open: it connects when the VM is there, and again when it was closed.
#[derive(Debug)]
pub struct GuestChannel {
    news: mpsc::Receiver<News>,
    requests: mpsc::Sender<Request>,
    _keeper: AbortOnDropHandle<()>,
}

/// What comes over a channel.
#[derive(Clone, PartialEq, Debug)]
pub enum News {
    /// The VM's port is there; its guest, if it runs, now tells everything it knows.
    Connected,
    /// The guest says something.
    Message(Message),
    /// The guest says something that the manual does not know, for the log.
    Bad(BadMessage),
    /// The VM's port is gone, or the guest broke the rules; tried again soon.
    Closed(String),
}

/// Why a guest cannot be heard or asked.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The VM.
    #[error("cannot connect to the guest channel at {}; does the VM run?", .socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection.
    #[error("the guest channel was closed")]
    Closed(#[source] BadLine),
    /// The guest hangs.
    #[error("the guest does not read its channel")]
    Full,
}

/// One connection to the port of a VM. QEMU serves one at a time.
#[derive(Debug)]
pub struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writing: OwnedWriteHalf,
}

impl Connection {
    /// Connects. The guest may still start: nobody may have said anything yet.
    pub async fn open(socket: &Path) -> Result<Self, ChannelError> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|source| ChannelError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
        let (reading, writing) = stream.into_split();
        Ok(Self {
            lines: Lines::new(BufReader::new(reading), MAX_LINE),
            writing,
        })
    }

    /// The next line of the guest. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Result<Message, BadMessage>, ChannelError> {
        match self.lines.next().await {
            Ok(Some(line)) => Ok(Message::parse(line)),
            Ok(None) => Err(ChannelError::Closed(BadLine::Cut)),
            Err(error) => Err(ChannelError::Closed(error)),
        }
    }

    /// Asks the guest.
    pub async fn send(&mut self, request: &Request) -> Result<(), ChannelError> {
        self.send_bytes(request.line().as_bytes()).await
    }

    /// Sends what may be no message: for tests of guests.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        match timeout(SEND_LIMIT, self.writing.write_all(bytes)).await {
            Ok(sent) => sent.map_err(|error| ChannelError::Closed(error.into())),
            Err(_) => Err(ChannelError::Full),
        }
    }
}

impl GuestChannel {
    /// Keeps the channel at this socket open. It need not be there yet.
    pub fn open(socket: &Path) -> Self {
        let (told, news) = mpsc::channel(WAITING);
        let (requests, asked) = mpsc::channel(REQUESTS);
        let keeper = Keeper {
            socket: socket.to_owned(),
            told,
            asked,
        };
        Self {
            news,
            requests,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.keep())),
        }
    }

    /// What comes next. Waits as long as it takes; may be dropped and called again.
    pub async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            // Only when the task has panicked.
            None => std::future::pending().await,
        }
    }

    /// Asks the guest, when it is connected; the answer comes with [`GuestChannel::next`].
    pub fn send(&self, request: Request) -> Result<(), ChannelError> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Closed(_) => ChannelError::Full,
        })
    }
}

/// The task's.
struct Keeper {
    socket: PathBuf,
    told: mpsc::Sender<News>,
    asked: mpsc::Receiver<Request>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut pause = RECONNECT.0;
        loop {
            match Connection::open(&self.socket).await {
                Ok(connection) => {
                    pause = RECONNECT.0;
                    if self.told.send(News::Connected).await.is_err() {
                        return;
                    }
                    let Some(why) = self.serve(connection).await else {
                        return;
                    };
                    if self.told.send(News::Closed(why)).await.is_err() {
                        return;
                    }
                }
                Err(error) => trace!(%error, "Guest channel is not there"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    /// Until the channel is closed, why; `None` when nobody listens any more.
    async fn serve(&mut self, mut connection: Connection) -> Option<String> {
        let mut rate = Rate::new();
        loop {
            tokio::select! {
                line = connection.next() => {
                    let news = match line {
                        Ok(Ok(message)) => News::Message(message),
                        Ok(Err(bad)) => {
                            debug!(error = %bad, "A guest says something unknown");
                            News::Bad(bad)
                        }
                        Err(ChannelError::Closed(why)) => return Some(why.to_string()),
                        Err(error) => return Some(error.to_string()),
                    };
                    self.told.send(news).await.ok()?;
                    rate.one_more().await;
                }
                request = self.asked.recv() => {
                    if let Err(error) = connection.send(&request?).await {
                        return Some(error.to_string());
                    }
                }
            }
        }
    }
}

/// Counts messages in a second.
struct Rate {
    count: u32,
    begun: Instant,
}

impl Rate {
    fn new() -> Self {
        Self {
            count: 0,
            begun: Instant::now(),
        }
    }

    /// Waits for the next second when there were too many in this one.
    async fn one_more(&mut self) {
        let next = self.begun + Duration::from_secs(1);
        self.count += 1;
        if self.count >= MAX_RATE {
            sleep_until(next).await;
        }
        if Instant::now() >= next {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn next(channel: &mut GuestChannel) -> News {
        timeout(LIMIT, channel.next()).await.unwrap()
    }

    #[tokio::test]
    async fn a_channel_comes_back_after_the_vm_was_away() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("channel");
        let mut channel = GuestChannel::open(&socket);
        for round in 0..2 {
            let vm = UnixListener::bind(&socket).unwrap();
            let (stream, _) = timeout(LIMIT, vm.accept()).await.unwrap().unwrap();
            let mut stream = BufReader::new(stream);
            assert_eq!(next(&mut channel).await, News::Connected);
            let line = format!(
                "{}\n",
                json!({"__name__": "host-name", "name": format!("host {round}")})
            );
            stream.get_mut().write_all(line.as_bytes()).await.unwrap();
            let told = News::Message(Message::HostName(format!("host {round}")));
            assert_eq!(next(&mut channel).await, told);
            channel.send(Request::RunCheck { id: 7 }).unwrap();
            let mut asked = String::new();
            stream.read_line(&mut asked).await.unwrap();
            let asked: serde_json::Value = serde_json::from_str(&asked).unwrap();
            assert_eq!(asked, json!({"__name__": "run-check", "id": 7}));
            drop((stream, vm));
            assert!(matches!(next(&mut channel).await, News::Closed(_)));
            std::fs::remove_file(&socket).unwrap();
        }
    }

    #[tokio::test]
    async fn a_line_without_end_closes_the_connection() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("channel");
        let vm = UnixListener::bind(&socket).unwrap();
        let mut channel = GuestChannel::open(&socket);
        let (mut stream, _) = vm.accept().await.unwrap();
        assert_eq!(next(&mut channel).await, News::Connected);
        stream.write_all(b"nonsense\n").await.unwrap();
        assert!(matches!(next(&mut channel).await, News::Bad(_)));
        let endless = vec![b'x'; MAX_LINE + 1];
        stream.write_all(&endless).await.ok();
        let why = "the guest channel was closed: a line has more than 32768 bytes";
        let News::Closed(said) = next(&mut channel).await else {
            panic!("still open")
        };
        assert!(why.ends_with(&said), "{said}");
    }

    #[tokio::test]
    async fn a_guest_that_never_stops_waits_and_is_heard_no_faster_than_allowed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("channel");
        let vm = UnixListener::bind(&socket).unwrap();
        let mut channel = GuestChannel::open(&socket);
        let (mut stream, _) = vm.accept().await.unwrap();
        let flood = tokio::spawn(async move {
            let lines = b"{\"__name__\":\"session-shutdown\"}\n".repeat(1000);
            let mut written = 0_u32;
            while timeout(Duration::from_secs(1), stream.write_all(&lines))
                .await
                .is_ok_and(|sent| sent.is_ok())
            {
                written += 1000;
            }
            written
        });
        // Nobody listens: the guest comes to a stop.
        let written = timeout(LIMIT, flood).await.unwrap().unwrap();
        assert!(written < 100_000, "{written} messages were taken from the guest");
        let started = Instant::now();
        for _ in 0..=2 * MAX_RATE {
            next(&mut channel).await;
        }
        assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    }
}
