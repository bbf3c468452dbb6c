//! Ways for bytes between the host's network and a network of VMs, which know nothing of each other: TCP ports of the host
//! that lead to VMs, and a name server for VMs that asks the host's.
//!
//! Both belong to this process and end with it. Everything has a limit: VMs are strangers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::network::namespace::Namespace;

mod resolver;

pub use resolver::{Resolver, Upstream};

/// Connections of one forward at the same time: those of a console proxy, which has a thousand sessions.
const MAX_CONNECTIONS: usize = 2048;
/// For the target to take a connection. It is on this machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A connection on which nothing comes for so long is ended. Consoles are looked at in silence.
const IDLE_LIMIT: Duration = Duration::from_hours(2);
/// Bytes that one direction takes at once. A connection on which nothing comes has none.
const CHUNK: usize = 16 << 10;
/// After a failed accept: most likely there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A TCP port of the host that leads to an address inside a namespace.
#[derive(Debug)]
pub struct Forward {
    listener: TcpListener,
    target: watch::Receiver<Option<SocketAddr>>,
    namespace: Namespace,
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The port on the host.
    #[error("cannot listen on {address}; is another program using the port?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl Forward {
    /// Takes the port. The target may change at any time, for the connections that come then; without one they are closed.
    ///
    /// # Errors
    /// The port cannot be had.
    pub async fn bind(
        listen: SocketAddr,
        namespace: &Namespace,
        target: watch::Receiver<Option<SocketAddr>>,
    ) -> Result<Self, RelayError> {
        let failed = |source| RelayError::Listen {
            address: listen,
            source,
        };
        Ok(Self {
            listener: TcpListener::bind(listen).await.map_err(failed)?,
            target,
            namespace: namespace.clone(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Works until `stop`; connections end with it.
    pub async fn serve(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.serve_for_ever()).await;
    }

    async fn serve_for_ever(self) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let stream = accept(&self.listener, &mut connections).await;
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                warn!(
                    places = MAX_CONNECTIONS,
                    "Too many connections to VMs, closing new ones"
                );
                continue;
            };
            let Some(target) = *self.target.borrow() else { continue };
            let namespace = self.namespace.clone();
            connections.spawn(async move {
                match namespace.connect(target, CONNECT_LIMIT).await {
                    Ok(other) => carry(stream, other, IDLE_LIMIT).await,
                    Err(error) => info!(%target, %error, "A VM does not take a connection"),
                }
                drop(place);
            });
        }
    }
}

/// The next connection; ended ones are forgotten meanwhile.
async fn accept(listener: &TcpListener, connections: &mut JoinSet<()>) -> TcpStream {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    warn!(%error, "Cannot accept connections");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries bytes both ways until both sides have ended, one breaks, or both are silent for too long.
async fn carry(mut one: TcpStream, mut other: TcpStream, idle: Duration) {
    for stream in [&one, &other] {
        // Keys are small, and somebody waits for their echo. It fails only on a connection that is over.
        let _ = stream.set_nodelay(true);
    }
    let life = Life::new();
    let (one_read, one_write) = one.split();
    let (other_read, other_write) = other.split();
    let both = async { tokio::try_join!(pump(one_read, other_write, &life), pump(other_read, one_write, &life)) };
    tokio::select! {
        ended = both => if let Err(error) = ended { debug!(%error, "A connection broke") },
        () = life.is_over(idle) => debug!(?idle, "A connection was silent for too long"),
    }
}

/// One direction. The end of the one side is passed on to the other, which may still answer.
async fn pump(from: ReadHalf<'_>, mut to: WriteHalf<'_>, life: &Life) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut chunk = Vec::with_capacity(CHUNK);
        match from.try_read_buf(&mut chunk) {
            Ok(0) => return to.shutdown().await,
            Ok(_) => to.write_all(&chunk).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        life.beats();
    }
}

/// When something came last.
struct Life {
    started: Instant,
    /// Milliseconds after that.
    last: AtomicU64,
}

impl Life {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn beats(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    async fn is_over(&self, idle: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let end = self.started + last + idle;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    #[tokio::test]
    async fn an_end_is_passed_on_and_the_answer_still_comes() {
        let ((mut browser, one), (other, mut vm)) = (pair().await, pair().await);
        let carrying = tokio::spawn(carry(one, other, IDLE_LIMIT));
        browser.write_all(b"question").await.unwrap();
        browser.shutdown().await.unwrap();
        let mut heard = Vec::new();
        vm.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        let answer = vec![7; 1_000_000];
        vm.write_all(&answer).await.unwrap();
        drop(vm);
        heard.clear();
        browser.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, answer);
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_connection_ends() {
        let ((mut browser, one), (other, _vm)) = (pair().await, pair().await);
        let carrying = tokio::spawn(carry(one, other, Duration::from_millis(1500)));
        let started = Instant::now();
        sleep(Duration::from_millis(500)).await;
        browser.write_all(b"key").await.unwrap();
        carrying.await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(2));
    }
}
