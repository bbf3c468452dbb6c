//! The channel on TCP sockets, compared with what was seen of the Java server: the layout of a recorded session, and its
//! verdict on each unusual way to frame.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use protocol::channel::{BrokenLink, Event};
use protocol::chunk::{BadChunk, CHUNK_HEADER_LEN, MAX_CHUNK, MAX_PLAINTEXT, RECORD_HEADER_LEN};
use protocol::message::MAX_MESSAGE;
use serde_json::{Value, json};

use self::ends::{LIMIT, Ours, Place, READ_SIZE, Role, Stranger, chunk, header, listen};

#[path = "wire/ends.rs"]
mod ends;

const ROLES: [Role; 2] = [Role::Client, Role::Server];

fn load(name: &str) -> Value {
    let path = format!("{}/tests/vectors/agent-protocol/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .concat()
}

/// No two pieces of it are the same by accident.
fn message(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

// ---- the layout of a session -------------------------------------------------------------------------------------------

#[test]
fn a_session_has_the_layout_of_the_captured_one() {
    let vector = load("wire-capture.json");
    let sizes = |direction: &str| -> Vec<usize> {
        let sizes = vector[direction]["message_sizes"].as_array().unwrap();
        sizes.iter().map(number).collect()
    };
    assert_eq!(sizes("client_to_server"), sizes("server_to_client"));

    let (to_server, to_client) = record(&sizes("client_to_server"));
    for (direction, raw) in [("client_to_server", to_server), ("server_to_client", to_client)] {
        let (handshake, chunks) = layout(&raw);
        let captured: Vec<_> = vector[direction]["handshake"]
            .as_array()
            .unwrap()
            .iter()
            .map(|record| (record["raw_tls_record"].as_str().unwrap(), number(&record["payload"])))
            .collect();
        assert_eq!(in_a_row(&handshake), in_a_row(&captured), "{direction}");
        // ChangeCipherSpec and Finished. The other sizes follow from certificates, extensions and tickets.
        assert_eq!(
            handshake[handshake.len() - 2..],
            captured[captured.len() - 2..],
            "{direction}"
        );
        assert_eq!(Value::from(chunks), vector[direction]["chunks"], "{direction}");
    }
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap().try_into().unwrap()
}

/// Record types in their order; several of one type in a row count as one. TLS gives the boundaries between those no
/// meaning (RFC 5246 §6.2.1), and `rustls` puts the empty Certificate into a record of its own, which Java does not.
fn in_a_row<'r>(records: &[(&'r str, usize)]) -> Vec<&'r str> {
    let mut kinds: Vec<_> = records.iter().map(|(kind, _)| *kind).collect();
    kinds.dedup();
    kinds
}

/// The bytes that cross a proxy while a client sends messages and the server echoes them: to the server, to the client.
fn record(sizes: &[usize]) -> (Vec<u8>, Vec<u8>) {
    let (front, back) = (listen(), listen());
    let back_address = back.local_addr().unwrap();
    let client = TcpStream::connect(front.local_addr().unwrap()).unwrap();
    let (front, _) = front.accept().unwrap();
    let to_back = TcpStream::connect(back_address).unwrap();
    let (server, _) = back.accept().unwrap();
    let up = relay(&front, &to_back);
    let down = relay(&to_back, &front);

    let echo = thread::spawn(move || {
        let mut server = Ours::new(Role::Server, server);
        while let Some(event) = server.next().unwrap() {
            if let Event::Message(message) = event {
                server.send(&message);
            }
        }
    });
    let mut client = Ours::new(Role::Client, client);
    assert_eq!(client.next().unwrap(), Some(Event::Established));
    for size in sizes {
        client.send(&message(*size));
        assert_eq!(client.next().unwrap(), Some(Event::Message(message(*size))));
    }
    drop(client);
    echo.join().unwrap();
    (up.join().unwrap(), down.join().unwrap())
}

fn relay(from: &TcpStream, to: &TcpStream) -> JoinHandle<Vec<u8>> {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            to.write_all(&buffer[..count]).unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
        let _ = to.shutdown(Shutdown::Write); // the other side may be gone already
        seen
    })
}

