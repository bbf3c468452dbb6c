//! What networks and servers do to an agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fake_server::{FakeLink, FakeServer};
use agent::agent::{Agent, Ended};
use agent::config::{Config, Kind, Timing};
use agent::keystore::KeyStore;
use agent::link::Link;
use agent::link_status::{self, LinkStatus, State};
use agent::service::Service;
use agent::trust::{TrustUnknown, client_config};
use protocol::answer::{Answer, AnswerBody};
use protocol::command::{Command, CommandBody};
use protocol::console_proxy::{CheckConsoleProxyLoadCommand, WatchConsoleProxyLoadCommand};
use protocol::gson::Charset;
use protocol::header::{Flags, Header};
use protocol::message::Message;
use protocol::packet::{Packet, Request, Response};
use protocol::secondary_storage::MoveVolumeCommand;
use protocol::session::{
    CheckHealthCommand, MigrateAgentConnectionCommand, PingAnswer, ReadyCommand, SetupMSListCommand, StartupAnswer,
    StartupCommand,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(30);
const SERVER_ID: i64 = 90_520_732_674_657;
const HOST_ID: i64 = 3;

/// Health checks are answered at once; a volume is moved in as many milliseconds as its name says.
#[derive(Clone, Default)]
struct Slow(Arc<AtomicUsize>);

impl Service for Slow {
    async fn execute(&self, command: Command) -> Option<Answer> {
        self.0.fetch_add(1, Ordering::SeqCst);
        match command.body {
            CommandBody::CheckHealth(_) => Some(Answer::success()),
            CommandBody::WatchConsoleProxyLoad(_) => Some(Answer::success().with_details("load")),
            CommandBody::CheckConsoleProxyLoad(_) => Some(Answer::success().with_details(noise(LONG))),
            CommandBody::MoveVolume(volume) => {
                let milliseconds = volume.volume_name.unwrap().parse().unwrap();
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Some(Answer::success().with_details("moved"))
            }
            _ => None,
        }
    }
}

/// Length of the longest answer here.
const LONG: usize = 30 << 20;

/// Text that does not get shorter by compression.
fn noise(length: usize) -> String {
    let mut state = 1_u64;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'0' + u8::try_from(state >> 58).unwrap())
    };
    (0..length).map(letter).collect()
}

/// Where the agent says what its link is like.
const STATUS: &str = "agent.json";

struct Running {
    service: Slow,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Ended>,
    files: TempDir,
}

impl Running {
    /// What the agent says of its link, once it says `state`.
    async fn says(&self, state: State) -> LinkStatus {
        let said = async {
            loop {
                let status = link_status::read(&self.files.path().join(STATUS)).unwrap();
                if let Some(status) = status.filter(|status| status.state == state) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, said).await.expect("it never says so")
    }

    async fn stop(self) {
        drop(self.stop);
        let ended = tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap();
        assert_eq!(ended, Ended::Asked);
    }
}

fn start(hosts: &str, port: u16, timing: Timing) -> Running {
    let files = tempfile::tempdir().unwrap();
    let config = Config {
        kind: Kind::SecondaryStorage,
        hosts: hosts.parse().unwrap(),
        port,
        startup: StartupCommand {
            guid: Some("s-1-VM-X".into()),
            ..StartupCommand::default()
        },
        workers: 5,
        directory: files.path().to_owned(),
        trust_unknown: TrustUnknown::Accept,
        system_ca: None,
        status: Some(files.path().join(STATUS)),
        timing,
    };
    let service = Slow::default();
    let agent = Agent::new(config, |_| service.clone()).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move { agent.run(async move { drop(stopped.await) }).await.unwrap() });
    Running {
        service,
        stop,
        task,
        files,
    }
}

fn quick() -> Timing {
    Timing {
        backoff: Duration::from_millis(20),
        longest_backoff: Duration::from_millis(50),
        missed_pings: 1,
        migrate: Duration::from_millis(50),
        ..Timing::default()
    }
}

async fn accept(server: &FakeServer) -> FakeLink {
    tokio::time::timeout(LIMIT, server.accept())
        .await
        .expect("the agent connects")
}

async fn receive(link: &mut FakeLink) -> Packet {
    let message = tokio::time::timeout(LIMIT, link.receive())
        .await
        .expect("the agent sends something");
    Packet::decode(&message).unwrap()
}

async fn request(link: &mut FakeLink) -> Request {
    match receive(link).await {
        Packet::Request(request) => request,
        Packet::Response(response) => panic!("{response:?}"),
    }
}

