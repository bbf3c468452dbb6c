//! What must hold for any bytes whatever: one function for each reader of this crate. It never panics, and what was read
//! and written again reads the same.
//!
//! Run by `tests/noise.rs` on stable, with random and with damaged real input, and by the fuzz targets of `/fuzz` with
//! input that a fuzzer looks for.

use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use protocol::answer::Answer;
use protocol::boot::{BootArgs, SystemVm};
use protocol::channel::Channel;
use protocol::chunk::{CHUNK_HEADER_LEN, ChunkHeader, record_len, records};
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::header::{Flags, Header};
use protocol::message::{BadMessage, Body, COMPRESS_FROM, MAX_BODY, Message};
use protocol::packet::Packet;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

/// Longer boot lines may, when written again, pass their own limit: each damaged byte becomes a character of three.
const MAX_BOOT_LINE: usize = 64 << 10;

/// A chunk header and, after it, TLS records.
pub(crate) fn chunk(data: &[u8]) {
    if let Some((&header, _)) = data.split_first_chunk::<CHUNK_HEADER_LEN>()
        && let Ok(header) = ChunkHeader::decode(header)
    {
        assert_eq!(header.encode().and_then(ChunkHeader::decode), Ok(header));
    }
    let data = data.get(CHUNK_HEADER_LEN..).unwrap_or_default();
    if let Ok(records) = records(data) {
        assert!(records.iter().all(|record| record_len(record) == Some(record.len())));
        assert_eq!(records.concat(), data);
    }
}

/// The header of a message.
pub(crate) fn header(data: &[u8]) {
    if let Ok((header, content_length, body)) = Header::decode(data) {
        let again = [&header.encode(content_length), body].concat();
        assert_eq!(Header::decode(&again), Ok((header, content_length, body)));
    }
}

/// A message, its gzip, and the packet in it.
pub(crate) fn message(data: &[u8]) {
    let Ok(message) = Message::decode(data) else { return };
    if let Body::Text(text) = &message.body {
        match Message::encode(message.header, text) {
            Ok(again) => {
                let compressed = text.len() >= COMPRESS_FROM;
                let header = Header {
                    flags: message.header.flags.with(Flags::COMPRESSED, compressed),
                    ..message.header
                };
                let body = message.body.clone();
                assert_eq!(Message::decode(&again), Ok(Message { header, body }));
            }
            // Each byte that is not UTF-8 has become a character of three.
            Err(error) => assert!(error == BadMessage::TooLong(text.len()) && text.len() > MAX_BODY),
        }
    }
    let _ = Packet::read(message).map_err(|error| error.to_string());
}

/// The JSON of requests and of responses.
pub(crate) fn body(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(commands) = Command::read_all(&text)
        && !commands
            .iter()
            .any(|command| matches!(command.body, CommandBody::Bad(_)))
    {
        for charset in [Charset::Utf8, Charset::Ascii] {
            let again = Command::write_all(&commands, charset);
            assert_eq!(Command::read_all(&again).as_ref(), Ok(&commands), "{again}");
        }
    }
    if let Ok(answers) = Answer::read_all(&text) {
        for charset in [Charset::Utf8, Charset::Ascii] {
            let again = Answer::write_all(&answers, charset);
            assert_eq!(Answer::read_all(&again).as_ref(), Ok(&answers), "{again}");
        }
    }
}

/// A line of boot arguments, from whichever hypervisor, and the system VM that it describes.
pub(crate) fn boot_args(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BOOT_LINE)];
    for parsed in [BootArgs::parse(data), BootArgs::parse_xen(data)] {
        match parsed {
            Ok(args) => {
                assert_eq!(BootArgs::parse(args.to_line()).as_ref(), Ok(&args));
                let _ = format!("{:?}", SystemVm::parse(&args).map_err(|error| error.to_string()));
            }
            Err(error) => assert!(!error.problems().is_empty()),
        }
    }
}

/// What a server gets from a stranger on port 8250: no handshake comes of it, and all of it is used or refused.
pub(crate) fn channel(data: &[u8]) {
    let mut channel = Channel::server(server_config()).expect("the configuration is good");
    let (mut input, mut output) = (BytesMut::from(data), Vec::new());
    let received = channel.receive(&mut input, &mut output);
    assert!(!matches!(received, Ok(Some(_))), "{received:?}");
    assert!(!channel.is_established());
    // Whoever goes on after an error gets an error again, not a panic.
    let _ = channel.receive(&mut input, &mut output);
}

fn server_config() -> Arc<ServerConfig> {
    static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    let make = || {
        let made = rcgen::generate_simple_self_signed(vec!["management".to_owned()]).expect("a good name");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("ring speaks TLS 1.2");
        let config = builder
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.into()], key.into());
        Arc::new(config.expect("certificate and key belong together"))
    };
    Arc::clone(CONFIG.get_or_init(make))
}
