//! Every file under `vectors/agent-protocol` is used: here; framing and wire capture over real sockets in `wire.rs`; the
//! sessions also by both ends in the tests of `agent` and `mgmt-stub`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::BadBody;
use protocol::answer::Answer;
use protocol::chunk::{ChunkHeader, MAX_CHUNK};
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::header::{Flags, Header};
use protocol::message::{BadMessage, Body, Message};
use protocol::packet::{BadPacket, Packet, Request};
use serde_json::Value;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/agent-protocol")
}

fn load(name: &str) -> Value {
    let path = vectors().join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is not a text in {value}"))
}

fn id(value: &Value, key: &str) -> i64 {
    text(value, key).parse().unwrap()
}

/// All single messages and all steps of the sessions: (where, vector).
fn messages() -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(vectors()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let vector = load(&name);
        if vector["hex"].is_string() {
            found.insert(name, vector);
        } else if let Some(steps) = vector["steps"].as_array() {
            for step in steps {
                found.insert(format!("{name} step {}", step["step"]), step.clone());
            }
        }
    }
    found
}

#[test]
fn every_message_is_decoded_and_encoded_again() {
    let messages = messages();
    assert_eq!(messages.len(), 97 + 27 + 16);
    for (name, vector) in messages {
        let bytes = unhex(text(&vector, "hex"));
        let message = Message::decode(&bytes).unwrap();
        let expected = &vector["header"];
        let Header {
            flags,
            sequence,
            mgmt_id,
            agent_id,
            via,
        } = message.header;
        assert_eq!(format!("{flags:?}"), text(expected, "flags"), "{name}");
        assert_eq!(sequence, id(expected, "sequence"), "{name}");
        assert_eq!(mgmt_id, id(expected, "mgmt_id"), "{name}");
        assert_eq!(agent_id, id(expected, "agent_id"), "{name}");
        assert_eq!(via, id(expected, "via"), "{name}");
        let body = text(&vector, "body");
        assert_eq!(message.body, Body::Text(body.to_owned()), "{name}");

        let packet = Packet::read(message).unwrap_or_else(|error| panic!("{name}: {error}"));
        let encoded = match &packet {
            Packet::Request(request) => {
                assert_eq!(Command::write_all(&request.commands, Charset::Utf8), body, "{name}");
                request.encode(Charset::Utf8).unwrap()
            }
            Packet::Response(response) => {
                assert_eq!(Answer::write_all(&response.answers, Charset::Utf8), body, "{name}");
                response.encode(Charset::Utf8).unwrap()
            }
        };
        if flags.contains(Flags::COMPRESSED) {
            assert_eq!(encoded[..40], bytes[..40], "{name}");
            assert_eq!(
                Message::decode(&encoded).unwrap(),
                Message::decode(&bytes).unwrap(),
                "{name}"
            );
        } else {
            assert_eq!(encoded, bytes, "{name}");
        }
        let ascii = match &packet {
            Packet::Request(request) => request.encode(Charset::Ascii).unwrap(),
            Packet::Response(response) => response.encode(Charset::Ascii).unwrap(),
        };
        assert_eq!(Packet::decode(&ascii).unwrap(), packet, "{name}");
    }
}

/// The classes of each message, by the peer's names.
#[test]
fn every_message_holds_the_classes_it_names() {
    for (name, vector) in messages() {
        let Some(classes) = vector["classes"].as_array() else {
            continue;
        };
        let found: Vec<&str> = match Packet::decode(&unhex(text(&vector, "hex"))).unwrap() {
            Packet::Request(request) => request
                .commands
                .iter()
                .map(|command| command.body.class().name)
                .collect(),
            Packet::Response(response) => response.answers.iter().map(|answer| answer.body.class().name).collect(),
        };
        assert_eq!(
            found,
            classes.iter().map(|class| class.as_str().unwrap()).collect::<Vec<_>>(),
            "{name}"
        );
    }
}