/// The bare records of one direction as (type, payload length), and its chunks as the capture describes them.
fn layout(mut raw: &[u8]) -> (Vec<(&'static str, usize)>, Vec<Value>) {
    let mut handshake = Vec::new();
    // Finished is the record after ChangeCipherSpec.
    while !matches!(handshake[..], [.., ("ChangeCipherSpec", _), _]) {
        let record = take_record(&mut raw);
        let kind = match record.0 {
            20 => "ChangeCipherSpec",
            22 => "Handshake",
            other => panic!("bare record of type {other}"),
        };
        handshake.push((kind, record.1));
    }
    let mut chunks = Vec::new();
    while let Some((header, mut rest)) = raw.split_first_chunk::<CHUNK_HEADER_LEN>() {
        let before = rest.len();
        let (record_type, record_payload) = take_record(&mut rest);
        assert_eq!(
            usize::from(u16::from_be_bytes([header[2], header[3]])),
            before - rest.len(),
            "one record to a chunk"
        );
        chunks.push(json!({
            "chunk_header": hex(header),
            "following": header[1] & 1 == 1,
            "record_type": record_type,
            "record_payload": record_payload,
            "plaintext": record_payload - 8 /* nonce */ - 16 /* tag */,
        }));
        raw = rest;
    }
    assert!(raw.is_empty(), "nothing follows the last chunk, no good-bye either");
    (handshake, chunks)
}

/// Type and payload length of the record at the front.
fn take_record(raw: &mut &[u8]) -> (u8, usize) {
    let (&[kind, 3, _, high, low], rest) = raw.split_first_chunk::<RECORD_HEADER_LEN>().unwrap() else {
        panic!("not a TLS record: {}", hex(&raw[..16.min(raw.len())]));
    };
    let len = u16::from_be_bytes([high, low]).into();
    *raw = &rest[len..];
    (kind, len)
}

// ---- what a receiver makes of unusual framing --------------------------------------------------------------------------

/// What a stranger sends, how many bytes at a time, and what must come of it: this message, or such an error.
struct Play {
    bytes: Vec<u8>,
    piece: usize,
    outcome: Result<Vec<u8>, fn(&BrokenLink) -> bool>,
}

fn accepted(bytes: Vec<u8>, message: impl Into<Vec<u8>>) -> Play {
    Play {
        bytes,
        piece: usize::MAX,
        outcome: Ok(message.into()),
    }
}

fn refused(bytes: impl Into<Vec<u8>>, is_right: fn(&BrokenLink) -> bool) -> Play {
    Play {
        bytes: bytes.into(),
        piece: usize::MAX,
        outcome: Err(is_right),
    }
}

fn play(name: &str, stranger: &mut Stranger) -> Play {
    use BadChunk::{SplitRecord, TooLong};
    use BrokenLink::{Chunk, Closed, Tls};
    use Place::{Following, Last};
    let text = message(MAX_CHUNK);
    let (full, rest) = text.split_at(MAX_PLAINTEXT);
    match name.split([':', '(']).next().unwrap_or(name).trim() {
        "small message, one chunk" => accepted(stranger.chunk(Last, &[&text[..1]]), &text[..1]),
        "first chunk of several" => accepted(
            [stranger.chunk(Following, &[full]), stranger.chunk(Last, &[&rest[..1]])].concat(),
            &text[..=MAX_PLAINTEXT],
        ),
        "largest accepted chunk" => accepted(
            stranger.chunk(Last, &[full, &rest[..1558]]),
            &text[..MAX_PLAINTEXT + 1558],
        ),
        "18001 bytes" => refused(stranger.chunk(Last, &[full, &rest[..1559]]), |error| {
            matches!(error, Chunk(TooLong(18_001)))
        }),
        "0x7fff" => refused(header(0x7fff), |error| matches!(error, Chunk(TooLong(0x7fff)))),
        "bit 15 set" => refused(header(0x8000), |error| matches!(error, Chunk(TooLong(0x8000)))),
        "0xffff" => refused(header(0xffff), |error| matches!(error, Chunk(TooLong(0xffff)))),
        "0x1ffff" => refused(header(0x1_ffff), |error| matches!(error, Chunk(TooLong(0xffff)))),
        "bits 17-31 are ignored" => {
            let mut bytes = stranger.chunk(Last, &[&text[..30]]);
            bytes[..2].copy_from_slice(&[0xab, 0xcc]);
            accepted(bytes, &text[..30])
        }
        "zero length chunk" => accepted(header(0).into(), []),
        "chunk holding 5 complete TLS records" => {
            let records: Vec<_> = text[..500].chunks(100).collect();
            accepted(stranger.chunk(Last, &records), &text[..500])
        }
        "one TLS record split over two chunks" => {
            let record = stranger.record(&text[..1000]);
            let (one, two) = record.split_at(500);
            refused([chunk(Following, one), chunk(Last, two)].concat(), |error| {
                matches!(error, Chunk(SplitRecord))
            })
        }
        // Its bytes are random: once in 2^16 they look like records, and TLS does not want them.
        "TLS record written without a chunk header" => refused(stranger.record(&text[..1000]), |error| {
            matches!(error, Chunk(SplitRecord) | Tls(_))
        }),
        "close_notify alert record inside a chunk" => {
            refused(chunk(Last, &stranger.close_notify()), |error| matches!(error, Closed))
        }
        "two chunks joined" => accepted(
            [stranger.chunk(Following, &[b"one"]), stranger.chunk(Last, &[b"two"])].concat(),
            *b"onetwo",
        ),
        "bytes of header and record arriving in pieces of 7" => Play {
            piece: 7,
            ..accepted(stranger.chunk(Last, &[&text[..100]]), &text[..100])
        },
        _ => panic!("framing.json has a case that is not played here: {name}"),
    }
}

/// Our end in a thread of its own, with all that it ever gets. The socket closes at its end.
type Inbox = Receiver<Result<Option<Event>, BrokenLink>>;

fn receiver(role: Role, read_size: usize) -> (Inbox, TcpStream) {
    let listener = listen();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let (to_test, inbox) = mpsc::channel();
    thread::spawn(move || {
        let mut ours = Ours::new(role, ours).reading(read_size);
        loop {
            let next = ours.next();
            let goes_on = matches!(next, Ok(Some(_)));
            if to_test.send(next).is_err() || !goes_on {
                return;
            }
        }
    });
    (inbox, theirs)
}

fn event(inbox: &Inbox, context: &str) -> Event {
    match inbox.recv_timeout(LIMIT).unwrap() {
        Ok(Some(event)) => event,
        Ok(None) => panic!("{context}: closed"),
        Err(error) => panic!("{context}: {error}"),
    }
}

/// Also with a kernel that hands over seven bytes at a time. As the client we get the beginning together with the
/// server's last bytes of the handshake.
#[test]
fn every_framing_case_has_the_observed_verdict_at_both_ends() {
    let vector = load("framing.json");
    for case in vector["cases"].as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        for (role, read_size) in ROLES.into_iter().flat_map(|role| [(role, 7), (role, READ_SIZE)]) {
            let context = format!("{name} ({role:?}, reading {read_size})");
            let (inbox, stream) = receiver(role, read_size);
            let mut stranger = Stranger::meet(role, stream);
            let play = play(name, &mut stranger);
            if let Some(header) = case["header"].as_str() {
                assert_eq!(hex(&play.bytes[..CHUNK_HEADER_LEN]), header, "{context}");
            }
            let sent = stranger.send(&play.bytes, play.piece);
            assert_eq!(event(&inbox, &context), Event::Established, "{context}");
            match (case["verdict"].as_str().unwrap(), play.outcome) {
                ("accept", Ok(message)) => {
                    assert!(sent, "{context}");
                    assert_eq!(event(&inbox, &context), Event::Message(message), "{context}");
                    let good = stranger.chunk(Place::Last, &[b"good"]);
                    assert!(stranger.send(&good, usize::MAX), "{context}");
                    assert_eq!(event(&inbox, &context), Event::Message(b"good".into()), "{context}");
                }
                ("close", Err(is_right)) => {
                    let end = inbox.recv_timeout(LIMIT).unwrap();
                    assert!(end.as_ref().is_err_and(is_right), "{context}: {end:?}");
                    assert!(stranger.is_cut_off(), "{context}");
                }
                (verdict, _) => panic!("{context}: we want another verdict than {verdict}"),
            }
        }
    }
}

