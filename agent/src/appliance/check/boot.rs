//! The machine itself: its boot, its boot arguments, units, memory, disk, clock.

use nix::sys::statvfs::statvfs;
use platform::exec::Cmd;

use super::look::{Line, Look};
use super::{Finding, RUN_LIMIT};
use crate::appliance::progress::{self, Entry, Outcome as Went, Step};

/// MiB of disk that must be free for what hosts upload (§7.5).
const DISK_WANTED: u64 = 300;
/// MiB of disk below which nothing works.
const DISK_NEEDED: u64 = 50;
/// MiB of memory below which the next program may be killed.
const MEMORY_NEEDED: u64 = 16;
/// MiB of memory that should be there for a burst.
const MEMORY_WANTED: u64 = 40;

/// What to do about boot arguments that make no sense.
const WRONG: &str = "the management server made them: correct its settings and restart this VM";

pub(super) fn boot(look: &Look) -> Vec<Finding> {
    let entries = progress::read(&look.root);
    if progress::is_ready(&entries) && progress::problem(&entries).is_none() {
        let at = entries.iter().map(|entry| entry.at_ms).max().unwrap_or_default();
        return vec![Finding::ok(
            "boot",
            format!("ready {}.{} s after its start", at / 1000, at % 1000 / 100),
        )];
    }
    let Some(problem) = progress::problem(&entries) else {
        return vec![match entries.last() {
            Some(last) => Finding::warning(
                "boot",
                format!("still under way: {}", last.step.name()),
                "wait a moment; `journalctl -b` says what takes so long",
            ),
            None => Finding::error(
                "boot",
                "has not begun",
                "look at `systemctl status cs-preinit`: its program does not run",
            ),
        }];
    };
    let Entry {
        step, outcome, detail, ..
    } = problem;
    let name = step.name();
    let (what, todo) = match outcome {
        Went::Waiting => (
            format!("waits for {name}: {detail}"),
            "give it what it waits for; it goes on by itself",
        ),
        _ => (
            format!("{name} failed: {detail}"),
            "correct it, then `systemctl restart cs-preinit cs-setup`",
        ),
    };
    vec![Finding::error("boot", what, todo)]
}

pub(super) fn line(look: &Look) -> Vec<Finding> {
    match look.line() {
        // One that makes no sense does not stay where good ones are.
        Line::Missing if let Some(refused) = refused(look) => vec![Finding::error("line", refused, WRONG)],
        Line::Missing => vec![Finding::error(
            "line",
            "the host has not given any boot arguments",
            "see on the host whether it reaches the guest agent (KVM), xenstore (XenServer) or machine.id (VMware)",
        )],
        Line::Bad(problems) => problems
            .iter()
            .map(|problem| Finding::error("line", problem, WRONG))
            .collect(),
        Line::Good(vm) => {
            let nics = vm.machine.nics.len();
            vec![Finding::ok("line", format!("type={}, {nics} NICs", vm.vm_type()))]
        }
    }
}

/// What is wrong with boot arguments that were refused.
fn refused(look: &Look) -> Option<String> {
    let mut entries = progress::read(&look.root).into_iter();
    let failed = entries.find(|entry| entry.step == Step::Arguments && entry.outcome == Went::Failed);
    failed.map(|entry| entry.detail)
}

pub(super) async fn units() -> Vec<Finding> {
    let list = [
        "list-units",
        "--state=failed",
        "--all",
        "--plain",
        "--no-legend",
        "--no-pager",
    ];
    let output = Cmd::new("systemctl").args(list).time_limit(RUN_LIMIT).run().await;
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            let error = platform::logging::chain(&error).to_string();
            return vec![Finding::warning(
                "units",
                error,
                "is systemd there? `agent check` is for system VMs",
            )];
        }
    };
    let failed: Vec<Finding> = text
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(|unit| {
            let todo = format!("`systemctl status {unit}` and `journalctl -b -u {unit}` say why");
            Finding::error("units", "has failed", todo).about(unit)
        })
        .collect();
    if failed.is_empty() {
        return vec![Finding::ok("units", "none has failed")];
    }
    failed
}

