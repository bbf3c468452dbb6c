//! Asking an http or https source: one GET, every hop checked (ssvm.md §3.3, §8.3).
//!
//! We connect ourselves instead of through a client library: the address that was judged must be the address that is
//! connected to, at every hop, whatever the name resolves to a moment later.

mod connect;
mod length;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use protocol::secret::Secret;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

pub use connect::{BadCa, tls_config};
pub use length::Length;

use crate::reach::{Reach, Refused};

const USER_AGENT: &str = concat!("CloudStack-Agent/", env!("CARGO_PKG_VERSION"), " (Apache CloudStack)");

/// What a connection may hold of an answer at once; also the longest head of an answer that is read.
const READ_BUFFER: usize = 128 << 10;

/// Time limits and rules for all requests.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a TCP connection to one of a host's addresses, and for its name.
    pub connect: Duration,
    /// For a TLS handshake.
    pub tls: Duration,
    /// Longest silence.
    pub idle: Duration,
    /// Hops that are followed.
    pub redirects: u32,
    /// Ports that may be asked; empty: any.
    pub ports: Vec<u16>,
}

/// Asks sources.
#[derive(Debug, Clone)]
pub struct Client {
    limits: Arc<Limits>,
    tls: Arc<ClientConfig>,
    reach: watch::Receiver<Arc<Reach>>,
}

/// User and password for Basic authentication, RFC 7617.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret<String>,
}

/// An HTTP proxy of the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// At the proxy.
    pub credentials: Option<Credentials>,
}

/// One GET.
#[derive(Debug, Clone)]
pub struct Get<'a> {
    /// What is asked for.
    pub url: &'a Url,
    /// Sent at once, to the URL's host only.
    pub auth: Option<&'a Credentials>,
    /// Asked instead of the host.
    pub proxy: Option<&'a Proxy>,
    /// Whether redirects are followed.
    pub follow_redirects: bool,
    /// Only the rest, if it is still the same file: first byte wanted, and the validator for `If-Range`.
    pub rest: Option<(u64, &'a str)>,
}

/// An answer whose body has not been read yet. Its connection ends with it.
pub struct Opened {
    /// 200 or 206.
    pub status: StatusCode,
    /// Head of the answer.
    pub headers: HeaderMap,
    url: Shown,
    idle: Duration,
    body: Incoming,
    _connection: Vec<AbortOnDropHandle<()>>,
}