#[test]
fn a_forged_record_ends_the_connection() {
    for role in ROLES {
        let (inbox, stream) = receiver(role, READ_SIZE);
        let mut stranger = Stranger::meet(role, stream);
        let mut forged = stranger.chunk(Place::Last, &[b"yes"]);
        *forged.last_mut().unwrap() ^= 1;
        assert!(stranger.send(&forged, usize::MAX));
        assert_eq!(event(&inbox, "forged"), Event::Established);
        let end = inbox.recv_timeout(LIMIT).unwrap();
        assert!(
            matches!(end, Err(BrokenLink::Tls(rustls::Error::DecryptError))),
            "{role:?}: {end:?}"
        );
        assert!(stranger.is_cut_off());
    }
}

/// The first five bytes are enough, so nobody can have us wait for 64 KiB of it.
#[test]
fn what_is_not_tls_ends_the_connection_at_once() {
    for role in ROLES {
        for (garbage, len) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], 5 + 0x202f),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", 5 + 0x2d32),
            (&[0; 64], 5),
            (b"\x16\x03\x01\xff\xff", 5 + 0xffff),
        ] {
            let (inbox, mut stream) = receiver(role, READ_SIZE);
            stream.write_all(garbage).unwrap();
            let end = inbox.recv_timeout(LIMIT).unwrap();
            assert!(
                matches!(end, Err(BrokenLink::NotTls(found)) if found == len),
                "{role:?}: {end:?}"
            );
        }
        let (inbox, mut stream) = receiver(role, READ_SIZE);
        stream.write_all(b"\x16\x03\x03\x00\x05hello").unwrap();
        let end = inbox.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, Err(BrokenLink::Tls(_))), "{role:?}: {end:?}");
    }
}

