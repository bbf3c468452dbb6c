//! Messages over TLS over chunks, without a socket: bytes in, messages and bytes out (agent-protocol.md §1.3).
//!
//! During the handshake TLS records are bare. Afterwards each group of records has a chunk header in clear text before
//! it, which is why no ordinary TLS stream can be used. Both ends are the same code; they differ in the TLS
//! configuration.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::chunk::{BadChunk, CHUNK_HEADER_LEN, ChunkHeader, MAX_PLAINTEXT, RECORD_HEADER_LEN, record_len, records};
use crate::message::MAX_MESSAGE;

/// Longest TLS record in a handshake: 2^14 bytes and what encryption may add (RFC 5246 §6.2.3).
const MAX_RECORD: usize = RECORD_HEADER_LEN + MAX_PLAINTEXT + 2048;

/// One end of a link.
pub struct Channel {
    tls: Connection,
    established: bool,
    /// Decrypted chunks of a message whose last chunk is still to come.
    partial: Vec<u8>,
    /// Longest message that is accepted.
    max_message: usize,
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is complete: messages may be sent.
    Established,
    /// A whole message.
    Message(Vec<u8>),
}

/// Why the connection must be closed. There is no way to go on: the boundaries are lost.
#[derive(Debug, thiserror::Error)]
pub enum BrokenLink {
    /// TLS refuses what the peer sent, or the peer refuses us.
    #[error("TLS: {}", tls_text(.0))]
    Tls(#[from] rustls::Error),
    /// What arrived is not a TLS record.
    #[error("this is not TLS: record of {0} bytes")]
    NotTls(usize),
    /// The chunk framing is broken.
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    /// A message longer than what is accepted.
    #[error("a message longer than {0} bytes")]
    TooLong(usize),
    /// The peer said good-bye with a TLS alert.
    #[error("the peer closed the TLS session")]
    Closed,
}

/// rustls hides the text of our own certificate checks behind a `Debug` form; an operator needs the text.
fn tls_text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(reason)) => {
            let reason: &dyn std::error::Error = &*reason.0;
            reason.to_string()
        }
        other => other.to_string(),
    }
}

impl Channel {
    /// The agent's end. `name` is not checked against the certificate: chains alone count (§1.2).
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, rustls::Error> {
        Ok(Self::over(ClientConnection::new(config, name)?.into()))
    }

    /// The server's end.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self::over(ServerConnection::new(config)?.into()))
    }

    fn over(tls: Connection) -> Self {
        Self {
            tls,
            established: false,
            partial: Vec::new(),
            max_message: MAX_MESSAGE,
        }
    }

    /// Accepts messages of at most so many bytes, at most [`MAX_MESSAGE`]: for peers that nobody knows yet.
    pub fn limit_messages(&mut self, bytes: usize) {
        self.max_message = bytes.min(MAX_MESSAGE);
    }

    /// Whether the handshake is complete.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// The certificates that the peer presented, its own first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.tls.peer_certificates().unwrap_or_default()
    }

    /// Takes whole records or chunks off the front of `input` until something is to be told; `None`: more bytes are
    /// needed. What must be sent in reply (handshakes, alerts) is appended to `output` also in case of an error.
    ///
    /// # Errors
    /// The connection must be closed once `output` is sent.
    pub fn receive(&mut self, input: &mut BytesMut, output: &mut Vec<u8>) -> Result<Option<Event>, BrokenLink> {
        if self.established {
            return self.receive_chunks(input);
        }
        let received = self.receive_handshake(input);
        self.flush(output);
        received
    }

    /// The first bytes of the client's handshake, and every other record that TLS wants to send.
    pub fn flush(&mut self, output: &mut Vec<u8>) {
        while self.tls.wants_write() {
            self.tls.write_tls(output).expect("a Vec takes everything");
        }
    }

    /// Appends a message to `output`: one record to a chunk, FOLLOWING on all but the last.
    ///
    /// # Errors
    /// The handshake is not complete, or TLS cannot encrypt any more.
    pub fn send(&mut self, message: &[u8], output: &mut Vec<u8>) -> Result<(), BrokenLink> {
        if !self.established {
            return Err(rustls::Error::HandshakeNotComplete.into());
        }
        let mut rest = message;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(MAX_PLAINTEXT));
            rest = after;
            let start = output.len();
            output.extend_from_slice(&[0; CHUNK_HEADER_LEN]);
            self.tls
                .writer()
                .write_all(piece)
                .map_err(|_| rustls::Error::EncryptError)?;
            self.flush(output);
            let len = output.len() - start - CHUNK_HEADER_LEN;
            let header = ChunkHeader {
                len,
                following: !rest.is_empty(),
            }
            .encode()?;
            output[start..start + CHUNK_HEADER_LEN].copy_from_slice(&header);
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Feeds TLS record by record, so that it cannot swallow the chunk header after the last one.
    fn receive_handshake(&mut self, input: &mut BytesMut) -> Result<Option<Event>, BrokenLink> {
        while let Some(len) = record_len(input) {
            if len > MAX_RECORD || !matches!(input[0], 20..=23) {
                return Err(BrokenLink::NotTls(len));
            }
            if input.len() < len {
                break;
            }
            let mut record = &input[..len];
            self.feed(&mut record)?;
            input.advance(len);
            if !self.tls.is_handshaking() {
                self.established = true;
                return Ok(Some(Event::Established));
            }
        }
        Ok(None)
    }

    fn receive_chunks(&mut self, input: &mut BytesMut) -> Result<Option<Event>, BrokenLink> {
        while let Some(&header) = input.first_chunk::<CHUNK_HEADER_LEN>() {
            let header = ChunkHeader::decode(header)?;
            let end = CHUNK_HEADER_LEN + header.len;
            if input.len() < end {
                break;
            }
            for mut record in records(&input[CHUNK_HEADER_LEN..end])? {
                self.feed(&mut record)?;
                self.take_plaintext()?;
            }
            input.advance(end);
            if !header.following {
                return Ok(Some(Event::Message(std::mem::take(&mut self.partial))));
            }
        }
        Ok(None)
    }

    fn feed(&mut self, record: &mut &[u8]) -> Result<(), BrokenLink> {
        while !record.is_empty() {
            self.tls
                .read_tls(record)
                .map_err(|_| BrokenLink::TooLong(self.max_message))?;
            if self.tls.process_new_packets()?.peer_has_closed() {
                return Err(BrokenLink::Closed);
            }
        }
        Ok(())
    }

    fn take_plaintext(&mut self) -> Result<(), BrokenLink> {
        let mut reader = self.tls.reader();
        let room = u64::try_from(self.max_message.saturating_sub(self.partial.len())).unwrap_or(u64::MAX);
        // `WouldBlock` is rustls' word for "nothing more at present".
        let _ = reader.by_ref().take(room).read_to_end(&mut self.partial);
        match reader.read(&mut [0]) {
            Ok(1..) => Err(BrokenLink::TooLong(self.max_message)),
            _ => Ok(()),
        }
    }
}
