//! What this server serves over HTTP, and where: one `match` on the path.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use hyper::StatusCode;
use platform::http::{self, Handler, Limits, Peer, Request, Response};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Trust};
use crate::live::Live;
use crate::page;

/// Name of the socket in the data directory.
pub const SOCKET: &str = "api.sock";

/// Answers requests that come in one way.
struct Web {
    api: Api,
    live: Arc<Live>,
    trust: Trust,
}

impl Handler for Web {
    async fn handle(&self, request: Request, peer: Peer) -> Response {
        let from = (self.trust == Trust::Nobody).then_some(peer.address.ip());
        match request.uri().path() {
            "/client/api" => self.api.answer(request, from, self.trust).await,
            "/client/live" => self.live.answer(request.uri(), request.headers()).await,
            "/client/live/vm" => self.live.answer_vm(request.uri(), request.headers()).await,
            "/metrics" if self.trust == Trust::Administrator => self.api.metrics().await,
            path => page::answer(request.method(), path, request.headers()).unwrap_or_else(|| {
                http::answer(
                    StatusCode::NOT_FOUND,
                    "text/plain; charset=utf-8",
                    "there is nothing at this address\n",
                )
            }),
        }
    }
}

/// The listeners of the API.
pub struct WebServer {
    tcp: TcpListener,
    unix: UnixListener,
}

/// Why the API cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A port.
    #[error("cannot listen on {address}; is another program using the port?")]
    Tcp {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket.
    #[error("cannot make the socket {path}; a shorter --data-dir may help")]
    Unix {
        /// What was asked for.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl WebServer {
    /// Takes the port, and the socket in the data directory, which must be ours alone: nobody else may enter it.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub async fn bind(address: SocketAddr, data_dir: &Path) -> Result<Self, BindError> {
        let tcp = TcpListener::bind(address)
            .await
            .map_err(|source| BindError::Tcp { address, source })?;
        let path = data_dir.join(SOCKET);
        let bind = || {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {} // of a server before us: we hold the lock of the directory
            }
            let unix = UnixListener::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(unix)
        };
        let unix = bind().map_err(|source| BindError::Unix {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self { tcp, unix })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `stop`.
    pub async fn serve(self, api: Api, stop: CancellationToken) {
        let live = Arc::new(Live::new(api.clone(), stop.clone()));
        let handler = |trust| {
            Arc::new(Web {
                api: api.clone(),
                live: Arc::clone(&live),
                trust,
            })
        };
        let limits = Limits::default();
        tokio::join!(
            live.run(),
            http::serve(self.tcp, None, limits, handler(Trust::Nobody), stop.clone()),
            http::serve(self.unix, None, limits, handler(Trust::Administrator), stop.clone()),
        );
    }
}