/// A URL as it may be shown to users and in logs: without credentials, and without a query, which may hold keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Of a URL.
    pub fn new(url: &Url) -> Self {
        let mut plain = url.clone();
        let _ = plain.set_username("");
        let _ = plain.set_password(None);
        plain.set_fragment(None);
        if plain.query().is_some() {
            plain.set_query(Some("…"));
            return Self(plain.to_string().replace("%E2%80%A6", "…"));
        }
        Self(plain.to_string())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a source gave nothing, or not all. Shown to users: upstream's sentence first where it has one (ssvm.md §3.3).
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// §8.3.
    #[error("Illegal host specified in URL. ({url}: the host has {why})")]
    IllegalHost {
        /// Which hop.
        url: Shown,
        /// What is wrong with its address.
        why: Refused,
    },
    /// DNS has no address, or did not answer.
    #[error("Unable to resolve {host}. ({url}: check the host in the URL and the DNS servers of the zone)")]
    Unresolvable {
        /// Which hop.
        url: Shown,
        /// Its host.
        host: String,
    },
    /// Only http and https.
    #[error("Unsupported scheme for url: {url}; use http or https")]
    Scheme {
        /// Which hop.
        url: Shown,
    },
    /// An operator allows some ports only.
    #[error("port {port} is not allowed for downloads ({url}); the administrator allows {allowed:?}")]
    Port {
        /// Which hop.
        url: Shown,
        /// Its port.
        port: u16,
        /// `allowed_ports`.
        allowed: Vec<u16>,
    },
    /// Redirects are off.
    #[error(
        "Failed to download {url} due to redirection, response code: {code}; register the address that it leads to, or \
         let an administrator set store.download.follow.redirects"
    )]
    RedirectOff {
        /// Which hop.
        url: Shown,
        /// HTTP status.
        code: u16,
    },
    /// A redirect that cannot be followed.
    #[error("Failed to download {url} due to redirection, response code: {code}; {why}")]
    RedirectBad {
        /// Which hop.
        url: Shown,
        /// HTTP status.
        code: u16,
        /// What is wrong.
        why: String,
    },
    /// Neither 200 nor 206.
    #[error(" HTTP Server returned {code} (expected 200 OK) ({url}: {hint})")]
    Status {
        /// Which hop.
        url: Shown,
        /// HTTP status.
        code: u16,
        /// What to do.
        hint: &'static str,
    },
    /// No connection.
    #[error("cannot connect to the source ({url}): {why}; check that it runs and that the zone can reach it")]
    Connect {
        /// Which hop.
        url: Shown,
        /// What the system said.
        why: String,
    },
    /// The proxy did not let us through.
    #[error("the proxy {proxy} does not lead to {url}: {why}; check the setting secstorage.proxy")]
    Proxy {
        /// Which hop.
        url: Shown,
        /// Host and port.
        proxy: String,
        /// What went wrong.
        why: String,
    },
    /// No TLS.
    #[error(
        "no secure connection to the source ({url}): {why}; the source needs a certificate for its name from a \
             known authority"
    )]
    Tls {
        /// Which hop.
        url: Shown,
        /// What rustls said.
        why: String,
    },
    /// Nothing came for too long.
    #[error("the source ({url}) sent nothing for {limit:?}; try again when it is less busy")]
    Silent {
        /// Which hop.
        url: Shown,
        /// How long we waited.
        limit: Duration,
    },
    /// The connection ended too early.
    #[error("the connection to the source ({url}) broke: {why}; try again")]
    Broken {
        /// Which hop.
        url: Shown,
        /// What happened.
        why: String,
    },
    /// Neither a length nor chunks.
    #[error(" Failed to receive length of download  ({url}: the server must send Content-Length or chunks)")]
    NoLength {
        /// The source.
        url: Shown,
    },
}

