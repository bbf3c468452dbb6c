//! VMs under the real QEMU, with nothing but the firmware in them: it finds nothing to start, and stays.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use hypervisor::accelerator::Accelerator;
use hypervisor::machine::{Disk, Format, Machine, Nic};
use hypervisor::qmp::{Event, Events, Qmp, QmpError};
use hypervisor::vm::{Cause, Vm, VmError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::{Cmd, Process};
use protocol::secret::Secret;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_mins(1);

/// An empty disk, and a place for a VM. What runs there ends with it.
struct Host {
    directory: TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = fs::File::create(directory.path().join("disk.raw")).unwrap();
        disk.set_len(1024 * 1024).unwrap();
        Self { directory }
    }

    fn vm(&self) -> PathBuf {
        self.directory.path().join("vm")
    }

    fn machine(&self) -> Machine {
        Machine {
            name: "v-1-VM".into(),
            uuid: Uuid::new_v4(),
            accelerator: Accelerator::Tcg,
            memory_mib: 32,
            cpus: 1,
            disks: vec![Disk {
                path: self.directory.path().join("disk.raw"),
                format: Format::Raw,
            }],
            nics: Vec::new(),
            screen: None,
        }
    }

    async fn start(&self) -> Vm {
        Vm::start(&self.vm(), &self.machine(), None).await.unwrap()
    }

    async fn adopt(&self) -> Vm {
        Vm::adopt(&self.vm()).await.unwrap().unwrap()
    }

    fn process(&self) -> Option<Process> {
        fs::read_to_string(self.vm().join("qemu-process")).ok()?.parse().ok()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(process) = self.process().filter(Process::is_alive) {
            kill(Pid::from_raw(process.pid()), Signal::SIGKILL).ok();
        }
    }
}

/// A network namespace with one tap in it.
struct Namespace(String);

impl Namespace {
    async fn with_tap(tap: &str) -> Self {
        let namespace = Self(format!("sysvm-hv-{}", std::process::id()));
        Cmd::new("ip").args(["netns", "add", &namespace.0]).run().await.unwrap();
        let batch = format!("link set lo up\ntuntap add {tap} mode tap\nlink set {tap} up\n");
        let ip = Cmd::new("ip").args(["-n", &namespace.0, "-batch", "-"]).stdin(batch);
        ip.run().await.unwrap();
        namespace
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let name = self.0.clone();
        let remove = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let remove = async { Cmd::new("ip").args(["netns", "del", &name]).run().await };
            drop(runtime.unwrap().block_on(remove));
        };
        std::thread::spawn(remove).join().unwrap();
    }
}

fn signal(vm: &Vm, signal: Signal) {
    kill(Pid::from_raw(vm.process().pid()), signal).unwrap();
}

async fn hears(events: &mut Events, is_it: impl Fn(&Event) -> bool) {
    let heard = async { while !is_it(&events.next().await.unwrap()) {} };
    timeout(LIMIT, heard).await.unwrap();
}

/// It answers in time, as soon as this machine is not too busy for that.
async fn works(vm: &Vm) {
    let started = Instant::now();
    while !vm.responds().await {
        assert!(started.elapsed() < LIMIT);
    }
}

async fn ended(vm: &Vm) -> Cause {
    timeout(LIMIT, vm.ended()).await.unwrap().cause
}

/// Its program, as the kernel has it.
fn program(process: &Process) -> String {
    let program = fs::read_link(format!("/proc/{}/exe", process.pid())).unwrap();
    program.file_name().unwrap().to_string_lossy().into_owned()
}

#[tokio::test]
async fn a_vm_outlives_who_started_it_and_is_adopted_by_the_next() {
    let host = Host::new();
    let namespace = Namespace::with_tap("t-1-0").await;
    let mut machine = host.machine();
    machine.nics.push(Nic {
        mac: "02:00:00:00:00:01".parse().unwrap(),
        tap: "t-1-0".into(),
    });
    machine.screen = Some(Ipv4Addr::LOCALHOST);
    let vm = Vm::start(&host.vm(), &machine, Some(&namespace.path())).await.unwrap();

    let process = vm.process().clone();
    assert_eq!(program(&process), "qemu-system-x86_64");
    let inside = fs::metadata(format!("/proc/{}/ns/net", process.pid())).unwrap().ino();
    assert_eq!(inside, fs::metadata(namespace.path()).unwrap().ino());
    assert_eq!(fs::metadata(host.vm()).unwrap().permissions().mode() & 0o777, 0o700);
    let group = fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap();
    let first = fs::read_to_string(format!("/proc/{}/oom_score_adj", process.pid())).unwrap();
    assert!(
        group.contains(&format!("/sysvm/{}\n", machine.uuid)) || first.trim() == "500",
        "{group} {first}"
    );

    drop(vm);
    assert!(process.is_alive());
    let adopted = host.adopt().await;
    assert_eq!((adopted.process(), adopted.machine()), (&process, &machine));
    works(&adopted).await;
    let error = Vm::start(&host.vm(), &machine, None).await.unwrap_err();
    assert!(
        matches!(error, VmError::Runs { pid, .. } if pid == process.pid()),
        "{error}"
    );

    // As when we are killed before we wrote down which process it is.
    drop(adopted);
    fs::remove_file(host.vm().join("qemu-process")).unwrap();
    let vm = host.adopt().await;
    assert_eq!(vm.process(), &process);
    assert_eq!(host.process().as_ref(), Some(&process));

    let usage = vm.usage().unwrap();
    assert!(
        usage.cpu > Duration::from_millis(10) && usage.memory > 5_000_000,
        "{usage:?}"
    );
    let screen = vm.screen().await.unwrap().unwrap();
    assert!(screen.ip().is_loopback() && screen.port() >= 5900, "{screen}");

    assert_eq!(vm.kill().await.unwrap().cause, Cause::Killed);
    assert!(Vm::adopt(&host.vm()).await.unwrap().is_none());
    assert!(matches!(vm.qmp().await.unwrap_err(), VmError::Off { .. }));
    assert!(vm.usage().is_err());
}

