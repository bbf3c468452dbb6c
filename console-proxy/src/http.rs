//! Requests of browsers and operators (§5): a `match` on the path is the router.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use platform::http::{Handler, Peer, Request, Response, answer, full};

use crate::page::Asset;
use crate::proxy::Proxy;
use crate::session::{self, Admitted};
use crate::token::{Target, Token, query_value};
use crate::ws;

/// Where the page is.
const PAGE: &str = "/resource/noVNC/";

const TEXT: &str = "text/plain; charset=utf-8";

/// What browsers see: page and consoles.
pub struct Site(pub Arc<Proxy>);

/// Nothing but the way to the encrypted port.
pub struct ToHttps {
    /// Its port.
    pub port: u16,
}

/// What operators and their monitoring see.
pub struct Commands(pub Arc<Proxy>);

impl Handler for Site {
    async fn handle(&self, request: Request, peer: Peer) -> Response {
        let proxy = &self.0;
        if is_upgrade(request.headers()) {
            return upgrade(proxy, request, peer);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n");
        }
        let query = request.uri().query().unwrap_or_default();
        match request.uri().path() {
            "/ajax" => ajax(proxy, query, peer),
            "/ajaximg" => ajaximg(proxy, query),
            path => match path.strip_prefix(PAGE).and_then(|path| proxy.page.get(path)) {
                Some(asset) => file(proxy, asset, &request),
                None => plain(
                    StatusCode::NOT_FOUND,
                    "there is nothing here; consoles are opened from the management server\n",
                ),
            },
        }
    }
}

impl Handler for ToHttps {
    async fn handle(&self, request: Request, _: Peer) -> Response {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = host.and_then(|host| host.parse::<hyper::http::uri::Authority>().ok());
        let Some(authority) = authority else {
            return plain(StatusCode::BAD_REQUEST, "the header Host is missing\n");
        };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let port = if self.port == 443 {
            String::new()
        } else {
            format!(":{}", self.port)
        };
        let location = format!("https://{}{port}{path}", authority.host());
        with_location(StatusCode::PERMANENT_REDIRECT, &location)
    }
}

impl Handler for Commands {
    async fn handle(&self, request: Request, _: Peer) -> Response {
        match request.uri().path() {
            "/cmd/getstatus" => answer(StatusCode::OK, TEXT, self.0.sessions.status()),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/metrics" => answer(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.0.metrics.text(),
            ),
            _ => plain(
                StatusCode::NOT_FOUND,
                "here are /cmd/getstatus, /healthz and /metrics\n",
            ),
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    answer(status, TEXT, text)
}

fn refused() -> Response {
    plain(StatusCode::FORBIDDEN, "forbidden\n")
}

fn with_location(status: StatusCode, location: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(location) else {
        return plain(StatusCode::BAD_REQUEST, "the address cannot be passed on\n");
    };
    let mut response = plain(status, "");
    response.headers_mut().insert(header::LOCATION, location);
    response
}

fn file(proxy: &Proxy, asset: &Asset, request: &Request) -> Response {
    let known = request.headers().get_all(header::IF_NONE_MATCH);
    let is_known = known
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains(&asset.etag));
    let mut response = if is_known {
        answer(StatusCode::NOT_MODIFIED, asset.content_type, "")
    } else {
        answer(StatusCode::OK, asset.content_type, asset.bytes.clone())
    };
    if request.method() == Method::HEAD {
        *response.body_mut() = full("");
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(asset.bytes.len()));
    }
    let headers = response.headers_mut();
    // Kept, but asked for each time: a new version is seen at once, and an old one costs a few bytes.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::ETAG, HeaderValue::from_str(&asset.etag).expect("hex in quotes"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        proxy.settings.content_security_policy(),
    );
    response
}

/// The old viewer does not work in any version that asks for sessions (§13); noVNC does.
fn ajax(proxy: &Proxy, query: &str, peer: Peer) -> Response {
    let Some((_, target)) = open(proxy, query) else {
        return refused();
    };
    if target == Target::HyperV {
        return plain(
            StatusCode::NOT_IMPLEMENTED,
            "consoles of Hyper-V (RDP) are not supported by this version\n",
        );
    }
    let port = proxy.console_port(peer.is_tls);
    let others = query.split('&').filter(|pair| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        !pair.is_empty() && !["autoconnect", "port"].contains(&name)
    });
    let location = others.fold(
        format!("{PAGE}vnc.html?autoconnect=true&port={port}"),
        |location, pair| format!("{location}&{pair}"),
    );
    with_location(StatusCode::FOUND, &location)
}

/// A thumbnail: for now a picture of one colour, of the size that was asked for.
fn ajaximg(proxy: &Proxy, query: &str) -> Response {
    if open(proxy, query).is_none() {
        return refused();
    }
    let size = |name, default| {
        let value = query_value(query, name).and_then(|value| value.parse::<u16>().ok());
        value
            .filter(|value| (1..=MAX_THUMBNAIL).contains(value))
            .unwrap_or(default)
    };
    answer(StatusCode::OK, "image/jpeg", grey_jpeg(size("w", 144), size("h", 110)))
}

/// Longest side of a thumbnail, in pixels.
const MAX_THUMBNAIL: u16 = 2048;

