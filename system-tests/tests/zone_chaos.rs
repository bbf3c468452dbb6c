//! What a zone of virtual machines comes back from by itself, and whether it says what is wrong meanwhile. One zone for all
//! cases, as each boot takes its time; each case leaves both system VMs Up.
//!
//! `ZONE_CHAOS=all` runs all cases at their full size; without it those run that say most for their time.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests; what is printed is read when one fails"
)]

use std::fs::{self, File};
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use hypervisor::network::namespace::{Name, Namespace};
use hypervisor::ssh::{Key, Ssh};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::Cmd;
use serde_json::Value;
use sha2::{Digest, Sha512};
use system_tests::browser::Browser;
use system_tests::console::status;
use system_tests::source::{Content, Source, checksum};
use system_tests::up::{UpZone, VMS_UP_LIMIT};
use system_tests::wait;
use tokio::time::{sleep, timeout};

const MIB: u64 = 1 << 20;
/// management.md §1: for a reason to be told.
const REASON_LIMIT: Duration = Duration::from_secs(2);
/// For one call of the API's command line on a busy machine, which the time above is measured with.
const CALL: Duration = Duration::from_secs(3);
/// One command in a VM, without KVM.
const COMMAND: Duration = Duration::from_mins(4);
/// For a VM that boots and comes Up, without KVM on busy cores; and for one that is found not to.
const BOOT: Duration = Duration::from_mins(8);
/// For a download through an emulated network card.
const DOWNLOAD: Duration = Duration::from_mins(15);
/// One case; some boot a VM twice.
const CASE_LIMIT: Duration = Duration::from_mins(15);
const ALL_LIMIT: Duration = Duration::from_mins(30);
const CONSOLE_PROXY: &str = "consoleproxy";
const SSVM: &str = "secondarystoragevm";
/// What VMs may ask of this machine on their public network: see zone-network.md.
const SOURCE: &str = "172.31.2.1:8089";
/// Of the file system with all that the zone has.
const DISK: u64 = 6 << 30;

/// Whether everything is run.
fn all() -> bool {
    std::env::var_os("ZONE_CHAOS").is_some_and(|value| value == "all")
}

/// A file system of its own for a zone's data, to be filled.
struct Disk {
    _file: tempfile::NamedTempFile,
    mounted: PathBuf,
}

impl Disk {
    async fn mount(at: &Path) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK).unwrap();
        fs::create_dir_all(at).unwrap();
        let make = Cmd::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(file.path());
        make.run().await.unwrap();
        let mount = Cmd::new("mount").args(["-o", "loop"]).arg(file.path()).arg(at);
        mount.run().await.unwrap();
        // `up` takes a directory that has been a zone's.
        let _ = platform::files::replace(at.join("mgmt-stub.lock"), "", 0o600).unwrap();
        Self {
            _file: file,
            mounted: at.to_owned(),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.join("ballast")
    }

    /// Takes all space but a little less than `left` bytes.
    fn fill(&self, left: u64) {
        let found = nix::sys::statvfs::statvfs(&self.mounted).unwrap();
        let free = found.blocks_available() * found.fragment_size();
        let file = File::create(self.ballast()).unwrap();
        let size = i64::try_from(free.saturating_sub(left)).unwrap();
        nix::fcntl::posix_fallocate(file, 0, size).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    async fn unmount(&self) {
        Cmd::new("umount").arg(&self.mounted).run().await.unwrap();
    }
}

/// The zone, and what its SSVM downloads from.
struct Chaos {
    // First: its processes end before the disk is unmounted.
    zone: UpZone,
    namespace: Namespace,
    source: Source,
    disk: Disk,
}

impl Chaos {
    async fn start() -> Self {
        let zone = UpZone::with_vms();
        let disk = Disk::mount(&zone.path().join("data")).await;
        up(&zone).await;
        let name = Name::of_directory(&zone.path().join("data").canonicalize().unwrap());
        let namespace = Namespace::open(&name).unwrap().unwrap();
        let source = Source::on(namespace.listen(SOURCE.parse().unwrap()).unwrap());
        Self {
            zone,
            namespace,
            source,
            disk,
        }
    }

