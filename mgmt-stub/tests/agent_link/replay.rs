//! The recorded sessions against our server: every message that upstream's server sends, ours sends, too.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{LIMIT, TestServer, until};
use agent::link::Link;
use agent::trust::{TrustUnknown, client_config};
use mgmt_stub::hooks::{BoxedAnswer, Hooks};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::server::Fixed;
use mgmt_stub::settings::Settings;
use mgmt_stub::store::host::{Host, HostNic, HostType, StartupFacts};
use mgmt_stub::store::id::{HostId, ZoneId};
use protocol::answer::{Answer, AnswerBody};
use protocol::command::{Command, CommandBody};
use protocol::console_proxy::{
    ConsoleAccessAuthenticationAnswer, ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand,
};
use protocol::header::Header;
use protocol::message::{Body, Message};
use protocol::packet::{Packet, Request};
use serde_json::Value;
use tempfile::tempdir;

/// What upstream's server sends only because somebody used its API; here the test does.
const BY_API: [&str; 4] = [
    "com.cloud.agent.api.GetStorageStatsCommand",
    "org.apache.cloudstack.storage.command.DownloadCommand",
    "org.apache.cloudstack.storage.command.DownloadProgressCommand",
    "com.cloud.agent.api.proxy.AllowConsoleAccessCommand",
];

/// Stands for the instances that this server does not manage yet: every console session is known.
struct FakeConsoleSessions;

impl Hooks for FakeConsoleSessions {
    fn console_access(&self, _: ConsoleAccessAuthenticationCommand) -> BoxedAnswer<'_> {
        let granted = ConsoleAccessAuthenticationAnswer {
            success: true,
            ..Default::default()
        };
        Box::pin(std::future::ready(Answer::new(granted)))
    }

    fn console_load(&self, _: &Host, _: &ConsoleProxyLoadReportCommand) {}
}

struct Step {
    number: i64,
    from_agent: bool,
    bytes: Vec<u8>,
    header: Header,
    body: String,
}

fn steps(session: &str) -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../protocol/tests/vectors/agent-protocol")
        .join(session);
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let step = |step: &Value| {
        let bytes = unhex(step["hex"].as_str().unwrap());
        let (header, body) = read(&bytes);
        let from_agent = step["direction"] == "agent->server";
        Step {
            number: step["step"].as_i64().unwrap(),
            from_agent,
            bytes,
            header,
            body,
        }
    };
    vector["steps"].as_array().unwrap().iter().map(step).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn read(bytes: &[u8]) -> (Header, String) {
    match Message::decode(bytes).unwrap() {
        Message {
            header,
            body: Body::Text(text),
        } => (header, text),
        damaged => panic!("{damaged:?}"),
    }
}

/// The body with what is random on both sides made equal.
fn same_random(body: &str, chosen: &[(String, &str)]) -> String {
    let mut value: Value = serde_json::from_str(body).unwrap();
    for element in value.as_array_mut().unwrap() {
        let members = element.as_object_mut().unwrap().values_mut().next().unwrap();
        for (path, text) in [
            ("/contextMap/logid", "5b0ddc1f"),
            ("/keystorePassword", "q0Q1d1Z1c2FmZXBhc3M="),
        ] {
            if let Some(random) = members.pointer_mut(path) {
                *random = text.into();
            }
        }
    }
    chosen
        .iter()
        .fold(value.to_string(), |text, (ours, theirs)| text.replace(ours, theirs))
}

/// Gives the next new host the id of the recorded one.
async fn use_up_ids_below(server: &TestServer, id: i64) {
    for number in 1..id {
        let facts = StartupFacts {
            guid: format!("filler-{number}"),
            resource_name: None,
            host_type: HostType::ConsoleProxy,
            name: format!("filler-{number}"),
            zone: ZoneId(1),
            pod: None,
            version: String::new(),
            arch: "x86_64".into(),
            private: HostNic::default(),
            public: HostNic::default(),
            storage: HostNic::default(),
            ms_host_list: None,
            proxy_port: None,
        };
        server.store.find_or_create_host(facts).await.unwrap();
    }
}