/// A grey JPEG, baseline (ITU T.81): with one code of one bit in each table every block is the two bits 00.
fn grey_jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    jpeg.extend([1; 64]); // quantisation
    jpeg.extend([0xff, 0xc0, 0, 11, 8]);
    jpeg.extend(height.to_be_bytes());
    jpeg.extend(width.to_be_bytes());
    jpeg.extend([1, 1, 0x11, 0]); // one component
    for table in [0x00, 0x10] {
        jpeg.extend([0xff, 0xc4, 0, 20, table, 1]); // one code of one bit
        jpeg.extend([0; 15]);
        jpeg.push(0); // for "no difference", and for "end of block"
    }
    jpeg.extend([0xff, 0xda, 0, 8, 1, 1, 0x00, 0, 63, 0]);
    let blocks = usize::from(width.div_ceil(8)) * usize::from(height.div_ceil(8));
    jpeg.extend(std::iter::repeat_n(0, blocks / 4));
    if blocks % 4 > 0 {
        jpeg.push(0xff >> (2 * (blocks % 4))); // the rest of a byte is filled with ones
    }
    jpeg.extend([0xff, 0xd9]);
    jpeg
}

fn open(proxy: &Proxy, query: &str) -> Option<(Token, Target)> {
    let token = proxy.access().keys.as_ref()?.open(query_value(query, "token")?)?;
    let target = token.target()?;
    Some((token, target))
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether a header that is a list has this word.
fn lists(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name);
    let mut words = values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// The checks of §6 that need nobody else, in their order, then the upgrade. Who is refused learns no reason.
fn upgrade(proxy: &Arc<Proxy>, mut request: Request, peer: Peer) -> Response {
    let headers = request.headers();
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let Some(accept) = key
        .map(ws::accept)
        .filter(|_| request.method() == Method::GET && lists(headers, header::CONNECTION, "upgrade"))
    else {
        return plain(StatusCode::BAD_REQUEST, "this is no WebSocket handshake\n");
    };
    if headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
        let mut response = plain(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is spoken here\n");
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return response;
    }
    let is_binary_offered = lists(headers, header::SEC_WEBSOCKET_PROTOCOL, "binary");
    let client = client(proxy, headers, peer);
    let admitted = match admit(proxy, headers, request.uri().query().unwrap_or_default(), client) {
        Ok(admitted) => admitted,
        Err(check) => {
            tracing::info!(check, peer = %client, "WebSocket refused");
            proxy.metrics.authorised(check);
            return refused();
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    proxy
        .sessions_tracker()
        .spawn(session::run(Arc::clone(proxy), upgrade, admitted));
    let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, TEXT, "");
    let answered = response.headers_mut();
    answered.clear();
    answered.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answered.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answered.insert(
        header::SEC_WEBSOCKET_ACCEPT,
        HeaderValue::from_str(&accept).expect("base64"),
    );
    if is_binary_offered {
        answered.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("binary"));
    }
    response
}

/// The error is the name of the check, for our log and metrics.
fn admit(proxy: &Proxy, headers: &HeaderMap, query: &str, client: IpAddr) -> Result<Admitted, &'static str> {
    let origins = &proxy.settings.allowed_origins;
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    if !origins.is_empty() && !origin.is_some_and(|origin| origins.iter().any(|allowed| allowed == origin)) {
        return Err("bad_origin");
    }
    let (token, target) = open(proxy, query).ok_or("bad_token")?;
    if proxy.access().is_source_ip_checked && token.source_ip.as_deref() != Some(&client.to_string()) {
        return Err("bad_source_ip");
    }
    if !token.admits_extra(query) {
        return Err("bad_extra");
    }
    // Used up below, once; a replayed or outdated one need not be upgraded to learn that it is.
    let session_uuid = token.session_uuid.as_deref().unwrap_or_default();
    let is_left_to_server = proxy.settings.trust_ms_session_check && !matches!(target, Target::WebSocket(_));
    if !proxy.sessions.is_allowed(session_uuid) && !is_left_to_server {
        return Err("not_permitted");
    }
    Ok(Admitted { token, target, client })
}

/// The viewer's address: the peer's, or what a trusted load balancer says of it.
fn client(proxy: &Proxy, headers: &HeaderMap, peer: Peer) -> IpAddr {
    let address = peer.address.ip().to_canonical();
    if !proxy.settings.trusted_proxies.iter().any(|net| net.contains(&address)) {
        return address;
    }
    let forwarded = headers
        .get_all("x-forwarded-for")
        .iter()
        .next_back()
        .and_then(|value| value.to_str().ok());
    // The last entry is the balancer's own; those before it can be anybody's.
    let last = forwarded.and_then(|value| value.rsplit(',').next()?.trim().parse::<IpAddr>().ok());
    last.map_or(address, |address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_a_jpeg_of_the_asked_size() {
        let jpeg = grey_jpeg(144, 110);
        assert_eq!(&jpeg[..2], [0xff, 0xd8]);
        let frame = jpeg.windows(2).position(|window| window == [0xff, 0xc0]).unwrap();
        assert_eq!(&jpeg[frame + 5..frame + 9], [0, 110, 0, 144]);
        assert_eq!(grey_jpeg(8, 8).len() + 63, grey_jpeg(128, 128).len());
    }
}
