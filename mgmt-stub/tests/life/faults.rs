//! Everything returns to Up without help.

use std::time::{Duration, Instant};

use mgmt_stub::driver::in_process::{InProcess, Options};
use mgmt_stub::driver::{Driver, Power, Purpose, VmSpec};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::store::instance::InstanceType::{ConsoleProxy, SecondaryStorageVm};
use protocol::secret::Secret;

use crate::support::{TestZone, until};

/// ALERT.TYPE.SYNC, ALERT.HA.ACTION, ALERT.SERVICE.CONSOLEPROXY, ALERT.SERVICE.SSVM (management.md §15).
const SYNC: i64 = 27;
const HA_ACTION: i64 = 30;
const CONSOLE_PROXY: i64 = 10;
const SSVM: i64 = 19;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_loses_its_power_is_started_again_and_people_are_told() {
    let zone = TestZone::start(Options::default(), &[]).await;
    let (ssvm, proxy) = (zone.up(SecondaryStorageVm).await, zone.up(ConsoleProxy).await);
    for (vm, kind) in [(&ssvm, SSVM), (&proxy, CONSOLE_PROXY)] {
        let before = zone.row(vm).await;
        assert!(zone.driver.kill(&vm.name, "the power went"));
        zone.up_again(&before).await;
        let alerts = zone.alerts().await;
        let told = |number: i64, text: &str| alerts.iter().any(|(kind, told)| *kind == number && told == text);
        assert!(
            told(kind, &format!("{} ended by itself: the power went", vm.name)),
            "{alerts:?}"
        );
        let again = format!("{}: the power went; being started again", vm.name);
        assert!(told(HA_ACTION, &again), "{alerts:?}");
    }
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_hangs_says_so_at_once_and_is_started_again() {
    let zone = TestZone::start(Options::default(), &[("systemvm.hang.limit", "3")]).await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    zone.up(ConsoleProxy).await;
    let before = zone.row(&ssvm).await;
    let hung = Instant::now();
    assert!(zone.driver.hang(&ssvm.name));
    let diagnosis = until("the reason is told", async || zone.diagnosis(&ssvm).await).await;
    assert!(hung.elapsed() < Duration::from_secs(2), "{:?}", hung.elapsed());
    assert_eq!(
        diagnosis.reason,
        "it is on, but hangs: it does not answer the hypervisor"
    );
    let what_to_do = diagnosis.what_to_do.unwrap();
    assert!(
        what_to_do.starts_with("wait: after 3 s of this it is started again"),
        "{what_to_do}"
    );
    zone.up_again(&before).await;
    assert_eq!(zone.diagnosis(&ssvm).await, None);
    let alerts = zone.alerts().await;
    assert!(
        alerts
            .iter()
            .any(|(kind, text)| *kind == HA_ACTION && text.contains("it hangs: it has not answered since")),
        "{alerts:?}"
    );
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_agent_has_gone_is_started_again_after_the_limit() {
    let zone = TestZone::start(Options::default(), &[("systemvm.agent.silence.limit", "2")]).await;
    let proxy = zone.up(ConsoleProxy).await;
    let before = zone.row(&proxy).await;
    let ended = Instant::now();
    assert!(zone.driver.end_agent(&proxy.name));
    let reason = until("the reason is told", async || zone.diagnosis(&proxy).await)
        .await
        .reason;
    assert!(
        reason.starts_with("it runs, but its agent is Alert: the agent closed the connection"),
        "{reason}"
    );
    assert!(reason.ends_with("last log line: the agent was told to end"), "{reason}");
    zone.up_again(&before).await;
    assert!(ended.elapsed() >= Duration::from_secs(2), "{:?}", ended.elapsed());
    let alerts = zone.alerts().await;
    let told = format!("{}: its agent has not been Up for 2 s", proxy.name);
    assert!(alerts.contains(&(CONSOLE_PROXY, told)), "{alerts:?}");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_agent_never_comes_is_started_again_with_ever_longer_waits() {
    let options = Options {
        boot: Duration::from_hours(1),
        ..Options::default()
    };
    let zone = TestZone::start(options, &[("systemvm.agent.start.limit", "1")]).await;
    let vm = until("there is one", async || zone.all(ConsoleProxy).await.pop()).await;
    let reason = until("the reason is told", async || {
        let diagnosis = zone.diagnosis(&vm).await?;
        diagnosis.reason.starts_with("it runs").then_some(diagnosis.reason)
    })
    .await;
    assert_eq!(reason, "it runs, but its agent has not connected yet; boot goes on");
    until("it was started again twice", async || {
        let alerts = zone.alerts().await;
        let again = alerts.iter().filter(|(kind, text)| {
            *kind == HA_ACTION && text.starts_with(&format!("{}: its agent was not Up within 1 s", vm.name))
        });
        (again.count() >= 2).then_some(())
    })
    .await;
    assert_eq!(zone.all(ConsoleProxy).await.len(), 1, "no second one is made meanwhile");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_takes_long_keeps_nobody_waiting_and_a_stop_ends_it() {
    let slow = Options {
        start: Duration::from_hours(1),
        parallel_starts: 8,
        ..Options::default()
    };
    let zone = TestZone::start(slow, &[]).await;
    let starting = async |kind| {
        until(&format!("a {kind} is being started"), async || {
            let vm = zone.all(kind).await.pop()?;
            (vm.state == InstanceState::Starting).then_some(vm)
        })
        .await
    };
    let (ssvm, proxy) = (starting(SecondaryStorageVm).await, starting(ConsoleProxy).await);
    assert_eq!(zone.diagnosis(&ssvm).await.unwrap().reason, "Starting: being started");
    zone.set("consoleproxy.management.state", "Manual").await;
    zone.set("system.vm.auto.reserve.capacity", "false").await;

    let began = Instant::now();
    let stopped = zone.vms.stop(proxy.id).await.unwrap();
    assert_eq!(
        (stopped.state, stopped.reason.as_str()),
        (InstanceState::Stopped, "stopped by an operator")
    );
    zone.vms.destroy(ssvm.id).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(zone.all(SecondaryStorageVm).await, []);
    tokio::time::sleep(Duration::from_millis(1500)).await; // longer than a failed start waits for its next try
    assert_eq!(
        zone.row(&proxy).await.state,
        InstanceState::Stopped,
        "it stays as the operator wanted it"
    );
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_be_started_three_times_is_made_anew() {
    let driver = InProcess::new(Options::default());
    driver.fail_starts(Some("there is no image"));
    let zone = TestZone::start_on(driver, &[("system.vm.auto.reserve.capacity", "false")]).await;
    let first = until("there is one", async || zone.all(ConsoleProxy).await.pop()).await;
    let reason = until("the reason is told", async || {
        let diagnosis = zone.diagnosis(&first).await?;
        diagnosis.reason.contains("no image").then_some(diagnosis)
    })
    .await;
    let told = format!(
        "Stopped: cannot be started: {} cannot be started: there is no image",
        first.name
    );
    assert_eq!(reason.reason, told);
    until("another one", async || {
        zone.all(ConsoleProxy).await.into_iter().find(|vm| vm.id != first.id)
    })
    .await;
    let told = zone
        .alerts()
        .await
        .iter()
        .filter(|(_, text)| text.contains(&first.name))
        .count();
    assert_eq!(told, 1, "what is known is not told again");
    zone.driver.fail_starts(None);
    zone.up(ConsoleProxy).await;
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_finds_everything_as_it_was_and_follows_what_has_changed() {
    let zone = TestZone::start(Options::default(), &[]).await;
    let (ssvm, proxy) = (zone.up(SecondaryStorageVm).await, zone.up(ConsoleProxy).await);
    let (ssvm, proxy) = (zone.row(&ssvm).await, zone.row(&proxy).await);
    let nics = zone.store.all_nics().await.unwrap();
    let zone = zone.restart(|_| ()).await;
    zone.up(SecondaryStorageVm).await;
    zone.up(ConsoleProxy).await;
    assert_eq!(
        (zone.row(&ssvm).await, zone.row(&proxy).await),
        (ssvm.clone(), proxy.clone())
    );
    assert_eq!(zone.store.all_nics().await.unwrap(), nics);

    // One dies while there is no server, the other is started behind our back once it is Stopped.
    let zone = zone
        .restart(|driver| assert!(driver.kill(&ssvm.name, "the power went")))
        .await;
    zone.up_again(&ssvm).await;
    zone.end().await;
}

fn unknown(name: &str) -> VmSpec {
    VmSpec {
        name: name.into(),
        purpose: Purpose::User { disk: "none".into() },
        boot_args: Secret::new(String::new()),
        identity: None,
        nics: Vec::new(),
        cpus: 1,
        memory_mib: 64,
        vnc_password: Secret::new(String::new()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_nobody_knows_is_removed_and_one_that_is_on_against_its_row_is_running() {
    let driver = InProcess::new(Options::default());
    driver.start(&unknown("s-77-VM")).await.unwrap();
    let zone = TestZone::start_on(driver, &[]).await;
    until("the unknown one is gone", async || {
        let is_there = zone.driver.names().contains(&"s-77-VM".to_owned());
        (!is_there && zone.driver.power("s-77-VM") != Power::On).then_some(())
    })
    .await;

    let proxy = zone.up(ConsoleProxy).await;
    zone.set("consoleproxy.management.state", "Manual").await;
    zone.vms.stop(proxy.id).await.unwrap();
    zone.driver.start(&unknown(&proxy.name)).await.unwrap();
    until("the row follows", async || {
        zone.vms.look_now();
        (zone.row(&proxy).await.state == InstanceState::Running).then_some(())
    })
    .await;
    let told = format!("{} was Stopped, but it is on: it is Running now", proxy.name);
    until("people are told", async || {
        zone.alerts().await.contains(&(SYNC, told.clone())).then_some(())
    })
    .await;
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reboot_keeps_the_addresses_and_a_stop_ends_the_link_at_once() {
    let zone = TestZone::start(Options::default(), &[]).await;
    let proxy = zone.up(ConsoleProxy).await;
    let nics = zone.store.nics(proxy.id).await.unwrap();
    let before = zone.row(&proxy).await;
    let rebooted = zone.vms.reboot(proxy.id).await.unwrap();
    assert_eq!(
        (rebooted.state, rebooted.reason.as_str()),
        (InstanceState::Running, "running")
    );
    zone.up_again(&before).await;
    assert_eq!(zone.store.nics(proxy.id).await.unwrap(), nics);

    // A VM without power says nothing: its connection stays open.
    zone.driver.hang(&proxy.name);
    zone.set("consoleproxy.management.state", "Manual").await;
    let began = Instant::now();
    zone.vms.stop(proxy.id).await.unwrap();
    let host = until("the host is not Up", async || {
        let host = zone.store.host_named(&proxy.name).await.unwrap()?;
        (host.status != HostStatus::Up).then_some(host)
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(host.status, HostStatus::Disconnected);
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_come_with_the_load_and_go_without_it_when_that_is_wanted() {
    let settings = [
        ("consoleproxy.vm.auto.scale.down", "true"),
        ("consoleproxy.vm.scale.down.delay", "0"),
    ];
    let zone = TestZone::start(Options::default(), &settings).await;
    let first = zone.up(ConsoleProxy).await;
    zone.store.record_console_load(first.id, 41, "{}".into()).await.unwrap();
    until("a second one is Up", async || {
        let all = zone.all(ConsoleProxy).await;
        let second = all.iter().find(|vm| vm.id != first.id)?;
        zone.is_up(second).await.then_some(())
    })
    .await;
    zone.store.record_console_load(first.id, 1, "{}".into()).await.unwrap();
    let left = zone.up(ConsoleProxy).await;
    assert_eq!(left.id, first.id, "the idle one went");
    zone.end().await;
}
