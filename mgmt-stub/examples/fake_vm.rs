//! A system VM for tests of the process driver: a real agent behind the real command line, whose work is pretended.
//!
//! `fake_vm --boot-args FILE --settings FILE`, as `ssvm` and `console-proxy`. Downloads go on by 10 % with each
//! question, and do what the last part of their URL says: `ok…`, `fail…` (once, twice, … then ok), `never…`, `missing…`,
//! `hang…`. A job is remembered in a file, as a real SSVM's journal.

#![expect(clippy::unwrap_used, clippy::panic, reason = "it is a test's")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use agent::agent::Agent;
use agent::config::{Config, Facts, Timing};
use agent::service::Service;
use platform::files;
use protocol::answer::Answer;
use protocol::boot::{BootArgs, SystemVm};
use protocol::command::{Command, CommandBody};
use protocol::console_proxy::AllowConsoleAccessCommand;
use protocol::secondary_storage::{
    DownloadAnswer, DownloadCommand, DownloadRequest, DownloadStatus, GetStorageStatsAnswer, ListTemplateAnswer,
    ListVolumeAnswer, SecStorageSetupAnswer,
};
use protocol::transfer::DataTO;

struct Fake {
    state: PathBuf,
    /// Percent by job.
    jobs: Mutex<HashMap<String, i64>>,
}

impl Fake {
    fn note(&self, line: &str) {
        let path = self.state.join("seen");
        let mut seen = std::fs::read_to_string(&path).unwrap_or_default();
        seen.push_str(line);
        seen.push('\n');
        let _ = files::replace(&path, seen, 0o600).unwrap();
    }

    fn save(&self, jobs: &HashMap<String, i64>) {
        let _ = files::replace(self.state.join("jobs"), serde_json::to_string(jobs).unwrap(), 0o600).unwrap();
    }

    fn download(&self, download: &DownloadCommand, job: Option<&str>, request: Option<DownloadRequest>) -> Answer {
        let url = download.url.clone().unwrap();
        let wish = url.rsplit('/').next().unwrap().to_owned();
        let mut jobs = self.jobs.lock().unwrap();
        let job = match (job, request) {
            (Some(job), Some(DownloadRequest::GetOrRestart)) if !jobs.contains_key(job) => format!("{job}-again"),
            (Some(job), _) => job.to_owned(),
            (None, _) => format!("job-{}-{}", download.id, jobs.len()),
        };
        self.note(&format!(
            "{} {job}",
            request.map_or("DOWNLOAD".to_owned(), |request| format!("{request:?}"))
        ));
        if matches!(request, Some(DownloadRequest::Purge | DownloadRequest::Abort)) {
            jobs.remove(&job);
            self.save(&jobs);
            return Answer::success();
        }
        let fails: usize = wish
            .strip_prefix("fail")
            .and_then(|count| count[..1].parse().ok())
            .unwrap_or(0);
        let failed = std::fs::read_to_string(self.state.join(&wish)).unwrap_or_default();
        let (status, error) = if wish.starts_with("missing") {
            let text = format!(" HTTP Server returned 404 (expected 200 OK) ({url})");
            (DownloadStatus::DownloadError, text)
        } else if wish.starts_with("never") || failed.len() < fails {
            let _ = files::replace(self.state.join(&wish), failed + "x", 0o600).unwrap();
            let text = format!(" HTTP Server returned 503 (expected 200 OK) ({url})");
            (DownloadStatus::DownloadError, text)
        } else {
            let percent = jobs.entry(job.clone()).or_default();
            *percent = (*percent + 10).min(if wish.starts_with("hang") { 50 } else { 100 });
            match *percent {
                100 => (DownloadStatus::Downloaded, "Install completed successfully".to_owned()),
                _ => (DownloadStatus::DownloadInProgress, String::new()),
            }
        };
        let percent = jobs.get(&job).copied().unwrap_or_default();
        self.save(&jobs);
        let directory = download.install_path.clone().unwrap();
        let is_done = status == DownloadStatus::Downloaded;
        Answer::new(DownloadAnswer {
            job_id: Some(job),
            download_pct: percent,
            error_string: Some(error),
            download_status: Some(status),
            install_path: Some(if is_done {
                format!("{directory}/image.qcow2")
            } else {
                directory
            }),
            template_size: if is_done { 10_485_760 } else { 0 },
            // The answer to the first question counts no bytes (ssvm.md §3.6).
            template_physical_size: if is_done || request.is_some() {
                percent * 1000
            } else {
                0
            },
            ..DownloadAnswer::default()
        })
    }
}

