//! This machine as a hypervisor's host, with the image: a VM that outlives who started it, heard and asked by the next one.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::{Duration, Instant};

use hypervisor::accelerator::Accelerator;
use hypervisor::disk;
use hypervisor::guest_channel::{BootProgress, GuestChannel, Message, News, Outcome};
use hypervisor::machine::{Disk, Format as DiskFormat, Machine};
use hypervisor::qmp::Shutdown;
use hypervisor::vm::{Cause, Vm};
use system_tests::programs;
use system_tests::vm::Format;
use tokio::time::timeout;
use uuid::Uuid;

/// With KVM.
const BOOT: Duration = Duration::from_secs(45);
const MIB: u64 = 1024 * 1024;

async fn boot_is(
    channel: &mut GuestChannel,
    limit: Duration,
    is_wanted: impl Fn(&BootProgress) -> bool,
) -> BootProgress {
    let heard = async {
        loop {
            match channel.next().await {
                News::Message(Message::BootProgress(progress)) if is_wanted(&progress) => return progress,
                News::Bad(bad) => panic!("{bad}"),
                _ => {}
            }
        }
    };
    timeout(limit, heard).await.unwrap()
}

fn is_at(progress: &BootProgress, step: &str, outcome: Outcome) -> bool {
    progress.steps.iter().any(|it| it.step == step && it.outcome == outcome)
}

#[tokio::test]
async fn a_vm_tells_how_its_boot_goes_to_whoever_keeps_it() {
    let directory = tempfile::Builder::new().prefix("sysvm-hv").tempdir().unwrap();
    let root = directory.path().join("disk.qcow2");
    disk::overlay(&programs::image(Format::Qcow2), &root, None)
        .await
        .unwrap();
    let accelerator = Accelerator::detect().await;
    let machine = Machine {
        name: "v-2-VM".into(),
        uuid: Uuid::new_v4(),
        accelerator,
        memory_mib: 512,
        cpus: 1,
        disks: vec![Disk {
            path: root,
            format: DiskFormat::Qcow2,
        }],
        nics: Vec::new(),
        screen: None,
    };
    let place = directory.path().join("vm");
    let started = Instant::now();
    let vm = Vm::start(&place, &machine, None).await.unwrap();
    println!("{accelerator:?}: QEMU answers after {:?}", started.elapsed());
    let limit = accelerator.scaled(BOOT);
    let waits = |progress: &BootProgress| is_at(progress, "line", Outcome::Waiting);
    let progress = boot_is(&mut vm.guest_channel(), limit, waits).await;
    println!("waits for boot arguments after {:?}", started.elapsed());
    assert!(progress.problem.unwrap().starts_with("boot arguments: "));

    drop(vm);
    let vm = Vm::adopt(&place).await.unwrap().unwrap();
    let mut channel = vm.guest_channel();
    boot_is(&mut channel, limit, waits).await;
    let usage = vm.usage().unwrap();
    println!("{usage:?}");
    assert!(usage.memory > 100 * MIB && usage.memory < 1200 * MIB, "{usage:?}");
    assert!(usage.cpu > Duration::from_secs(1), "{usage:?}");

    let mut agent = vm.guest_agent(limit).await.unwrap();
    println!("the guest agent answers after {:?}", started.elapsed());
    let line = "type=consoleproxy name=v-2-VM guid=Proxy.2 eth1ip=10.0.0.300 vncport=99999";
    agent.pass_cmdline(line, limit).await.unwrap();
    let has_failed = |progress: &BootProgress| is_at(progress, "arguments", Outcome::Failed);
    let progress = boot_is(&mut channel, limit, has_failed).await;
    assert!(progress.problem.unwrap().contains("eth1ip=\"10.0.0.300\""));
    drop(agent);

    let asked = Instant::now();
    let ended = vm.stop(limit).await.unwrap();
    println!("powered off within {:?}", asked.elapsed());
    let by_itself = Shutdown {
        guest: true,
        reason: "guest-shutdown".into(),
    };
    assert_eq!(ended.cause, Cause::Shutdown(by_itself), "{ended}");
    assert!(asked.elapsed() < limit);
}
