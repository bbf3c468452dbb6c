//! `getRouterMonitorResults.sh`: whether a virtual router is well (§8.3, router.md §4.16).
//!
//! The names of the checks are those of the original's scripts, because servers know them: one that fails may have its router
//! destroyed. A check that cannot know says so, and never that something is wrong.

mod checks;
mod data;
mod services;

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use platform::files::{self, FileError};
use platform::logging::chain;
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

use self::data::Data;
use super::Reply;
use crate::appliance::root::Root;

/// More than the results of 10,000 checks.
const MAX_RESULTS: u64 = 4 << 20;

/// One of the two sets of checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Basic,
    Advanced,
}

impl Part {
    const ALL: [Self; 2] = [Self::Basic, Self::Advanced];

    fn name(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Advanced => "advanced",
        }
    }

    fn results(self, root: &Root) -> PathBuf {
        root.path(format!("/root/{}_monitor_results.json", self.name()))
    }

    fn failing(self, root: &Root) -> PathBuf {
        root.path(format!("/root/{}_failing_health_checks", self.name()))
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verdict {
    Success,
    Failed,
    Warning,
    Unknown,
}

/// A verdict, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    verdict: Verdict,
    message: String,
}

impl Outcome {
    fn of(verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            verdict,
            message: message.into(),
        }
    }
}

/// A check that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Checked {
    name: String,
    is_service: bool,
    outcome: Outcome,
    at: OffsetDateTime,
    took: Duration,
}

/// `getRouterMonitorResults.sh true|false`: with `true`, all checks are run now.
pub(super) async fn answer(root: &Root, args: &[String]) -> Reply {
    if args.first().is_some_and(|word| word == "true") {
        let data = Data::read(root);
        for part in Part::ALL {
            let started = (OffsetDateTime::now_utc(), Instant::now());
            let checked = run(root, &data, part).await;
            if let Err(error) = write(root, part, &checked, started) {
                return Reply::failed(1, chain(&error).to_string());
            }
        }
    }
    Reply::ok(text(root))
}

async fn run(root: &Root, data: &Data, part: Part) -> Vec<Checked> {
    let mut checked = Vec::new();
    if part == Part::Basic {
        for service in services::configured(root) {
            let (at, started) = (OffsetDateTime::now_utc(), Instant::now());
            let outcome = services::check(root, &service).await;
            checked.push(Checked {
                name: format!("{}.service", service.name),
                is_service: true,
                outcome,
                at,
                took: started.elapsed(),
            });
        }
    }
    if data.is_enabled {
        let names: &[&str] = match part {
            Part::Basic => &checks::BASIC,
            Part::Advanced => &checks::ADVANCED,
        };
        for name in names
            .iter()
            .filter(|name| !data.excluded.iter().any(|excluded| excluded == *name))
        {
            let (at, started) = (OffsetDateTime::now_utc(), Instant::now());
            checked.push(Checked {
                name: (*name).to_owned(),
                is_service: false,
                outcome: checks::run(root, data, name).await,
                at,
                took: started.elapsed(),
            });
        }
    }
    checked
}

/// Services fail unless they succeed; other checks only when they say so.
fn failing(checked: &[Checked]) -> Vec<&str> {
    let fails = |checked: &&Checked| match checked.outcome.verdict {
        Verdict::Success => false,
        Verdict::Failed => true,
        Verdict::Warning | Verdict::Unknown => checked.is_service,
    };
    checked
        .iter()
        .filter(fails)
        .map(|checked| checked.name.as_str())
        .collect()
}

fn results(checked: &[Checked], start: OffsetDateTime, duration: Duration) -> Map<String, Value> {
    let stamp = |at: OffsetDateTime| {
        let shape = format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]");
        Value::String(at.format(shape).expect("a time has all these parts"))
    };
    let text = |value: String| Value::String(value);
    let mut results = Map::new();
    for check in checked {
        let entry = [
            (
                "success",
                serde_json::to_value(check.outcome.verdict).expect("plain data"),
            ),
            (
                "lastUpdate",
                text((check.at.unix_timestamp_nanos() / 1_000_000).to_string()),
            ),
            ("lastRunDuration", text(check.took.as_millis().to_string())),
            ("message", text(check.outcome.message.clone())),
        ];
        let entry = entry.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        results.insert(check.name.clone(), Value::Object(entry));
    }
    let last = [
        ("start", stamp(start)),
        ("end", stamp(start + duration)),
        ("duration", text(format!("{:.6}", duration.as_secs_f64()))),
    ];
    let last = last.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    results.insert("lastRun".to_owned(), Value::Object(last));
    results
}

fn write(root: &Root, part: Part, checked: &[Checked], started: (OffsetDateTime, Instant)) -> Result<(), FileError> {
    let results = results(checked, started.0, started.1.elapsed());
    let json = serde_json::to_vec(&results).expect("plain data");
    let _changed = files::replace(part.results(root), json, 0o644)?;
    let (path, failing) = (part.failing(root), failing(checked));
    if !failing.is_empty() {
        return files::replace(path, failing.join(",") + "\n", 0o644).map(drop);
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(FileError::Io {
            operation: "delete",
            path,
            source: error,
        }),
        _ => Ok(()),
    }
}

