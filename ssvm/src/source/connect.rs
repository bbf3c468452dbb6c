//! Connections: to judged addresses only, through TLS and proxies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

use super::{Client, Credentials, Proxy, Shown, SourceError, chain};

/// Why certificates to trust cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read certificates from {path}: {why}")]
pub struct BadCa {
    path: PathBuf,
    why: String,
}

/// TLS that trusts the certificates in PEM files. A missing `ca_file` means none: https then fails with a clear text.
///
/// # Errors
/// A file cannot be read, or one of `extra` has no usable certificate.
pub fn tls_config(ca_file: &Path, extra: &[PathBuf]) -> Result<Arc<ClientConfig>, BadCa> {
    let mut roots = RootCertStore::empty();
    for path in std::iter::once(ca_file).chain(extra.iter().map(PathBuf::as_path)) {
        let bad = |why: String| BadCa {
            path: path.to_owned(),
            why,
        };
        if path == ca_file && !path.exists() {
            tracing::warn!(path = %path.display(), "No CA certificates; install ca-certificates for https sources");
            continue;
        }
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
        let certificates = certificates.filter_map(Result::ok); // one that is odd must not hide the others
        let (added, _ignored) = roots.add_parsable_certificates(certificates);
        if added == 0 && path != ca_file {
            return Err(bad("there is no certificate in it; PEM is expected".into()));
        }
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// All addresses of a name, at least one.
pub(super) async fn resolve(name: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let found = timeout(limit, tokio::net::lookup_host((name, 0))).await??;
    let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if addresses.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(addresses)
}

/// `Basic …`; hyper shows it nowhere.
pub(super) fn basic(credentials: &Credentials) -> HeaderValue {
    let text = STANDARD.encode(format!("{}:{}", credentials.user, credentials.password.expose()));
    let mut value = HeaderValue::from_str(&format!("Basic {text}")).expect("base64 has no control characters");
    value.set_sensitive(true);
    value
}

/// For hyper.
pub(super) fn io<T>(stream: T) -> TokioIo<T> {
    TokioIo::new(stream)
}

async fn connect_any(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl Client {
    pub(super) async fn connect(&self, url: &Url, addresses: &[SocketAddr]) -> Result<TcpStream, SourceError> {
        connect_any(addresses, self.limits.connect)
            .await
            .map_err(|error| SourceError::Connect {
                url: Shown::new(url),
                why: error.to_string(),
            })
    }

    /// To the proxy itself: an administrator chose it, so its address is not judged.
    pub(super) async fn connect_proxy(&self, url: &Url, proxy: &Proxy) -> Result<TcpStream, SourceError> {
        let connect = async {
            let ips = resolve(&proxy.host, self.limits.connect).await?;
            let addresses: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, proxy.port)).collect();
            connect_any(&addresses, self.limits.connect).await
        };
        connect
            .await
            .map_err(|error: io::Error| proxy_failed(url, proxy, error.to_string()))
    }

    /// RFC 9110 §9.3.6: the proxy passes bytes on.
    pub(super) async fn tunnel(
        &self,
        url: &Url,
        proxy: &Proxy,
        stream: TcpStream,
    ) -> Result<(TokioIo<Upgraded>, AbortOnDropHandle<()>), SourceError> {
        let failed = |why: String| proxy_failed(url, proxy, why);
        let port = url.port_or_known_default().unwrap_or(443);
        let authority = format!("{}:{port}", url.host_str().unwrap_or_default());
        let mut request = hyper::Request::new(Empty::<Bytes>::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| failed(error.to_string()))?;
        if let Ok(host) = HeaderValue::from_str(&authority) {
            request.headers_mut().insert(header::HOST, host);
        }
        if let Some(credentials) = &proxy.credentials {
            let headers = request.headers_mut();
            headers.insert(header::PROXY_AUTHORIZATION, basic(credentials));
        }
        let asking = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io(stream)).await?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = connection.with_upgrades().await; // who uses the tunnel sees why it ended
            }));
            let response = sender.send_request(request).await?;
            let status = response.status();
            if !status.is_success() {
                return Ok(Err(status));
            }
            Ok(Ok((hyper::upgrade::on(response).await?, connection)))
        };
        let asked: Result<Result<_, StatusCode>, hyper::Error> = timeout(self.limits.idle, asking)
            .await
            .map_err(|_| failed(format!("no answer for {:?}", self.limits.idle)))?;
        match asked {
            Ok(Ok((upgraded, connection))) => Ok((io(upgraded), connection)),
            Ok(Err(status)) => Err(failed(format!("it answered {status}"))),
            Err(error) => Err(failed(chain(&error))),
        }
    }

    /// TLS with the name of the URL, whatever address was connected to.
    pub(super) async fn secure<T>(&self, url: &Url, stream: T) -> Result<TlsStream<T>, SourceError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = |why: String| SourceError::Tls {
            url: Shown::new(url),
            why,
        };
        let name = match url.host() {
            Some(Host::Ipv4(address)) => ServerName::from(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => ServerName::from(IpAddr::V6(address)),
            Some(Host::Domain(name)) => {
                ServerName::try_from(name.to_owned()).map_err(|error| tls(error.to_string()))?
            }
            None => return Err(tls("the URL has no host".into())),
        };
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        match timeout(self.limits.tls, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            // A handshake that the network broke may work the next time; one that rustls refused will not.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(tls(error.to_string())),
            Ok(Err(error)) => Err(SourceError::Broken {
                url: Shown::new(url),
                why: format!("TLS handshake: {error}"),
            }),
            Err(_) => Err(SourceError::Silent {
                url: Shown::new(url),
                limit: self.limits.tls,
            }),
        }
    }
}

pub(super) fn proxy_failed(url: &Url, proxy: &Proxy, why: String) -> SourceError {
    SourceError::Proxy {
        url: Shown::new(url),
        proxy: format!("{}:{}", proxy.host, proxy.port),
        why,
    }
}
