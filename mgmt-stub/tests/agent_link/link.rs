//! Our agent and our server, over real sockets.

use std::time::Duration;

use crate::support::{BLOCK_A_THREAD_FOR_MS, LIMIT, PANIC, SLEEP_FOR_MS, TestAgent, TestServer, quick, ssvm, until};
use agent::agent::Ended;
use agent::service::NoAnswer as NotAnswered;
use mgmt_stub::agents::NoAnswer;
use mgmt_stub::client_auth::Strictness;
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::server::Fixed;
use mgmt_stub::settings::Settings;
use protocol::answer::AnswerBody;
use protocol::command::Command;
use protocol::console_proxy::ConsoleAccessAuthenticationCommand;
use protocol::secondary_storage::MoveVolumeCommand;
use protocol::session::{CheckHealthCommand, SetupMSListCommand, ShutdownCommand, UpdateHostPasswordCommand};
use tempfile::tempdir;

/// Commands that every SSVM is sent while it connects to a zone without image stores.
const SET_UP: usize = 2;

fn act(what: impl Into<String>) -> Command {
    Command::new(MoveVolumeCommand {
        src_path: Some(what.into()),
        ..MoveVolumeCommand::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_registers_works_and_says_goodbye() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    let host = server.host_in(HostStatus::Up).await;
    assert_eq!(
        (host.name.as_str(), host.guid.as_str()),
        ("s-1-VM", "s-1-VM-NfsSecondaryStorageResource")
    );

    let answers = server
        .agents
        .send(host.id, vec![Command::new(CheckHealthCommand {})], LIMIT)
        .await
        .unwrap();
    assert_eq!(answers[0].details.as_deref(), Some("resource is alive"));
    assert!(matches!(answers[0].body, AnswerBody::CheckHealth(_)));

    let unknown = Command::new(UpdateHostPasswordCommand::default());
    let answers = server.agents.send(host.id, vec![unknown], LIMIT).await.unwrap();
    assert_eq!(
        answers[0].details.as_deref(),
        Some(
            "Unsupported command issued: com.cloud.agent.api.UpdateHostPasswordCommand.  \
             Are you sure you got the right type of server?"
        )
    );
    assert!(matches!(answers[0].body, AnswerBody::Unsupported(_)));

    until("a ping is recorded", || async {
        server.store.hosts().await.unwrap()[0].last_ping.is_some()
    })
    .await;
    assert_eq!(agent.stop().await, Ended::Asked);
    let host = server.host_in(HostStatus::Disconnected).await;
    assert_eq!(host.status_reason, "the agent shut down: sig.kill");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_its_own_command_and_stops_those_after_it() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    let host = server.host_in(HostStatus::Up).await;
    let commands = vec![act("first"), act(PANIC), act("never")];
    let answers = server.agents.send(host.id, commands, LIMIT).await.unwrap();
    assert_eq!(answers[0].details.as_deref(), Some("first"));
    let text = answers[1].details.clone().unwrap();
    assert!(
        text.starts_with("internal error while executing org.apache.cloudstack.storage.command.MoveVolumeCommand"),
        "{text}"
    );
    assert_eq!(
        (answers[2].result, answers[2].details.as_deref()),
        (false, Some("Stopped by previous failure"))
    );
    let answers = server.agents.send(host.id, vec![act("after")], LIMIT).await.unwrap();
    assert!(answers[0].result);
    agent.stop().await;
    server.stop().await;
}

/// Five commands block every thread of the service's runtime for two ping limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_block_all_threads_do_not_stop_pings() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    // The server lives on threads of its own; the agent's service is what gets blocked.
    let (address_to, address_of) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let path = data.path().to_owned();
    let server_thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let settings = Settings {
                ping_timeout: 3.0,
                ..quick()
            };
            let server = TestServer::start(&path, settings).await;
            address_to.send(server.address).unwrap();
            let host = server.host_in(HostStatus::Up).await;
            let blocked = (0..5).map(|_| {
                let agents = server.agents.clone();
                let command = Command::new(MoveVolumeCommand {
                    src_path: Some(format!("{BLOCK_A_THREAD_FOR_MS}7000")),
                    ..MoveVolumeCommand::default()
                });
                tokio::spawn(async move { agents.send(host.id, vec![command], LIMIT).await })
            });
            let blocked: Vec<_> = blocked.collect();
            tokio::time::sleep(Duration::from_millis(6500)).await;
            let host = server.host_in(HostStatus::Up).await;
            assert_eq!(host.status_reason, "agent is ready", "the link was never lost");
            assert_eq!(server.agents.count(), 1);
            for task in blocked {
                assert!(task.await.unwrap().unwrap()[0].result);
            }
            ended.recv().unwrap();
            server.stop().await;
        });
    });
    let address = tokio::task::spawn_blocking(move || address_of.recv().unwrap())
        .await
        .unwrap();
    let agent = TestAgent::start(ssvm(1, address, &files));
    let service = agent.service.clone();
    tokio::task::spawn_blocking(move || {
        while service.started() < SET_UP + 5 {
            std::thread::sleep(Duration::from_millis(10));
        }
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(agent.service.lost(), 0);
    end.send(()).unwrap();
    tokio::task::spawn_blocking(move || server_thread.join().unwrap())
        .await
        .unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_while_the_server_restarts_and_is_reported_afterwards() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let address = server.address;
    let agent = TestAgent::start(ssvm(1, address, &files));
    let host = server.host_in(HostStatus::Up).await;
    let slow = tokio::spawn({
        let agents = server.agents.clone();
        async move {
            agents
                .send(host.id, vec![act(format!("{SLEEP_FOR_MS}400"))], LIMIT)
                .await
        }
    });
    until("the command has started", || async {
        agent.service.started() == SET_UP + 1
    })
    .await;
    server.stop().await;
    assert_eq!(slow.await.unwrap(), Err(NoAnswer::Disconnected));

    tokio::time::sleep(Duration::from_millis(500)).await; // it finishes while nobody listens
    let hooks = std::sync::Arc::new(mgmt_stub::hooks::NoInstances);
    let server = TestServer::start_at(address, data.path(), quick(), hooks, Fixed::default()).await;
    let again = server.host_in(HostStatus::Up).await;
    assert_eq!(again.id, host.id, "the same host row");
    // The old answer came first and was ignored; the link works.
    let answers = server.agents.send(host.id, vec![act("after")], LIMIT).await.unwrap();
    assert_eq!(answers[0].details.as_deref(), Some("after"));
    assert_eq!(agent.service.lost(), 1);
    agent.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_provisioned_over_the_link_and_then_required() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let address = server.address;
    let agent = TestAgent::start(ssvm(1, address, &files));
    let host = server.host_in(HostStatus::Up).await;
    server.provision.provision(host.id, true).await.unwrap();
    until("the agent is back", || async {
        agent.service.lost() == 1 && server.agents.is_up(host.id)
    })
    .await;
    assert!(files.path().join("cloud.crt").exists() && files.path().join("cloud.ca.crt").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(files.path().join("cloud.key")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    server.stop().await;

    let strict = Settings {
        strictness: Strictness::Required,
        ..quick()
    };
    let hooks = std::sync::Arc::new(mgmt_stub::hooks::NoInstances);
    let server = TestServer::start_at(address, data.path(), strict, hooks, Fixed::default()).await;
    assert_eq!(server.host_in(HostStatus::Up).await.id, host.id);

    let nobody = tempdir().unwrap();
    let stranger = TestAgent::start(ssvm(2, address, &nobody));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        server.store.hosts().await.unwrap().len(),
        1,
        "an agent without a certificate does not get in"
    );
    stranger.stop().await;
    agent.stop().await;
    server.stop().await;
}

/// The holder of the certificate of `s-1-VM` calls himself `s-2-VM`: what he gets is again that of `s-1-VM`.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_has_the_name_of_the_old_one() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    let host = server.host_in(HostStatus::Up).await;
    server.provision.provision(host.id, false).await.unwrap();
    agent.stop().await;

    let impostor = TestAgent::start(ssvm(2, server.address, &files));
    until("the impostor is Up", || async {
        let hosts = server.store.hosts().await.unwrap();
        hosts
            .iter()
            .any(|host| host.name == "s-2-VM" && server.agents.is_up(host.id))
    })
    .await;
    let hosts = server.store.hosts().await.unwrap();
    let second = hosts.iter().find(|host| host.name == "s-2-VM").unwrap();
    server.provision.provision(second.id, false).await.unwrap();
    let subjects = server
        .store
        .certificates()
        .await
        .unwrap()
        .into_iter()
        .map(|issued| issued.subject);
    assert_eq!(subjects.collect::<Vec<_>>(), ["CN=s-1-VM", "CN=s-1-VM"]);
    impostor.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_ca_does_not_believe_the_server() {
    let (data, other, files) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    mgmt_stub::ca::Ca::open_or_create(other.path()).unwrap();
    std::fs::copy(other.path().join("ca.crt"), files.path().join("cloud.ca.crt")).unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.store.hosts().await.unwrap().len(), 0);
    assert_eq!(
        agent.server.ask(Command::new(CheckHealthCommand {})).await,
        Err(NotAnswered::NotConnected)
    );
    agent.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_an_unknown_zone_is_refused_with_a_reason_and_tries_again() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let mut config = ssvm(1, server.address, &files);
    config.startup.data_center = Some("9".into());
    let agent = TestAgent::start(config);
    until("refused twice", || async { agent.service.lost() >= 2 }).await;
    assert_eq!(server.store.hosts().await.unwrap().len(), 0);
    agent.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_with_the_same_guid_takes_over_the_host() {
    let (data, first_files, second_files) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let first = TestAgent::start(ssvm(1, server.address, &first_files));
    let host = server.host_in(HostStatus::Up).await;
    let mut config = ssvm(1, server.address, &second_files);
    config.startup.private_ip_address = Some("127.0.0.2".into());
    let second = TestAgent::start(config);
    // As long as both live they take the host from each other (agent-protocol.md §4.6).
    until("the first agent lost its link", || async { first.service.lost() >= 1 }).await;
    first.stop().await;
    until("the second agent has the host", || async {
        let hosts = server.store.hosts().await.unwrap();
        hosts[0].private.ip == Some("127.0.0.2".parse().unwrap()) && server.agents.is_up(host.id)
    })
    .await;
    assert_eq!(server.store.hosts().await.unwrap().len(), 1);
    assert_eq!(server.store.hosts().await.unwrap()[0].id, host.id);
    second.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_an_agent_for_good() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    let host = server.host_in(HostStatus::Up).await;
    let shutdown = ShutdownCommand {
        reason: Some("deleteHost".into()),
        remove_host: true,
        ..ShutdownCommand::default()
    };
    let answers = server.agents.send(host.id, vec![Command::new(shutdown)], LIMIT).await;
    assert!(answers.unwrap()[0].result);
    assert_eq!(agent.running.await.unwrap().unwrap(), Ended::ByServer);
    let properties = std::fs::read_to_string(files.path().join("agent.properties")).unwrap();
    assert!(properties.contains("zone=\n"), "{properties}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_list_is_kept_and_the_preferred_server_is_used_when_it_listens() {
    let (data, other_data, files) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let hooks = std::sync::Arc::new(mgmt_stub::hooks::NoInstances);
    let preferred = format!("127.0.0.2:{}", server.address.port()).parse().unwrap();
    let other = TestServer::start_at(preferred, other_data.path(), quick(), hooks, Fixed::default()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    let host = server.host_in(HostStatus::Up).await;
    let list = SetupMSListCommand {
        ms_list: Some(vec!["127.0.0.2".into(), "127.0.0.1".into()]),
        avoid_ms_list: Some(vec![]),
        lb_algorithm: Some("roundrobin".into()),
        lb_check_interval: Some(0),
        trigger_host_lb: Some(true),
    };
    server
        .agents
        .send(host.id, vec![Command::new(list)], LIMIT)
        .await
        .unwrap();
    other.host_in(HostStatus::Up).await;
    // The agent's link does not wait for its disk.
    until("the list is kept", || async {
        let properties = std::fs::read_to_string(files.path().join("agent.properties")).unwrap();
        properties.contains("host=127.0.0.2,127.0.0.1@roundrobin")
    })
    .await;
    agent.stop().await;
    server.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn console_access_is_denied_by_a_server_without_instances() {
    let (data, files) = (tempdir().unwrap(), tempdir().unwrap());
    let server = TestServer::start(data.path(), quick()).await;
    let agent = TestAgent::start(ssvm(1, server.address, &files));
    server.host_in(HostStatus::Up).await;
    let question = ConsoleAccessAuthenticationCommand {
        vm_id: Some("x".into()),
        ..Default::default()
    };
    let answer = agent.server.ask(Command::new(question)).await.unwrap();
    let AnswerBody::ConsoleAccessAuthentication(access) = answer.body else {
        panic!("{answer:?}")
    };
    assert!(!access.success);
    agent.stop().await;
    server.stop().await;
}