/// Our own rules for requests and responses give the headers that the original code gave.
#[test]
fn headers_of_responses_follow_from_the_requests() {
    for (name, request_step, response_step) in session_pairs() {
        let Packet::Request(request) = Packet::decode(&unhex(text(&request_step, "hex"))).unwrap() else {
            panic!("{name}")
        };
        let Packet::Response(expected) = Packet::decode(&unhex(text(&response_step, "hex"))).unwrap() else {
            panic!("{name}")
        };
        let mut ours = request.response(expected.answers.clone());
        if request.header.flags.contains(Flags::FROM_SERVER) {
            let again = Request::from_server(
                request.header.sequence,
                request.header.mgmt_id,
                request.header.agent_id,
                request.commands.clone(),
            );
            assert_eq!(again.header, request.header, "{name}");
        } else {
            ours = ours.by_server(expected.header.mgmt_id, expected.header.via);
            let command = request.commands[0].clone();
            let again = match &command.body {
                CommandBody::StartupSecondaryStorage(_) | CommandBody::StartupProxy(_) => {
                    Request::startup(request.header.sequence, request.header.agent_id, command)
                }
                _ => Request::from_agent(request.header.sequence, request.header.agent_id, command),
            };
            assert_eq!(again.header, request.header, "{name}");
        }
        assert_eq!(ours, expected, "{name}");
    }
}

fn session_pairs() -> Vec<(String, Value, Value)> {
    let mut pairs = Vec::new();
    for session in ["session-ssvm.json", "session-cpvm.json"] {
        let vector = load(session);
        let steps = vector["steps"].as_array().unwrap();
        for pair in steps.chunks(2).filter(|pair| pair.len() == 2) {
            pairs.push((
                format!("{session} step {}", pair[0]["step"]),
                pair[0].clone(),
                pair[1].clone(),
            ));
        }
    }
    pairs
}

#[test]
fn malformed_headers_have_the_stated_outcome() {
    let vector = load("header-errors.json");
    for case in vector["cases"].as_array().unwrap() {
        let name = text(case, "case");
        let decoded = Packet::decode(&unhex(text(case, "hex")));
        if text(case, "parse") == "exception" {
            let error = decoded.expect_err(name);
            let expected = match text(case, "exception") {
                "java.nio.BufferUnderflowException" => "too few for a header",
                "com.cloud.exception.UnsupportedVersionException" => "is not supported",
                "java.nio.BufferOverflowException" => "longer than the",
                other => panic!("{other}"),
            };
            assert!(error.to_string().contains(expected), "{name}: {error}");
            continue;
        }
        let Ok(Packet::Request(request)) = decoded else {
            panic!("{name}: {decoded:?}")
        };
        assert_eq!(request.header.sequence, id(case, "sequence"), "{name}");
        assert_eq!(request.header.agent_id, id(case, "agent_id"), "{name}");
        assert_eq!(request.header.via, id(case, "via"), "{name}");
        let classes: Vec<&str> = request
            .commands
            .iter()
            .map(|command| command.body.class().name)
            .collect();
        assert_eq!(classes, [text(case, "commands")], "{name}");
    }
}

