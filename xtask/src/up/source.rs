//! A small web server with one file, the demo template, at a pace that lets one watch its progress.

use std::io::SeekFrom;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use platform::http::{self, Body, Handler, Limits, Peer, Request, Response};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::assets;

/// Sent at once; between two of them the pace is kept.
const PIECE: usize = 256 << 10;

/// The server; it ends when this is dropped.
pub(crate) struct Source {
    address: SocketAddr,
    name: String,
    /// Of the whole file, in hexadecimal digits.
    pub(crate) sha256: String,
    stop: CancellationToken,
}

struct Shared {
    path: PathBuf,
    name: String,
    size: u64,
    etag: HeaderValue,
    /// Between two pieces.
    pause: Duration,
}

impl Source {
    /// Serves one file, at so many bytes per second.
    pub(crate) async fn start(listener: TcpListener, path: &Path, pace: u32) -> anyhow::Result<Self> {
        let (size, sha256) = digest(path)
            .await
            .with_context(|| format!("reading {}", path.display()))?;
        let address = listener.local_addr()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stop = CancellationToken::new();
        let shared = Shared {
            path: path.to_owned(),
            name: name.clone(),
            size,
            etag: HeaderValue::from_str(&format!("\"{}\"", &sha256[..16])).expect("digits in quotes"),
            pause: Duration::from_secs(1) * u32::try_from(PIECE).unwrap_or(u32::MAX) / pace.max(1),
        };
        tokio::spawn(http::serve(
            listener,
            None,
            Limits::default(),
            Arc::new(shared),
            stop.clone(),
        ));
        Ok(Self {
            address,
            name,
            sha256,
            stop,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/{}", self.address, self.name)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn digest(path: &Path) -> anyhow::Result<(u64, String)> {
    let mut file = File::open(path).await?;
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut piece = BytesMut::with_capacity(PIECE);
    loop {
        piece.clear();
        let read = file.read_buf(&mut piece).await?;
        if read == 0 {
            break;
        }
        digest.update(&piece);
        size += u64::try_from(read)?;
    }
    Ok((size, assets::hex(&digest.finalize())))
}

impl Handler for Shared {
    async fn handle(&self, request: Request, _: Peer) -> Response {
        if request.uri().path().strip_prefix('/') != Some(&self.name) {
            return http::answer(
                StatusCode::NOT_FOUND,
                "text/plain",
                "there is only the demo template here\n",
            );
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return http::answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n");
        }
        let (status, start, end) = match range(request.headers(), &self.etag, self.size) {
            Asked::All => (StatusCode::OK, 0, self.size),
            Asked::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
            Asked::Nothing => {
                let mut response = http::answer(StatusCode::RANGE_NOT_SATISFIABLE, "text/plain", "");
                let whole = HeaderValue::from_str(&format!("bytes */{}", self.size)).expect("digits");
                response.headers_mut().insert(header::CONTENT_RANGE, whole);
                return response;
            }
        };
        let body = if request.method() == Method::HEAD {
            http::full("")
        } else {
            match self.body(start, end).await {
                Ok(body) => body,
                Err(error) => {
                    let text = format!("cannot read {}: {error}\n", self.path.display());
                    return http::answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", text);
                }
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {start}-{}/{}", end - 1, self.size);
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits"));
        }
        response
    }
}

impl Shared {
    async fn body(&self, start: u64, end: u64) -> std::io::Result<Body> {
        let mut file = File::open(&self.path).await?;
        file.seek(SeekFrom::Start(start)).await?;
        let pause = self.pause;
        let pieces = stream::unfold(file.take(end - start), move |mut file| async move {
            let piece = read_piece(&mut file).await.transpose()?;
            sleep(pause).await;
            Some((piece.map(Frame::data), file))
        });
        Ok(StreamBody::new(pieces).boxed_unsync())
    }
}

/// `None` at the end.
async fn read_piece(file: &mut tokio::io::Take<File>) -> std::io::Result<Option<Bytes>> {
    let mut piece = BytesMut::with_capacity(PIECE);
    while piece.len() < PIECE {
        if file.read_buf(&mut piece).await? == 0 {
            break;
        }
    }
    Ok((!piece.is_empty()).then(|| piece.freeze()))
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    /// From the first byte to before the last.
    Part {
        start: u64,
        end: u64,
    },
    /// A part that the file does not have.
    Nothing,
}

/// RFC 9110 §14.2: one range of bytes; what else is asked for is answered with the whole file.
fn range(headers: &HeaderMap, etag: &HeaderValue, size: u64) -> Asked {
    if headers.get(header::IF_RANGE).is_some_and(|known| known != etag) {
        return Asked::All;
    }
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let Some((first, last)) = asked
        .and_then(|range| range.strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'))
    else {
        return Asked::All;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), _) if start >= size => Asked::Nothing,
        (Ok(start), Ok(last)) if last >= start => Asked::Part {
            start,
            end: last.saturating_add(1).min(size),
        },
        (Ok(start), Err(_)) if last.is_empty() => Asked::Part { start, end: size },
        _ => Asked::All,
    }
}

#[cfg(test)]
mod tests {
    use platform::files;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn a_range_is_what_the_standard_says() {
        let etag = HeaderValue::from_static("\"a\"");
        let ask = |range: &str, if_range: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            if let Some(known) = if_range {
                headers.insert(header::IF_RANGE, known.parse().unwrap());
            }
            super::range(&headers, &etag, 100)
        };
        assert_eq!(ask("bytes=10-", None), Asked::Part { start: 10, end: 100 });
        assert_eq!(ask("bytes=10-19", Some("\"a\"")), Asked::Part { start: 10, end: 20 });
        assert_eq!(ask("bytes=10-1000", None), Asked::Part { start: 10, end: 100 });
        assert_eq!(ask("bytes=100-", None), Asked::Nothing);
        for other in ["bytes=10-9", "bytes=-5", "bytes=1-2,5-6", "lines=1-2", "bytes=x-"] {
            assert_eq!(ask(other, None), Asked::All, "{other}");
        }
        assert_eq!(ask("bytes=10-", Some("\"b\"")), Asked::All);
    }

    #[tokio::test]
    async fn a_part_is_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("demo.qcow2");
        let _ = files::replace(&path, "0123456789", 0o644).unwrap();
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let source = Source::start(listener, &path, u32::MAX).await.unwrap();
        let mut stream = TcpStream::connect(source.address).await.unwrap();
        let request = "GET /demo.qcow2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nRange: bytes=4-\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 206 "), "{answer}");
        assert!(answer.contains("content-range: bytes 4-9/10\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n456789"), "{answer}");
    }
}