    /// The one of a type that is not being removed.
    async fn vm(&self, kind: &str) -> Result<Value, String> {
        let filter = format!("systemvmtype={kind}");
        let mut list = self.zone.api("listSystemVms", &[&filter]).await?;
        let vms = list["systemvm"].as_array_mut().map(std::mem::take).unwrap_or_default();
        vms.into_iter().next_back().ok_or_else(|| format!("no {kind}"))
    }

    async fn name(&self, kind: &str) -> String {
        self.vm(kind).await.unwrap()["name"].as_str().unwrap().to_owned()
    }

    /// Waits until it is of use; nothing is said to be wrong with it then.
    async fn is_up(&self, kind: &str) -> Value {
        let began = Instant::now();
        let vm = wait::until(&format!("{kind} is Up"), BOOT, async || {
            let vm = self.vm(kind).await?;
            let is_up = vm["agentstate"] == "Up" && vm["state"] == "Running" && vm["reason"].is_null();
            is_up.then(|| vm.clone()).ok_or_else(|| vm.to_string())
        })
        .await;
        println!("    {kind} was Up after {:.1} s", began.elapsed().as_secs_f64());
        vm
    }

    /// Waits until it is said of a system VM what is wrong, counted from now.
    async fn says(&self, kind: &str, words: &[&str], limit: Duration) {
        let began = Instant::now();
        let reason = wait::until(&format!("{kind} says {words:?}"), limit + CALL, async || {
            let vm = self.vm(kind).await?;
            let reason = vm["reason"].as_str().unwrap_or_default();
            let has_all = words.iter().all(|word| reason.contains(word));
            has_all.then(|| reason.to_owned()).ok_or_else(|| vm.to_string())
        })
        .await;
        println!("    after {:.1} s: {reason}", began.elapsed().as_secs_f64());
    }

    /// Waits for the agent of a system VM to be gone.
    async fn is_not_up(&self, kind: &str, limit: Duration) {
        wait::until(&format!("{kind} is not Up"), limit, async || {
            let vm = self.vm(kind).await?;
            (vm["agentstate"] != "Up").then_some(()).ok_or_else(|| vm.to_string())
        })
        .await;
    }

    async fn set(&self, name: &str, value: &str) {
        let words = [format!("name={name}"), format!("value={value}")];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.zone.api("updateConfiguration", &words).await.unwrap();
    }

    async fn order(&self, command: &str, kind: &str) {
        let vm = self.vm(kind).await.unwrap();
        let id = format!("id={}", vm["id"].as_str().unwrap());
        self.zone.api(command, &[&id]).await.unwrap();
    }

    /// The URL of a console of somebody's VM.
    async fn console_of(&self, vm: &Value) -> String {
        let id = format!("virtualmachineid={}", vm["id"].as_str().unwrap());
        let endpoint = self.zone.api("createConsoleEndpoint", &[&id]).await.unwrap();
        let url = endpoint["consoleendpoint"]["url"].as_str();
        url.unwrap_or_else(|| panic!("{endpoint}")).to_owned()
    }

    /// QEMU of a VM.
    fn qemu(&self, name: &str) -> Pid {
        let wanted = format!("guest={name}");
        let mut qemus = self.zone.processes().into_iter().filter(|(_, line)| {
            let guest = line.split_whitespace().flat_map(|word| word.split(','));
            guest.into_iter().any(|word| word == wanted)
        });
        let (pid, _) = qemus.next().unwrap();
        Pid::from_raw(pid)
    }

    fn ganesha(&self) -> Pid {
        let processes = self.zone.processes();
        let is_it = |line: &str| {
            line.split(' ')
                .next()
                .is_some_and(|first| first.ends_with("ganesha.nfsd"))
        };
        let (pid, _) = processes.iter().find(|(_, line)| is_it(line)).unwrap();
        Pid::from_raw(*pid)
    }