#[test]
fn unusual_request_bodies_have_the_stated_outcome() {
    let vector = load("json-leniency.json");
    for case in vector["cases"].as_array().unwrap() {
        let name = text(case, "case");
        let read = Command::read_all(text(case, "body"));
        match (text(case, "outcome"), case["java_class"].as_str()) {
            ("exception" | "null", _) | ("ok", Some("null")) => {
                assert!(matches!(read, Err(BadBody::Fatal(_))), "{name}: {read:?}");
            }
            ("ok", Some("(zero commands)")) => assert_eq!(read.unwrap(), [], "{name}"),
            ("ok", Some(class)) => {
                let commands = read.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(commands.len(), 1, "{name}");
                assert_eq!(commands[0].body.class().name, class, "{name}");
                assert_eq!(
                    Command::write_all(&commands, Charset::Utf8),
                    text(case, "reserialised"),
                    "{name}"
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn unusual_response_bodies_have_the_stated_outcome() {
    let vector = load("json-leniency-responses.json");
    for case in vector["cases"].as_array().unwrap() {
        let name = text(case, "case");
        let read = Answer::read_all(text(case, "body"));
        match (text(case, "outcome"), case["java_class"].as_str()) {
            ("exception", _) => assert!(matches!(read, Err(BadBody::Fatal(_))), "{name}: {read:?}"),
            ("ok", Some("(zero answers)")) => assert_eq!(read.unwrap(), [], "{name}"),
            ("ok", Some(class)) => {
                let answers = read.unwrap();
                assert_eq!(answers[0].body.class().name, class, "{name}");
                assert_eq!(answers[0].result, case["result"].as_bool().unwrap(), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn chunk_headers_have_the_observed_verdict() {
    let vector = load("framing.json");
    for case in vector["cases"].as_array().unwrap() {
        let name = text(case, "case");
        let Some(header) = case["header"].as_str() else {
            continue;
        };
        let decoded = ChunkHeader::decode(unhex(header).try_into().unwrap());
        let length = case["length"].as_i64().unwrap();
        match usize::try_from(length) {
            Ok(len) if len <= MAX_CHUNK => {
                let following = case["following"].as_bool().unwrap();
                assert_eq!(decoded, Ok(ChunkHeader { len, following }), "{name}");
            }
            _ => {
                assert_eq!(text(case, "verdict"), "close", "{name}");
                assert!(decoded.is_err(), "{name}");
            }
        }
    }
}

/// A value of the JSON type that `classes.json` gives for a member.
fn sample(kind: &str, vector: &Value, depth: usize) -> Option<Value> {
    let object = |class: &str| sample_members(class, vector, depth + 1).map(Value::Object);
    Some(match kind {
        "string" | "string(date)" => "text <é>".into(),
        "string(hypervisor)" => "KVM".into(),
        "integer" => 4_294_967_296_i64.into(),
        "boolean" => true.into(),
        "array<string>" => serde_json::json!(["a", ""]),
        "array<integer>" => serde_json::json!([1, -1]),
        "array<boolean>" => serde_json::json!([true, false]),
        "array<number -128..127>" => serde_json::json!([-128, 0, 127]),
        "object<string,string>" => serde_json::json!({"z": "1", "a": "2"}),
        "object<string,boolean>" => serde_json::json!({"z": false}),
        "object<string,object<string,string>>" => serde_json::json!({"k": {"z": "1"}}),
        "object com.cloud.utils.Pair" => serde_json::json!(["a", "b"]),
        "wrapped com.cloud.agent.api.to.DataStoreTO" => {
            let class = "com.cloud.agent.api.to.S3TO";
            serde_json::json!({ class: object(class)? })
        }
        "wrapped com.cloud.agent.api.to.DataTO" => {
            let class = "org.apache.cloudstack.storage.to.TemplateObjectTO";
            serde_json::json!({ class: object(class)? })
        }
        _ => {
            if let Some(name) = kind.strip_prefix("enum ") {
                vector["enums"][name].as_array().unwrap().last().unwrap().clone()
            } else if let Some(class) = kind.strip_prefix("object<string,object ") {
                serde_json::json!({"k": object(class.strip_suffix('>').unwrap())?})
            } else if let Some(class) = kind.strip_prefix("array<object ") {
                serde_json::json!([object(class.strip_suffix('>').unwrap())?])
            } else {
                object(
                    kind.strip_prefix("object ")
                        .unwrap_or_else(|| panic!("unknown type {kind}")),
                )?
            }
        }
    })
}

/// All members of a class, in emission order: as text, because order matters. Recursion ends at a depth of 4.
fn sample_members(class: &str, vector: &Value, depth: usize) -> Option<serde_json::Map<String, Value>> {
    if depth > 4 {
        return None;
    }
    let class = vector["classes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["class"] == class)
        .unwrap();
    let members = class["fields"].as_array().unwrap().iter().filter_map(|field| {
        let value = sample(text(field, "json"), vector, depth)?;
        Some((text(field, "name").to_owned(), value))
    });
    Some(members.collect())
}

/// The names of an object's members in the order of the text.
fn member_names(json: &str) -> Vec<String> {
    let Ok(protocol::gson::Value::Array(elements)) = protocol::gson::parse(json) else {
        panic!("{json}")
    };
    let protocol::gson::Value::Object(element) = &elements[0] else {
        panic!("{json}")
    };
    let protocol::gson::Value::Object(members) = &element[0] else {
        panic!("{json}")
    };
    members.keys().cloned().collect()
}

/// Java cannot serialise these (two members named `url`), so they cannot be on any wire (§5.3).
const DEAD: [&str; 3] = ["UploadCommand", "UploadProgressCommand", "UploadAnswer"];

#[test]
fn every_class_has_every_member_in_the_order_of_emission() {
    let vector = load("classes.json");
    let mut checked = 0;
    for class in vector["classes"].as_array().unwrap() {
        let name = text(class, "class");
        let kind = text(class, "kind");
        let abstract_parent = name == "com.cloud.agent.api.Command";
        if !matches!(kind, "command" | "answer") || abstract_parent || DEAD.iter().any(|dead| name.ends_with(dead)) {
            continue;
        }
        let members = sample_members(name, &vector, 0).unwrap();
        let body = serde_json::json!([{ name: members }]).to_string();
        let written = match kind {
            "command" => {
                let commands = Command::read_all(&body).unwrap();
                assert_eq!(commands[0].body.class().name, name);
                let in_sequence = class["in_sequence"].as_bool().unwrap();
                let by_field = name.ends_with(".CopyCommand"); // `executeInSequence` is true in the sample
                assert_eq!(commands[0].is_in_sequence(), in_sequence || by_field, "{name}");
                Command::write_all(&commands, Charset::Utf8)
            }
            _ => Answer::write_all(&Answer::read_all(&body).unwrap(), Charset::Utf8),
        };
        let strict: Value = serde_json::from_str(&written).unwrap();
        let mut expected = serde_json::json!([{ name: members }]);
        if name.ends_with(".PingAnswer") {
            expected[0][name]["_command"] = strict[0][name]["_command"].clone(); // compared with its own vector
        }
        assert_eq!(strict, expected, "{name}");
        let order: Vec<&str> = class["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|field| text(field, "name"))
            .collect();
        assert_eq!(member_names(&written), order, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 71);
}

#[test]
fn compression_starts_at_8192_bytes() {
    let header = Header {
        flags: Flags::REQUEST,
        sequence: 1,
        mgmt_id: -1,
        agent_id: 3,
        via: 3,
    };
    for (length, compressed) in [(8191, false), (8192, true)] {
        let message = Message::encode(header, &"x".repeat(length)).unwrap();
        assert_eq!(
            Message::decode(&message)
                .unwrap()
                .header
                .flags
                .contains(Flags::COMPRESSED),
            compressed
        );
    }
    for (name, compressed) in [
        ("compression-threshold-8191.json", false),
        ("compression-threshold-8192.json", true),
    ] {
        let message = Message::decode(&unhex(text(&load(name), "hex"))).unwrap();
        assert_eq!(message.header.flags.contains(Flags::COMPRESSED), compressed);
    }
}

/// A gzip bomb: 64 MiB and one byte of zeros in 64 KiB.
#[test]
fn a_body_longer_than_the_limit_is_refused_in_both_directions() {
    let header = Header {
        flags: Flags::REQUEST,
        sequence: 1,
        mgmt_id: -1,
        agent_id: 3,
        via: 3,
    };
    let long = " ".repeat((64 << 20) + 1);
    assert_eq!(Message::encode(header, &long), Err(BadMessage::TooLong(long.len())));
    let mut bomb = Message::encode(header, &long[1..]).unwrap();
    assert!(bomb.len() < 128 << 10);
    assert!(Message::decode(&bomb).is_ok());
    bomb[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(Message::decode(&bomb).is_ok(), "an exaggerated length is harmless");
    bomb[12..16].copy_from_slice(&1000_u32.to_be_bytes());
    assert_eq!(
        Packet::decode(&bomb),
        Err(BadPacket::Message(BadMessage::LongerThanAnnounced(1000)))
    );
}
