//! The server's end of one connection: TLS, chunks, messages.

use std::io;
use std::sync::Arc;

use platform::duplex::{Duplex, Progress};
use protocol::channel::{BrokenLink, Channel, Event};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;

use crate::client_auth;

/// Why a connection ended, for one line in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Broken(#[from] BrokenLink),
    #[error("TLS handshake: {0}")]
    Handshake(String),
    #[error("the agent closed the connection")]
    Closed,
}

pub(crate) struct Link {
    duplex: Duplex,
    channel: Channel,
}

impl Link {
    pub(crate) fn new(stream: TcpStream, tls: Arc<ServerConfig>) -> Result<Self, LinkError> {
        Ok(Self {
            duplex: Duplex::new(stream),
            channel: Channel::server(tls).map_err(BrokenLink::Tls)?,
        })
    }

    pub(crate) async fn handshake(&mut self) -> Result<(), LinkError> {
        loop {
            match self.channel.receive(&mut self.duplex.input, &mut self.duplex.output) {
                Ok(Some(_established)) => return Ok(()),
                Ok(None) => {}
                Err(error) => {
                    // The alert tells the agent's log why, if it still listens; nobody waits for it.
                    if !self.is_idle() {
                        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.duplex.progress()).await;
                    }
                    return Err(match error {
                        BrokenLink::Tls(error) => LinkError::Handshake(client_auth::explain(&error)),
                        error => error.into(),
                    });
                }
            }
            if self.duplex.progress().await? == Progress::Closed {
                return Err(LinkError::Closed);
            }
        }
    }

    /// The agent's certificate, if it presented one.
    pub(crate) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.channel.peer_certificates().first()
    }

    /// Waits for the next message and sends meanwhile; `None`: everything is sent. May be dropped without loss.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        loop {
            if let Some(Event::Message(message)) =
                self.channel.receive(&mut self.duplex.input, &mut self.duplex.output)?
            {
                return Ok(Some(message));
            }
            match self.duplex.progress().await? {
                Progress::Received => {}
                Progress::Sent => return Ok(None),
                Progress::Closed => return Err(LinkError::Closed),
            }
        }
    }

    /// The next message if the caller has room for one, else only sends.
    pub(crate) async fn next_if(&mut self, has_room: bool) -> Result<Option<Vec<u8>>, LinkError> {
        if has_room {
            return self.next().await;
        }
        self.duplex.flush().await?;
        Ok(None)
    }

    /// Accepts messages of at most so many bytes.
    pub(crate) fn limit_messages(&mut self, bytes: usize) {
        self.channel.limit_messages(bytes);
    }

    /// Whether all that was given is with the kernel.
    pub(crate) fn is_idle(&self) -> bool {
        self.duplex.output.is_empty()
    }

    pub(crate) fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        Ok(self.channel.send(message, &mut self.duplex.output)?)
    }
}