// ---- the longest message -----------------------------------------------------------------------------------------------

/// Sends a message of `len` bytes chunk by chunk, and after its last byte would go on for ever if `place` says so.
fn send_long(role: Role, stream: TcpStream, len: usize, place: Place) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut stranger = Stranger::meet(role, stream);
        let text = vec![b'x'; MAX_PLAINTEXT];
        let last = len % MAX_PLAINTEXT;
        for _ in 0..len / MAX_PLAINTEXT {
            let chunk = stranger.chunk(Place::Following, &[&text]);
            stranger.send(&chunk, usize::MAX);
        }
        let chunk = stranger.chunk(place, &[&text[..last]]);
        stranger.send(&chunk, usize::MAX);
        assert!(stranger.is_cut_off());
    })
}

fn ours_and_theirs(role: Role) -> (Ours, TcpStream) {
    let listener = listen();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Ours::new(role, listener.accept().unwrap().0), theirs)
}

/// Room for a chunk that has not arrived whole and for what is read behind it, doubled by growing.
const MAX_INPUT: usize = 2 * (CHUNK_HEADER_LEN + MAX_CHUNK + READ_SIZE);

#[test]
fn the_longest_message_is_accepted() {
    let (mut ours, theirs) = ours_and_theirs(Role::Server);
    let sender = send_long(Role::Server, theirs, MAX_MESSAGE, Place::Last);
    assert_eq!(ours.next().unwrap(), Some(Event::Established));
    let Some(Event::Message(message)) = ours.next().unwrap() else {
        panic!("no message");
    };
    assert_eq!(message.len(), MAX_MESSAGE);
    assert!(message.iter().all(|byte| *byte == b'x'));
    assert!(message.capacity() <= 2 * MAX_MESSAGE);
    assert!(ours.largest_input <= MAX_INPUT, "{}", ours.largest_input);
    drop(ours);
    sender.join().unwrap();
}

#[test]
fn one_byte_more_is_refused_although_the_message_goes_on() {
    let (mut ours, theirs) = ours_and_theirs(Role::Client);
    let sender = send_long(Role::Client, theirs, MAX_MESSAGE + 1, Place::Following);
    assert_eq!(ours.next().unwrap(), Some(Event::Established));
    let end = ours.next();
    assert!(matches!(end, Err(BrokenLink::TooLong(MAX_MESSAGE))), "{end:?}");
    assert!(ours.largest_input <= MAX_INPUT, "{}", ours.largest_input);
    drop(ours);
    sender.join().unwrap();
}
