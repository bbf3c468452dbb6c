//! The harness for VMs itself, without an image: networks, QEMU's monitor.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;
use std::{mem, thread};

use hypervisor::qmp::Event;
use platform::exec::Cmd;
use serde_json::json;
use system_tests::programs::target_dir;
use system_tests::vm::{Format, Net, Nic, NicModel, Vm};
use system_tests::wait;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_mins(1);

/// Two networks with the same addresses, and hosts in them that do not meet.
#[tokio::test]
async fn networks_of_two_tests_do_not_meet_and_are_gone_afterwards() {
    let (one, two) = (Net::new().await.unwrap(), Net::new().await.unwrap());
    for net in [&one, &two] {
        net.bridge("control", "169.254.0.1/16").await.unwrap();
    }
    let server = one.inside(|| TcpListener::bind("169.254.0.1:8250")).unwrap().unwrap();
    assert!(two.inside(|| TcpStream::connect("169.254.0.1:8250")).unwrap().is_err());
    let mut client = one.inside(|| TcpStream::connect("169.254.0.1:8250")).unwrap().unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut heard = String::new();
    server.accept().unwrap().0.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");

    let addresses = one
        .run(Cmd::new("ip").args(["-br", "address", "show", "control"]))
        .await
        .unwrap();
    assert!(addresses.text().contains("169.254.0.1/16"), "{}", addresses.text());
    let error = one.bridge("control", "169.254.0.1/16").await.unwrap_err();
    assert!(format!("{error:#}").contains("File exists"), "{error:#}");

    let path = Path::new("/run/netns").join(one.name());
    assert!(path.exists());
    drop(one);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_a_killed_test_run_has_left_is_removed() {
    let dead = Cmd::new("true").spawn("/dev/null").unwrap();
    let pid = dead.id().unwrap();
    dead.stop(LIMIT).await;
    let name = format!("sysvm-test-{pid}-0");
    Cmd::new("ip").args(["netns", "add", &name]).run().await.unwrap();
    let directory = std::env::temp_dir().join(format!("sysvm-vm-{pid}-0"));
    fs::create_dir(&directory).unwrap();
    let _net = Net::new().await.unwrap();
    let (_image, vm) = empty_vm();
    let _vm = vm.start().await.unwrap();
    assert!(!Path::new("/run/netns").join(name).exists());
    assert!(!directory.exists());
}

/// An empty disk: the firmware finds nothing to start, and stays.
fn empty_vm() -> (TempDir, Vm) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("empty.raw");
    fs::File::create(&image).unwrap().set_len(1024 * 1024).unwrap();
    (directory, Vm::of(image, Format::Raw).memory_mib(64))
}

#[tokio::test]
async fn qemu_ends_with_its_vm_and_leaves_nothing() {
    let (_image, vm) = empty_vm();
    let net = Net::new().await.unwrap();
    net.bridge("guest", "10.1.1.1/24").await.unwrap();
    let vm = vm
        .net(&net)
        .nic(Nic::on("guest", "02:00:00:00:00:01"))
        .port("org.example.channel")
        .oem_string("a, b")
        .fw_cfg("opt/org.example/text", "one, two")
        .iso("config-2", &[("cmdline", b"type=router")])
        .watchdog()
        .start()
        .await
        .unwrap();
    let status = vm.with_monitor(async |monitor| monitor.call("query-status", json!({})).await);
    assert_eq!(status.await.unwrap()["status"], "running");
    vm.port("org.example.channel").await.unwrap();
    let links = net
        .run(Cmd::new("ip").args(["-br", "link", "show", "master", "guest"]))
        .await
        .unwrap();
    assert!(links.text().starts_with("tap0 "), "{}", links.text());

    let more = Nic::on("guest", "02:00:00:00:00:02").model(NicModel::E1000);
    vm.plug("late", &more).await.unwrap();
    let nics = vm.with_monitor(async |monitor| monitor.call("query-rx-filter", json!({})).await);
    let nics = nics.await.unwrap();
    assert_eq!(nics.as_array().unwrap().len(), 1, "only virtio has filters: {nics}");
    let links = net
        .run(Cmd::new("ip").args(["-br", "link", "show", "master", "guest"]))
        .await
        .unwrap();
    assert_eq!(links.text().lines().count(), 2, "{}", links.text());

    let namespace = Path::new("/run/netns").join(net.name());
    assert!(namespace.exists() && is_running("opt/org.example/text"));
    drop((vm, net));
    assert!(!namespace.exists());
    gone("opt/org.example/text").await;
}

