use std::fs::OpenOptions;
use std::io::Write;

use tokio::time::timeout;

use super::*;

const ROUTER: &[u8] = b" template=domP type=router name=r-4-VM eth1ip=169.254.3.7 eth1mask=255.255.0.0\n";
const OTHER: &[u8] = b" template=domP type=router name=r-4-VM eth1ip=169.254.3.8 eth1mask=255.255.0.0\n";
const BAD: &[u8] = b" type=router eth1ip=169.254.3.700 eth1mask=255.255.0.0\n";

/// A machine that starts again and again from the same disk.
struct Machine {
    _directory: tempfile::TempDir,
    root: Root,
    starts: u32,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for path in ["/run/sysvm", "/var/cache/cloud", "/proc/sys/kernel/random"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        Self {
            _directory: directory,
            root,
            starts: 0,
        }
    }

    /// Its kernel is another one after this.
    fn starts(&mut self) -> Source {
        self.starts += 1;
        let id = format!("boot-{}\n", self.starts);
        let _ = files::replace(self.root.path("/proc/sys/kernel/random/boot_id"), id, 0o444).unwrap();
        self.starts_the_program()
    }

    fn starts_the_program(&self) -> Source {
        Source::open(&self.root, None, Some(Hypervisor::Kvm)).unwrap()
    }

    /// As the guest agent does it for a host.
    fn host_writes(&self, bytes: &[u8]) {
        let mut file = OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).open(self.root.path(LINE));
        file.unwrap().write_all(bytes).unwrap();
    }

    fn guest_agent_runs(&self) {
        let path = self.root.path(GUEST_AGENT);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = files::replace(path, b"217\n", 0o444).unwrap();
    }

    fn reads(&self, path: &str) -> Option<Vec<u8>> {
        files::read_limited(self.root.path(path), MAX_LINE).unwrap()
    }

    /// The next line, if there is one within a minute.
    async fn next(&self, source: &mut Source) -> Option<Candidate> {
        let mut progress = Progress::new(&self.root, "boot");
        timeout(Duration::from_secs(61), source.next(&mut progress)).await.ok()
    }

    /// Takes the next line, and says whether it is fresh.
    async fn takes(&self, source: &mut Source, wanted: &[u8]) -> bool {
        let candidate = self.next(source).await.expect("there is no line");
        assert_eq!(candidate.line.text, wanted);
        source.accept(&candidate, &candidate.parse().unwrap()).unwrap();
        assert_eq!(self.reads(LINE).as_deref(), Some(wanted));
        candidate.is_fresh
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_the_host_writes_counts_at_once() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    assert!(machine.takes(&mut source, ROUTER).await);
    assert!(source.started.elapsed() < Duration::from_secs(1));
    let json: serde_json::Value = serde_json::from_slice(&machine.reads(LINE_JSON).unwrap()).unwrap();
    assert_eq!(json["cmd_line"]["eth1ip"], "169.254.3.7");
    // What we wrote ourselves is nothing new.
    assert_eq!(machine.next(&mut source).await, None);
}

#[tokio::test(start_paused = true)]
async fn without_a_line_it_waits_for_ever_and_says_so() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    for _ in 0..5 {
        assert_eq!(machine.next(&mut source).await, None);
    }
    let entries = super::super::progress::read(&machine.root);
    assert_eq!((entries[0].step, entries[0].outcome), (Step::Line, Outcome::Waiting));
    let said = &entries[0].detail;
    assert!(
        said.ends_with("s: waiting for the host to write /var/cache/cloud/cmdline through the guest agent"),
        "{said}"
    );
    machine.host_writes(ROUTER);
    assert!(machine.takes(&mut source, ROUTER).await);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_the_old_line_counts_twenty_seconds_after_the_guest_agent_runs() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;

    let mut source = machine.starts();
    machine.guest_agent_runs();
    assert!(!machine.takes(&mut source, ROUTER).await);
    let waited = source.started.elapsed().as_secs();
    assert!((20..23).contains(&waited), "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn a_guest_agent_that_has_not_started_gets_a_minute() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;

    let port = machine.root.path("/sys/class/virtio-ports/vport1p1");
    fs::create_dir_all(&port).unwrap();
    let _ = files::replace(port.join("name"), "org.qemu.guest_agent.0\n", 0o444).unwrap();
    let mut source = machine.starts();
    let mut progress = Progress::new(&machine.root, "boot");
    source.next(&mut progress).await;
    let waited = source.started.elapsed().as_secs();
    assert!((60..63).contains(&waited), "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn at_a_cold_start_the_hosts_new_line_counts_and_not_the_old_one() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;

    let mut source = machine.starts();
    machine.guest_agent_runs();
    machine.host_writes(OTHER);
    assert!(machine.takes(&mut source, OTHER).await);

    // Also when it is the same again: it is a start, and what routers remember is obsolete.
    let mut source = machine.starts();
    machine.host_writes(OTHER);
    assert!(machine.takes(&mut source, OTHER).await);
}

#[tokio::test(start_paused = true)]
async fn a_different_line_counts_later_too_and_a_bad_one_changes_nothing() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;
    machine.host_writes(ROUTER);
    machine.host_writes(b"\n");
    assert_eq!(machine.next(&mut source).await, None);

    machine.host_writes(BAD);
    let bad = machine.next(&mut source).await.unwrap();
    assert_eq!(
        bad.parse().unwrap_err().to_string(),
        "in the guest agent's file: 1 boot argument(s) need fixing\n  eth1ip=\"169.254.3.700\": expected an IPv4 address"
    );
    source.refuse(&bad).unwrap();
    assert_eq!(machine.reads(LINE).as_deref(), Some(ROUTER));
    assert_eq!(machine.reads(REFUSED).as_deref(), Some(BAD));
    machine.host_writes(BAD);
    assert_eq!(machine.next(&mut source).await, None);
    machine.host_writes(OTHER);
    assert!(machine.takes(&mut source, OTHER).await);
}

