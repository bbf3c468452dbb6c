//! Random bytes, and real input with some bytes changed, through every reader of this crate. What must hold is in
//! `fuzz_targets`, where a fuzzer finds it, too.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of tests for production code"
)]

mod fuzz_targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use protocol::channel::Channel;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

/// Real input for one kind of reader.
type Corpus = LazyLock<Vec<Vec<u8>>>;

/// Everything hexadecimal: messages, headers.
static WIRE: Corpus = LazyLock::new(|| vectors(|key, text| (key == "hex" || key == "header").then(|| unhex(text))?));
/// All JSON bodies.
static BODIES: Corpus = LazyLock::new(|| vectors(|key, text| (key == "body").then(|| text.as_bytes().to_vec())));
static BOOT_LINES: Corpus = LazyLock::new(|| {
    let lines = ["boot", "boot/bad"]
        .into_iter()
        .flat_map(|folder| files(folder, "cmdline"));
    lines.map(|path| fs::read(path).unwrap()).collect()
});
/// What a client sends first.
static HELLOS: Corpus = LazyLock::new(|| {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let config = builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut hello = Vec::new();
    let mut client = Channel::client(Arc::new(config), ServerName::try_from("management").unwrap()).unwrap();
    client.flush(&mut hello);
    vec![hello]
});

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn vectors(wanted: impl Fn(&str, &str) -> Option<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for path in files("vectors/agent-protocol", "json") {
        let vector: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        collect(&vector, &wanted, &mut found);
    }
    found
}

/// All texts at any depth that are wanted by the name of their member.
fn collect(value: &Value, wanted: &impl Fn(&str, &str) -> Option<Vec<u8>>, found: &mut Vec<Vec<u8>>) {
    match value {
        Value::Array(elements) => elements.iter().for_each(|element| collect(element, wanted, found)),
        Value::Object(members) => {
            for (key, value) in members {
                found.extend(value.as_str().and_then(|text| wanted(key, text)));
                collect(value, wanted, found);
            }
        }
        _ => {}
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = (0..text.len()).step_by(2);
    digits
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// One damage.
#[derive(Debug, Clone)]
enum Damage {
    FlipBit(Index, u8),
    /// Some bytes, perhaps none, in place of so many others.
    Replace(Index, usize, Vec<u8>),
    Truncate(Index),
    /// A piece of it again, elsewhere.
    Repeat(Index, usize, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Damage::FlipBit(at, bit)),
        (at(), 0..9_usize, prop::collection::vec(any::<u8>(), 0..5))
            .prop_map(|(at, count, bytes)| Damage::Replace(at, count, bytes)),
        at().prop_map(Damage::Truncate),
        (at(), 1..99_usize, at()).prop_map(|(from, count, to)| Damage::Repeat(from, count, to)),
    ]
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let at = |index: Index| index.index(len + 1);
        let piece = |from: usize, count: usize| from..(from + count).min(len);
        match self {
            Self::FlipBit(index, bit) => bytes
                .iter_mut()
                .skip(at(index))
                .take(1)
                .for_each(|byte| *byte ^= 1 << bit),
            Self::Replace(index, count, by) => drop(bytes.splice(piece(at(index), count), by)),
            Self::Truncate(index) => bytes.truncate(at(index)),
            Self::Repeat(from, count, to) => {
                let again = bytes[piece(at(from), count)].to_vec();
                bytes.splice(at(to)..at(to), again);
            }
        }
    }
}

/// Noise, or something of `corpus` with up to four damages.
fn input(corpus: &'static [Vec<u8>]) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (select(corpus), prop::collection::vec(damage(), 0..5)).prop_map(|(mut bytes, damages)| {
        for damage in damages {
            damage.apply(&mut bytes);
        }
        bytes
    });
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..600), 3 => damaged]
}

#[test]
fn what_must_hold_holds_for_all_real_input() {
    assert!(WIRE.len() > 140 && BODIES.len() > 140 && BOOT_LINES.len() > 10);
    for wire in WIRE.iter() {
        fuzz_targets::chunk(wire);
        fuzz_targets::header(wire);
        fuzz_targets::message(wire);
    }
    HELLOS.iter().for_each(|hello| fuzz_targets::channel(hello));
    BODIES.iter().for_each(|body| fuzz_targets::body(body));
    BOOT_LINES.iter().for_each(|line| fuzz_targets::boot_args(line));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn chunks_survive_noise(bytes in input(&WIRE)) {
        fuzz_targets::chunk(&bytes);
    }

    #[test]
    fn headers_survive_noise(bytes in input(&WIRE)) {
        fuzz_targets::header(&bytes);
    }

    #[test]
    fn messages_survive_noise(bytes in input(&WIRE)) {
        fuzz_targets::message(&bytes);
    }

    #[test]
    fn bodies_survive_noise(bytes in input(&BODIES)) {
        fuzz_targets::body(&bytes);
    }

    #[test]
    fn boot_arguments_survive_noise(bytes in input(&BOOT_LINES)) {
        fuzz_targets::boot_args(&bytes);
    }

    #[test]
    fn an_unestablished_channel_survives_noise(bytes in input(&HELLOS)) {
        fuzz_targets::channel(&bytes);
    }
}