pub(super) fn memory(look: &Look) -> Vec<Finding> {
    let text = look.proc("/proc/meminfo");
    let (Some(total), Some(available)) = (mib(&text, "MemTotal"), mib(&text, "MemAvailable")) else {
        return vec![Finding::warning(
            "memory",
            "the kernel does not tell",
            "is /proc mounted?",
        )];
    };
    let what = format!("{available} of {total} MiB are available");
    let todo = "give this VM a larger system offering, or see with `systemd-cgtop -m` who takes it";
    vec![if available < MEMORY_NEEDED {
        Finding::error("memory", what, todo)
    } else if available < MEMORY_WANTED {
        Finding::warning("memory", what, todo)
    } else {
        Finding::ok("memory", what)
    }]
}

/// A line of `/proc/meminfo`, which counts KiB.
fn mib(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

pub(super) fn disk(look: &Look) -> Vec<Finding> {
    let status = match statvfs(&look.root.path("/")) {
        Ok(status) => status,
        Err(error) => {
            return vec![Finding::error(
                "disk",
                format!("/ cannot be read: {error}"),
                "restart this VM",
            )];
        }
    };
    // Not what this process may do there: it may run in a sandbox.
    if is_read_only(&look.proc("/proc/self/mountinfo")) {
        let todo = "the storage below it had an error: see `journalctl -k`, then restart this VM";
        return vec![Finding::error("disk", "/ is read-only", todo)];
    }
    let free = (status.blocks_available() * status.fragment_size()) >> 20;
    let what = format!("{free} MiB are free on /");
    let todo = "see with `du -xh -d 2 / | sort -h` what takes it; hosts upload up to 300 MiB";
    vec![if free < DISK_NEEDED {
        Finding::error("disk", what, todo)
    } else if free < DISK_WANTED {
        Finding::warning("disk", what, todo)
    } else {
        Finding::ok("disk", what)
    }]
}

/// Whether the kernel has given up writing to the root file system: the options of its super block, which are the last word of
/// a line of mountinfo. proc_pid_mountinfo(5).
fn is_read_only(mounts: &str) -> bool {
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    let options = root.and_then(|line| line.split(' ').next_back());
    options.is_some_and(|options| options.split(',').any(|option| option == "ro"))
}

pub(super) async fn time() -> Vec<Finding> {
    let asked = Cmd::new("chronyc")
        .args(["-n", "-c", "tracking"])
        .time_limit(RUN_LIMIT)
        .run()
        .await;
    let Ok(output) = asked else {
        let todo = "`systemctl status chrony` says why; certificates need a clock that is right";
        return vec![Finding::warning("time", "chrony does not answer", todo)];
    };
    vec![tracked(&String::from_utf8_lossy(&output.stdout))]
}

/// What `chronyc -c tracking` prints, one line: chronyc(1), in the order in which it is printed without `-c`.
fn tracked(text: &str) -> Finding {
    let fields: Vec<&str> = text.trim().split(',').collect();
    let [_id, source, _stratum, _reference, offset, .., leap] = fields.as_slice() else {
        return Finding::warning(
            "time",
            "chronyc prints what is not known here",
            "see `chronyc tracking`",
        );
    };
    if *leap == "Not synchronised" {
        let todo = "see `chronyc sources`: are the servers of `ntpserverlist` right and reachable?";
        return Finding::warning("time", "the clock is not synchronised", todo);
    }
    let offset: f64 = offset.parse().unwrap_or_default();
    Finding::ok("time", format!("follows {source}, {:.1} ms off", offset.abs() * 1000.0))
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use crate::appliance::progress::Progress;
    use crate::appliance::root::{LINE, RUN, Root};

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        std::fs::create_dir_all(root.path(RUN)).unwrap();
        std::fs::create_dir_all(root.path(LINE).parent().unwrap()).unwrap();
        (directory, root)
    }

    #[test]
    fn a_boot_is_good_only_when_all_of_it_is() {
        let (_directory, root) = root();
        let found = |root: &Root| boot(&Look::at(root)).remove(0);
        assert_eq!(found(&root).what, "has not begun");
        let mut progress = Progress::new(&root, "boot");
        progress.set(Step::Line, Went::Waiting, "no line on any channel");
        let waits = found(&root);
        assert_eq!(waits.outcome, Outcome::Error);
        assert_eq!(waits.what, "waits for boot arguments: no line on any channel");
        progress.set(Step::Line, Went::Done, "");
        progress.set(Step::Network, Went::Running, "");
        assert_eq!(found(&root).outcome, Outcome::Warning);
        progress.set(Step::Network, Went::Failed, "eth1 is not there");
        progress.set(Step::Ready, Went::Done, "");
        assert_eq!(found(&root).what, "network failed: eth1 is not there");
        progress.set(Step::Network, Went::Done, "");
        assert_eq!(found(&root).outcome, Outcome::Ok);
    }

    #[test]
    fn every_problem_of_the_line_is_told() {
        let (_directory, root) = root();
        assert_eq!(
            line(&Look::at(&root))[0].what,
            "the host has not given any boot arguments"
        );
        let text = "type=router eth0ip=10.1.1.300 gateway=x";
        let _ = platform::files::replace(root.path(LINE), text, 0o600).unwrap();
        let problems = line(&Look::at(&root));
        assert!(problems.len() >= 2, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.outcome == Outcome::Error));
        let _ = platform::files::replace(root.path(LINE), "type=router eth0ip=10.1.1.1 eth0mask=24", 0o600).unwrap();
        assert_eq!(line(&Look::at(&root)), [Finding::ok("line", "type=router, 1 NICs")]);
    }

    #[test]
    fn a_line_that_was_refused_is_told_from_none() {
        let (_directory, root) = root();
        Progress::new(&root, "boot").set(Step::Arguments, Went::Failed, "host: missing");
        assert_eq!(line(&Look::at(&root))[0].what, "host: missing");
    }

    #[test]
    fn only_the_kernels_own_word_makes_a_disk_read_only() {
        let root = "22 1 254:1 / / ro,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n";
        let other = "23 22 0:5 / /proc rw - proc proc rw\n";
        assert!(!is_read_only(&format!("{root}{other}")), "a sandbox");
        assert!(is_read_only(&root.replace("rw,errors", "ro,errors")));
        assert!(!is_read_only(""));
    }

    #[test]
    fn memory_is_judged_by_what_is_available() {
        let (_directory, root) = root();
        std::fs::create_dir_all(root.path("/proc")).unwrap();
        let outcome = |available: u64| {
            let text = format!("MemTotal: 503316 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n");
            let _ = platform::files::replace(root.path("/proc/meminfo"), text, 0o600).unwrap();
            memory(&Look::at(&root)).remove(0).outcome
        };
        assert_eq!(outcome(10 << 10), Outcome::Error);
        assert_eq!(outcome(30 << 10), Outcome::Warning);
        assert_eq!(outcome(300 << 10), Outcome::Ok);
    }

    #[test]
    fn chronys_words_are_understood() {
        // Captured from chrony 4.6.
        let synchronised = "A9FEA97B,169.254.169.123,4,1754478123.467,0.000123456,-0.000000312,0.000012,-6.1,0.01,0.05,0.0003,0.0002,64.5,Normal\n";
        assert_eq!(tracked(synchronised).what, "follows 169.254.169.123, 0.1 ms off");
        let alone = "00000000,,0,0.000000000,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,1.000000000,1.000000000,0.0,Not synchronised\n";
        assert_eq!(tracked(alone).outcome, Outcome::Warning);
        assert_eq!(tracked("").outcome, Outcome::Warning);
    }
}