#[tokio::test]
async fn a_vm_that_has_ended_starts_again_from_its_own_disk() {
    let (_image, vm) = empty_vm();
    let net = Net::new().await.unwrap();
    net.bridge("guest", "10.1.1.1/24").await.unwrap();
    let vm = vm
        .net(&net)
        .nic(Nic::on("guest", "02:00:00:00:00:01"))
        .start()
        .await
        .unwrap();
    let directory = vm.directory().to_owned();
    vm.with_monitor(async |monitor| {
        monitor.save("kept").await?;
        monitor.call("quit", json!({})).await
    })
    .await
    .unwrap();
    vm.ended(LIMIT).await.unwrap();
    let vm = vm.start_again().await.unwrap();
    assert_eq!(vm.directory(), directory);
    vm.with_monitor(async |monitor| monitor.load("kept").await)
        .await
        .unwrap();
    drop(vm);
    assert!(!directory.exists());
}

/// As when the test run is killed: nothing is dropped, but the kernel knows that the thread has ended.
#[tokio::test]
async fn qemu_ends_when_its_test_just_vanishes() {
    let marked = || {
        let (_image, vm) = empty_vm();
        let vm = block_on(vm.fw_cfg("opt/org.example/forgotten", "x").start()).unwrap();
        assert!(is_running("opt/org.example/forgotten"));
        let directory = vm.directory().to_owned();
        mem::forget(vm);
        directory
    };
    let directory = thread::spawn(marked).join().unwrap();
    gone("opt/org.example/forgotten").await;
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn evidence_of_a_failed_test_is_kept() {
    let failing = || {
        block_on(async {
            let (_image, vm) = empty_vm();
            let _vm = vm.start().await.unwrap();
            panic!("as a test does");
        });
    };
    let test = thread::Builder::new().name("a_test_that_fails".into());
    assert!(test.spawn(failing).unwrap().join().is_err());
    let logs = target_dir().join("vm-logs/a_test_that_fails");
    let screen = fs::read(logs.join("vm0/screen.png")).unwrap();
    assert!(screen.starts_with(b"\x89PNG"));
    fs::remove_dir_all(logs).unwrap();
}

#[tokio::test]
async fn a_vm_that_qemu_refuses_says_why() {
    let (_image, vm) = empty_vm();
    let error = vm.nic(Nic::unplugged("not an address")).start().await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("not an address") && error.contains("mac"), "{error}");
    assert!(error.contains("QEMU ended at once"), "{error}");

    let (_image, vm) = empty_vm();
    let error = vm.nic(Nic::on("guest", "02:00:00:00:00:01")).start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a NIC is on guest, but the VM has no network; give it one with Vm::net"
    );
}

#[tokio::test]
async fn the_state_of_a_vm_is_saved_and_loaded_and_events_are_heard() {
    let (_image, vm) = empty_vm();
    let vm = vm.may_reboot().start().await.unwrap();
    vm.with_monitor(async |monitor| {
        monitor.save("here").await?;
        monitor.load("here").await?;
        let error = monitor.load("nowhere").await.unwrap_err().to_string();
        assert!(error.starts_with("QEMU fails at loadvm nowhere: "), "{error}");
        monitor.call("stop", json!({})).await?;
        monitor.event(LIMIT, |event| *event == Event::Stop).await?;
        monitor.call("cont", json!({})).await?;
        monitor.event(LIMIT, |event| *event == Event::Resume).await?;
        Ok(())
    })
    .await
    .unwrap();
    vm.reset().await.unwrap();
    let reset = vm.with_monitor(async |monitor| {
        monitor
            .event(LIMIT, |event| *event == Event::Reset { guest: false })
            .await
    });
    reset.await.unwrap();
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work)
}

/// Whether a command line of a process has this text in it.
fn is_running(text: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut command_lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    command_lines.any(|line| String::from_utf8_lossy(&line).contains(text))
}

async fn gone(text: &str) {
    wait::until("QEMU ends", LIMIT, async || {
        if is_running(text) {
            Err("it runs".into())
        } else {
            Ok(())
        }
    })
    .await;
}
