//! This machine as a hypervisor's host, with the image: a VM that outlives who started it, heard and asked by the next one.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hypervisor::accelerator::Accelerator;
use hypervisor::disk;
use hypervisor::guest_channel::{BootProgress, GuestChannel, Message, News, Outcome};
use hypervisor::machine::{Disk, Format as DiskFormat, Machine};
use hypervisor::qmp::Shutdown;
use hypervisor::vm::{Cause, Vm};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use system_tests::programs;
use system_tests::vm::Format;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// A file system of little space, in memory.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=3m")).unwrap();
        Self(path)
    }

    fn grow(&self) {
        let none = None::<&str>;
        mount(none, &self.0, none, MsFlags::MS_REMOUNT, Some("size=2g")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

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

async fn eventually<T>(limit: Duration, look: impl Fn() -> Option<T>) -> T {
    let found = async {
        loop {
            match look() {
                Some(found) => return found,
                None => sleep(Duration::from_millis(100)).await,
            }
        }
    };
    timeout(limit, found).await.unwrap()
}

fn is_at(progress: &BootProgress, step: &str, outcome: Outcome) -> bool {
    progress.steps.iter().any(|it| it.step == step && it.outcome == outcome)
}

#[tokio::test]
async fn a_vm_goes_on_and_tells_how_it_is_to_whoever_keeps_it() {
    let directory = tempfile::Builder::new().prefix("sysvm-hv").tempdir().unwrap();
    let small = Small::new(directory.path().join("small"));
    let root = small.0.join("disk.qcow2");
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

    // It stands still while its disk has no space, also under the next one who keeps it, and goes on then.
    let trouble = eventually(limit, || vm.trouble()).await;
    println!("{trouble} after {:?}", started.elapsed());
    assert!(
        trouble.ends_with("it stands still until there is space on this host's file system"),
        "{trouble}"
    );
    drop(vm);
    let vm = Vm::adopt(&place).await.unwrap().unwrap();
    let trouble = eventually(limit, || vm.trouble()).await;
    assert!(
        trouble.starts_with("one of its disks cannot be written") || trouble.starts_with("its disk"),
        "{trouble}"
    );
    small.grow();
    eventually(limit, || vm.trouble().is_none().then_some(())).await;
    println!("goes on after {:?}", started.elapsed());

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