async fn replay(session: &str, host_id: i64) {
    let steps = steps(session);
    let first_request = steps
        .iter()
        .find(|step| !step.from_agent && step.header.via == host_id)
        .unwrap();
    let fixed = Fixed {
        server_id: Some(first_request.header.mgmt_id),
        sequence_base: Some(first_request.header.sequence - 1),
    };
    let data = tempdir().unwrap();
    let settings = Settings {
        hosts: vec!["10.1.1.2".into()],
        ..Settings::default()
    };
    let hooks = Arc::new(FakeConsoleSessions);
    let server = TestServer::start_at("127.0.0.1:0".parse().unwrap(), data.path(), settings, hooks, fixed).await;
    use_up_ids_below(&server, host_id).await;
    let store = &server.store;
    let url = "nfs://192.168.10.5/export/secondary";
    let image_store = store
        .add_image_store(ZoneId(1), "secondary", url, Some("4.1".into()))
        .await
        .unwrap();
    for (name, value) in [
        ("upload.post.secret.key", "V2hhdCBhIGtleSE="),
        ("secstorage.copy.password", "eB9rjzs3dxsq"),
        ("security.encryption.key", "MDEyMzQ1Njc4OWFiY2RlZg"),
        ("security.encryption.iv", "ZmVkY2JhOTg3NjU0MzIxMA"),
    ] {
        store.set_setting(name, value).await.unwrap();
    }
    let mut chosen = vec![(image_store.uuid.to_string(), "2f1c7a3e-8f0d-4c6a-9c41-2f5b0f4c7a11")];

    let tls = client_config(None, TrustUnknown::Accept).unwrap();
    let mut link = Link::open("127.0.0.1", server.address.port(), tls, LIMIT, LIMIT)
        .await
        .unwrap();
    let mut asked: Option<(Vec<Command>, Sent)> = None;
    for step in &steps {
        let context = format!("{session} step {}", step.number);
        if step.from_agent {
            link.send(&step.bytes).unwrap();
            link.drain().await.unwrap();
            if let Some((request, answers)) = asked.take() {
                check_answers(&context, &request, answers, step).await;
            }
            continue;
        }
        if let Some(commands) = by_api(step) {
            let agents = server.agents.clone();
            let request = commands.clone();
            let sent = tokio::spawn(async move { agents.send(HostId(host_id), commands, LIMIT).await });
            asked = Some((request, sent));
        }
        let message = tokio::time::timeout(LIMIT, async {
            loop {
                if let Some(message) = link.next().await.unwrap() {
                    return message;
                }
            }
        });
        let (header, body) = read(&message.await.unwrap_or_else(|_| panic!("{context}: nothing came")));
        if let Ok(Some(host)) = store.host(HostId(host_id)).await
            && chosen.len() == 1
        {
            let theirs = if host_id == 3 {
                "b7a0b4f5-3f62-4d0a-8a37-7f2f8b1f5f0a"
            } else {
                "0e7f3b1c-5a55-4b2f-9f5c-9b1f0d1c2e77"
            };
            chosen.push((host.uuid.to_string(), theirs));
        }
        assert_eq!(header, step.header, "{context}");
        assert_eq!(same_random(&body, &chosen), same_random(&step.body, &[]), "{context}");
        if !body.contains("keystorePassword") {
            assert_eq!(body.len(), step.body.len(), "{context}"); // no byte more, whatever was made equal
        }
    }
    let status = if session.contains("ssvm") {
        HostStatus::Disconnected
    } else {
        HostStatus::Up
    };
    until("the last status", || async {
        store.host(HostId(host_id)).await.unwrap().unwrap().status == status
    })
    .await;
    drop(link);
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop().await;
}

fn by_api(step: &Step) -> Option<Vec<Command>> {
    match Packet::decode(&step.bytes).unwrap() {
        Packet::Request(Request { commands, .. }) if BY_API.contains(&commands[0].body.class().name) => Some(commands),
        _ => None,
    }
}

type Sent = tokio::task::JoinHandle<Result<Vec<Answer>, mgmt_stub::agents::NoAnswer>>;

async fn check_answers(context: &str, request: &[Command], sent: Sent, step: &Step) {
    let Packet::Response(response) = Packet::decode(&step.bytes).unwrap() else {
        panic!("{context}")
    };
    assert_eq!(sent.await.unwrap().unwrap(), response.answers, "{context}");
    // The answers have the classes that a server casts to.
    let expected = match &request[0].body {
        CommandBody::GetStorageStats(_) => matches!(response.answers[0].body, AnswerBody::GetStorageStats(_)),
        CommandBody::AllowConsoleAccess(_) => matches!(response.answers[0].body, AnswerBody::Plain(_)),
        _ => matches!(response.answers[0].body, AnswerBody::Download(_)),
    };
    assert!(expected, "{context}");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_plays_its_part_of_the_ssvm_session() {
    replay("session-ssvm.json", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_plays_its_part_of_the_cpvm_session() {
    replay("session-cpvm.json", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_looks_exactly_like_upstreams() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), Settings::default()).await;
    let startup = &steps("session-ssvm.json")[0];
    let elsewhere = startup.body.replace("\"dataCenter\":\"1\"", "\"dataCenter\":\"9\"");
    let tls = client_config(None, TrustUnknown::Accept).unwrap();
    let mut link = Link::open("127.0.0.1", server.address.port(), tls, LIMIT, LIMIT)
        .await
        .unwrap();
    link.send(&Message::encode(startup.header, &elsewhere).unwrap())
        .unwrap();
    let mut messages = Vec::new();
    while messages.len() < 2 {
        messages.extend(tokio::time::timeout(LIMIT, link.next()).await.unwrap().unwrap());
    }
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/vectors/agent-protocol/ready-refused.json");
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (expected, _) = read(&unhex(vector["hex"].as_str().unwrap()));
    let (header, body) = read(&messages[1]);
    assert_eq!(header, expected);
    assert!(
        body.contains(r#""_details":"Host s-1-VM sent incorrect data center: 9""#),
        "{body}"
    );
    server.stop().await;
}
