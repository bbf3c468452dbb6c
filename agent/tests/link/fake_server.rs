//! A management server that sends exactly the bytes a test gives it.

use std::sync::Arc;

use platform::duplex::{Duplex, Progress};
use protocol::channel::{Channel, Event};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct FakeServer {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    pub(crate) certificate: String,
}

pub(crate) struct FakeLink {
    duplex: Duplex,
    channel: Channel,
}

impl FakeServer {
    pub(crate) async fn listen() -> Self {
        Self::listen_at(0).await
    }

    pub(crate) async fn listen_at(port: u16) -> Self {
        let params = CertificateParams::new(vec!["mgmt".to_owned()]).unwrap();
        Self::listen_with(port, params).await
    }

    /// With a self-signed certificate; its PEM is in `certificate`.
    pub(crate) async fn listen_with(port: u16, params: CertificateParams) -> Self {
        platform::crypto::install();
        let key_pair = KeyPair::generate().unwrap();
        let made = params.self_signed(&key_pair).unwrap();
        let key = PrivatePkcs8KeyDer::from(key_pair.serialize_der()).into();
        let tls = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)
            .unwrap();
        Self {
            listener: TcpListener::bind(("127.0.0.1", port)).await.unwrap(),
            tls: Arc::new(tls),
            certificate: made.pem(),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The next connection, before TLS.
    pub(crate) async fn accept_tcp(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// The next connection, whose handshake must fail.
    pub(crate) async fn accept_and_fail(&self) {
        let mut duplex = Duplex::new(self.accept_tcp().await);
        let mut channel = Channel::server(Arc::clone(&self.tls)).unwrap();
        while let Ok(received) = channel.receive(&mut duplex.input, &mut duplex.output) {
            assert_eq!(received, None, "the handshake succeeded");
            if !matches!(duplex.progress().await, Ok(Progress::Received | Progress::Sent)) {
                return;
            }
        }
    }

    /// The next connection, after the handshake.
    pub(crate) async fn accept(&self) -> FakeLink {
        let duplex = Duplex::new(self.accept_tcp().await);
        let mut link = FakeLink {
            duplex,
            channel: Channel::server(Arc::clone(&self.tls)).unwrap(),
        };
        assert_eq!(link.event().await, Some(Event::Established));
        link
    }
}

impl FakeLink {
    /// The next event; `None` when the agent has closed the connection.
    async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self
                .channel
                .receive(&mut self.duplex.input, &mut self.duplex.output)
                .unwrap()
            {
                return Some(event);
            }
            if self.duplex.progress().await.unwrap() == Progress::Closed {
                return None;
            }
        }
    }

    /// The next message.
    pub(crate) async fn receive(&mut self) -> Vec<u8> {
        match self.event().await {
            Some(Event::Message(message)) => message,
            other => panic!("{other:?} where a message is expected"),
        }
    }

    /// A message that has arrived already, while something was sent.
    pub(crate) fn receive_now(&mut self) -> Option<Vec<u8>> {
        match self
            .channel
            .receive(&mut self.duplex.input, &mut self.duplex.output)
            .unwrap()
        {
            Some(Event::Message(message)) => Some(message),
            _ => None,
        }
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: &[u8]) {
        self.channel.send(message, &mut self.duplex.output).unwrap();
        self.send_raw(&[]).await;
    }

    /// Sends bytes as they are, behind what waits.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.duplex.output.extend_from_slice(bytes);
        while !self.duplex.output.is_empty() {
            self.duplex.progress().await.unwrap();
        }
    }
}
