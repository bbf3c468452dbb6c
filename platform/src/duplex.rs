//! A TCP connection whose two directions are driven by one task.

use std::io;

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes asked of the kernel at once: a little more than one full TLS record.
const READ_SIZE: usize = 17 << 10;

/// An output buffer of this size is given back to the allocator once it is sent, so that idle connections are small.
const KEEP_OUTPUT: usize = 1 << 10;

/// A connection with its buffers: whoever understands the bytes takes from `input` and appends to `output`.
#[derive(Debug)]
pub struct Duplex {
    stream: TcpStream,
    /// What has arrived and is not used yet.
    pub input: BytesMut,
    /// What is to be sent.
    pub output: Vec<u8>,
    sent: usize,
    total_sent: u64,
}

/// What happened on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more input.
    Received,
    /// All output is with the kernel.
    Sent,
    /// The peer will send no more.
    Closed,
}

impl Duplex {
    /// Takes over a connected stream.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            sent: 0,
            total_sent: 0,
        }
    }

    /// Bytes that the kernel has taken so far.
    pub fn bytes_sent(&self) -> u64 {
        self.total_sent
    }

    /// Waits for input, and sends output meanwhile. May be dropped at any time without loss.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn progress(&mut self) -> io::Result<Progress> {
        tokio::task::consume_budget().await; // a peer that never stops sending must let other tasks run
        if self.input.is_empty() {
            self.input = BytesMut::new(); // an idle connection holds no buffer
        }
        loop {
            let sending = !self.output.is_empty();
            let interest = if sending {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let ready = self.stream.ready(interest).await?;
            if sending && (ready.is_writable() || ready.is_write_closed()) && self.send()? {
                return Ok(Progress::Sent);
            }
            if ready.is_readable() || ready.is_read_closed() {
                self.input.reserve(READ_SIZE);
                match self.stream.try_read_buf(&mut self.input) {
                    Ok(0) => return Ok(Progress::Closed),
                    Ok(_) => return Ok(Progress::Received),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Sends all output and reads nothing: for whoever has no room for more input. May be dropped without loss.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            self.stream.writable().await?;
            self.send()?;
        }
        Ok(())
    }

    /// Sends what the kernel takes; answers whether that was all.
    fn send(&mut self) -> io::Result<bool> {
        match self.stream.try_write(&self.output[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                self.total_sent += u64::try_from(count).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.sent < self.output.len() {
            return Ok(false);
        }
        self.sent = 0;
        self.output.clear();
        self.output.shrink_to(KEEP_OUTPUT);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Duplex, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Duplex::new(client), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn input_is_received_while_the_peer_takes_no_output() {
        let (mut duplex, mut peer) = pair().await;
        duplex.output = vec![7; 32 << 20]; // more than all kernel buffers
        peer.write_all(b"hello").await.unwrap();
        assert_eq!(duplex.progress().await.unwrap(), Progress::Received);
        assert_eq!(&duplex.input[..], b"hello");

        let reader = tokio::spawn(async move {
            let mut all = vec![0; 32 << 20];
            peer.read_exact(&mut all).await.unwrap();
            all
        });
        assert_eq!(duplex.progress().await.unwrap(), Progress::Sent);
        assert!(reader.await.unwrap().iter().all(|byte| *byte == 7));
        assert!(duplex.output.capacity() <= KEEP_OUTPUT);
    }

    #[tokio::test]
    async fn the_end_of_the_peer_is_noticed() {
        let (mut duplex, peer) = pair().await;
        drop(peer);
        assert_eq!(duplex.progress().await.unwrap(), Progress::Closed);
    }
}
