//! The recorded sessions against our agent: what upstream's agent sends, ours sends, byte for byte.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fake_server::FakeServer;
use agent::agent::{Agent, Ended};
use agent::config::{Config, Kind, Timing};
use agent::service::Service;
use agent::trust::TrustUnknown;
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::message::Message;
use protocol::packet::{Packet, Request};
use serde_json::Value;
use tempfile::tempdir;
use tokio::sync::oneshot;

const LIMIT: Duration = Duration::from_secs(30);

struct Step {
    number: i64,
    from_agent: bool,
    bytes: Vec<u8>,
    packet: Packet,
}

fn steps(session: &str) -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../protocol/tests/vectors/agent-protocol")
        .join(session);
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let step = |step: &Value| {
        let hex = step["hex"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        Step {
            number: step["step"].as_i64().unwrap(),
            from_agent: step["direction"] == "agent->server",
            packet: Packet::decode(&bytes).unwrap(),
            bytes,
        }
    };
    vector["steps"].as_array().unwrap().iter().map(step).collect()
}

/// Gives the recorded answer to each recorded command.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<HashMap<String, Vec<Answer>>>>);

impl Recorded {
    fn of(steps: &[Step]) -> Self {
        let mut answers: HashMap<String, Vec<Answer>> = HashMap::new();
        for pair in steps.windows(2) {
            if let (Packet::Request(request), Packet::Response(response)) = (&pair[0].packet, &pair[1].packet)
                && pair[1].from_agent
            {
                answers
                    .entry(key(&request.commands[0]))
                    .or_default()
                    .push(response.answers[0].clone());
            }
        }
        for answers in answers.values_mut() {
            answers.reverse();
        }
        Self(Arc::new(Mutex::new(answers)))
    }
}

fn key(command: &Command) -> String {
    format!("{command:?}")
}

impl Service for Recorded {
    async fn execute(&self, command: Command) -> Option<Answer> {
        self.0.lock().unwrap().get_mut(&key(&command)).and_then(Vec::pop)
    }
}

/// Pings come as often as the StartupAnswer says; a test does not wait a minute.
fn with_ping_interval(step: &Step, seconds: i64) -> Vec<u8> {
    let Packet::Response(mut response) = step.packet.clone() else {
        panic!("step {}", step.number)
    };
    if let protocol::answer::AnswerBody::Startup(startup) = &mut response.answers[0].body {
        startup.ping_interval = seconds;
    }
    response.encode(protocol::gson::Charset::Utf8).unwrap()
}

async fn replay(session: &str, ping_interval: i64) {
    let steps = steps(session);
    let Packet::Request(Request { commands, .. }) = &steps[0].packet else {
        panic!("no startup")
    };
    let (kind, startup) = match &commands[0].body {
        CommandBody::StartupSecondaryStorage(ssvm) => (Kind::SecondaryStorage, ssvm.startup.clone()),
        CommandBody::StartupProxy(cpvm) => {
            let proxy_port = u16::try_from(cpvm.proxy_port).unwrap();
            (
                Kind::ConsoleProxy {
                    proxy_port,
                    proxy_vm_id: cpvm.proxy_vm_id,
                },
                cpvm.startup.clone(),
            )
        }
        other => panic!("{other:?}"),
    };
    let files = tempdir().unwrap();
    std::fs::copy(recorded_host_list(files.path()), files.path().join("agent.properties")).unwrap();
    let fake = FakeServer::listen().await;
    let config = Config {
        kind,
        hosts: "127.0.0.1".parse().unwrap(),
        port: fake.port(),
        startup,
        workers: 5,
        directory: files.path().to_owned(),
        trust_unknown: TrustUnknown::Accept,
        system_ca: None,
        status: None,
        timing: Timing::default(),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let mut asks = None;
    let agent = Agent::new(config, |server| {
        asks = Some(server);
        Recorded::of(&steps)
    })
    .unwrap();
    let running = tokio::spawn(agent.run(async move { drop(stopped.await) }));
    let mut stop = Some(stop);

    let mut link = fake.accept().await;
    for step in &steps {
        let context = format!("{session} step {}", step.number);
        if !step.from_agent {
            let bytes = if step.number == 2 {
                with_ping_interval(step, ping_interval)
            } else {
                step.bytes.clone()
            };
            link.send(&bytes).await;
            continue;
        }
        match &step.packet {
            // What a service asks by itself.
            Packet::Request(request) if is_question(&request.commands[0]) => {
                let (server, command) = (asks.clone().unwrap(), request.commands[0].clone());
                tokio::spawn(async move { server.ask(command).await });
            }
            Packet::Request(request) if matches!(request.commands[0].body, CommandBody::Shutdown(_)) => {
                drop(stop.take());
            }
            _ => {}
        }
        let received = tokio::time::timeout(LIMIT, link.receive()).await.expect(&context);
        assert_eq!(Message::decode(&received), Message::decode(&step.bytes), "{context}");
        assert_eq!(received, step.bytes, "{context}");
    }
    drop(stop);
    assert_eq!(
        tokio::time::timeout(LIMIT, running).await.unwrap().unwrap().unwrap(),
        Ended::Asked
    );
}

/// The recorded agents had this list persisted; ours reports it from its properties, too.
fn recorded_host_list(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("recorded.properties");
    let _ = platform::files::replace(&path, "host=10.1.1.2\n", 0o640).unwrap();
    path
}

fn is_question(command: &Command) -> bool {
    matches!(
        command.body,
        CommandBody::ConsoleProxyLoadReport(_) | CommandBody::ConsoleAccessAuthentication(_)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn our_agent_plays_its_part_of_the_ssvm_session() {
    replay("session-ssvm.json", 1).await;
}

/// The ping comes last here.
#[tokio::test(flavor = "multi_thread")]
async fn our_agent_plays_its_part_of_the_cpvm_session() {
    replay("session-cpvm.json", 3).await;
}
