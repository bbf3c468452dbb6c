//! A web server with images to download.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{StatusCode, header};
use platform::http::{self, Body, Handler, Limits, Peer, Request, Response};
use sha2::{Digest, Sha512};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Sent at once; the pace is kept between two pieces.
const PIECE: u64 = 64 << 10;

/// What is behind a path.
#[derive(Debug, Clone)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// That many bytes that look random and are the same each time; they need no memory.
    Noise {
        /// How many.
        size: u64,
    },
    /// Says it has more than it sends, then cuts the connection.
    Truncated {
        /// What it sends.
        sent: Bytes,
        /// What it says.
        announced: u64,
    },
}

/// The server; ends when dropped.
#[derive(Debug)]
pub struct Source {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<HashMap<String, Content>>,
    /// Bytes a second for each connection; 0: as fast as possible.
    pace: AtomicU64,
    sent: AtomicU64,
    requests: AtomicU64,
}

impl Source {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// There is none.
    pub async fn start() -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port"))
    }

    /// Starts it on a socket, such as one in a test's network.
    ///
    /// # Panics
    /// The socket has no address.
    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        let stop = CancellationToken::new();
        let handler = Arc::new(Files(Arc::clone(&shared)));
        tokio::spawn(http::serve(listener, None, Limits::default(), handler, stop.clone()));
        Self { address, shared, stop }
    }

    /// Puts something behind `/name`; answers its URL.
    pub fn put(&self, name: &str, content: Content) -> String {
        let mut files = self.shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(format!("/{name}"), content);
        self.url(name)
    }

    /// The URL of `/name`, whether there is something or not.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// From now on each connection gets that many bytes a second; 0: as many as it takes.
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.shared.pace.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes of bodies sent so far, over all requests.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Content {
    /// `{SHA-512}` and the digits, as CloudStack's API takes a checksum.
    pub fn checksum(&self) -> String {
        let mut digest = Sha512::new();
        let mut position = 0;
        while position < self.size() {
            let piece = self.piece(position, PIECE.min(self.size() - position));
            digest.update(&piece);
            position += PIECE;
        }
        checksum(digest)
    }

    /// Bytes it says it has.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => length(bytes),
            Self::Noise { size } => *size,
            Self::Truncated { announced, .. } => *announced,
        }
    }

    fn piece(&self, position: u64, length: u64) -> Bytes {
        let slice = |bytes: &Bytes| {
            let start = usize::try_from(position).map_or(bytes.len(), |start| start.min(bytes.len()));
            let end = usize::try_from(position + length).map_or(bytes.len(), |end| end.min(bytes.len()));
            bytes.slice(start..end)
        };
        match self {
            Self::Bytes(bytes) | Self::Truncated { sent: bytes, .. } => slice(bytes),
            Self::Noise { .. } => noise(position..position + length),
        }
    }
}

/// A finished digest as CloudStack's API takes a checksum.
pub fn checksum(digest: Sha512) -> String {
    let digits = digest.finalize();
    digits
        .iter()
        .fold("{SHA-512}".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Eight bytes for each multiple of eight: splitmix64 of the position. Word by word, as this is not optimised and has
/// to keep up with a download.
fn noise(range: Range<u64>) -> Bytes {
    let first = range.start / 8;
    let skipped = usize::try_from(range.start - first * 8).unwrap_or_default();
    let length = usize::try_from(range.end - range.start).unwrap_or_default();
    let mut words = BytesMut::with_capacity(length + 16);
    let mut index = first;
    while index * 8 < range.end {
        index += 1;
        let mut word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        words.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    words.freeze().slice(skipped..skipped + length)
}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

struct Files(Arc<Shared>);

impl Handler for Files {
    async fn handle(&self, request: Request, _: Peer) -> Response {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        let found = {
            let files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.get(request.uri().path()).cloned()
        };
        let Some(content) = found else {
            return http::answer(StatusCode::NOT_FOUND, "text/plain", "no such file");
        };
        let size = content.size();
        let start = request
            .headers()
            .get(header::RANGE)
            .and_then(|range| {
                range
                    .to_str()
                    .ok()?
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .filter(|start| *start < size);
        let body = paced(content, start.unwrap_or_default(), Arc::clone(&self.0));
        let response = hyper::Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, "\"1\"")
            .header(header::CONTENT_LENGTH, size - start.unwrap_or_default());
        let response = match start {
            Some(start) => response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", size - 1)),
            None => response,
        };
        response.body(body).expect("these headers are well-formed")
    }
}

fn paced(content: Content, start: u64, shared: Arc<Shared>) -> Body {
    let size = content.size();
    let pieces = stream::unfold(
        (content, start, shared),
        move |(content, position, shared)| async move {
            if position >= size {
                return None;
            }
            let piece = content.piece(position, PIECE.min(size - position));
            if piece.is_empty() {
                let cut = Err(io::Error::from(io::ErrorKind::ConnectionReset));
                return Some((cut, (content, size, shared)));
            }
            let sent = length(&piece);
            let pace = shared.pace.load(Ordering::Relaxed);
            if let Some(micros) = (sent * 1_000_000).checked_div(pace) {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
            shared.sent.fetch_add(sent, Ordering::Relaxed);
            Some((Ok(Frame::data(piece)), (content, position + sent, shared)))
        },
    );
    StreamBody::new(pieces).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_wherever_one_begins_to_read() {
        let whole = noise(0..1000);
        assert_eq!(noise(13..777), whole.slice(13..777));
        assert_ne!(whole.slice(0..8), whole.slice(8..16));
    }
}
