//! Serving HTTP/1.1: connections with limits, TLS whose certificate can change, an end that finishes what is open.
//!
//! Who answers is a [`Handler`]; a `match` on the path is its router. Upgrades (WebSocket) are hyper's own.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

/// What is sent back. An error in the middle of a body cuts the connection.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// A request whose body has not been read yet.
pub type Request = hyper::Request<Incoming>;
/// An answer.
pub type Response = hyper::Response<Body>;

/// Answers requests. A request whose peer goes away is dropped at its next `await`.
pub trait Handler: Send + Sync + 'static {
    /// Answers one.
    fn handle(&self, request: Request, peer: Peer) -> impl Future<Output = Response> + Send;
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the TCP connection; `[::]:0` on a Unix socket, where peers have no address.
    pub address: SocketAddr,
    /// Whether it came over TLS.
    pub is_tls: bool,
}

/// What a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time; more are closed at once.
    pub connections: usize,
    /// For the head of a request, also the first after a pause: an idle connection is closed after this time.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For requests that are being answered when the server stops.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head: Duration::from_secs(30),
            head_bytes: 64 << 10,
            handshake: Duration::from_secs(10),
            farewell: Duration::from_secs(5),
        }
    }
}

/// A TLS configuration that may be replaced while connections go on: new ones get the new one.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Where connections come in: a TCP port or a Unix socket.
pub trait Listener: Send + Sync + 'static {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next connection, and where it comes from.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = Self::accept(self).await?;
        let _ = stream.set_nodelay(true); // it is only slower without
        Ok((stream, address))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, _) = Self::accept(self).await?;
        Ok((stream, (Ipv6Addr::UNSPECIFIED, 0).into()))
    }
}

/// Serves until `stop`, then finishes what is being answered, for [`Limits::farewell`] at most.
pub async fn serve(
    listener: impl Listener,
    tls: Option<Tls>,
    limits: Limits,
    handler: Arc<impl Handler>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait until some connections end instead of spinning.
                warn!(%error, "Cannot accept connections");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            debug!(peer = %address, limit = limits.connections, "Too many connections, closing a new one");
            continue;
        };
        let peer = Peer {
            address,
            is_tls: tls.is_some(),
        };
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.borrow())));
        let (handler, stop) = (Arc::clone(&handler), stop.clone());
        let serve = async move {
            match acceptor {
                None => converse(TokioIo::new(stream), peer, limits, handler, stop).await,
                Some(acceptor) => match handshake(acceptor, stream, limits.handshake).await {
                    Ok(stream) => converse(TokioIo::new(stream), peer, limits, handler, stop).await,
                    Err(error) => debug!(%error, "TLS handshake failed"),
                },
            }
            drop(place);
        };
        connections.spawn(serve.instrument(info_span!("http", peer = %address)));
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.farewell, finished).await.is_err() {
        debug!("Some connections did not end in time");
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: TlsAcceptor,
    stream: S,
    limit: Duration,
) -> io::Result<tokio_rustls::server::TlsStream<S>> {
    timeout(limit, acceptor.accept(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn converse(
    io: impl Read + Write + Unpin + Send + 'static,
    peer: Peer,
    limits: Limits,
    handler: Arc<impl Handler>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(handler.handle(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .half_close(false)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "Connection ended"); // peers come and go as they like
    }
}

/// A body that is in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// An answer in memory. `no-store`, because what we generate is about now; who answers with something lasting says so.
pub fn answer(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// Why the body of a request could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BadBody {
    /// It is longer than we take.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    /// It came too slowly.
    #[error("the body did not arrive within {0:?}")]
    TooSlow(Duration),
    /// The connection broke.
    #[error("the body did not arrive: {0}")]
    Broken(String),
}

/// Reads a whole body, with a limit of bytes and of time.
///
/// # Errors
/// It is too long, too slow, or the connection broke.
pub async fn read_body(body: Incoming, max_bytes: usize, limit: Duration) -> Result<Bytes, BadBody> {
    match timeout(limit, Limited::new(body, max_bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(BadBody::TooLong(max_bytes)),
        Ok(Err(error)) => Err(BadBody::Broken(error.to_string())),
        Err(_) => Err(BadBody::TooSlow(limit)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Echo;

    impl Handler for Echo {
        async fn handle(&self, request: Request, _: Peer) -> Response {
            match read_body(request.into_body(), 8, Duration::from_secs(5)).await {
                Ok(body) => answer(StatusCode::OK, "text/plain", body),
                Err(error) => answer(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", error.to_string()),
            }
        }
    }

    async fn start(limits: Limits) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, None, limits, Arc::new(Echo), stop.clone()));
        (address, stop, server)
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        let _ = read.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_and_a_longer_one_is_refused() {
        let (address, stop, server) = start(Limits::default()).await;
        let post = |body: &str| {
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        assert!(exchange(address, &post("12345678")).await.ends_with("\r\n\r\n12345678"));
        let refused = exchange(address, &post("123456789")).await;
        assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
        assert!(refused.ends_with("the body is longer than 8 bytes"), "{refused}");
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_unix_socket_is_served_like_a_port() {
        struct Address;

        impl Handler for Address {
            async fn handle(&self, _: Request, peer: Peer) -> Response {
                answer(StatusCode::OK, "text/plain", peer.address.to_string())
            }
        }

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            None,
            Limits::default(),
            Arc::new(Address),
            stop.clone(),
        ));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answered = String::new();
        stream.read_to_string(&mut answered).await.unwrap();
        assert!(answered.ends_with("\r\n\r\n[::]:0"), "{answered}");
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_to_an_end_is_not_waited_for() {
        let limits = Limits {
            head: Duration::from_millis(50),
            ..Limits::default()
        };
        let (address, _stop, _server) = start(limits).await;
        assert!(!exchange(address, "GET / HTTP/1.1\r\nHost: ").await.contains("200 OK"));
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_the_others_go_on() {
        let limits = Limits {
            connections: 1,
            ..Limits::default()
        };
        let (address, _stop, _server) = start(limits).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answered = [0; 15];
        first.read_exact(&mut answered).await.unwrap();
        assert_eq!(&answered, b"HTTP/1.1 200 OK");
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(matches!(second.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
}
