//! A host at the other end of a socket.

use std::future::pending;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::appliance::progress::{Outcome, Progress, Step};
use crate::appliance::root::RUN;

const LIMIT: Duration = Duration::from_secs(20);

/// A host at the other end of a socket.
struct Host {
    stream: BufReader<UnixStream>,
    root: Root,
    session: JoinHandle<io::Result<()>>,
    stop: Option<oneshot::Sender<()>>,
    _directory: tempfile::TempDir,
}

impl Host {
    fn connect() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        std::fs::create_dir_all(root.path(RUN)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(&root, Work::Here);
        let (stop, stopped) = oneshot::channel();
        let session = tokio::spawn(async move {
            let mut stop = std::pin::pin!(async {
                if stopped.await.is_err() {
                    pending::<()>().await;
                }
            });
            agent.serve(theirs, &mut stop).await
        });
        Self {
            stream: BufReader::new(ours),
            root,
            session,
            stop: Some(stop),
            _directory: directory,
        }
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(text.as_ref()).await.unwrap();
    }

    /// The next message of this name.
    async fn next(&mut self, name: &str) -> Value {
        let found = async {
            loop {
                let mut line = String::new();
                assert_ne!(self.stream.read_line(&mut line).await.unwrap(), 0, "the agent has gone");
                let message: Value = serde_json::from_str(&line).unwrap();
                if message["__name__"] == name {
                    return message;
                }
            }
        };
        timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no {name}"))
    }
}

#[tokio::test]
async fn a_host_hears_everything_at_once_and_then_what_changes() {
    let mut host = Host::connect();
    let progress = host.next("boot-progress").await;
    assert_eq!(
        progress,
        json!({"__name__": "boot-progress", "ready": false, "steps": []})
    );
    assert_eq!(host.next("agent-state").await["link"], Value::Null);
    for name in [
        "host-name",
        "os-version",
        "number-of-cpus",
        "applications",
        "network-interfaces",
        "disks-usage",
    ] {
        host.next(name).await;
    }
    host.next("heartbeat").await;

    let mut boot = Progress::new(&host.root, "boot");
    boot.set(Step::Line, Outcome::Waiting, "no boot arguments on any channel");
    let waits = host.next("boot-progress").await;
    assert_eq!(waits["problem"], "boot arguments: no boot arguments on any channel");
    assert_eq!(waits["steps"][0]["step"], "line");
    assert_eq!(waits["steps"][0]["outcome"], "waiting");
    host.next("heartbeat").await;
}

#[tokio::test]
async fn every_question_is_answered_and_what_is_unknown_is_counted() {
    let mut host = Host::connect();
    host.send("{\"__name__\": \"echo\", \"n\": 7}\nnonsense\n{\"__name__\": \"hibernate\"}\n")
        .await;
    assert_eq!(host.next("echo").await["n"], 7);
    assert!(
        host.next("error").await["reason"]
            .as_str()
            .unwrap()
            .contains("not a message")
    );
    host.send("{\"__name__\": \"set-time\", \"milliseconds\": 1}\n").await;
    let refused = host.next("error").await;
    assert_eq!(refused["message"], "set-time");
    assert_eq!(
        refused["reason"],
        "1 ms since 1970 is not between the years 2025 and 2100"
    );
    assert_eq!(
        host.next("heartbeat").await["counts"],
        json!({"unknown": 1, "bad": 1, "dropped": 0})
    );
    host.send("{\"__name__\": \"run-check\", \"id\": 5}\n{\"__name__\": \"run-check\", \"id\": 6}\n")
        .await;
    assert!(
        host.next("error").await["reason"]
            .as_str()
            .unwrap()
            .contains("under way")
    );
    let result = host.next("check-result").await;
    assert_eq!(
        (&result["id"], &result["report"]["outcome"]),
        (&json!(5), &json!("error"))
    );
}

#[tokio::test]
async fn diagnostics_come_in_pieces_that_fit_together() {
    let mut host = Host::connect();
    host.send("{\"__name__\": \"collect-diagnostics\", \"id\": 9}\n").await;
    let mut text = Vec::new();
    for index in 0.. {
        let piece = host.next("diagnostics").await;
        assert_eq!((&piece["id"], &piece["index"]), (&json!(9), &json!(index)));
        let data = base64::prelude::BASE64_STANDARD
            .decode(piece["data"].as_str().unwrap())
            .unwrap();
        text.extend(data);
        if piece["last"] == true {
            break;
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.starts_with("==== agent check\n") && text.contains("==== ip rule\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_host_that_asks_and_does_not_read_costs_no_memory_and_loses_nothing() {
    let mut host = Host::connect();
    // More questions than fit into both sockets: the agent must stop reading.
    let question = format!("{{\"__name__\": \"echo\", \"n\": \"{}\"}}\n", "x".repeat(20_000));
    let flood = async {
        let mut sent = 0;
        while timeout(
            Duration::from_millis(500),
            host.stream.get_mut().write_all(question.as_bytes()),
        )
        .await
        .is_ok()
        {
            sent += 1;
        }
        sent
    };
    let sent = timeout(LIMIT, flood).await.expect("the agent reads without end");
    assert!(sent > 1);
    assert!(!host.session.is_finished());
    for _ in 0..sent {
        host.next("echo").await;
    }
}

#[tokio::test]
async fn a_host_that_goes_ends_its_session_and_a_machine_that_goes_says_so() {
    let mut host = Host::connect();
    host.next("heartbeat").await;
    host.stop.take().unwrap().send(()).unwrap();
    host.next("session-shutdown").await;
    timeout(LIMIT, &mut host.session).await.unwrap().unwrap().unwrap();

    let Host {
        stream,
        session,
        stop: _stop,
        ..
    } = Host::connect();
    drop(stream);
    let _gone = timeout(LIMIT, session)
        .await
        .expect("the session goes on without a host")
        .unwrap();
}