#[tokio::test]
async fn a_qemu_that_stands_still_is_told_from_one_that_works() {
    let host = Host::new();
    let vm = host.start().await;
    works(&vm).await;
    signal(&vm, Signal::SIGSTOP);
    let started = Instant::now();
    assert!(!vm.responds().await);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(vm.is_alive());

    // Also when whoever started it is gone.
    drop(vm);
    let vm = host.adopt().await;
    assert!(!vm.responds().await);
    let error = vm.qmp().await.unwrap_err().to_string();
    assert_eq!(error, "QEMU of v-1-VM does not answer; it hangs, or was stopped");

    signal(&vm, Signal::SIGCONT);
    works(&vm).await;
    signal(&vm, Signal::SIGSTOP);
    assert_eq!(vm.stop(Duration::from_secs(1)).await.unwrap().cause, Cause::Killed);
    assert!(!vm.is_alive());
}

#[tokio::test]
async fn a_guest_that_does_not_power_off_is_ended_and_starts_again() {
    let host = Host::new();
    let vm = host.start().await;
    let ended = vm.stop(Duration::from_secs(1)).await.unwrap();
    assert_eq!(ended.to_string(), "it was powered off over QEMU's monitor");
    let again = host.start().await;
    assert_ne!(again.process(), vm.process());
    works(&again).await;
    // Twice, by two.
    let (one, two) = tokio::join!(again.kill(), again.kill());
    assert_eq!((one.unwrap().cause, two.unwrap().cause), (Cause::Killed, Cause::Killed));
}

#[tokio::test]
async fn the_end_of_a_vm_is_seen_and_its_reason_told() {
    let host = Host::new();
    let vm = host.start().await;
    signal(&vm, Signal::SIGKILL);
    assert_eq!(ended(&vm).await, Cause::Signal(9));
    assert_eq!(vm.ended().await.to_string(), "QEMU was ended by signal 9");

    // SIGTERM it hears, and says so.
    let vm = host.start().await;
    signal(&vm, Signal::SIGTERM);
    let ended_by = vm.ended().await.to_string();
    assert_eq!(ended_by, "QEMU was asked to end by a signal");

    // The exit code of a process that is not our child is not for us.
    drop(host.start().await);
    let vm = host.adopt().await;
    works(&vm).await;
    signal(&vm, Signal::SIGKILL);
    assert_eq!(ended(&vm).await, Cause::Unseen);
}

#[tokio::test]
async fn a_machine_that_cannot_be_says_why() {
    let host = Host::new();
    let mut machine = host.machine();
    machine.nics.push(Nic {
        mac: "02:00:00:00:00:01".parse().unwrap(),
        tap: "not/there".into(),
    });
    let error = Vm::start(&host.vm(), &machine, None).await.unwrap_err().to_string();
    assert!(error.starts_with("\"not/there\" is no name for a tap"), "{error}");

    machine.nics.clear();
    machine.disks[0].path = "/no/such/disk".into();
    let error = Vm::start(&host.vm(), &machine, None).await.unwrap_err().to_string();
    assert!(
        error.starts_with("QEMU has ended at once; ") && error.contains("/no/such/disk"),
        "{error}"
    );
    assert!(Vm::adopt(&host.vm()).await.unwrap().is_none());

    let deep = host.directory.path().join("x".repeat(100));
    let error = Vm::start(&deep, &machine, None).await.unwrap_err().to_string();
    assert!(error.contains("is too long for the path of a socket"), "{error}");
    assert!(!deep.exists());
}

#[tokio::test]
async fn events_are_heard_and_a_reset_starts_the_machine_anew() {
    let host = Host::new();
    let vm = host.start().await;
    let mut events = vm.events();
    let qmp = vm.qmp().await.unwrap();
    qmp.call("stop", json!({})).await.unwrap();
    hears(&mut events, |event| *event == Event::Stop).await;
    qmp.call("cont", json!({})).await.unwrap();
    hears(&mut events, |event| *event == Event::Resume).await;
    vm.reset().await.unwrap();
    hears(&mut events, |event| *event == Event::Reset { guest: false }).await;
    assert!(vm.is_alive());
    vm.kill().await.unwrap();
    let rest = async { while events.next().await.is_some() {} };
    drop(vm);
    timeout(LIMIT, rest).await.unwrap();
}

