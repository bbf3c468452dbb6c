use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use HostEvent::*;

fn facts(guid: &str, resource: &str) -> StartupFacts {
    let nic = |ip: &str| HostNic {
        ip: Some(ip.parse().unwrap()),
        mac: Some("02:00:4c:9f:00:05".to_owned()),
        netmask: Some("255.255.255.0".to_owned()),
    };
    StartupFacts {
        guid: format!("{guid}-{resource}"),
        resource_name: Some(resource.to_owned()),
        host_type: HostType::ConsoleProxy,
        name: "v-2-VM".to_owned(),
        zone: ZoneId(1),
        pod: Some(PodId(1)),
        version: "4.23.0.0-SNAPSHOT".to_owned(),
        arch: "x86_64".to_owned(),
        private: nic("10.1.1.5"),
        public: nic("192.0.2.7"),
        storage: HostNic::default(),
        ms_host_list: Some("10.1.1.2@static".to_owned()),
        proxy_port: None,
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[tokio::test]
async fn a_new_agent_gets_a_row_that_says_what_it_said() {
    let (_dir, store) = open();
    let told = facts("Proxy.2", "ConsoleProxyResource");
    let found = store.find_or_create_host(told.clone()).await.unwrap();
    let wanted = Host {
        id: HostId(1),
        uuid: found.uuid,
        guid: "Proxy.2-ConsoleProxyResource".to_owned(),
        name: told.name,
        host_type: HostType::ConsoleProxy,
        zone: ZoneId(1),
        pod: Some(PodId(1)),
        status: HostStatus::Creating,
        status_reason: "new".to_owned(),
        version: told.version,
        arch: told.arch,
        private: told.private,
        public: told.public,
        storage: told.storage,
        ms_host_list: told.ms_host_list,
        proxy_port: told.proxy_port,
        active_sessions: 0,
        created: found.created,
        last_ping: None,
        disconnected: None,
        removed: None,
    };
    assert_eq!(found, wanted);
    assert_eq!(store.hosts().await.unwrap(), std::slice::from_ref(&wanted));
    assert_eq!(store.host(wanted.id).await.unwrap(), Some(wanted));
    assert_eq!(store.host(HostId(2)).await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_that_comes_back_keeps_its_id_and_status_and_may_have_moved() {
    let (dir, store) = open();
    let first = store.find_or_create_host(facts("s-1-VM", "A")).await.unwrap();
    store
        .apply_host_event(first.id, AgentConnected, "startup")
        .await
        .unwrap();
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    let mut moved = facts("s-1-VM", "A");
    moved.private.ip = Some("2001:db8::5".parse().unwrap());
    let again = store.find_or_create_host(moved.clone()).await.unwrap();
    assert_eq!(
        (again.id, again.uuid, again.status),
        (first.id, first.uuid, HostStatus::Connecting)
    );
    assert_eq!(again.private, moved.private);
}

#[tokio::test]
async fn another_resource_class_is_the_same_host_but_a_longer_number_is_not() {
    let (_dir, store) = open();
    let twenty = store
        .find_or_create_host(facts("Proxy.20", "ConsoleProxyResource"))
        .await
        .unwrap();
    let two = store
        .find_or_create_host(facts("Proxy.2", "ConsoleProxyResource"))
        .await
        .unwrap();
    let premium = store
        .find_or_create_host(facts("Proxy.2", "PremiumResource"))
        .await
        .unwrap();

    assert_ne!(twenty.id, two.id);
    assert_eq!(premium.id, two.id);
    assert_eq!(premium.guid, "Proxy.2-PremiumResource");
    let guids: Vec<_> = store.hosts().await.unwrap().into_iter().map(|host| host.guid).collect();
    assert_eq!(guids, ["Proxy.20-ConsoleProxyResource", "Proxy.2-PremiumResource"]);
}

#[tokio::test]
async fn a_guid_without_a_resource_class_is_found_as_it_is_and_with_one() {
    let (_dir, store) = open();
    let mut bare = facts("s-1", "VM");
    bare.resource_name = None;
    let first = store.find_or_create_host(bare.clone()).await.unwrap();
    assert_eq!(store.find_or_create_host(bare).await.unwrap().id, first.id);
    assert_eq!(
        store.find_or_create_host(facts("s-1-VM", "Resource")).await.unwrap().id,
        first.id
    );
}

#[tokio::test]
async fn an_agent_cannot_take_the_row_of_another_kind() {
    let (_dir, store) = open();
    store.find_or_create_host(facts("x", "A")).await.unwrap();
    let mut other = facts("x", "A");
    other.host_type = HostType::SecondaryStorageVm;
    let error = store.find_or_create_host(other.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "guid x-A belongs to host 1, which is a ConsoleProxy");

    other.guid = "x-B".to_owned();
    other.resource_name = Some("B".to_owned());
    assert_eq!(store.find_or_create_host(other).await.unwrap().id, HostId(2));
}

#[tokio::test]
async fn a_removed_host_is_history_and_its_id_is_never_used_again() {
    let (dir, store) = open();
    let old = store.find_or_create_host(facts("x", "A")).await.unwrap().id;
    for event in [AgentConnected, Ready, Remove] {
        store.apply_host_event(old, event, "test").await.unwrap();
    }
    assert_eq!(store.hosts().await.unwrap(), []);
    assert!(store.host(old).await.unwrap().unwrap().removed.is_some());
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    let new = store.find_or_create_host(facts("x", "A")).await.unwrap();
    assert_eq!((new.id, new.status), (HostId(2), HostStatus::Creating));
    let error = store.apply_host_event(old, AgentConnected, "late").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "AgentConnected cannot happen to a host that is Removed"
    );
    let error = store.apply_host_event(HostId(99), Ping, "").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no host 99");
}

#[tokio::test]
async fn losing_the_link_is_remembered_from_the_first_moment_until_it_is_back() {
    let (_dir, store) = open();
    let id = store.find_or_create_host(facts("x", "A")).await.unwrap().id;
    let after = async |event, reason: &str| {
        store.apply_host_event(id, event, reason).await.unwrap();
        let host = store.host(id).await.unwrap().unwrap();
        (host.status, host.status_reason, host.disconnected)
    };
    let reason = str::to_owned;
    assert_eq!(
        after(AgentConnected, "startup").await,
        (HostStatus::Connecting, reason("startup"), None)
    );
    assert_eq!(after(Ready, "set up").await, (HostStatus::Up, reason("set up"), None));
    assert_eq!(after(Ping, "again").await, (HostStatus::Up, reason("set up"), None));
    let (status, why, since) = after(SystemVmPingTimeout, "silent for 150 s").await;
    assert_eq!((status, why), (HostStatus::Disconnected, reason("silent for 150 s")));
    assert!(since.is_some());
    let late = after(WaitedTooLong, "silent for 30 min").await;
    assert_eq!(late, (HostStatus::Alert, reason("silent for 30 min"), since));
    assert_eq!(
        after(AgentConnected, "back").await,
        (HostStatus::Connecting, reason("back"), None)
    );
}

#[tokio::test]
async fn a_server_that_starts_has_no_links() {
    let (_dir, store) = open();
    let paths: [&[HostEvent]; 5] = [
        &[],
        &[AgentConnected],
        &[AgentConnected, Ready],
        &[AgentConnected, AgentDisconnected],
        &[AgentConnected, HostDown],
    ];
    for (number, events) in paths.into_iter().enumerate() {
        let id = store
            .find_or_create_host(facts(&format!("{number}"), "A"))
            .await
            .unwrap()
            .id;
        for event in events {
            store.apply_host_event(id, *event, "before").await.unwrap();
        }
    }
    assert_eq!(
        store.mark_all_disconnected("server started").await.unwrap(),
        [HostId(2), HostId(3)]
    );
    let statuses: Vec<_> = store
        .hosts()
        .await
        .unwrap()
        .into_iter()
        .map(|host| (host.status, host.status_reason))
        .collect();
    let wanted = [
        (HostStatus::Creating, "new"),
        (HostStatus::Disconnected, "server started"),
        (HostStatus::Disconnected, "server started"),
        (HostStatus::Alert, "before"),
        (HostStatus::Down, "before"),
    ];
    assert_eq!(statuses, wanted.map(|(status, why)| (status, why.to_owned())));
    assert_eq!(store.mark_all_disconnected("again").await.unwrap(), []);
}

#[tokio::test]
async fn ten_thousand_pings_are_one_quick_transaction() {
    const HOSTS: i64 = 10_000;
    let (_dir, store) = open();
    let fill = store.write(|transaction| {
        for number in 0..HOSTS {
            let facts = facts(&format!("s-{number}-VM"), "NfsSecondaryStorageResource");
            let id = create(transaction, &facts)?;
            record_facts(transaction, id, &facts)?;
        }
        Ok(())
    });
    fill.await.unwrap();

    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let started = Instant::now();
    store
        .record_pings((1..=HOSTS).map(|host| (HostId(host), at(1000 + host))).collect())
        .await
        .unwrap();
    let elapsed = started.elapsed();
    println!("{HOSTS} pings recorded in {elapsed:?}");
    // Measured: 40 ms in a debug build. The limit is for machines that do something else, too.
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");

    store
        .record_pings(vec![
            (HostId(1), at(5)),
            (HostId(2), at(5000)),
            (HostId(HOSTS + 1), at(1)),
        ])
        .await
        .unwrap();
    let hosts = store.hosts().await.unwrap();
    let heard: Vec<_> = hosts
        .iter()
        .map(|host| host.last_ping.unwrap().unix_timestamp())
        .collect();
    assert_eq!((heard[0], heard[1], heard[2], heard[9_999]), (5, 5000, 1003, 11_000));
    let found = store.find_or_create_host(facts("s-777-VM", "Premium")).await.unwrap();
    assert_eq!(found.id, HostId(778));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// Whatever comes in whatever order: one row per stem and kind, and each agent always gets its own.
    #[test]
    fn an_agents_id_depends_on_its_stem_and_kind_alone(
        agents in proptest::collection::vec(("[a1.-]{0,3}[a1]", "[AB]{1,2}", any::<bool>()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = open();
            let mut ids = std::collections::HashMap::new();
            for (guid, resource, storage) in agents {
                let mut told = facts(&guid, &resource);
                if storage {
                    told.guid = format!("storage {}", told.guid);
                    told.host_type = HostType::SecondaryStorageVm;
                }
                let found = store.find_or_create_host(told).await.unwrap();
                let known = *ids.entry((guid, storage)).or_insert(found.id);
                assert_eq!(found.id, known);
            }
            assert_eq!(store.hosts().await.unwrap().len(), ids.len());
        });
    }
}
