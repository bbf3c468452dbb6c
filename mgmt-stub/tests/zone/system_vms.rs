//! The zone has the system VMs that it needs, whatever happens to them.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::store::instance::InstanceType::{ConsoleProxy, SecondaryStorageVm};
use mgmt_stub::system_vms::host_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::files;

use crate::support::{TestZone, until};

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_zone_gets_one_of_each_and_secrets_stay_private() {
    let zone = TestZone::start().await;
    let (ssvm, proxy) = (zone.up(SecondaryStorageVm).await, zone.up(ConsoleProxy).await);
    assert_eq!(ssvm.name, format!("s-{}-VM", ssvm.id));
    assert_eq!(ssvm.role.as_deref(), Some("templateProcessor"));
    assert_eq!(
        (proxy.name, proxy.console_port),
        (format!("v-{}-VM", proxy.id), Some(6080))
    );

    let hosts = zone.store.hosts().await.unwrap();
    assert_eq!(zone.system_vms().why_not_up(&ssvm, host_of(&hosts, &ssvm)), None);
    for name in ["cmdline", "settings.toml", "process", "log", "state/agent/cloud.key"] {
        let mode = std::fs::metadata(zone.file(&ssvm, name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    // Nobody reads a key or a password off the process list.
    let line = std::fs::read(format!("/proc/{}/cmdline", zone.pid(&ssvm))).unwrap();
    let line = String::from_utf8(line).unwrap().replace('\0', " ");
    assert!(!line.contains("keystore_password"), "{line}");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vm_is_started_again_at_once_with_an_alert() {
    let zone = TestZone::start_with(&[("secstorage.capacityscan.interval", "600000")]).await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    zone.up(ConsoleProxy).await;
    let pid = zone.pid(&ssvm);
    let killed = Instant::now();
    kill_9(pid);
    until("the reason is told", async || {
        let hosts = zone.store.hosts().await.unwrap();
        let vm = zone.store.instance(ssvm.id).await.unwrap().unwrap();
        let why = zone.system_vms().why_not_up(&vm, host_of(&hosts, &vm))?;
        why.contains("exited: signal 9; being started again").then_some(())
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    let again = until("another process", async || {
        let vm = zone.store.instance(ssvm.id).await.unwrap().unwrap();
        (vm.state == InstanceState::Running && zone.pid(&vm) != pid).then_some(vm)
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_eq!(zone.up(SecondaryStorageVm).await.uuid, again.uuid);
    until("it needs no reason any more", async || {
        let vm = zone.store.instance(ssvm.id).await.unwrap().unwrap();
        (vm.reason == "running").then_some(())
    })
    .await;
    let alerts = zone.alerts().await;
    let told = format!("{} ended by itself: exited: signal 9", ssvm.name);
    assert!(alerts.iter().any(|alert| alert.starts_with(&told)), "{alerts:?}");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_survive_the_server_and_are_adopted() {
    let zone = TestZone::start().await;
    let (ssvm, proxy) = (zone.up(SecondaryStorageVm).await, zone.up(ConsoleProxy).await);
    let pids = (zone.pid(&ssvm), zone.pid(&proxy));
    let zone = zone.restart(async |_| ()).await;
    assert_eq!(zone.up(SecondaryStorageVm).await.id, ssvm.id);
    assert_eq!(zone.up(ConsoleProxy).await.id, proxy.id);
    assert_eq!((zone.pid(&ssvm), zone.pid(&proxy)), pids, "the same processes");

    // One that is not our child is missed, too.
    kill_9(pids.0);
    until("another process", async || {
        let vm = zone.store.instance(ssvm.id).await.unwrap().unwrap();
        (vm.state == InstanceState::Running && zone.pid(&vm) != pids.0).then_some(())
    })
    .await;
    zone.up(SecondaryStorageVm).await;

    // A server that was killed before it could write down the process finds it by its command line.
    let lost = zone.file(&proxy, "process");
    let zone = zone.restart(async |_| std::fs::remove_file(lost).unwrap()).await;
    zone.up(ConsoleProxy).await;
    assert_eq!(zone.all(ConsoleProxy).await.len(), 1);
    until("it is adopted", async || {
        zone.system_vms()
            .driver()
            .power(&proxy.name)
            .eq(&mgmt_stub::driver::Power::On)
            .then_some(())
    })
    .await;
    zone.end().await;
    assert!(
        !std::path::Path::new(&format!("/proc/{}", pids.1)).exists(),
        "the old process was known"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_died_with_the_server_is_started_again() {
    let zone = TestZone::start().await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    let pid = zone.pid(&ssvm);
    let zone = zone.restart(async |_| kill_9(pid)).await;
    let again = zone.up(SecondaryStorageVm).await;
    assert_eq!(again.id, ssvm.id);
    assert_ne!(zone.pid(&again), pid);
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_vm_leaves_nothing_and_another_one_comes() {
    let zone = TestZone::start().await;
    let proxy = zone.up(ConsoleProxy).await;
    zone.system_vms().destroy(proxy.id).await.unwrap();
    assert!(!zone.file(&proxy, "").exists());
    let hosts = zone.store.hosts().await.unwrap();
    assert!(host_of(&hosts, &proxy).is_none(), "{hosts:?}");
    let another = zone.up(ConsoleProxy).await;
    assert_ne!((another.id, &another.name), (proxy.id, &proxy.name));
    assert_eq!(another.console_port, Some(6080), "the port is free again");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_start_reboot() {
    let zone = TestZone::start_with(&[("system.vm.auto.reserve.capacity", "true")]).await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    zone.set("system.vm.auto.reserve.capacity", "false").await; // else the scan starts it again
    let stopped = zone.system_vms().stop(ssvm.id).await.unwrap();
    assert_eq!(
        (stopped.state, stopped.reason.as_str()),
        (InstanceState::Stopped, "stopped by an operator")
    );
    let why = zone.system_vms().why_not_up(&stopped, None).unwrap();
    assert_eq!(why, "Stopped: stopped by an operator");
    tokio::time::sleep(Duration::from_millis(700)).await; // two scans
    assert_eq!(
        zone.store.instance(ssvm.id).await.unwrap().unwrap().state,
        InstanceState::Stopped
    );
    until("its host is not Up", async || {
        let hosts = zone.store.hosts().await.unwrap();
        (host_of(&hosts, &ssvm)?.status != HostStatus::Up).then_some(())
    })
    .await;

    assert_eq!(
        zone.system_vms().start(ssvm.id).await.unwrap().state,
        InstanceState::Running
    );
    zone.up(SecondaryStorageVm).await;
    let pid = zone.pid(&ssvm);
    zone.system_vms().reboot(ssvm.id).await.unwrap();
    assert_ne!(zone.pid(&ssvm), pid);
    zone.up(SecondaryStorageVm).await;
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_cannot_stay_up_says_why_and_is_left_to_a_person() {
    let zone = TestZone::start().await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    let _ = files::replace(zone.file(&ssvm, "state/fail-to-start"), "", 0o600).unwrap();
    let killed = Instant::now();
    kill_9(zone.pid(&ssvm));
    let reason = until("a reason in words", async || {
        let vm = zone.store.instance(ssvm.id).await.unwrap().unwrap();
        let why = zone.system_vms().why_not_up(&vm, None)?;
        why.contains("exited: status 3; last log line:").then_some(why)
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(8), "{:?}", killed.elapsed());
    assert!(reason.contains("Told to fail"), "{reason}");
    let alert = until("the budget is used up", async || {
        zone.alerts()
            .await
            .into_iter()
            .find(|alert| alert.contains("started again 5 times within 10 minutes"))
    })
    .await;
    assert!(alert.contains("the next try is at"), "{alert}");
    zone.end().await;
}
