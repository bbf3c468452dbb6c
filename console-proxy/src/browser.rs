//! A viewer's WebSocket after the upgrade: a stream of bytes in each direction, with pings and an end in between.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use crate::buffers::{Buffer, Buffers};
use crate::session::End;
use crate::ws::{self, BadFrame, Control, Decoder, Header, Payload};

/// A connection of either kind, plain or TLS, to either side.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How long a browser has to take our last frame.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a browser may send before its console is open: version, type, ClientInit; noVNC waits for our answers in between.
const MAX_EARLY: usize = 4 << 10;

/// The browser's end.
pub struct Browser {
    /// From the browser.
    pub incoming: Incoming,
    /// To the browser.
    pub outgoing: Outgoing,
    early: Vec<u8>,
    pong: Option<Payload>,
}

/// The direction from the browser.
pub struct Incoming {
    io: ReadHalf<Box<dyn Stream>>,
    decoder: Decoder,
    buffers: Buffers,
    /// Read by the HTTP server behind the request.
    behind_request: Option<Buffer>,
}

/// The direction to the browser.
pub struct Outgoing {
    io: WriteHalf<Box<dyn Stream>>,
    /// A frame has been sent in part: nothing can be said any more.
    is_torn: bool,
}

impl Browser {
    /// `behind_request`: what the HTTP server has read already.
    pub fn new(stream: Box<dyn Stream>, behind_request: &[u8], buffers: Buffers) -> Self {
        let (reader, writer) = split(stream);
        let behind_request = (!behind_request.is_empty()).then(|| buffers.copy(behind_request));
        Self {
            incoming: Incoming {
                io: reader,
                decoder: Decoder::default(),
                buffers,
                behind_request,
            },
            outgoing: Outgoing {
                io: writer,
                is_torn: false,
            },
            early: Vec::new(),
            pong: None,
        }
    }

    /// Exactly these bytes.
    ///
    /// # Errors
    /// The browser left, or sends what it must not.
    pub async fn read_exact<const N: usize>(&mut self) -> Result<[u8; N], End> {
        loop {
            if let Some(bytes) = self.early.first_chunk::<N>() {
                let bytes = *bytes;
                self.early.drain(..N);
                return Ok(bytes);
            }
            self.read_early().await?;
        }
    }

    /// Completes only when the browser leaves or sends what it must not: for waiting on something else meanwhile. Loses
    /// nothing when dropped.
    pub async fn until_gone(&mut self) -> End {
        loop {
            if let Err(end) = self.read_early().await {
                return end;
            }
        }
    }

    async fn read_early(&mut self) -> Result<(), End> {
        let (mut is_closed, mut ping) = (false, None);
        let payload = self.incoming.read(|control| match control {
            Control::Close => is_closed = true,
            Control::Ping(payload) => ping = Some(payload),
            Control::Pong(_) => {}
        });
        let payload = payload.await?;
        self.early.extend_from_slice(&payload);
        self.pong = ping.or(self.pong);
        if is_closed {
            return Err(End::BrowserClosed);
        }
        if self.early.len() > MAX_EARLY {
            return Err(End::Protocol(
                "the browser sends without waiting for the console to open".into(),
            ));
        }
        Ok(())
    }

    /// Sends bytes in a frame of their own, behind the answer to a ping.
    ///
    /// # Errors
    /// The browser left.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let mut frames = self.pong.take().map(|payload| ws::pong(&payload)).unwrap_or_default();
        frames.extend(ws::binary(bytes));
        self.outgoing.send(&frames).await
    }

    /// What came before it was asked for.
    pub fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }
}

impl Incoming {
    /// The next payload, unmasked; may be empty. Loses nothing when dropped.
    ///
    /// # Errors
    /// The browser left, or sends what it must not.
    pub async fn read(&mut self, on_control: impl FnMut(Control)) -> Result<Buffer, End> {
        let mut chunk = match self.behind_request.take() {
            Some(chunk) => chunk,
            None => self.buffers.read(&mut self.io).await.map_err(|_| End::BrowserLost)?,
        };
        if chunk.is_empty() {
            return Err(End::BrowserLost);
        }
        let length = self
            .decoder
            .decode(&mut chunk, on_control)
            .map_err(|error| match error {
                BadFrame::Malformed(_) => End::BadFrame(error),
                BadFrame::TooLong(_) => End::TooBig(error),
                BadFrame::Text => End::Protocol(error.to_string()),
            })?;
        chunk.truncate(length);
        Ok(chunk)
    }
}

impl Outgoing {
    /// Sends a chunk as one binary frame, without copying it.
    ///
    /// # Errors
    /// The browser left.
    pub async fn send_chunk(&mut self, chunk: &mut Buffer) -> Result<(), End> {
        let header = Header::binary(chunk.len());
        self.send(chunk.with_header(header.as_slice())).await
    }

    /// Sends whole frames.
    ///
    /// # Errors
    /// The browser left.
    pub async fn send(&mut self, frames: &[u8]) -> Result<(), End> {
        self.is_torn = true;
        let sent = async {
            self.io.write_all(frames).await?;
            self.io.flush().await
        };
        let sent: io::Result<()> = sent.await;
        sent.map_err(|_| End::BrowserLost)?;
        self.is_torn = false;
        Ok(())
    }

    /// Says why it ends, if the end has a code and the browser still listens, and closes.
    pub async fn close(&mut self, end: &End) {
        let farewell = async {
            if let Some((code, reason)) = end.code().filter(|_| !self.is_torn) {
                self.send(&ws::close(code, reason)).await?;
            }
            self.io.shutdown().await.map_err(|_| End::BrowserLost)
        };
        let _ = timeout(FAREWELL, farewell).await; // who does not listen is not waited for
    }
}
