//! A web server that breaks as a test tells it. What works is proven with real servers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One request as it came: its path, and its headers in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// How one file is served.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Arc<Vec<u8>>,
    pub(crate) length: Announced,
    /// Answers `Range` with 206, and compares `If-Range`.
    pub(crate) ranges: bool,
    pub(crate) etag: Option<&'static str>,
    /// Closes the connection after so many bytes of the body, in the first requests.
    pub(crate) cuts: Vec<usize>,
    /// Sends nothing more after so many bytes.
    pub(crate) stall_after: Option<usize>,
    /// Bytes per second.
    pub(crate) rate: Option<usize>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Announced {
    Length,
    Chunked,
    /// The connection's end is the end.
    Nothing,
    /// Whatever the body is.
    Wrong(u64),
}

impl File {
    pub(crate) fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: Arc::new(body.into()),
            length: Announced::Length,
            ranges: true,
            etag: Some("\"v1\""),
            cuts: Vec::new(),
            stall_after: None,
            rate: None,
        }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Source {
    pub(crate) port: u16,
    files: Arc<Mutex<BTreeMap<String, File>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Source {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_tls(tls: Arc<ServerConfig>) -> Self {
        Self::start_with(Some(TlsAcceptor::from(tls))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let source = Self {
            port: listener.local_addr().unwrap().port(),
            ..Self::default()
        };
        let server = source.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.serve(stream).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => server.serve(stream).await,
                            Err(error) => Err(error),
                        },
                    }
                });
            }
        });
        source
    }

    pub(crate) fn put(&self, path: &str, file: File) {
        self.files.lock().unwrap().insert(path.to_owned(), file);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
            if !head.starts_with(b"G") {
                return Ok(()); // not HTTP: a TLS handshake
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers: BTreeMap<_, _> = headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let earlier = {
            let mut asked = self.asked.lock().unwrap();
            let earlier = asked.iter().filter(|asked| asked.path == path).count();
            asked.push(Asked {
                path: path.clone(),
                headers: headers.clone(),
            });
            earlier
        };
        let file = self.files.lock().unwrap().get(&path).cloned();
        let Some(file) = file else {
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                .await?;
            return stream.shutdown().await;
        };
        send(&file, earlier, &headers, &mut stream).await?;
        stream.shutdown().await
    }
}

async fn send(
    file: &File,
    earlier: usize,
    headers: &BTreeMap<String, String>,
    stream: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let is_same = headers
        .get("if-range")
        .is_none_or(|validator| Some(validator.as_str()) == file.etag);
    let range = headers.get("range").filter(|_| file.ranges && is_same);
    let from: usize = range.map_or(0, |range| range["bytes=".len()..range.len() - 1].parse().unwrap());
    let status = if range.is_some() { 206 } else { file.status };
    let body = &file.body[from..];
    let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
    for (name, value) in &file.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    if let Some(etag) = file.etag {
        write!(head, "ETag: {etag}\r\n").unwrap();
    }
    if range.is_some() {
        let total = file.body.len();
        write!(head, "Content-Range: bytes {from}-{}/{total}\r\n", total - 1).unwrap();
    }
    match file.length {
        Announced::Length => write!(head, "Content-Length: {}\r\n", body.len()).unwrap(),
        Announced::Wrong(length) => write!(head, "Content-Length: {length}\r\n").unwrap(),
        Announced::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Announced::Nothing => {}
    }
    head.push_str("Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let cut = file.cuts.get(earlier).copied().unwrap_or(usize::MAX);
    let step = file.rate.map_or(256 << 10, |rate| (rate / 20).max(1));
    let mut sent = 0;
    for part in body.chunks(step) {
        let end = part.len().min(cut - sent.min(cut));
        let part = &part[..end];
        if file.length == Announced::Chunked {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
            stream.write_all(part).await?;
            stream.write_all(b"\r\n").await?;
        } else {
            stream.write_all(part).await?;
        }
        sent += part.len();
        if sent >= cut {
            return stream.flush().await;
        }
        if file.stall_after.is_some_and(|limit| sent >= limit) {
            stream.flush().await?;
            std::future::pending::<()>().await;
        }
        if file.rate.is_some() {
            stream.flush().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    if file.length == Announced::Chunked {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    stream.flush().await
}
