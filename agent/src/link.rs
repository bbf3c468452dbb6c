//! One connection to a management server: TLS, chunks, messages.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use platform::duplex::{Duplex, Progress};
use protocol::channel::{BrokenLink, Channel, Event};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Why there is no connection, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens there, or the network is down.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The peer does not react in time.
    #[error("no {what} within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// What the peer sends cannot be used.
    #[error(transparent)]
    Broken(#[from] BrokenLink),
    /// The peer closed the connection.
    #[error("the server closed the connection{}", if *.during_handshake { " during the TLS handshake" } else { "" })]
    Closed {
        /// Before the first message: refused certificates often show like this.
        during_handshake: bool,
    },
}

/// For a TLS alert to leave; enough on any network that works.
const ALERT_LIMIT: Duration = Duration::from_millis(500);

/// An established link.
pub struct Link {
    duplex: Duplex,
    channel: Channel,
}

impl Link {
    /// Connects and completes the TLS handshake.
    ///
    /// # Errors
    /// One of the limits is over, or TLS does not come about.
    pub async fn open(
        host: &str,
        port: u16,
        tls: Arc<ClientConfig>,
        connect_limit: Duration,
        handshake_limit: Duration,
    ) -> Result<Self, LinkError> {
        let connecting = timeout(connect_limit, TcpStream::connect((host, port)));
        let timed_out = |what, limit| LinkError::TimedOut { what, limit };
        let stream = connecting
            .await
            .map_err(|_| timed_out("TCP connection", connect_limit))?;
        let stream = stream.map_err(LinkError::Connect)?;
        // The name is needed by the TLS library but not checked: chains alone count (agent-protocol.md §1.2).
        let name = ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::from(stream_ip(&stream)));
        let mut link = Self {
            duplex: Duplex::new(stream),
            channel: Channel::client(tls, name).map_err(BrokenLink::Tls)?,
        };
        let handshake = timeout(handshake_limit, link.handshake());
        handshake
            .await
            .map_err(|_| timed_out("TLS handshake", handshake_limit))??;
        Ok(link)
    }

    async fn handshake(&mut self) -> Result<(), LinkError> {
        self.channel.flush(&mut self.duplex.output);
        loop {
            match self.channel.receive(&mut self.duplex.input, &mut self.duplex.output) {
                Ok(Some(_established)) => return Ok(()),
                Ok(None) => {}
                Err(error) => {
                    // The alert tells the server's log why.
                    let _ = timeout(ALERT_LIMIT, self.drain()).await;
                    return Err(error.into());
                }
            }
            if self.duplex.progress().await? == Progress::Closed {
                return Err(LinkError::Closed { during_handshake: true });
            }
        }
    }

    /// Waits for the next message, sending meanwhile what waits to be sent. May be dropped without loss.
    /// `None`: everything is sent, more may be given.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        loop {
            if let Some(Event::Message(message)) =
                self.channel.receive(&mut self.duplex.input, &mut self.duplex.output)?
            {
                return Ok(Some(message));
            }
            match self.duplex.progress().await? {
                Progress::Received => {}
                Progress::Sent => return Ok(None),
                Progress::Closed => {
                    return Err(LinkError::Closed {
                        during_handshake: false,
                    });
                }
            }
        }
    }

    /// The next message if the caller has room for one, else only sends.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn next_if(&mut self, has_room: bool) -> Result<Option<Vec<u8>>, LinkError> {
        if has_room {
            return self.next().await;
        }
        self.duplex.flush().await?;
        Ok(None)
    }

    /// Bytes that the kernel has taken so far.
    pub fn bytes_sent(&self) -> u64 {
        self.duplex.bytes_sent()
    }

    /// Whether all that was given is with the kernel.
    pub fn is_idle(&self) -> bool {
        self.duplex.output.is_empty()
    }

    /// Encrypts a message; [`Link::next`] sends it.
    ///
    /// # Errors
    /// TLS cannot encrypt any more.
    pub fn send(&mut self, message: &[u8]) -> Result<(), BrokenLink> {
        self.channel.send(message, &mut self.duplex.output)
    }

    /// Sends what waits, and drops what arrives.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn drain(&mut self) -> Result<(), LinkError> {
        while !self.is_idle() {
            if self.duplex.progress().await? == Progress::Closed {
                return Err(LinkError::Closed {
                    during_handshake: false,
                });
            }
            self.duplex.input.clear();
        }
        Ok(())
    }
}

fn stream_ip(stream: &TcpStream) -> std::net::IpAddr {
    stream
        .peer_addr()
        .map_or(std::net::Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}
