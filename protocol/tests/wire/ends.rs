//! The two ends of a TCP connection on this machine: ours, and a stranger who can send anything.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::BytesMut;
use protocol::channel::{BrokenLink, Channel, Event};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS12;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

/// A little more than a chunk, as `platform::duplex` reads.
pub(crate) const READ_SIZE: usize = 17 << 10;

/// For everything that is waited for; all of it takes milliseconds unless it is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

const NAME: &str = "localhost";

/// Which end is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// As far as it shows on the wire, TLS as in the capture: AES-256-GCM, a client that is asked for a certificate and has
/// none, a session ticket.
static TLS: LazyLock<Tls> = LazyLock::new(|| {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384],
        ..ring::default_provider()
    });
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(Arc::clone(&roots))
        .with_no_client_auth();
    let asks = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).allow_unauthenticated();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_client_cert_verifier(asks.build().unwrap())
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::Pkcs8(signing_key.serialize_der().into()),
        )
        .unwrap();
    server.ticketer = ring::Ticketer::new().unwrap();
    Tls {
        client: Arc::new(client),
        server: Arc::new(server),
    }
});

pub(crate) fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// Our end: a channel on a socket, without the runtime that it has in the programs.
pub(crate) struct Ours {
    stream: TcpStream,
    channel: Channel,
    input: BytesMut,
    read_size: usize,
    /// Bytes from the socket.
    pub(crate) received: usize,
    /// The most that `input` ever held room for.
    pub(crate) largest_input: usize,
}

impl Ours {
    pub(crate) fn new(role: Role, stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut ours = Self {
            stream,
            channel: match role {
                Role::Client => Channel::client(Arc::clone(&TLS.client), ServerName::try_from(NAME).unwrap()),
                Role::Server => Channel::server(Arc::clone(&TLS.server)),
            }
            .unwrap(),
            input: BytesMut::new(),
            read_size: READ_SIZE,
            received: 0,
            largest_input: 0,
        };
        let mut hello = Vec::new();
        ours.channel.flush(&mut hello);
        ours.stream.write_all(&hello).unwrap();
        ours
    }

    /// The kernel hands over at most `read_size` bytes at a time.
    pub(crate) fn reading(self, read_size: usize) -> Self {
        Self { read_size, ..self }
    }

    /// `None`: the peer closed its socket.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, BrokenLink> {
        loop {
            let mut output = Vec::new();
            let event = self.channel.receive(&mut self.input, &mut output);
            self.stream.write_all(&output).unwrap();
            if let Some(event) = event? {
                return Ok(Some(event));
            }
            let used = self.input.len();
            self.input.resize(used + self.read_size, 0);
            let count = self.stream.read(&mut self.input[used..]).unwrap();
            self.input.truncate(used + count);
            self.received += count;
            self.largest_input = self.largest_input.max(self.input.capacity());
            if count == 0 {
                return Ok(None);
            }
        }
    }

    pub(crate) fn send(&mut self, message: &[u8]) {
        let mut output = Vec::new();
        self.channel.send(message, &mut output).unwrap();
        self.stream.write_all(&output).unwrap();
    }
}

/// The other end: plain `rustls` and a framing of its own.
pub(crate) struct Stranger {
    tls: Connection,
    stream: TcpStream,
    /// The end of the handshake, if it is ours to send: it goes out in one piece with what follows.
    last_flight: Vec<u8>,
}

/// Whether the message goes on after a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Following,
    Last,
}

impl Stranger {
    /// The handshake is complete except for what [`Stranger::send`] sends first. `ours` is the role of the other end.
    pub(crate) fn meet(ours: Role, stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let tls = match ours {
            Role::Server => {
                ClientConnection::new(Arc::clone(&TLS.client), ServerName::try_from(NAME).unwrap()).map(Into::into)
            }
            Role::Client => ServerConnection::new(Arc::clone(&TLS.server)).map(Into::into),
        };
        let mut stranger = Self {
            tls: tls.unwrap(),
            stream,
            last_flight: Vec::new(),
        };
        stranger.last_flight = loop {
            let flight = stranger.records();
            if !stranger.tls.is_handshaking() {
                break flight;
            }
            stranger.stream.write_all(&flight).unwrap();
            stranger.tls.read_tls(&mut stranger.stream).unwrap();
            stranger.tls.process_new_packets().unwrap();
        };
        stranger
    }

    /// What TLS wants to send now.
    fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    /// One TLS record.
    pub(crate) fn record(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(plaintext).unwrap();
        self.records()
    }

    /// The alert that says good-bye.
    pub(crate) fn close_notify(&mut self) -> Vec<u8> {
        self.tls.send_close_notify();
        self.records()
    }

    /// A chunk of records with these plaintexts.
    pub(crate) fn chunk(&mut self, place: Place, plaintexts: &[&[u8]]) -> Vec<u8> {
        let records: Vec<_> = plaintexts.iter().map(|plaintext| self.record(plaintext)).collect();
        chunk(place, &records.concat())
    }

    /// Writes in pieces of at most `piece` bytes. Says whether all of them could be written.
    pub(crate) fn send(&mut self, bytes: &[u8], piece: usize) -> bool {
        let bytes = [&std::mem::take(&mut self.last_flight), bytes].concat();
        bytes.chunks(piece).all(|piece| self.stream.write_all(piece).is_ok())
    }

    /// Waits for the other end to close; fails if it sends anything.
    pub(crate) fn is_cut_off(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

pub(crate) fn chunk(place: Place, data: &[u8]) -> Vec<u8> {
    let following = u32::from(place == Place::Following);
    [&header(following << 16 | u32::try_from(data.len()).unwrap())[..], data].concat()
}

pub(crate) fn header(bits: u32) -> [u8; 4] {
    bits.to_be_bytes()
}