    /// Runs a command in a system VM.
    async fn run(&self, kind: &str, command: &str) {
        let key = Key::open_or_create(&self.zone.path().join("data/ssh")).await.unwrap();
        let vm = self.vm(kind).await.unwrap();
        let address = vm["linklocalip"].as_str().unwrap().parse().unwrap();
        let files = tempfile::tempdir().unwrap();
        let ssh = Ssh::new(&self.namespace, address, &key, files.path()).unwrap();
        let exited = ssh.exec(command, b"", COMMAND).await.unwrap();
        ssh.close().await;
        assert!(exited.status.success(), "{command}: {exited:?}");
    }

    async fn register(&self, name: &str, content: &Content) -> String {
        let url = self.source.put(&format!("{name}.raw"), content.clone());
        let zones = self.zone.api("listZones", &[]).await.unwrap();
        let words = [
            format!("name={name}"),
            format!("displaytext={name}"),
            "format=RAW".to_owned(),
            "hypervisor=KVM".to_owned(),
            format!("url={url}"),
            format!("zoneid={}", zones["zone"][0]["id"].as_str().unwrap()),
            format!("checksum={}", content.checksum()),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = self.zone.api("registerTemplate", &words).await.unwrap();
        answer["template"][0]["id"].as_str().unwrap().to_owned()
    }

    async fn template(&self, id: &str) -> Result<Value, String> {
        let id = format!("id={id}");
        let mut list = self.zone.api("listTemplates", &["templatefilter=all", &id]).await?;
        Ok(list["template"][0].take())
    }

    /// Waits until the source has sent so much.
    async fn sent(&self, bytes: u64) {
        wait::until("the download goes on", DOWNLOAD, async || {
            let sent = self.source.sent();
            (sent >= bytes).then_some(()).ok_or_else(|| sent.to_string())
        })
        .await;
    }

    /// Waits until a template can be used, and reads all of what is in the store.
    async fn ready(&self, id: &str, content: &Content) {
        wait::until("the template is ready", DOWNLOAD, async || {
            let template = self.template(id).await?;
            let is_ready = template["isready"] == true;
            is_ready.then_some(()).ok_or_else(|| template.to_string())
        })
        .await;
        let mut files = Vec::new();
        collect(&self.zone.path().join("data/secondary/template"), &mut files);
        files.retain(|file| fs::metadata(file).unwrap().len() == content.size());
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(sha512(&files[0]), content.checksum());
    }
}

async fn up(zone: &UpZone) {
    let up = zone.up().env("SYSVM_LOG", "info").time_limit(VMS_UP_LIMIT);
    up.run().await.unwrap_or_else(|error| panic!("{error}"));
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn sha512(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut digest = Sha512::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut block).unwrap();
        if length == 0 {
            return checksum(digest);
        }
        digest.update(&block[..length]);
    }
}

/// Runs a case within its time, and prints how much of it that took.
async fn case(name: &str, limit: Duration, work: impl Future<Output = ()>) {
    println!("{name}");
    let began = Instant::now();
    let done = timeout(limit, work).await;
    assert!(done.is_ok(), "{name}: not over within {limit:?}");
    println!("  {:.0} s", began.elapsed().as_secs_f64());
}

/// What is typed into the page of a console, which comes from the VM that is the console proxy, reaches a user's VM.
async fn a_guest_does_what_is_typed(chaos: &Chaos) {
    let instances = chaos.zone.api("listVirtualMachines", &["listall=true"]).await.unwrap();
    let guest = &instances["virtualmachine"][0];
    let browser = Browser::start().await.unwrap();
    let console = browser.open(&chaos.console_of(guest).await).await.unwrap();
    status(&console, "Connected").await;
    let guest = chaos.qemu(guest["instancename"].as_str().unwrap());
    // Again and again, as it may still boot.
    wait::until("the guest powers off", BOOT, async || {
        console
            .type_text("poweroff")
            .await
            .map_err(|error| format!("{error:#}"))?;
        console.press("Enter").await.map_err(|error| format!("{error:#}"))?;
        sleep(Duration::from_secs(5)).await;
        let is_gone = kill(guest, None).is_err();
        is_gone.then_some(()).ok_or_else(|| "it runs".to_owned())
    })
    .await;
    console
        .wait_for_text("The machine closed its console", COMMAND)
        .await
        .unwrap();
}

