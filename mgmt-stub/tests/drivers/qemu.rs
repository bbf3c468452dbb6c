//! The driver `qemu`, with the real QEMU and its firmware: VMs of users need nothing in them to be on.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::accelerator::Accelerator;
use hypervisor::network::namespace::Name;
use hypervisor::network::{Bridge, Network};
use hypervisor::ssh::Key;
use mgmt_stub::driver::conformance::{self, Later, Subject};
use mgmt_stub::driver::qemu::{self, Qemu, Settings};
use mgmt_stub::driver::{Driver, DriverError, Nic, Outcome, Power, Purpose, Traffic, VmSpec};
use mgmt_stub::zone_network;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::{Cmd, Process};
use platform::files;
use protocol::secret::Secret;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const LIMIT: Duration = Duration::from_mins(1);

/// A host with an empty disk and a network that ends with it.
struct Host {
    directory: TempDir,
    network: Network,
    driver: Option<Qemu>,
}

impl Host {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = Name::of_directory(directory.path());
        let guest = Bridge::new(zone_network::bridge_name(Traffic::Guest));
        let network = Network::build(&name, vec![guest]).await.unwrap();
        Cmd::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(directory.path().join("empty.qcow2"))
            .arg("1M")
            .run()
            .await
            .unwrap();
        let mut host = Self {
            directory,
            network,
            driver: None,
        };
        host.open().await;
        host
    }

    async fn open(&mut self) {
        let path = self.directory.path();
        let settings = Settings {
            directory: path.join("vms"),
            image: path.join("empty.qcow2"),
            files: None,
            primary: path.join("primary"),
            accelerator: Accelerator::Tcg,
            network: self.network.clone(),
            store: None,
            console_proxies: zone_network::CONSOLE_PROXIES,
            screens: Ipv4Addr::LOCALHOST,
            key: Key::open_or_create(&path.join("ssh")).await.unwrap(),
            users_grace: Duration::from_millis(200),
        };
        self.driver = Some(Qemu::open(settings).await.unwrap());
    }

    fn qemu(&self) -> &Qemu {
        self.driver.as_ref().unwrap()
    }

    fn vm(&self, name: &str) -> PathBuf {
        self.directory.path().join("vms").join(name)
    }

    fn process(&self, name: &str) -> Process {
        let text = fs::read_to_string(self.vm(name).join("qemu-process")).unwrap();
        text.parse().unwrap()
    }

    /// A VM of a user, on the guest network.
    fn users(&self, name: &str) -> VmSpec {
        let last = name.bytes().fold(0_u8, u8::wrapping_add);
        let disk = self
            .directory
            .path()
            .join(format!("{}.qcow2", name.replace(['/', '\0'], "")));
        if !disk.exists() {
            fs::copy(self.directory.path().join("empty.qcow2"), &disk).unwrap();
        }
        VmSpec {
            name: name.to_owned(),
            purpose: Purpose::User { disk },
            boot_args: Secret::default(),
            identity: None,
            nics: vec![Nic {
                traffic: Traffic::Guest,
                mac: format!("02:00:00:00:00:{last:02x}").parse().unwrap(),
                address: None,
                gateway: None,
            }],
            cpus: 1,
            memory_mib: 32,
            vnc_password: Secret::new("Xa9Kq2Lm".into()),
        }
    }

    /// A system VM whose image has nothing in it.
    fn system(&self, name: &str) -> VmSpec {
        VmSpec {
            purpose: Purpose::SecondaryStorage { stores: Vec::new() },
            memory_mib: 128,
            ..self.users(name)
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for process in self.network.namespace().processes().unwrap_or_default() {
            kill(Pid::from_raw(process.pid()), Signal::SIGKILL).ok();
        }
        let path = self.network.namespace().path();
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).ok();
        fs::remove_file(path).ok();
    }
}