impl SourceError {
    /// Whether asking again, with what we have already, may help. What judges or refuses is final.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::Silent { .. }
            | Self::Broken { .. }
            | Self::Unresolvable { .. } => true,
            Self::Status { code, .. } => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl Client {
    /// A client; `reach` may change at any time and counts from the next connection on.
    pub fn new(limits: Limits, tls: Arc<ClientConfig>, reach: watch::Receiver<Arc<Reach>>) -> Self {
        Self {
            limits: Arc::new(limits),
            tls,
            reach,
        }
    }

    /// Asks, and follows redirects where that is allowed: each hop is checked like the first.
    ///
    /// # Errors
    /// There is no answer with status 200 (or 206 where the rest was asked for).
    pub async fn get(&self, get: &Get<'_>) -> Result<Opened, SourceError> {
        let mut url = get.url.clone();
        let mut auth = get.auth;
        let mut hops = 0;
        loop {
            let opened = self.ask(&url, auth, get).await?;
            let code = opened.status.as_u16();
            match opened.status {
                StatusCode::OK => return Ok(opened),
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if get.rest.is_some() => {
                    return Ok(opened);
                }
                status if is_redirect(status) => {
                    let shown = Shown::new(&url);
                    if !get.follow_redirects {
                        return Err(SourceError::RedirectOff { url: shown, code });
                    }
                    let next = opened.redirect_target(&url, code)?;
                    hops += 1;
                    if hops > self.limits.redirects {
                        let why = format!("more than {} redirects in a row", self.limits.redirects);
                        return Err(SourceError::RedirectBad { url: shown, code, why });
                    }
                    if next.origin() != url.origin() {
                        auth = None; // credentials are for the host they were given for
                    }
                    url = next;
                }
                StatusCode::PROXY_AUTHENTICATION_REQUIRED if let Some(proxy) = get.proxy => {
                    return Err(connect::proxy_failed(
                        &url,
                        proxy,
                        format!("it answered {}", opened.status),
                    ));
                }
                status => {
                    return Err(SourceError::Status {
                        url: Shown::new(&url),
                        code,
                        hint: hint(status),
                    });
                }
            }
        }
    }

    async fn ask(&self, url: &Url, auth: Option<&Credentials>, get: &Get<'_>) -> Result<Opened, SourceError> {
        let addresses = self.judged_addresses(url, get.proxy.is_some()).await?;
        let is_tls = url.scheme() == "https";
        let via_proxy = get.proxy.filter(|_| !is_tls);
        let request = request(url, auth, get.rest, via_proxy);
        match (get.proxy, is_tls) {
            (None, false) => {
                let stream = self.connect(url, &addresses).await?;
                self.converse(connect::io(stream), request, url, Vec::new()).await
            }
            (None, true) => {
                let stream = self.connect(url, &addresses).await?;
                let stream = self.secure(url, stream).await?;
                self.converse(connect::io(stream), request, url, Vec::new()).await
            }
            (Some(proxy), false) => {
                let stream = self.connect_proxy(url, proxy).await?;
                self.converse(connect::io(stream), request, url, Vec::new()).await
            }
            (Some(proxy), true) => {
                let stream = self.connect_proxy(url, proxy).await?;
                let (stream, tunnel) = self.tunnel(url, proxy, stream).await?;
                let stream = self.secure(url, stream).await?;
                self.converse(connect::io(stream), request, url, vec![tunnel]).await
            }
        }
    }

    /// Every address of the URL's host, all of which may be asked.
    async fn judged_addresses(&self, url: &Url, has_proxy: bool) -> Result<Vec<SocketAddr>, SourceError> {
        let shown = || Shown::new(url);
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SourceError::Scheme { url: shown() });
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(SourceError::Scheme { url: shown() });
        };
        let allowed = &self.limits.ports;
        if !allowed.is_empty() && !allowed.contains(&port) {
            return Err(SourceError::Port {
                url: shown(),
                port,
                allowed: allowed.clone(),
            });
        }
        let addresses: Vec<IpAddr> = match host {
            Host::Ipv4(address) => vec![address.into()],
            Host::Ipv6(address) => vec![address.into()],
            Host::Domain(name) => match connect::resolve(name, self.limits.connect).await {
                Ok(addresses) => addresses,
                Err(_) if has_proxy => return Ok(Vec::new()), // the proxy may know it
                Err(_) => {
                    return Err(SourceError::Unresolvable {
                        url: shown(),
                        host: name.to_owned(),
                    });
                }
            },
        };
        let reach = Arc::clone(&self.reach.borrow());
        for address in &addresses {
            reach
                .judge(*address)
                .map_err(|why| SourceError::IllegalHost { url: shown(), why })?;
        }
        Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn converse<Io>(
        &self,
        io: Io,
        request: hyper::Request<Empty<Bytes>>,
        url: &Url,
        mut tasks: Vec<AbortOnDropHandle<()>>,
    ) -> Result<Opened, SourceError>
    where
        Io: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| broken(url, &error);
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(READ_BUFFER)
            .handshake(io)
            .await
            .map_err(broken)?;
        tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await; // the reader of the body sees why it ended
        })));
        let idle = self.limits.idle;
        let response = timeout(idle, sender.send_request(request))
            .await
            .map_err(|_| SourceError::Silent {
                url: Shown::new(url),
                limit: idle,
            })?
            .map_err(broken)?;
        let (head, body) = response.into_parts();
        Ok(Opened {
            status: head.status,
            headers: head.headers,
            url: Shown::new(url),
            idle,
            body,
            _connection: tasks,
        })
    }
}