/// A download outlives the server, and an NFS server that stands still while the console proxy hangs and is started again.
async fn a_download_goes_on_whatever_stops(chaos: &Chaos) {
    let size = if all() { 1024 * MIB } else { 192 * MIB };
    let pause = Duration::from_secs(if all() { 60 } else { 20 });
    let content = Content::Noise { size };
    chaos.source.set_pace(2 * MIB);
    let id = chaos.register("big", &content).await;
    chaos.sent(16 * MIB).await;

    let (ssvm, proxy) = (chaos.name(SSVM).await, chaos.name(CONSOLE_PROXY).await);
    let before = [chaos.qemu(&ssvm), chaos.qemu(&proxy)];
    chaos.zone.kill("mgmt-stub").await;
    let sent = chaos.source.sent();
    up(&chaos.zone).await;
    assert_eq!([chaos.qemu(&ssvm), chaos.qemu(&proxy)], before, "they went on");
    chaos.is_up(SSVM).await;
    chaos.is_up(CONSOLE_PROXY).await;
    chaos.sent(sent + 8 * MIB).await;

    // SIGSTOP: connections stay, and nobody answers.
    let ganesha = chaos.ganesha();
    kill(ganesha, Signal::SIGSTOP).unwrap();
    assert!(chaos.source.sent() < size, "the download was over too early");
    let stopped = Instant::now();
    chaos
        .says(SSVM, &["nfs://172.31.3.5/", "does not answer"], REASON_LIMIT)
        .await;
    chaos.set("systemvm.hang.limit", "10").await;
    kill(before[1], Signal::SIGSTOP).unwrap();
    // It is asked each 5 s, and has 2 s to answer.
    chaos
        .says(CONSOLE_PROXY, &["hangs"], Duration::from_secs(7) + REASON_LIMIT)
        .await;
    wait::until("it is started again", BOOT, async || {
        let is_gone = kill(before[1], None).is_err();
        is_gone.then_some(()).ok_or_else(|| "it stands still".to_owned())
    })
    .await;
    sleep(pause.saturating_sub(stopped.elapsed())).await;
    assert_eq!(
        chaos.vm(SSVM).await.unwrap()["agentstate"],
        "Up",
        "it needs no store to be Up"
    );
    kill(ganesha, Signal::SIGCONT).unwrap();
    println!(
        "    the NFS server stood still for {:.0} s",
        stopped.elapsed().as_secs_f64()
    );

    chaos.source.set_pace(0);
    chaos.ready(&id, &content).await;
    assert_eq!(chaos.source.requests(), 1, "it was downloaded once");
    chaos.is_up(CONSOLE_PROXY).await;
    assert_ne!(chaos.qemu(&proxy), before[1]);
}

