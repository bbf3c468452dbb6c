//! Hosts that speak as much RFB as a handshake needs, and then what is measured. To a relay that does not speak RFB the
//! viewer does.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// A picture of 64 × 64 pixels of 4 bytes.
pub(super) const UPDATE: usize = 64 * 64 * 4;

/// What comes back for a key.
pub(super) const ECHO: usize = 16;

/// Between updates of an active screen.
const PERIOD: Duration = Duration::from_millis(200);

/// Listens until it is dropped.
pub(super) struct Host {
    pub(super) port: u16,
    /// Updates carry the nanoseconds since then.
    pub(super) epoch: Instant,
    serving: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Host {
    /// Sends so many bytes and waits for the viewer to leave: websockify loses what it has queued when a host closes.
    pub(super) async fn sending(bytes: u64) -> anyhow::Result<Self> {
        Self::listen(move |mut stream, _| async move {
            let chunk = vec![0x5a; 64 << 10];
            let mut left = usize::try_from(bytes).ok()?;
            while left > 0 {
                let part = left.min(chunk.len());
                stream.write_all(&chunk[..part]).await.ok()?;
                left -= part;
            }
            stream.read_to_end(&mut Vec::new()).await.ok().map(drop)
        })
        .await
    }

    /// Answers each key.
    pub(super) async fn echoing() -> anyhow::Result<Self> {
        Self::listen(|mut stream, _| async move {
            loop {
                stream.read_exact(&mut [0; 8]).await.ok()?;
                stream.write_all(&[0x5a; ECHO]).await.ok()?;
            }
        })
        .await
    }

    /// Says nothing.
    pub(super) async fn quiet() -> anyhow::Result<Self> {
        Self::listen(|mut stream, _| async move { stream.read_to_end(&mut Vec::new()).await.ok().map(drop) }).await
    }

    /// Sends an update five times a second.
    pub(super) async fn updating() -> anyhow::Result<Self> {
        Self::listen(|mut stream, epoch: Instant| async move {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut update = vec![0x5a; UPDATE];
            loop {
                ticks.tick().await;
                let now = u64::try_from(epoch.elapsed().as_nanos()).ok()?;
                update[..8].copy_from_slice(&now.to_be_bytes());
                stream.write_all(&update).await.ok()?;
            }
        })
        .await
    }

    async fn listen<F>(show: impl Fn(TcpStream, Instant) -> F + Copy + Send + 'static) -> anyhow::Result<Self>
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listening as a host")?;
        let port = listener.local_addr()?.port();
        let epoch = Instant::now();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    greet(&mut stream).await?;
                    show(stream, epoch).await
                });
            }
        });
        Ok(Self { port, epoch, serving })
    }
}

/// RFB 3.8, no password, a screen without a name.
async fn greet(stream: &mut TcpStream) -> Option<()> {
    stream.write_all(b"RFB 003.008\n").await.ok()?;
    stream.read_exact(&mut [0; 12]).await.ok()?;
    stream.write_all(&[1, 1]).await.ok()?;
    stream.read_exact(&mut [0; 1]).await.ok()?;
    stream.write_all(&[0; 4]).await.ok()?;
    stream.read_exact(&mut [0; 1]).await.ok()?;
    stream.write_all(&[0; 24]).await.ok()
}
