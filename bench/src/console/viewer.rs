//! Viewers: WebSocket as browsers speak it, over TCP or TLS, or no WebSocket at all. They cost as little as they can,
//! because they share the machine with what is measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::trust::{TrustUnknown, client_config};
use anyhow::{Context, bail, ensure};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::host::{ECHO, UPDATE};
use super::{Relay, proxy};
use crate::stats::Percentiles;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One console, open.
pub(super) struct Viewer {
    stream: BufReader<Box<dyn Stream>>,
    is_websocket: bool,
    /// Of the current frame.
    left: u64,
}

/// Distinguishes sessions.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// What is read at once. An idle viewer must not be what fills this machine.
const BUFFER: usize = 16 << 10;

impl Viewer {
    /// Through a relay to the host at `host`.
    pub(super) async fn through(relay: &Relay, host: u16, is_tls: bool) -> anyhow::Result<Self> {
        let port = if is_tls { relay.tls } else { relay.plain };
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .context("connecting to a relay")?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = if is_tls {
            let config = client_config(None, TrustUnknown::Accept)?;
            let name = ServerName::try_from("127.0.0.1").context("an address is a name")?;
            Box::new(TlsConnector::from(config).connect(name, stream).await?)
        } else {
            Box::new(stream)
        };
        let mut viewer = Self {
            stream: BufReader::with_capacity(BUFFER, stream),
            is_websocket: true,
            left: 0,
        };
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let token = if relay.speaks_rfb {
            proxy::token(host, session)?
        } else {
            String::new()
        };
        let upgrade = format!(
            "GET /websockify?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: binary\r\n\r\n"
        );
        viewer.stream.write_all(upgrade.as_bytes()).await?;
        viewer.stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                viewer
                    .stream
                    .read_u8()
                    .await
                    .context("reading the answer to the upgrade")?,
            );
        }
        ensure!(
            head.starts_with(b"HTTP/1.1 101"),
            "{}: {}",
            relay.name,
            String::from_utf8_lossy(&head)
        );
        viewer.open().await?;
        Ok(viewer)
    }

    /// To the host itself.
    pub(super) async fn direct(host: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", host))
            .await
            .context("connecting to a host")?;
        stream.set_nodelay(true)?;
        let mut viewer = Self {
            stream: BufReader::with_capacity(BUFFER, Box::new(stream)),
            is_websocket: false,
            left: 0,
        };
        viewer.open().await?;
        Ok(viewer)
    }

    async fn open(&mut self) -> anyhow::Result<()> {
        self.read(&mut [0; 12]).await?;
        self.send(b"RFB 003.008\n").await?;
        self.read(&mut [0; 2]).await?;
        self.send(&[1]).await?;
        self.read(&mut [0; 4]).await?;
        self.send(&[1]).await?;
        let mut init = [0; 24];
        self.read(&mut init).await?;
        let name = u32::from_be_bytes(init[20..].try_into().context("four bytes")?);
        self.read(&mut vec![0; usize::try_from(name)?]).await
    }

    async fn send(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let mut frame = Vec::with_capacity(payload.len() + 6);
        if self.is_websocket {
            frame.extend([0x82, 0x80 | u8::try_from(payload.len())?, 0, 0, 0, 0]); // the mask is zeros
        }
        frame.extend(payload);
        self.stream.write_all(&frame).await?;
        Ok(self.stream.flush().await?)
    }

    async fn read(&mut self, mut wanted: &mut [u8]) -> anyhow::Result<()> {
        while !wanted.is_empty() {
            if self.is_websocket && self.left == 0 {
                self.left = self.next_frame().await?.context("the console has ended")?;
                continue;
            }
            let length = if self.is_websocket {
                usize::try_from(self.left)?.min(wanted.len())
            } else {
                wanted.len()
            };
            let (now, later) = wanted.split_at_mut(length);
            self.stream.read_exact(now).await?;
            self.left = self.left.saturating_sub(u64::try_from(length)?);
            wanted = later;
        }
        Ok(())
    }

    /// Length of the next frame with data; `None` at the end.
    async fn next_frame(&mut self) -> anyhow::Result<Option<u64>> {
        loop {
            let mut head = [0; 2];
            if self.stream.read_exact(&mut head).await.is_err() {
                return Ok(None);
            }
            let length = match head[1] {
                126 => u64::from(self.stream.read_u16().await?),
                127 => self.stream.read_u64().await?,
                length => u64::from(length),
            };
            match head[0] & 0x0f {
                0..=2 => return Ok(Some(length)),
                8 => return Ok(None),
                9 | 10 => self
                    .stream
                    .read_exact(&mut vec![0; usize::try_from(length)?])
                    .await
                    .map(drop)?,
                other => bail!("a frame of kind {other}"),
            }
        }
    }

    /// Takes so many bytes of screen, and looks at none.
    pub(super) async fn drain(&mut self, wanted: u64) -> anyhow::Result<()> {
        let (mut seen, mut buffer) = (0, vec![0; 256 << 10]);
        while seen < wanted {
            // The rest of a frame that began with the handshake comes first.
            let length = match std::mem::take(&mut self.left) {
                0 => self.next_frame().await?.context("the console ended early")?,
                rest => rest,
            };
            seen += length;
            let mut left = usize::try_from(length)?;
            while left > 0 {
                let part = left.min(buffer.len());
                let read = self.stream.read(&mut buffer[..part]).await?;
                ensure!(read > 0, "the console ended in a frame");
                left -= read;
            }
        }
        Ok(())
    }

    /// Presses keys, each when the answer to the one before has come.
    pub(super) async fn echo(&mut self, keys: u32) -> anyhow::Result<Percentiles> {
        let mut times = Vec::new();
        for at in 0..keys + keys / 10 {
            let started = Instant::now();
            self.send(&[4, 1, 0, 0, 0, 0, 0, 0x61]).await?;
            self.read(&mut [0; ECHO]).await?;
            if at >= keys / 10 {
                times.push(started.elapsed()); // the first tenth warms up
            }
        }
        Percentiles::of(times).context("there were keys")
    }

    /// Watches updates; answers how old each was.
    pub(super) async fn watch(mut self, epoch: Instant, time: Duration) -> anyhow::Result<Vec<Duration>> {
        let (started, mut delays, mut update) = (Instant::now(), Vec::new(), vec![0; UPDATE]);
        while started.elapsed() < time {
            self.read(&mut update).await?;
            let sent = u64::from_be_bytes(update[..8].try_into().context("eight bytes")?);
            delays.push(epoch.elapsed().saturating_sub(Duration::from_nanos(sent)));
        }
        Ok(delays)
    }
}