impl Opened {
    /// The next bytes of the body; `None` at its proper end.
    ///
    /// # Errors
    /// The connection ended before that, or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let frame = timeout(self.idle, self.body.frame())
                .await
                .map_err(|_| SourceError::Silent {
                    url: self.url.clone(),
                    limit: self.idle,
                })?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {} // trailers
                },
                Some(Err(error)) => {
                    return Err(SourceError::Broken {
                        url: self.url.clone(),
                        why: chain(&error),
                    });
                }
            }
        }
    }

    /// How long the body is (§3.3 rule 4).
    ///
    /// # Errors
    /// The end of the body could not be told from a broken connection.
    pub fn length(&self) -> Result<Length, SourceError> {
        length::of(&self.headers).ok_or_else(|| SourceError::NoLength { url: self.url.clone() })
    }

    /// First byte and total length of a 206 answer's `Content-Range`.
    pub fn range(&self) -> Option<(u64, Option<u64>)> {
        length::content_range(&self.headers)
    }

    /// What proves later that the file is still the same: a strong ETag, else the time of its last change.
    pub fn validator(&self) -> Option<String> {
        let text = |name: HeaderName| self.headers.get(name)?.to_str().ok();
        let strong = text(header::ETAG).filter(|etag| etag.starts_with('"'));
        strong.or_else(|| text(header::LAST_MODIFIED)).map(str::to_owned)
    }

    fn redirect_target(&self, from: &Url, code: u16) -> Result<Url, SourceError> {
        let bad = |why: &str| SourceError::RedirectBad {
            url: Shown::new(from),
            code,
            why: why.to_owned(),
        };
        let location = self
            .headers
            .get(header::LOCATION)
            .and_then(|location| location.to_str().ok())
            .ok_or_else(|| bad("the answer does not say where to"))?;
        let next = from
            .join(location)
            .map_err(|_| bad("it leads to something that is no URL"))?;
        match (from.scheme(), next.scheme()) {
            ("https", "http") => Err(bad("it leads from https to http")),
            (_, "http" | "https") => Ok(next),
            _ => Err(bad("it leads away from http")),
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "it asks for a user and password",
        403 => "it does not let us read the file",
        404 | 410 => "there is no such file; check the URL",
        500..=599 => "it is in trouble; try again later",
        _ => "check the URL in a browser",
    }
}

fn request(
    url: &Url,
    auth: Option<&Credentials>,
    rest: Option<(u64, &str)>,
    proxy: Option<&Proxy>,
) -> hyper::Request<Empty<Bytes>> {
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let whole = &url[url::Position::BeforeScheme..url::Position::AfterQuery];
    let target = if proxy.is_some() { whole } else { path };
    let mut request = hyper::Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let headers = request.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::HOST, host);
    set(header::USER_AGENT, USER_AGENT);
    set(header::ACCEPT, "*/*");
    set(header::ACCEPT_ENCODING, "identity");
    set(header::CONNECTION, "close");
    if let Some((from, validator)) = rest {
        set(header::RANGE, &format!("bytes={from}-"));
        set(header::IF_RANGE, validator);
    }
    if let Some(auth) = auth {
        headers.insert(header::AUTHORIZATION, connect::basic(auth));
    }
    if let Some(credentials) = proxy.and_then(|proxy| proxy.credentials.as_ref()) {
        headers.insert(header::PROXY_AUTHORIZATION, connect::basic(credentials));
    }
    request
}

fn broken(url: &Url, error: &hyper::Error) -> SourceError {
    SourceError::Broken {
        url: Shown::new(url),
        why: chain(error),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    platform::logging::chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_queries_are_not_shown() {
        let shown = |url: &str| Shown::new(&url.parse().unwrap()).to_string();
        assert_eq!(shown("https://u:p@h:8443/a.iso?sig=k#f"), "https://h:8443/a.iso?…");
        assert_eq!(
            shown("http://203.0.113.9/img/a.qcow2"),
            "http://203.0.113.9/img/a.qcow2"
        );
    }

    #[test]
    fn a_request_says_who_we_are_and_asks_for_bytes_as_they_are() {
        let url: Url = "http://h:8080/a%20b?c=d".parse().unwrap();
        let auth = Credentials {
            user: "cloud".into(),
            password: Secret::new("pw".into()),
        };
        let sent = request(&url, Some(&auth), Some((3, "\"v1\"")), None);
        let header = |name: &str| sent.headers()[name].to_str().unwrap();
        assert_eq!(sent.uri(), "/a%20b?c=d");
        assert_eq!(header("host"), "h:8080");
        assert_eq!(header("range"), "bytes=3-");
        assert_eq!(header("if-range"), "\"v1\"");
        assert_eq!(header("authorization"), "Basic Y2xvdWQ6cHc=");
        assert_eq!(header("accept-encoding"), "identity");
        assert!(header("user-agent").starts_with("CloudStack-Agent/"));
        let proxy = Proxy {
            host: "p".into(),
            port: 3128,
            credentials: None,
        };
        assert_eq!(request(&url, None, None, Some(&proxy)).uri(), "http://h:8080/a%20b?c=d");
    }
}
