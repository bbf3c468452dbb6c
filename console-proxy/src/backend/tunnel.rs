//! XenServer and XCP-ng (§7.4): RFB behind HTTP CONNECT, under the session of its API.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hyper::Uri;
use protocol::secret::Secret;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{BackendError, connect, tls};
use crate::browser::Stream;

/// Longest head of the host's answer.
const MAX_HEAD: usize = 8 << 10;

/// Opens the tunnel. Answers also whether it is encrypted.
pub(super) async fn open(url: &str, session: &Secret<String>) -> Result<(Box<dyn Stream>, bool), BackendError> {
    let request = Request::of(url, session)?;
    let stream = connect(&request.host, request.port).await?;
    let mut stream: Box<dyn Stream> = if request.is_tls {
        // XenServers sign their certificates themselves; the session is what they are asked to know.
        let config = tls::client_config(None, None).map_err(|error| BackendError::Tunnel(error.to_string()))?;
        let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let connected = TlsConnector::from(Arc::new(config)).connect(nobody, stream).await;
        Box::new(connected.map_err(|error| BackendError::Tunnel(format!("TLS: {error}")))?)
    } else {
        Box::new(stream)
    };
    let broken = |error: std::io::Error| BackendError::Tunnel(error.to_string());
    stream
        .write_all(request.head.expose().as_bytes())
        .await
        .map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut head = Vec::new();
    // Byte by byte: what comes behind the empty line is RFB already.
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        head.push(stream.read_u8().await.map_err(broken)?);
        if head.len() > MAX_HEAD {
            return Err(BackendError::Tunnel("the head of the answer is too long".into()));
        }
    }
    let head = String::from_utf8_lossy(&head);
    let first = head.lines().next().unwrap_or_default();
    let is_ok = first.starts_with("HTTP/") && first.split(' ').nth(1) == Some("200");
    if !is_ok {
        return Err(BackendError::Tunnel(format!("it answered {first:?}")));
    }
    Ok((stream, request.is_tls))
}

struct Request {
    host: String,
    port: u16,
    is_tls: bool,
    head: Secret<String>,
}

impl Request {
    fn of(url: &str, session: &Secret<String>) -> Result<Self, BackendError> {
        let bad = || BackendError::Tunnel("its URL in the token is not like https://host/console?uuid=…".into());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let session = session.expose();
        if session.contains(['\r', '\n']) {
            return Err(BackendError::Tunnel("its session in the token has a line break".into()));
        }
        let head = format!("CONNECT {path} HTTP/1.0\r\nHost: {host}\r\nCookie: session_id={session}\r\n\r\n");
        Ok(Self {
            host,
            port,
            is_tls,
            head: Secret::new(head),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_byte_for_byte_what_xenservers_expect() {
        let session = Secret::new("OpaqueRef:9d6f".to_owned());
        let request = Request::of("https://192.168.10.30/console?uuid=2c3a", &session).unwrap();
        assert_eq!(
            (request.host.as_str(), request.port, request.is_tls),
            ("192.168.10.30", 443, true)
        );
        assert_eq!(
            request.head.expose(),
            "CONNECT /console?uuid=2c3a HTTP/1.0\r\nHost: 192.168.10.30\r\nCookie: session_id=OpaqueRef:9d6f\r\n\r\n"
        );
        let plain = Request::of("http://xen:8080/console?ref=OpaqueRef:1", &session).unwrap();
        assert_eq!((plain.port, plain.is_tls), (8080, false));
        for bad in ["", "ftp://h/c", "/console", "https://"] {
            assert!(Request::of(bad, &session).is_err(), "{bad}");
        }
        assert!(Request::of("http://h/c", &Secret::new("a\r\nX: y".into())).is_err());
    }
}
