//! All tests of the workspace. cargo builds them; their programs are run here, those that mostly wait beside the others, and
//! those with VMs after them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use platform::exec::Cmd;
use serde::Deserialize;

use crate::must_succeed;

/// Of one program. The longest, with VMs, takes a third of it.
const TIME_LIMIT: Duration = Duration::from_mins(30);
/// For cargo to compile all of them.
const BUILD_LIMIT: Duration = Duration::from_mins(30);
/// Programs in the table at the end.
const SHOWN: usize = 10;

/// Tests of these names boot VMs: the longest first. One after another: each uses all processors while a VM boots.
const WITH_VMS: [&str; 12] = [
    "adopted",
    "checklist",
    "power_cut",
    "zone_chaos",
    "zone_vms",
    "image_boot",
    "image_matrix",
    "upgrade",
    "nfs",
    "set_up",
    "guest_channel",
    "image_services",
];
/// Those of these names mostly wait.
const WAITING: [&str; 4] = ["faults", "downloads", "consoles", "endurance"];

/// A program with tests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    /// As people know it: `ssvm downloads`.
    name: String,
    /// Of the file with the tests, or of the crate.
    target: String,
    /// Where cargo would run it.
    directory: PathBuf,
    executable: PathBuf,
}

/// What became of one.
struct Ran {
    name: String,
    elapsed: Duration,
    is_ok: bool,
}

/// Runs everything, prints what each program prints when it has ended, and the longest at the end. With
/// `REQUIRE_ALL_TESTS` a test that lacks something on this machine fails instead of passing.
pub(crate) async fn run() -> anyhow::Result<()> {
    let programs = build().await?;
    ensure!(!programs.is_empty(), "cargo has built no tests");
    let lanes = lanes(programs);
    let [vms, waiting, rest] = lanes.each_ref().map(|lane| run_lane(lane));
    // VMs without KVM take all processors, and what has a time limit would fail beside them.
    let (waiting, rest) = tokio::join!(waiting, rest);
    let mut ran: Vec<_> = [waiting?, rest?, vms.await?].into_iter().flatten().collect();
    ran.sort_by_key(|ran| std::cmp::Reverse(ran.elapsed));
    eprint!("\n{}", table(&ran));

    // Examples in documentation are compiled when they are run.
    let examples = must_succeed(&Cmd::new("cargo").args(["test", "--workspace", "--doc", "--quiet"])).await;
    let failed: Vec<_> = ran
        .iter()
        .filter(|ran| !ran.is_ok)
        .map(|ran| ran.name.as_str())
        .collect();
    match (failed.is_empty(), examples) {
        (true, examples) => examples,
        (false, _) => bail!("tests failed in: {}", failed.join(", ")),
    }
}

/// Compiles all tests; where the programs are.
async fn build() -> anyhow::Result<Vec<Program>> {
    let build = Cmd::new("cargo")
        .args([
            "test",
            "--workspace",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ])
        .time_limit(BUILD_LIMIT);
    eprintln!("$ {build}");
    let messages = build.run().await?.text();
    messages.lines().filter_map(|line| program(line).transpose()).collect()
}

/// The program that a message of cargo tells of; `None` when it tells of something else.
fn program(message: &str) -> anyhow::Result<Option<Program>> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        manifest_path: Option<PathBuf>,
        target: Option<Target>,
        profile: Option<Profile>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let message: Message = serde_json::from_str(message).with_context(|| format!("cargo says {message:?}"))?;
    if message.reason != "compiler-artifact" || !message.profile.is_some_and(|profile| profile.test) {
        return Ok(None);
    }
    let (Some(target), Some(manifest), Some(executable)) = (message.target, message.manifest_path, message.executable)
    else {
        return Ok(None);
    };
    let directory = manifest.parent().context("a manifest is in a directory")?.to_owned();
    let package = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Some(Program {
        name: format!("{package} {}", target.name),
        target: target.name,
        directory,
        executable,
    }))
}

/// With VMs, mostly waiting, the rest; the first two in the order of their lists.
fn lanes(programs: Vec<Program>) -> [Vec<Program>; 3] {
    let mut lanes = [Vec::new(), Vec::new(), Vec::new()];
    for program in programs {
        let is_in = |list: &[&str]| list.contains(&program.target.as_str());
        let lane = [is_in(&WITH_VMS), is_in(&WAITING), true].iter().position(|fits| *fits);
        lanes[lane.unwrap_or_default()].push(program);
    }
    for (lane, order) in lanes.iter_mut().zip([WITH_VMS.as_slice(), &WAITING]) {
        lane.sort_by_key(|program| order.iter().position(|name| *name == program.target));
    }
    lanes
}