/// An agent that does not reach the server, or does not believe it, says so.
async fn an_agent_without_a_link_says_why(chaos: &Chaos) {
    let restart = "systemctl restart cs-console-proxy";
    // It returns when the agent knows what is wrong.
    let fail = r#"systemctl restart cs-console-proxy; until grep -Eq '"last_error": ?"' /run/cloud/agent.json; do sleep 0.2; done"#;
    let block = "table inet chaos { chain input { type filter hook input priority -20; tcp dport 8250 \
                 reject with icmpx type host-unreachable; }; }";
    chaos.namespace.nft(block).await.unwrap();
    chaos.run(CONSOLE_PROXY, fail).await;
    // The server has not heard that the old link has ended: for it the agent is Up for some time.
    chaos.says(CONSOLE_PROXY, &["No route to host"], REASON_LIMIT).await;
    chaos.namespace.nft("delete table inet chaos").await.unwrap();
    chaos.is_up(CONSOLE_PROXY).await;

    // Another authority, with a name that is right.
    let conf = "/usr/local/cloud/systemvm/conf";
    let forge = format!(
        "cd {conf} && cp cloud.ca.crt kept && openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null \
         -subj /CN=elsewhere -days 2 -out cloud.ca.crt 2>&1 && {fail}"
    );
    chaos.run(CONSOLE_PROXY, &forge).await;
    chaos.is_not_up(CONSOLE_PROXY, REASON_LIMIT + CALL).await;
    chaos.says(CONSOLE_PROXY, &["certificate"], REASON_LIMIT).await;
    chaos
        .run(
            CONSOLE_PROXY,
            &format!("cd {conf} && mv kept cloud.ca.crt && {restart}"),
        )
        .await;
    chaos.is_up(CONSOLE_PROXY).await;
}

/// A disk without space: what is wrong is told, and all goes on when there is some.
async fn a_full_disk_is_told_and_got_over(chaos: &Chaos) {
    let content = Content::Noise { size: 48 * MIB };
    chaos.source.set_pace(8 * MIB);
    chaos.disk.fill(8 * MIB);
    let id = chaos.register("too-big", &content).await;
    let began = Instant::now();
    let status = wait::until("the reason is told", DOWNLOAD, async || {
        let template = chaos.template(&id).await?;
        let status = template["status"].as_str().unwrap_or_default().to_owned();
        status
            .to_lowercase()
            .contains("space")
            .then_some(status)
            .ok_or_else(|| template.to_string())
    })
    .await;
    println!("    after {:.1} s: {status}", began.elapsed().as_secs_f64());
    chaos.disk.free();
    chaos.source.set_pace(0);
    chaos.ready(&id, &content).await;
    chaos.is_up(SSVM).await;
    chaos.is_up(CONSOLE_PROXY).await;
}

/// An SSVM that is destroyed by somebody is made anew; its boot arguments make no sense, and it says so.
async fn bad_boot_arguments_are_told(chaos: &Chaos) {
    let old = chaos.name(SSVM).await;
    chaos.set("secstorage.nfs.version", "four").await;
    chaos.order("destroySystemVm", SSVM).await;
    wait::until("another one is made", BOOT, async || {
        let vm = chaos.vm(SSVM).await?;
        (vm["name"] != old.as_str()).then_some(()).ok_or_else(|| vm.to_string())
    })
    .await;
    chaos.says(SSVM, &["nfsVersion"], BOOT).await;
    chaos.set("secstorage.nfs.version", "").await;
    chaos.is_up(SSVM).await;
}

/// A console proxy that ends is started again, with the memory that is set by then: too little.
async fn too_little_memory_is_told(chaos: &Chaos) {
    // Somebody takes all; the VM tells each 5 s what is left.
    // In no unit, as these have limits.
    let hog = r#"nohup sh -c 'echo $$ > /sys/fs/cgroup/cgroup.procs
        bytes=$(awk "/^MemAvailable/ { printf \"%d\", \$2 * 985 }" /proc/meminfo)
        (head -c $bytes /dev/zero; sleep 40) | tail -c 2000000000' > /dev/null 2>&1 &"#;
    chaos.run(CONSOLE_PROXY, hog).await;
    chaos.says(CONSOLE_PROXY, &["out of memory"], BOOT).await;

    let name = chaos.name(CONSOLE_PROXY).await;
    chaos.set("consoleproxy.ram.size", "64").await;
    kill(chaos.qemu(&name), Signal::SIGKILL).unwrap();
    chaos
        .says(CONSOLE_PROXY, &["64 MiB are too little memory"], REASON_LIMIT)
        .await;
    chaos.set("consoleproxy.ram.size", "1024").await;
    chaos.is_up(CONSOLE_PROXY).await;
}