#[tokio::test]
async fn a_screen_is_for_those_who_know_its_password() {
    let host = Host::new();
    let mut machine = host.machine();
    machine.screen = Some(Ipv4Addr::LOCALHOST);
    let vm = Vm::start(&host.vm(), &machine, None).await.unwrap();
    let screen = vm.screen().await.unwrap().unwrap();
    let password = Secret::new("Gh7kqWb2".to_owned());
    assert!(!lets_in(screen, password.expose()).await, "it has not been set yet");
    vm.set_screen_password(&password).await.unwrap();
    assert!(!lets_in(screen, "").await);
    assert!(lets_in(screen, password.expose()).await);
    let line = fs::read_to_string(format!("/proc/{}/cmdline", vm.process().pid())).unwrap();
    assert!(!line.contains(password.expose()));
    vm.kill().await.unwrap();
}

/// RFB's security handshake with VncAuth: RFC 6143 §7.1.2, §7.2.2.
async fn lets_in(screen: SocketAddr, password: &str) -> bool {
    let mut vnc = TcpStream::connect(screen).await.unwrap();
    let mut version = [0; 12];
    vnc.read_exact(&mut version).await.unwrap();
    vnc.write_all(&version).await.unwrap();
    let mut kinds = [0; 2];
    vnc.read_exact(&mut kinds).await.unwrap();
    assert_eq!(kinds, [1, 2], "VncAuth and nothing else");
    vnc.write_all(&[2]).await.unwrap();
    let mut challenge = [0; 16];
    vnc.read_exact(&mut challenge).await.unwrap();
    vnc.write_all(&answer(password, challenge)).await.unwrap();
    let mut result = [0; 4];
    vnc.read_exact(&mut result).await.unwrap();
    result == [0; 4]
}

/// The challenge, encrypted with the password, whose bits are taken from the lowest on in each byte: RFC 6143 §7.2.2.
fn answer(password: &str, mut challenge: [u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (byte, letter) in key.iter_mut().zip(password.bytes()) {
        *byte = letter.reverse_bits();
    }
    let des = Des::new(&key.into());
    for block in challenge.chunks_exact_mut(8) {
        des.encrypt_block(block.try_into().unwrap());
    }
    challenge
}

#[tokio::test]
async fn a_monitor_refuses_greets_one_and_answers_in_time() {
    let host = Host::new();
    drop(host.start().await);
    let socket = host.vm().join("qmp");
    let qmp = Qmp::connect(&socket, LIMIT).await.unwrap();
    let error = qmp.call("no-such-command", json!({})).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "QEMU refuses no-such-command: The command no-such-command has not been found"
    );

    // Answers find those who asked.
    let (name, status, version) = tokio::join!(
        qmp.call("query-name", json!({})),
        qmp.call("query-status", json!({})),
        qmp.call("query-version", json!({})),
    );
    assert_eq!(name.unwrap()["name"], "v-1-VM");
    assert_eq!(status.unwrap()["status"], "running");
    assert!(version.unwrap()["qemu"]["major"].is_u64());

    let second = Qmp::connect(&socket, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(second, QmpError::NoGreeting { .. }), "{second}");
    let process = host.process().unwrap();
    kill(Pid::from_raw(process.pid()), Signal::SIGSTOP).unwrap();
    let limit = Duration::from_millis(300);
    let error = qmp.call_within(limit, "query-name", json!({})).await.unwrap_err();
    assert_eq!(error.to_string(), "QEMU did not answer query-name within 300ms");
    // The late answer to that is not taken for the next one.
    kill(Pid::from_raw(process.pid()), Signal::SIGCONT).unwrap();
    assert_eq!(qmp.call("query-status", json!({})).await.unwrap()["status"], "running");

    kill(Pid::from_raw(process.pid()), Signal::SIGKILL).unwrap();
    let error = qmp.call("query-name", json!({})).await.unwrap_err();
    assert!(matches!(error, QmpError::Closed { .. }), "{error}");
    assert!(qmp.is_closed());
    assert!(process.ended(LIMIT).await);
    assert!(Vm::adopt(&host.vm()).await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_no_monitor_is_not_taken_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp");
    let error = Qmp::connect(&socket, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }), "{error}");

    let listener = UnixListener::bind(&socket).unwrap();
    for nonsense in [&b"hello\n"[..], b"{\"return\": 1}\n", b"[[[[\n"] {
        let (connected, accepted) = tokio::join!(Qmp::connect(&socket, LIMIT), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(nonsense).await.unwrap();
            stream
        });
        drop(accepted);
        assert!(matches!(connected.unwrap_err(), QmpError::NotQmp { .. }));
    }
}
