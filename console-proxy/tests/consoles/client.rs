//! A browser: a WebSocket client of another make (tungstenite), and the RFB that noVNC speaks.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::proxy::LIMIT;

pub(crate) struct Browser<S = TcpStream> {
    pub(crate) socket: WebSocketStream<S>,
    received: Vec<u8>,
}

/// How a WebSocket handshake failed.
#[derive(Debug, PartialEq)]
pub(crate) struct Status(pub(crate) u16);

impl Browser {
    pub(crate) async fn connect(site: SocketAddr, token: &str) -> Result<Self, Status> {
        Self::connect_to(site, &format!("/websockify?token={token}"), &[]).await
    }

    pub(crate) async fn connect_to(
        site: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Status> {
        let stream = TcpStream::connect(site).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Browser::over(stream, "ws", path, headers).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Browser<S> {
    pub(crate) async fn over(
        stream: S,
        scheme: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Status> {
        let mut request = format!("{scheme}://console.example.com{path}")
            .into_client_request()
            .unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", "binary".parse().unwrap());
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match timeout(LIMIT, client_async(request, stream)).await.unwrap() {
            Ok((socket, response)) => {
                assert_eq!(response.headers()["sec-websocket-protocol"], "binary");
                assert!(!response.headers().contains_key("sec-websocket-extensions"));
                Ok(Self {
                    socket,
                    received: Vec::new(),
                })
            }
            Err(Error::Http(response)) => {
                let body = String::from_utf8(response.body().clone().unwrap_or_default()).unwrap();
                assert!(response.status() != 403 || body == "forbidden\n", "a hint: {body}");
                Err(Status(response.status().as_u16()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.socket.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    /// The next bytes, or how it ended: the close frame, if there was one.
    async fn next(&mut self) -> Result<(), Option<CloseFrame>> {
        let deadline = Instant::now() + LIMIT; // pings are no news
        loop {
            match timeout_at(deadline, self.socket.next())
                .await
                .expect("something happens")
            {
                Some(Ok(Message::Binary(bytes))) => {
                    self.received.extend(bytes);
                    return Ok(());
                }
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    pub(crate) async fn read<const N: usize>(&mut self) -> [u8; N] {
        self.read_vec(N).await.try_into().unwrap()
    }

    pub(crate) async fn read_vec(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            self.next().await.unwrap();
        }
        self.received.drain(..length).collect()
    }

    /// Everything up to the end; answers how it ended.
    pub(crate) async fn end(&mut self) -> (u16, String) {
        loop {
            if let Err(frame) = self.next().await {
                let frame = frame.expect("a close frame");
                return (frame.code.into(), frame.reason.to_string());
            }
        }
    }

    /// What has come and was not read.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.received
    }

    /// The handshake of noVNC. Answers width, height, name.
    pub(crate) async fn open(&mut self) -> (u16, u16, String) {
        assert_eq!(&self.read::<12>().await, b"RFB 003.008\n");
        self.send(b"RFB 003.008\n").await;
        assert_eq!(self.read().await, [1, 1], "one type: None");
        self.send(&[1]).await;
        assert_eq!(self.read().await, [0; 4], "welcome");
        self.send(&[1]).await; // shared
        let init: [u8; 24] = self.read().await;
        let length = u32::from_be_bytes(init[20..].try_into().unwrap());
        let name = self.read_vec(usize::try_from(length).unwrap()).await;
        let size = |at: usize| u16::from_be_bytes([init[at], init[at + 1]]);
        (size(0), size(2), String::from_utf8(name).unwrap())
    }

    /// The whole screen as 8-bit red, green, blue.
    pub(crate) async fn screen(&mut self, width: u16, height: u16) -> Vec<u8> {
        // 32 bits, little endian, true colour, 255 each, shifts 16, 8, 0.
        self.send(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0])
            .await;
        self.send(&[2, 0, 0, 1, 0, 0, 0, 0]).await; // Raw only
        let mut request = vec![3, 0, 0, 0, 0, 0];
        request.extend(width.to_be_bytes());
        request.extend(height.to_be_bytes());
        self.send(&request).await;
        let mut screen = vec![0; usize::from(width) * usize::from(height) * 3];
        let mut seen = 0;
        while seen < screen.len() / 3 {
            let [0, _, many, few] = self.read().await else {
                panic!("not an update")
            };
            for _ in 0..u16::from_be_bytes([many, few]) {
                let head: [u8; 12] = self.read().await;
                assert_eq!(head[8..], [0; 4], "Raw");
                let of = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
                let (x, y, w, h) = (of(0), of(2), of(4), of(6));
                let pixels = self.read_vec(w * h * 4).await;
                for (at, pixel) in pixels.chunks(4).enumerate() {
                    let to = ((y + at / w) * usize::from(width) + x + at % w) * 3;
                    screen[to..to + 3].copy_from_slice(&[pixel[2], pixel[1], pixel[0]]);
                }
                seen += w * h;
            }
        }
        screen
    }
}

/// A request without any upgrade: status, head in lower case, body.
pub(crate) async fn get(site: SocketAddr, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let stream = TcpStream::connect(site).await.unwrap();
    request(stream, path, headers).await
}

pub(crate) async fn request(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    headers: &str,
) -> (u16, String, Vec<u8>) {
    let text = format!("GET {path} HTTP/1.1\r\nHost: console.example.com\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap(); // TLS may end without a goodbye
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, body)
}