/// Whoever asks for a reboot gets the same machine again.
async fn a_reboot_brings_it_back(chaos: &Chaos) {
    let name = chaos.name(CONSOLE_PROXY).await;
    let before = chaos.qemu(&name);
    chaos.order("rebootSystemVm", CONSOLE_PROXY).await;
    chaos.is_not_up(CONSOLE_PROXY, BOOT).await;
    chaos.is_up(CONSOLE_PROXY).await;
    assert_eq!(chaos.qemu(&name), before);
}

/// Passwords of screens and private keys are in no log and on no command line, and files with them are their owner's alone.
fn secrets_are_kept(zone: &UpZone) {
    let data = zone.path().join("data");
    let (mut secrets, mut files) = (vec![zone.state()["password"].as_str().unwrap().to_owned()], Vec::new());
    collect(&data.join("vms"), &mut files);
    for record in files.iter().filter(|file| file.ends_with("vm.json")) {
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        secrets.push(record["vnc_password"].as_str().unwrap().to_owned());
    }
    for key in ["ca/ca.key", "ssh/id_ecdsa"] {
        let pem = fs::read_to_string(data.join(key)).unwrap();
        secrets.push(pem.lines().nth(1).unwrap().to_owned());
    }
    assert!(
        secrets.len() >= 5 && secrets.iter().all(|secret| secret.len() >= 8),
        "a secret is missing"
    );
    let has_one = |bytes: &[u8]| {
        secrets
            .iter()
            .any(|secret| bytes.windows(secret.len()).any(|part| part == secret.as_bytes()))
    };
    for (pid, line) in zone.processes() {
        assert!(!has_one(line.as_bytes()), "on the command line of process {pid}");
    }
    files.clear();
    collect(zone.path(), &mut files);
    let mut found = 0;
    for file in files {
        let about = fs::symlink_metadata(&file).unwrap();
        if !about.is_file() || about.len() > 4 * MIB || !has_one(&fs::read(&file).unwrap()) {
            continue;
        }
        found += 1;
        assert_eq!(
            about.permissions().mode() & 0o077,
            0,
            "{} is not its owner's alone",
            file.display()
        );
        let is_log = file.extension().is_some_and(|suffix| suffix == "log") || file.ends_with("log");
        assert!(!is_log, "{} has a secret in it", file.display());
    }
    assert!(found >= 5, "the files of the secrets were not even found");
}

/// All of them, one after another.
async fn cases(chaos: &Chaos) {
    secrets_are_kept(&chaos.zone);
    let limit = if all() { ALL_LIMIT } else { CASE_LIMIT };
    case("a console", limit, a_guest_does_what_is_typed(chaos)).await;
    case(
        "an agent without a link",
        limit,
        an_agent_without_a_link_says_why(chaos),
    )
    .await;
    case("a download", limit, a_download_goes_on_whatever_stops(chaos)).await;
    case("a full disk", limit, a_full_disk_is_told_and_got_over(chaos)).await;
    case("too little memory", limit, too_little_memory_is_told(chaos)).await;
    case("bad boot arguments", limit, bad_boot_arguments_are_told(chaos)).await;
    if all() {
        case("a reboot", limit, a_reboot_brings_it_back(chaos)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a quarter of an hour: cargo test -p system-tests --test zone_chaos -- --ignored"]
async fn a_zone_returns_from_what_happens_to_it_and_says_what_is_wrong() {
    let began = Instant::now();
    let chaos = Chaos::start().await;
    println!("Up after {:.0} s", began.elapsed().as_secs_f64());
    let outcome = AssertUnwindSafe(cases(&chaos)).catch_unwind().await;
    // Whatever came out, nothing is left.
    let Chaos { zone, disk, source, .. } = chaos;
    drop(source);
    if outcome.is_err() {
        zone.show_log();
    }
    zone.down().await;
    disk.unmount().await;
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}