/// One after another.
async fn run_lane(programs: &[Program]) -> anyhow::Result<Vec<Ran>> {
    let mut ran = Vec::new();
    for program in programs {
        ran.push(program.run().await?);
    }
    Ok(ran)
}

impl Program {
    /// Runs it where and as cargo would, and prints what it printed.
    async fn run(&self) -> anyhow::Result<Ran> {
        let directory = tempfile::tempdir().context("making a directory for what tests print")?;
        let log = directory.path().join("log");
        let command = Cmd::new("setpriv")
            .args(["--pdeathsig", "KILL"]) // it ends with us, however we end
            .arg("env")
            .arg(format!("--chdir={}", self.directory.display()))
            .arg(&self.executable)
            .env("CARGO_MANIFEST_DIR", &self.directory)
            .env("REQUIRE_ALL_TESTS", "1");
        let started = Instant::now();
        let mut running = command.spawn(&log)?;
        let status = tokio::time::timeout(TIME_LIMIT, running.wait()).await;
        let elapsed = started.elapsed();
        let (is_ok, how) = match status {
            Ok(status) => {
                let status = status?;
                (status.success(), status.to_string())
            }
            Err(_) => (false, format!("still running after {TIME_LIMIT:?}")),
        };
        drop(running); // with all that it has started
        let printed = std::fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
        eprintln!(
            "\n--- {} ({}, {:.1} s, {how})\n{}",
            self.name,
            shown(&self.executable),
            elapsed.as_secs_f64(),
            String::from_utf8_lossy(&printed).trim()
        );
        Ok(Ran {
            name: self.name.clone(),
            elapsed,
            is_ok,
        })
    }
}

fn shown(executable: &Path) -> String {
    let name = executable.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn table(ran: &[Ran]) -> String {
    let mut table = format!("{:<32} {:>9}  result\n", "tests", "time");
    for Ran { name, elapsed, is_ok } in ran
        .iter()
        .take(SHOWN)
        .chain(ran.iter().skip(SHOWN).filter(|ran| !ran.is_ok))
    {
        let result = if *is_ok { "ok" } else { "FAILED" };
        let _ = writeln!(table, "{name:<32} {:>7.1} s  {result}", elapsed.as_secs_f64());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/ssvm#0.1.0","manifest_path":"/w/ssvm/Cargo.toml","target":{"kind":["test"],"name":"downloads","src_path":"/w/ssvm/tests/downloads/main.rs"},"profile":{"opt_level":"0","test":true},"features":[],"filenames":["/w/target/debug/deps/downloads-1"],"executable":"/w/target/debug/deps/downloads-1","fresh":true}"#;

    fn named(target: &str) -> Program {
        Program {
            name: format!("x {target}"),
            target: target.to_owned(),
            directory: "/w/x".into(),
            executable: "/w/target/debug/deps/x-1".into(),
        }
    }

    #[test]
    fn cargo_says_which_programs_have_tests() {
        let wanted = Program {
            name: "ssvm downloads".to_owned(),
            target: "downloads".to_owned(),
            directory: "/w/ssvm".into(),
            executable: "/w/target/debug/deps/downloads-1".into(),
        };
        assert_eq!(program(BUILT).unwrap(), Some(wanted));
        for other in [
            BUILT.replace("\"test\":true", "\"test\":false"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ] {
            assert_eq!(program(&other).unwrap(), None);
        }
        assert!(program("Compiling ssvm").is_err());
    }

    #[test]
    fn what_boots_vms_runs_alone_of_its_kind_and_in_the_order_of_the_list() {
        let programs = ["ssvm", "image_boot", "faults", "checklist"].map(named);
        let targets = lanes(programs.to_vec()).map(|lane| lane.into_iter().map(|one| one.target).collect::<Vec<_>>());
        assert_eq!(targets, [vec!["checklist", "image_boot"], vec!["faults"], vec!["ssvm"]]);
    }

    #[test]
    fn the_table_has_the_longest_and_whatever_failed() {
        let ran = |seconds, is_ok| Ran {
            name: format!("x {seconds}"),
            elapsed: Duration::from_secs(seconds),
            is_ok,
        };
        let mut all: Vec<_> = (1..=12).rev().map(|seconds| ran(seconds, true)).collect();
        all.push(ran(0, false));
        let table = table(&all);
        assert_eq!(table.lines().count(), 1 + SHOWN + 1);
        assert!(
            table.ends_with("x 0                                  0.0 s  FAILED\n"),
            "{table}"
        );
    }
}