/// What the last runs have left, as the server reads it.
fn text(root: &Root) -> String {
    let read = |path: PathBuf| {
        let bytes = files::read_limited(path, MAX_RESULTS)
            .ok()
            .flatten()
            .unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    let mut text = "FAILING CHECKS:\n".to_owned();
    for part in Part::ALL {
        let failing = read(part.failing(root));
        if !failing.is_empty() {
            text += &failing;
            text.push('\n');
        }
    }
    let [basic, advanced] = Part::ALL.map(|part| {
        let results = read(part.results(root));
        // What is no JSON would spoil the other half, too.
        let is_good = serde_json::from_str::<Map<String, Value>>(&results).is_ok();
        if is_good { results } else { "{}".to_owned() }
    });
    text + &format!("MONITOR RESULTS:\n{{\"basic\":\n{basic}\n,\"advanced\":\n{advanced}\n}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// apache/cloudstack VirtualRoutingResource, parseLinesForHealthChecks: what is between the two headings is split at
    /// commas, what is after the second is JSON.
    fn as_the_server(text: &str) -> (Vec<String>, Value) {
        let (mut failing, mut json, mut heading) = (Vec::new(), String::new(), 0);
        for line in text.lines() {
            match line.trim() {
                "FAILING CHECKS:" => heading = 1,
                "MONITOR RESULTS:" => heading = 2,
                line if heading == 1 => failing.extend(line.split(',').map(str::to_owned)),
                line if heading == 2 => json += line,
                line => panic!("{line:?} is before the headings"),
            }
        }
        (failing, serde_json::from_str(&json).unwrap())
    }

    fn vm(data: &str) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for directory in ["root", "etc/haproxy", "var/log", "var/cache/cloud", "proc"] {
            fs::create_dir_all(root.path(directory)).unwrap();
        }
        let _ = files::replace(root.path("/root/health_checks_data.json"), data, 0o600).unwrap();
        (directory, root)
    }

    #[tokio::test]
    async fn a_router_that_was_told_nothing_has_results() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        fs::create_dir(root.path("root")).unwrap();
        let before = answer(&root, &["false".to_owned()]).await;
        assert_eq!(
            before,
            Reply::ok("FAILING CHECKS:\nMONITOR RESULTS:\n{\"basic\":\n{}\n,\"advanced\":\n{}\n}\n")
        );
        let after = answer(&root, &["true".to_owned()]).await;
        let (failing, results) = as_the_server(&String::from_utf8(after.stdout).unwrap());
        assert_eq!(failing, [""; 0]);
        for part in ["basic", "advanced"] {
            let keys: Vec<_> = results[part].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["lastRun"]);
            assert!(
                results[part]["lastRun"]["duration"]
                    .as_str()
                    .unwrap()
                    .parse::<f64>()
                    .is_ok()
            );
            assert_eq!(
                results[part]["lastRun"]["start"].as_str().unwrap().len(),
                "2026-08-01 12:00:00.123456".len()
            );
        }
    }

    #[tokio::test]
    async fn failed_checks_are_named_and_all_results_are_there() {
        let (_directory, root) = vm(
            r#"{"health_checks_enabled":true,"excluded_health_checks":["gateways_check.py"],"health_checks_config":{
            "systemThresholds":"minDiskNeeded=999999999999.0,maxMemoryUsage=100.0;",
            "virtualMachines":"vmName=web-1,macAddress=02:01:00:cc:00:11,ip=10.1.1.11,dhcp=true,dns=true;"}}"#,
        );
        let _ = files::replace(
            root.path("/etc/dhcphosts.txt"),
            "02:01:00:cc:00:11,10.1.1.11,web-1,infinite\n",
            0o644,
        )
        .unwrap();
        let _ = files::replace(root.path("/etc/hosts"), "127.0.0.1\tlocalhost\n", 0o644).unwrap();
        let _ = files::replace(
            root.path("/proc/meminfo"),
            "MemTotal: 1000 kB\nMemAvailable: 400 kB\n",
            0o644,
        )
        .unwrap();
        let answer = answer(&root, &["true".to_owned()]).await;
        let (failing, results) = as_the_server(&String::from_utf8(answer.stdout).unwrap());
        assert_eq!(failing, ["disk_space_check.py", "dns_check.py"]);
        let verdicts = |part: &str| {
            let part = results[part].as_object().unwrap().iter();
            part.filter(|(name, _)| *name != "lastRun")
                .map(|(name, entry)| {
                    for number in ["lastUpdate", "lastRunDuration"] {
                        assert!(entry[number].as_str().unwrap().parse::<u64>().is_ok(), "{entry}");
                    }
                    assert!(!entry["message"].as_str().unwrap().is_empty());
                    (name.clone(), entry["success"].as_str().unwrap().to_owned())
                })
                .collect::<Vec<_>>()
        };
        let wanted = |names: &[(&str, &str)]| {
            let owned = names
                .iter()
                .map(|(name, verdict)| ((*name).to_owned(), (*verdict).to_owned()));
            owned.collect::<Vec<_>>()
        };
        assert_eq!(
            verdicts("basic"),
            wanted(&[
                ("cpu_usage_check.py", "UNKNOWN"),
                ("disk_space_check.py", "FAILED"),
                ("memory_usage_check.py", "SUCCESS"),
                ("router_version_check.py", "SUCCESS"),
            ])
        );
        assert_eq!(
            verdicts("advanced"),
            wanted(&[
                ("dhcp_check.py", "SUCCESS"),
                ("dns_check.py", "FAILED"),
                ("haproxy_check.py", "SUCCESS"),
                ("iptables_check.py", "SUCCESS"),
            ])
        );
        // Without being asked to run them, the same is answered.
        let again = super::answer(&root, &["false".to_owned()]).await;
        assert_eq!(as_the_server(&String::from_utf8(again.stdout).unwrap()).1, results);
    }
}