/// The next response; pings in between are answered.
async fn response(link: &mut FakeLink) -> Response {
    loop {
        match receive(link).await {
            Packet::Response(response) => return response,
            Packet::Request(ping) => answer(link, &ping, Answer::new(PingAnswer::default())).await,
        }
    }
}

async fn answer(link: &mut FakeLink, request: &Request, answer: Answer) {
    let response = request.response(vec![answer]).by_server(SERVER_ID, HOST_ID);
    link.send(&response.encode(Charset::Utf8).unwrap()).await;
}

async fn send(link: &mut FakeLink, sequence: i64, command: impl Into<CommandBody>) {
    let request = Request::from_server(sequence, SERVER_ID, HOST_ID, vec![Command::new(command)]);
    link.send(&request.encode(Charset::Utf8).unwrap()).await;
}

/// A link up to the answered startup command.
async fn accept_and_answer(server: &FakeServer, ping_interval: i64) -> FakeLink {
    let mut link = accept(server).await;
    let startup = request(&mut link).await;
    answer(
        &mut link,
        &startup,
        Answer::new(StartupAnswer {
            ping_interval,
            ..StartupAnswer::default()
        }),
    )
    .await;
    link
}

async fn make_ready(link: &mut FakeLink) {
    send(
        link,
        1,
        ReadyCommand {
            host_id: Some(HOST_ID),
            ..ReadyCommand::default()
        },
    )
    .await;
    let ready = response(link).await;
    assert!(matches!(ready.answers[0].body, AnswerBody::Ready(_)), "{ready:?}");
}

#[tokio::test]
async fn the_agent_says_what_its_link_is_like() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    let address = format!("127.0.0.1:{}", server.port());
    assert_eq!(agent.says(State::Connected).await.server, Some(address.clone()));
    make_ready(&mut link).await;
    let ready = agent.says(State::Ready).await;
    assert_eq!((ready.attempts, ready.links, ready.last_error), (1, 1, None));
    drop((link, server));
    let lost = agent.says(State::Connecting).await;
    assert_eq!(lost.server, Some(address));
    assert!(lost.last_error.is_some() || lost.attempts > 1, "{lost:?}");
    let file = agent.files.path().join(STATUS);
    drop(agent.stop);
    assert_eq!(agent.task.await.unwrap(), Ended::Asked);
    assert_eq!(link_status::read(&file).unwrap().unwrap().state, State::Stopped);
}

fn move_volume(milliseconds: u32) -> MoveVolumeCommand {
    MoveVolumeCommand {
        volume_name: Some(milliseconds.to_string()),
        ..MoveVolumeCommand::default()
    }
}

