//! What networks, agents and strangers do to a server.

use std::path::Path;
use std::time::Duration;

use crate::support::raw::{answer_until_ready, connect, receive, register, send, startup};
use crate::support::{LIMIT, TestAgent, TestServer, quick, ssvm, until};
use agent::keystore::KeyStore;
use agent::link::{Link, LinkError};
use agent::trust::{TrustUnknown, client_config};
use mgmt_stub::ca::{Ca, Request as CertificateRequest};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::settings::Settings;
use protocol::answer::{Answer, AnswerBody};
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::message::MAX_MESSAGE;
use protocol::packet::{Packet, Request};
use protocol::session::{CheckHealthCommand, PingCommand, PingStorageCommand};
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The server closed a connection: nothing but the end can be read from it.
async fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
        .await
        .expect("the server closes");
    drop(read); // an error is an end, too
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_shown_the_door() {
    let data = tempdir().unwrap();
    let settings = Settings {
        handshake_limit: Duration::from_millis(300),
        startup_limit: Duration::from_millis(300),
        ..quick()
    };
    let server = TestServer::start(data.path(), settings).await;

    let mut browser = TcpStream::connect(server.address).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    is_closed(&mut browser).await;

    let mut silent = TcpStream::connect(server.address).await.unwrap();
    is_closed(&mut silent).await;

    let mut says_nothing = connect(&server).await;
    assert!(matches!(
        receive(&mut says_nothing).await,
        Err(LinkError::Closed { .. })
    ));

    let mut impatient = connect(&server).await;
    send(
        &mut impatient,
        &Request::from_agent(0, -1, Command::new(PingCommand::default())),
    )
    .await;
    assert!(matches!(
        receive(&mut impatient).await,
        Err(LinkError::Closed { .. } | LinkError::Io(_))
    ));

    let files = tempdir().unwrap();
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    server.host_in(HostStatus::Up).await;
    agent.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_64_mib_ends_the_link() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    link.send(&vec![b' '; MAX_MESSAGE + 1]).unwrap();
    let ended = tokio::time::timeout(LIMIT, async {
        loop {
            if let Err(error) = link.next().await {
                return error;
            }
        }
    });
    assert!(matches!(
        ended.await.unwrap(),
        LinkError::Closed { .. } | LinkError::Io(_)
    ));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_nobody_knows_may_send_no_more_than_a_startup_command_needs() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    link.send(&vec![b' '; 65 << 10]).unwrap();
    assert!(matches!(
        receive(&mut link).await,
        Err(LinkError::Closed { .. } | LinkError::Io(_))
    ));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_disconnected_and_one_that_vanishes_raises_an_alert() {
    let data = tempdir().unwrap();
    let server = TestServer::start(
        data.path(),
        Settings {
            ping_timeout: 3.0,
            ..quick()
        },
    )
    .await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    let host = server.host_in(HostStatus::Disconnected).await;
    assert_eq!(host.status_reason, "no ping for 3s");

    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    server.host_in(HostStatus::Up).await;
    drop(link);
    let host = server.host_in(HostStatus::Alert).await;
    assert_eq!(host.status_reason, "the agent closed the connection");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_answered_times_out_and_lets_the_next_one_through() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    let host = server.host_in(HostStatus::Up).await;
    let limit = Duration::from_millis(200);
    let in_sequence = || Command::new(protocol::session::MaintainCommand {});
    let first = server.agents.send(host.id, vec![in_sequence()], limit).await;
    assert_eq!(first.unwrap_err().to_string(), "the agent did not answer within 200ms");
    let agents = server.agents.clone();
    let second = tokio::spawn(async move { agents.send(host.id, vec![in_sequence()], LIMIT).await });
    for _ in 0..2 {
        let Packet::Request(request) = receive(&mut link).await.unwrap() else {
            panic!("a request")
        };
        let late = request.response(vec![Answer::success()]); // the first is too late and ignored
        link.send(&late.encode(Charset::Utf8).unwrap()).unwrap();
    }
    link.drain().await.unwrap();
    assert!(second.await.unwrap().unwrap()[0].result);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_in_the_middle_of_a_message_fails_what_waits() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    let host = server.host_in(HostStatus::Up).await;
    let agents = server.agents.clone();
    let waiting = tokio::spawn(async move {
        agents
            .send(host.id, vec![Command::new(CheckHealthCommand {})], LIMIT)
            .await
    });
    receive(&mut link).await.unwrap();
    link.send(&vec![b'x'; 1 << 20]).unwrap();
    let _ = tokio::time::timeout(Duration::from_millis(1), link.next()).await; // a part of it is on its way
    drop(link);
    assert_eq!(
        waiting.await.unwrap().unwrap_err().to_string(),
        "the agent disconnected before it answered"
    );
    server.host_in(HostStatus::Alert).await;
    server.stop().await;
}

/// Issues a client certificate of the CA in `ca` into an agent's directory that trusts the server's CA.
fn identity(ca: &Path, trusted: &Path, files: &Path) {
    let issued = Ca::open_or_create(ca)
        .unwrap()
        .issue(&CertificateRequest::new(
            "s-1-VM".into(),
            vec![],
            vec!["127.0.0.1".parse().unwrap()],
        ))
        .unwrap();
    let write = |name: &str, contents: &str| {
        let _ = platform::files::replace(files.join(name), contents, 0o600).unwrap();
    };
    write("cloud.crt", &issued.signed.certificate);
    write("cloud.key", issued.private_key.expose());
    write(
        "cloud.ca.crt",
        &std::fs::read_to_string(trusted.join("ca.crt")).unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_of_another_ca_is_refused_and_ours_is_accepted() {
    let (data, other) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let ours = data.path().join("ca");
    for (ca, is_good) in [(other.path(), false), (ours.as_path(), true)] {
        let files = tempdir().unwrap();
        identity(ca, &ours, files.path());
        let identity = KeyStore::in_directory(files.path()).load().unwrap();
        let tls = client_config(identity.as_ref(), TrustUnknown::Refuse).unwrap();
        let opened = Link::open("127.0.0.1", server.address.port(), tls, LIMIT, LIMIT).await;
        match opened {
            Ok(mut link) => {
                register(&server, &mut link, 1).await;
                assert!(is_good);
            }
            Err(error) => assert!(!is_good, "{error}"),
        }
    }
    server.stop().await;
}

/// Registration crosses two tasks and the database; a link may end at any point of it.
#[tokio::test(flavor = "multi_thread")]
async fn links_that_end_during_registration_leave_nothing_behind() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    for number in 0..100 {
        let mut link = connect(&server).await;
        send(&mut link, &startup(number)).await;
        tokio::time::sleep(Duration::from_millis(u64::from(number % 12))).await;
    }
    until("nobody is connected", || async { server.agents.count() == 0 }).await;
    let settled = |status| matches!(status, HostStatus::Alert | HostStatus::Creating);
    until("no host is Connecting", || async {
        server
            .store
            .hosts()
            .await
            .unwrap()
            .iter()
            .all(|host| settled(host.status))
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_startup_on_a_live_link_is_answered_twice_and_sets_the_agent_up_again() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    let host = server.host_in(HostStatus::Up).await;
    send(&mut link, &startup(1)).await;
    for (via, host_id) in [(-1, 0), (host.id.0, host.id.0)] {
        let Packet::Response(response) = receive(&mut link).await.unwrap() else {
            panic!("an answer")
        };
        let AnswerBody::Startup(answer) = &response.answers[0].body else {
            panic!("{response:?}")
        };
        assert_eq!((response.header.via, answer.host_id), (via, host_id));
    }
    answer_until_ready(&mut link).await;
    server.host_in(HostStatus::Up).await;
    assert!(server.agents.is_up(host.id));
    server.stop().await;
}

/// Pings without end, and nobody who reads the answers: the server stops reading instead of collecting them.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_read_is_not_read_either() {
    let data = tempdir().unwrap();
    let settings = Settings {
        ping_timeout: 3.0,
        ..quick()
    };
    let server = TestServer::start(data.path(), settings).await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    let host = server.host_in(HostStatus::Up).await;
    let changes = (0..4000).map(|number| (format!("storage-{number}"), true)).collect();
    let ping = PingStorageCommand {
        changes,
        ..PingStorageCommand::default()
    };
    let ping = Request::from_agent(1, host.id.0, Command::new(ping))
        .encode(Charset::Utf8)
        .unwrap();
    // Until the buffers of both kernels are full: some megabytes of pings, which take a debug build seconds of its own.
    let sent = tokio::time::timeout(LIMIT * 4, async {
        for count in 0..100_000 {
            link.send(&ping).unwrap();
            if link.next_if(false).await.is_err() {
                return count;
            }
        }
        panic!("the server reads on and on");
    });
    sent.await.expect("the server ends the link");
    let host = server.host_in(HostStatus::Disconnected).await;
    assert_eq!(host.status_reason, "no ping for 3s");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_at_once_although_strangers_are_connected() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let unregistered = connect(&server).await;
    let since = std::time::Instant::now();
    server.stop().await;
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    drop((silent, unregistered));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_name_for_somebody_elses_terminal_is_refused() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    let mut request = startup(1);
    if let CommandBody::StartupSecondaryStorage(ssvm) = &mut request.commands[0].body {
        ssvm.startup.name = Some("s-1\u{1b}[31mVM".into());
    }
    send(&mut link, &request).await;
    let mut messages = Vec::new();
    while messages.len() < 2 {
        messages.push(receive(&mut link).await.unwrap());
    }
    let Packet::Request(refusal) = &messages[1] else {
        panic!("{messages:?}")
    };
    let CommandBody::Ready(ready) = &refusal.commands[0].body else {
        panic!("{refusal:?}")
    };
    assert_eq!(ready.details.as_deref(), Some("startup: name has control characters"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_over_the_limit_is_closed_before_tls() {
    let data = tempdir().unwrap();
    let server = TestServer::start(
        data.path(),
        Settings {
            max_links: 1,
            ..quick()
        },
    )
    .await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    is_closed(&mut second).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_disconnected_when_the_server_comes_back_after_a_kill() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let mut link = connect(&server).await;
    register(&server, &mut link, 1).await;
    server.host_in(HostStatus::Up).await;
    // What a killed server leaves: the database as it is now.
    let copy = tempdir().unwrap();
    for file in std::fs::read_dir(data.path()).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let next = TestServer::start(copy.path(), quick()).await;
    let host = next.host_in(HostStatus::Disconnected).await;
    assert_eq!(host.status_reason, "the management server was restarted");
    next.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_share_a_data_directory() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let error = mgmt_stub::store::Store::open(data.path()).err().unwrap();
    assert!(error.to_string().contains("mgmt-stub"), "{error}");
    server.stop().await;
}
