//! The way to the host: from a token's [`Target`] to a stream on which the host has let us in (§7).

mod tls;
mod tunnel;
mod vencrypt;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use protocol::secret::Secret;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::browser::Stream;
use crate::rfb::Version;
use crate::rfb::handshake::{self, HandshakeError, Security};
use crate::token::Target;

/// For a TCP connection to a host (§7.1). Stock waits as long as the system does.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// For sent bytes that a host does not acknowledge (§8).
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Whether hosts must encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VncTls {
    /// Where the host offers it.
    #[default]
    Prefer,
    /// A host without TLS is refused.
    Require,
    /// Never.
    Off,
}

/// Whom to believe to be a host, when it encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VncTlsVerify {
    /// Who has a certificate of the CA that the management server gave us.
    #[default]
    Ca,
    /// Anybody.
    Off,
}

/// What a way to a host needs besides the token.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whether hosts must encrypt.
    pub tls: VncTls,
    /// Whom to believe.
    pub verify: VncTlsVerify,
    /// Directory of the agent's certificate, key and CA.
    pub directory: PathBuf,
}

/// Why there is no screen.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// TCP.
    #[error("cannot connect to {host}:{port}")]
    Connect {
        /// As in the token.
        host: String,
        /// As in the token.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// RFB.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// XenServer.
    #[error("the tunnel to the host does not open: {0}")]
    Tunnel(String),
    /// A kind of host that we have no way to.
    #[error("consoles of {0} are not supported by this version")]
    Unsupported(&'static str),
}

/// A host that has let us in; ClientInit comes next.
pub struct Host {
    /// To the host.
    pub stream: Box<dyn Stream>,
    /// Whether the way to the host is encrypted.
    pub is_tls: bool,
}

impl Target {
    /// Name of the kind, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Tunnel { .. } => "tunnel",
            Self::WebSocket(_) => "websocket",
            Self::HyperV => "hyperv",
        }
    }
}

/// Goes to the host and logs in. The caller bounds the time.
///
/// # Errors
/// There is no way, or the host does not let us in.
pub async fn open(target: &Target, password: &Secret<String>, policy: &Policy) -> Result<Host, BackendError> {
    match target {
        Target::Tcp { host, port } => {
            let stream = connect(host, *port).await?;
            log_in(Box::new(stream), Version::V8, password, policy).await
        }
        Target::Tunnel { url, session } => {
            let (stream, is_tls) = tunnel::open(url, session).await?;
            let host = log_in(stream, Version::V3, password, policy).await?;
            Ok(Host { is_tls, ..host })
        }
        Target::WebSocket(_) => Err(BackendError::Unsupported("VMware (a WebSocket behind ours)")),
        Target::HyperV => Err(BackendError::Unsupported("Hyper-V (RDP)")),
    }
}

async fn log_in(
    mut stream: Box<dyn Stream>,
    highest: Version,
    password: &Secret<String>,
    policy: &Policy,
) -> Result<Host, BackendError> {
    let allowed = |security| match policy.tls {
        VncTls::Prefer => true,
        VncTls::Require => security == Security::VeNCrypt || highest == Version::V3,
        VncTls::Off => security != Security::VeNCrypt,
    };
    let chosen = handshake::choose_security(&mut stream, highest, allowed).await;
    let (version, security) = match chosen {
        Err(HandshakeError::NoCommonType(_)) if policy.tls == VncTls::Require => {
            return Err(HandshakeError::NoTls.into());
        }
        chosen => chosen?,
    };
    match security {
        Security::VeNCrypt => {
            let stream = vencrypt::open(stream, version, password, policy).await?;
            return Ok(Host { stream, is_tls: true });
        }
        Security::VncAuth => handshake::vnc_auth(&mut stream, version, password).await?,
        Security::None if version == Version::V8 => handshake::security_result(&mut stream, version).await?,
        Security::None => {} // before 3.8 nothing follows
    }
    Ok(Host { stream, is_tls: false })
}

/// Opens a TCP connection that notices when the other end is gone.
async fn connect(host: &str, port: u16) -> Result<TcpStream, BackendError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    let connecting = async {
        match bare.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect((address, port)).await,
            Err(_) => TcpStream::connect((bare, port)).await,
        }
    };
    let connected = timeout(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| {
        let text = format!("no answer within {CONNECT_LIMIT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    });
    let connected = connected.and_then(|stream| prepare(&stream, UNACKNOWLEDGED).map(|()| stream));
    connected.map_err(|source| BackendError::Connect {
        host: host.to_owned(),
        port,
        source,
    })
}

/// Options of both ends' sockets (§7.1, §8): no delay, keep-alive after 30 s, and an end when sent bytes are not
/// acknowledged.
///
/// # Errors
/// The connection is gone already.
pub fn prepare(stream: &TcpStream, unacknowledged: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &30)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &10)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &3)?;
    let milliseconds = u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX);
    setsockopt(&socket, sockopt::TcpUserTimeout, &milliseconds)?;
    Ok(())
}