async fn works(link: &mut FakeLink) {
    send(link, 77, CheckHealthCommand {}).await;
    let health = response(link).await;
    assert_eq!((health.header.sequence, health.answers[0].result), (77, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_survives_servers_that_speak_nonsense() {
    let server = FakeServer::listen().await;
    let timing = Timing {
        handshake: Duration::from_millis(300),
        ..quick()
    };
    let agent = start("127.0.0.1", server.port(), timing);

    let mut garbage = server.accept_tcp().await;
    garbage.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    drop(server.accept_tcp().await); // closed before the handshake
    let silent = server.accept_tcp().await; // the handshake never answers
    let mut not_finished = server.accept_tcp().await;
    not_finished.write_all(&[22, 3, 3, 0x40, 0]).await.unwrap(); // announces a record that never comes
    drop((garbage, silent));

    let mut oversized = accept_and_answer(&server, 60).await;
    oversized.send_raw(&[0, 0, 0x46, 0x51]).await; // a chunk of 18,001 bytes
    let mut bare = accept_and_answer(&server, 60).await;
    bare.send_raw(&[0x15, 3, 3, 0, 2, 1, 0]).await; // a TLS alert without a chunk header: waits for 771 bytes
    bare.send_raw(&[0; 900]).await;
    let mut link = accept_and_answer(&server, 60).await;
    works(&mut link).await;
    agent.stop().await;
}

/// The certificate is the trusted one, but this machine's clock is outside of its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_outside_of_its_time_is_refused_with_its_date_and_a_hint_at_the_clock() {
    for (from, until, expected) in [
        (2000, 2001, "expired on 2001-01-01"),
        (2990, 2991, "is not valid before 2990-01-01"),
    ] {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let server = FakeServer::listen_with(0, params).await;
        let files = tempfile::tempdir().unwrap();
        let _ = platform::files::replace(files.path().join("cloud.ca.crt"), &server.certificate, 0o644).unwrap();
        let identity = KeyStore::in_directory(files.path()).load().unwrap();
        let tls = client_config(identity.as_ref(), TrustUnknown::Refuse).unwrap();
        let (port, limit) = (server.port(), Duration::from_secs(10));
        let (opened, ()) = tokio::join!(
            Link::open("127.0.0.1", port, tls, limit, limit),
            server.accept_and_fail()
        );
        let error = opened.err().expect("the certificate is refused").to_string();
        assert!(error.contains(expected) && error.contains("clock"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_of_a_message_is_met_again() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    link.send_raw(&[0, 1, 0x40, 0x1d, 23, 3, 3, 0x40, 0x18, 1, 2, 3]).await;
    drop(link);
    let mut link = accept_and_answer(&server, 60).await;
    works(&mut link).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_startup_answer_connects_again_and_waits_longer() {
    let server = FakeServer::listen().await;
    let agent = start(
        "127.0.0.1",
        server.port(),
        Timing {
            startup: Duration::from_secs(1),
            ..quick()
        },
    );
    let mut first = accept(&server).await;
    request(&mut first).await;
    let since = Instant::now();
    let mut second = accept(&server).await;
    request(&mut second).await;
    let mut third = accept(&server).await;
    assert!(
        since.elapsed() >= Duration::from_millis(2500),
        "one second and then two: {:?}",
        since.elapsed()
    );
    request(&mut third).await;
    agent.stop().await;
}

/// The network is gone without a word: nothing is closed, nothing is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_link_is_noticed_by_missing_ping_answers() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let half_open = accept_and_answer(&server, 1).await;
    let since = Instant::now();
    let mut link = accept_and_answer(&server, 60).await;
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(10)).contains(&since.elapsed()),
        "{:?}",
        since.elapsed()
    );
    works(&mut link).await;
    drop(half_open);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_could_not_be_sent_is_sent_after_the_next_ready() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    make_ready(&mut link).await;
    send(&mut link, 5, move_volume(200)).await;
    while agent.service.0.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(link);
    let mut link = accept_and_answer(&server, 60).await;
    tokio::time::sleep(Duration::from_millis(300)).await; // finished before the server accepts the host
    send(&mut link, 6, CheckHealthCommand {}).await;
    assert_eq!(
        response(&mut link).await.header.sequence,
        6,
        "nothing old before ReadyCommand"
    );
    make_ready(&mut link).await;
    let held = response(&mut link).await;
    assert_eq!((held.header.sequence, held.header.mgmt_id), (5, SERVER_ID));
    assert_eq!(held.answers[0].details.as_deref(), Some("moved"));
    agent.stop().await;
}

/// 30 MiB are more than the kernel takes, so a part of the answer is still with the agent when the link ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_only_partly_sent_is_sent_again() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    make_ready(&mut link).await;
    send(&mut link, 5, CheckConsoleProxyLoadCommand::default()).await;
    while agent.service.0.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await; // time to fill the buffers of the kernel
    drop(link);
    let mut link = accept_and_answer(&server, 60).await;
    make_ready(&mut link).await;
    let again = response(&mut link).await;
    assert_eq!(again.header.sequence, 5);
    assert_eq!(again.answers[0].details.as_ref().map(String::len), Some(LONG));
    agent.stop().await;
}

/// The preferred server is to be avoided and still listens: the agent must not go there again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_to_avoid_is_not_preferred_and_nonsense_from_the_wire_is_survived() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    let list = |hosts: &[&str], interval| SetupMSListCommand {
        ms_list: Some(hosts.iter().map(ToString::to_string).collect()),
        avoid_ms_list: Some(vec!["localhost".into()]),
        lb_algorithm: Some("static".into()),
        lb_check_interval: Some(interval),
        trigger_host_lb: Some(true),
    };
    send(&mut link, 1, list(&["localhost", "127.0.0.1"], i64::MAX)).await;
    assert_eq!(response(&mut link).await.header.sequence, 1);
    for wrong in [vec!["a,b"], vec![""], vec!["x@y"], vec!["no host name"]] {
        send(&mut link, 2, list(&wrong, -1)).await;
        assert_eq!(response(&mut link).await.header.sequence, 2);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    works(&mut link).await;
    let properties = std::fs::read_to_string(agent.files.path().join("agent.properties")).unwrap();
    assert_eq!(properties, "host=localhost,127.0.0.1@static\n");
    agent.stop().await;
}

/// Answers without a pause, for five ping intervals: pings go out all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_stops_sending_does_not_stop_the_pings() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 1).await;
    let header = Header {
        flags: Flags::FROM_SERVER,
        sequence: 99,
        mgmt_id: SERVER_ID,
        agent_id: HOST_ID,
        via: HOST_ID,
    };
    let noise = Response {
        header,
        answers: vec![Answer::success().with_details("x".repeat(400_000))],
    };
    let noise = noise.encode(Charset::Utf8).unwrap();
    let mut pings = 0;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) {
        for _ in 0..50 {
            link.send(&noise).await;
        }
        while let Some(message) = link.receive_now() {
            pings += usize::from(matches!(Packet::decode(&message).unwrap(), Packet::Request(_)));
        }
    }
    assert!(pings >= 3, "{pings} pings in {:?}", since.elapsed());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_read_leave_the_link_open() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    let header = Header {
        flags: Flags::REQUEST | Flags::FROM_SERVER,
        sequence: 9,
        mgmt_id: SERVER_ID,
        agent_id: HOST_ID,
        via: HOST_ID,
    };
    link.send(&[0; 39]).await;
    link.send(&[]).await;
    link.send(&[1; 80]).await;
    for silent in [
        r#"[{"org.apache.cloudstack.storage.command.DeleteCommand":{"data":{"no.such.TO":{}}}}]"#,
        "[{}]",
        r#"[{"com.cloud.agent.api.CheckHealthCommand":null}]"#,
    ] {
        link.send(&Message::encode(header, silent).unwrap()).await;
    }
    link.send(&Message::encode(header, r#"[{"com.cloud.agent.api.NoSuchCommand":{}}]"#).unwrap())
        .await;
    let unsupported = response(&mut link).await;
    assert_eq!(
        unsupported.answers[0].details.as_deref(),
        Some(
            "Unsupported command issued: com.cloud.agent.api.BadCommand.  \
             Are you sure you got the right type of server?"
        )
    );
    works(&mut link).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_is_answered_and_bounded() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    for sequence in 0..1100 {
        send(&mut link, sequence, move_volume(300)).await;
    }
    let mut refused = 0;
    let mut moved = 0;
    while refused == 0 || moved == 0 {
        match response(&mut link).await.answers[0].details.as_deref() {
            Some("moved") => moved += 1,
            Some(busy) if busy.starts_with("the agent is busy: ") => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_load_is_reported_again_and_again_with_one_sequence() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    send(
        &mut link,
        8,
        WatchConsoleProxyLoadCommand {
            interval: 1,
            ..WatchConsoleProxyLoadCommand::default()
        },
    )
    .await;
    let accepted = response(&mut link).await;
    assert_eq!(
        (accepted.header.sequence, accepted.answers[0].details.as_deref()),
        (8, None)
    );
    for _ in 0..2 {
        let load = response(&mut link).await;
        assert_eq!(
            (load.header.sequence, load.answers[0].details.as_deref()),
            (8, Some("load"))
        );
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_moves_to_another_server_and_says_so() {
    let server = FakeServer::listen().await;
    let agent = start("127.0.0.1", server.port(), quick());
    let mut link = accept_and_answer(&server, 60).await;
    make_ready(&mut link).await;
    // The same listener under its other name: what counts is that the agent asks for it.
    let migrate = MigrateAgentConnectionCommand {
        ms_list: Some(vec!["127.0.0.1".into(), "localhost".into()]),
        avoid_ms_list: Some(vec!["127.0.0.1".into()]),
        lb_algorithm: Some("static".into()),
        lb_check_interval: Some(0),
    };
    send(&mut link, 2, migrate).await;
    assert!(matches!(
        response(&mut link).await.answers[0].body,
        AnswerBody::MigrateAgentConnection(_)
    ));
    drop(server.accept_tcp().await); // the probe
    let mut moved = accept(&server).await;
    let CommandBody::StartupSecondaryStorage(startup) = request(&mut moved).await.commands[0].body.clone() else {
        panic!("no startup")
    };
    assert!(startup.startup.connection_transferred);
    assert_eq!(
        startup.startup.ms_host_list.as_deref(),
        Some("127.0.0.1,localhost@static")
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_for_a_while_is_found_when_it_is_back() {
    let port = {
        let server = FakeServer::listen().await;
        server.port()
    };
    let agent = start("127.0.0.1,localhost", port, quick());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let server = FakeServer::listen_at(port).await;
    let mut link = accept_and_answer(&server, 60).await;
    works(&mut link).await;
    agent.stop().await;
}