#[tokio::test(start_paused = true)]
async fn after_a_bad_line_the_old_one_does_not_count_but_a_better_one_does() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;

    let mut source = machine.starts();
    machine.guest_agent_runs();
    machine.host_writes(BAD);
    let bad = machine.next(&mut source).await.unwrap();
    source.refuse(&bad).unwrap();
    assert_eq!(machine.next(&mut source).await, None);
    machine.host_writes(OTHER);
    assert!(machine.takes(&mut source, OTHER).await);
}

#[tokio::test(start_paused = true)]
async fn after_a_power_cut_half_a_line_is_not_believed_but_a_whole_one_is() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;

    for half in [&OTHER[..50], b"", BAD] {
        machine.host_writes(half);
        let mut source = machine.starts();
        assert!(!machine.takes(&mut source, ROUTER).await, "{half:?}");
    }
    machine.host_writes(OTHER);
    let mut source = machine.starts();
    assert!(machine.takes(&mut source, OTHER).await);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_starts_again_in_the_same_boot_goes_on_at_once() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;

    let mut source = machine.starts_the_program();
    assert!(!machine.takes(&mut source, ROUTER).await);
    assert!(source.started.elapsed() < Duration::from_secs(1));
    drop(source);
    machine.host_writes(OTHER);
    let mut source = machine.starts_the_program();
    assert!(machine.takes(&mut source, OTHER).await);
}

#[tokio::test(start_paused = true)]
async fn another_channels_line_counts_at_once_and_is_fresh_when_it_changed() {
    let mut machine = Machine::new();
    let path = machine
        .root
        .path("/sys/firmware/qemu_fw_cfg/by_name/opt/cloudstack/cmdline/raw");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    for (line, is_fresh) in [(ROUTER, true), (ROUTER, false), (OTHER, true)] {
        let _ = files::replace(&path, line, 0o400).unwrap();
        let mut source = machine.starts();
        assert_eq!(machine.takes(&mut source, line).await, is_fresh);
        assert!(source.started.elapsed() < Duration::from_secs(1));
    }
    // The host may still write another one.
    let mut source = machine.starts();
    machine.takes(&mut source, OTHER).await;
    machine.host_writes(ROUTER);
    assert!(machine.takes(&mut source, ROUTER).await);
}

#[tokio::test(start_paused = true)]
async fn bad_lines_in_several_places_are_told_once_each() {
    let mut machine = Machine::new();
    let files: [(&str, &[u8]); 2] = [
        (
            "/sys/firmware/qemu_fw_cfg/by_name/opt/cloudstack/cmdline/raw",
            b"type=rooter",
        ),
        ("/mnt/cmdline", b"type=ruter"),
    ];
    for (path, line) in files {
        let path = machine.root.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = files::replace(path, line, 0o400).unwrap();
    }
    let mut source = machine.starts();
    for wanted in [&b"type=ruter"[..], b"type=rooter"] {
        let bad = machine.next(&mut source).await.unwrap();
        assert_eq!(bad.line.text, wanted);
        source.refuse(&bad).unwrap();
    }
    assert_eq!(machine.next(&mut source).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_was_removed_is_made_and_watched_again() {
    let mut machine = Machine::new();
    let mut source = machine.starts();
    fs::remove_dir_all(machine.root.path(UPLOADS)).unwrap();
    assert_eq!(machine.next(&mut source).await, None);
    machine.host_writes(ROUTER);
    assert!(machine.takes(&mut source, ROUTER).await);
}

#[tokio::test]
async fn nobody_but_root_reads_what_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let mut machine = Machine::new();
    let mut source = machine.starts();
    machine.host_writes(ROUTER);
    machine.takes(&mut source, ROUTER).await;
    machine.host_writes(BAD);
    let bad = machine.next(&mut source).await.unwrap();
    source.refuse(&bad).unwrap();
    for path in [LINE, LINE_JSON, GOOD, REFUSED] {
        let mode = fs::metadata(machine.root.path(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
    let record = String::from_utf8(machine.reads("/var/lib/sysvm/line.json").unwrap()).unwrap();
    assert!(!record.contains("169.254"), "{record}");
}