impl Subject for Host {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.qemu().clone())
    }

    fn spec(&self, name: &str) -> VmSpec {
        self.users(name)
    }

    fn kill<'a>(&'a mut self, name: &'a str) -> Later<'a> {
        kill(Pid::from_raw(self.process(name).pid()), Signal::SIGKILL).unwrap();
        Box::pin(std::future::ready(()))
    }

    fn reopen<'a>(&'a mut self, meanwhile: Option<&'a str>) -> Later<'a> {
        Box::pin(async move {
            self.driver = None;
            if let Some(name) = meanwhile {
                self.kill(name).await;
            }
            self.open().await;
        })
    }

    fn limit(&self) -> Duration {
        LIMIT
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_machines_are_as_all_drivers_are() {
    let mut host = Host::new().await;
    conformance::check(&mut host).await.unwrap();
    let left = host.network.namespace().processes().unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_vm_with_too_little_memory_is_refused_with_the_setting_to_change() {
    let host = Host::new().await;
    let small = VmSpec {
        memory_mib: 64,
        ..host.system("s-1-VM")
    };
    let why = host.qemu().start(&small).await.unwrap_err().to_string();
    assert!(
        why.contains("64 MiB") && why.contains("secstorage.vm.ram.size"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_told_to_stop_ends_at_once_and_leaves_no_process() {
    let host = Host::new().await;
    let (driver, spec) = (host.qemu().clone(), host.system("s-1-VM"));
    let start = tokio::spawn({
        let driver = driver.clone();
        async move { driver.start(&spec).await }
    });
    // There is no guest agent in an empty image: it waits for that.
    let is_waiting = || {
        let progress = driver.progress("s-1-VM").unwrap_or_default();
        let mut steps = progress.steps.iter();
        steps.any(|step| step.name == "guest agent" && step.outcome == Outcome::Running)
    };
    until("it waits for the guest agent", is_waiting).await;
    assert_eq!(driver.power("s-1-VM"), Power::On);
    let process = host.process("s-1-VM");
    let again = driver.start(&host.system("s-1-VM")).await;
    assert!(matches!(again, Err(DriverError::Busy(_))), "{again:?}");

    timeout(Duration::from_secs(10), driver.stop("s-1-VM"))
        .await
        .unwrap()
        .unwrap();
    let outcome = timeout(LIMIT, start).await.unwrap().unwrap();
    assert!(matches!(outcome, Err(DriverError::GivenUp(_))), "{outcome:?}");
    assert!(!process.is_alive());
    let why = "the start of s-1-VM was given up because it was told to stop";
    assert_eq!(driver.power("s-1-VM"), Power::Off(why.into()));
    assert_eq!(driver.progress("s-1-VM").unwrap().problem.unwrap(), why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ends_during_its_start_says_which_step_it_was() {
    let host = Host::new().await;
    let (driver, spec) = (host.qemu().clone(), host.system("s-1-VM"));
    let start = tokio::spawn(async move { driver.start(&spec).await });
    let process = host.vm("s-1-VM").join("qemu-process");
    until("QEMU runs", || process.exists()).await;
    let driver = host.qemu();
    until("it is on", || driver.power("s-1-VM") == Power::On).await;
    kill(Pid::from_raw(host.process("s-1-VM").pid()), Signal::SIGKILL).unwrap();
    let error = timeout(LIMIT, start).await.unwrap().unwrap().unwrap_err().to_string();
    let wanted = "step `guest agent` of its start failed: the VM has ended: ";
    assert!(error.starts_with(wanted), "{error}");
    assert_eq!(driver.power("s-1-VM"), Power::Off(error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_nobody_finished_is_powered_off_and_a_complete_one_keeps_its_screen() {
    let mut host = Host::new().await;
    for name in ["i-2-3-VM", "i-2-4-VM"] {
        host.qemu().start(&host.users(name)).await.unwrap();
    }
    let screen = host.qemu().screen("i-2-3-VM").unwrap();
    assert_eq!(screen.password.expose(), "Xa9Kq2Lm");
    assert_ne!(screen.address, host.qemu().screen("i-2-4-VM").unwrap().address);
    let usage = host.qemu().usage("i-2-3-VM").unwrap();
    assert!(usage.memory > 0, "{usage:?}");

    let record = host.vm("i-2-4-VM").join("vm.json");
    let text = fs::read_to_string(&record).unwrap();
    let _ = files::replace(&record, text.replace("\"started\"", "\"starting\""), 0o600).unwrap();
    let interrupted = host.process("i-2-4-VM");
    host.reopen(None).await;
    assert!(!interrupted.is_alive());
    let why = "its start was interrupted by the end of the management server";
    assert_eq!(host.qemu().power("i-2-4-VM"), Power::Off(why.into()));
    assert_eq!(host.qemu().screen("i-2-3-VM").unwrap(), screen);
    assert_eq!(host.qemu().running(), ["i-2-3-VM"]);

    // What is left is ended without a driver.
    host.driver = None;
    let grace = Duration::from_millis(200);
    let (ended, failed) = qemu::end_all(&host.directory.path().join("vms"), grace).await.unwrap();
    assert_eq!(ended, ["i-2-3-VM"]);
    assert!(failed.is_empty(), "{failed:?}");
    assert!(host.network.namespace().processes().unwrap().is_empty());
    let nothing = qemu::end_all(Path::new("/nowhere"), grace).await.unwrap();
    assert!(nothing.0.is_empty() && nothing.1.is_empty());
}