impl Service for Fake {
    async fn execute(&self, command: Command) -> Option<Answer> {
        Some(match command.body {
            CommandBody::SecStorageSetup(_) => Answer::new(SecStorageSetupAnswer {
                dir: Some("5eda6d4d-6968-33f9-bc69-d9d54e240213".into()),
            }),
            CommandBody::SecStorageVMSetup(setup) => {
                self.note(&format!(
                    "SITES {}",
                    setup.allowed_internal_sites.unwrap_or_default().join(",")
                ));
                Answer::success()
            }
            CommandBody::ListTemplate(_) => Answer::new(ListTemplateAnswer::default()),
            CommandBody::ListVolume(_) => Answer::new(ListVolumeAnswer::default()),
            CommandBody::GetStorageStats(_) => Answer::new(GetStorageStatsAnswer {
                used_bytes: 1 << 30,
                capacity_bytes: 10 << 30,
                ..GetStorageStatsAnswer::default()
            }),
            CommandBody::Download(download) => self.download(&download, None, None),
            CommandBody::DownloadProgress(progress) => {
                self.download(&progress.download, progress.job_id.as_deref(), progress.request)
            }
            CommandBody::AllowConsoleAccess(AllowConsoleAccessCommand { session_uuid }) => {
                self.note(&format!("ALLOW {}", session_uuid.unwrap_or_default()));
                Answer::success()
            }
            CommandBody::Delete(delete) => {
                let path = match delete.data {
                    Some(DataTO::Template(template)) => template.path,
                    _ => None,
                };
                self.note(&format!("DELETE {}", path.unwrap_or_default()));
                Answer::success()
            }
            CommandBody::StartConsoleProxyAgentHttpHandler(start) => {
                let is_checked = start.is_source_ip_check_enabled.unwrap_or(false);
                self.note(&format!("SOURCE IP CHECK {is_checked}"));
                Answer::success()
            }
            CommandBody::SecStorageFirewallCfg(_) => Answer::success(),
            _ => return None,
        })
    }
}

#[tokio::main]
async fn main() {
    platform::logging::init();
    platform::crypto::install();
    let words: Vec<String> = std::env::args().collect();
    let [_, boot_args_word, boot_args, settings_word, settings] = words.as_slice() else {
        panic!("unexpected command line: {words:?}");
    };
    assert_eq!(
        (boot_args_word.as_str(), settings_word.as_str()),
        ("--boot-args", "--settings")
    );
    let vm = SystemVm::parse(&BootArgs::parse(std::fs::read(boot_args).unwrap()).unwrap()).unwrap();
    let settings: toml::Table = std::fs::read_to_string(settings).unwrap().parse().unwrap();
    let path = |name: &str| settings.get(name).map(|value| PathBuf::from(value.as_str().unwrap()));
    let state = path("state_dir").unwrap();
    let keys = path("agent_dir").unwrap_or_else(|| state.clone());
    if Path::new(&state).join("fail-to-start").exists() {
        tracing::error!("Told to fail");
        std::process::exit(3);
    }
    let facts = Facts {
        host_name: "fake",
        arch: "x86_64",
        version: "0.1.0",
        mac_of: &|_| None,
    };
    let mut config = Config::from_boot(&vm, &facts, keys).unwrap();
    config.system_ca = None;
    config.timing = Timing {
        backoff: std::time::Duration::from_millis(100),
        longest_backoff: std::time::Duration::from_millis(500),
        ..Timing::default()
    };
    let jobs = std::fs::read_to_string(state.join("jobs")).unwrap_or_else(|_| "{}".into());
    let fake = Fake {
        jobs: Mutex::new(serde_json::from_str(&jobs).unwrap()),
        state,
    };
    let agent = Agent::new(config, |_| fake).unwrap();
    agent.run(platform::shutdown::signal()).await.unwrap();
}
