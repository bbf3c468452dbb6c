//! The real program with a store that is a directory, connected to a [`Controller`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use platform::exec::{Cmd, Running};
use platform::files;
use protocol::secondary_storage::{
    DownloadAnswer, DownloadCommand, DownloadProgressCommand, DownloadRequest, DownloadStatus, ResourceType,
};
use protocol::transfer::ImageFormat;
use tempfile::TempDir;

use crate::fake_controller::{Controller, nfs};

pub(crate) const STORE: &str = "nfs://192.168.10.5/export/secondary";
const LIMIT: Duration = Duration::from_mins(1);

pub(crate) struct Machine {
    pub(crate) controller: Controller,
    pub(crate) store: PathBuf,
    pub(crate) directory: TempDir,
    running: Option<Running>,
    starts: u32,
    /// What the program is started by, and its own path.
    command: Vec<String>,
}

impl Machine {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With more lines of settings.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        std::fs::create_dir(&store).unwrap();
        Self::start_in(directory, store, settings).await
    }

    pub(crate) async fn start_in(directory: TempDir, store: PathBuf, settings: &str) -> Self {
        Self::start_as(directory, store, settings, vec![env!("CARGO_BIN_EXE_ssvm").to_owned()]).await
    }

    /// By another command, whose last word is the program.
    pub(crate) async fn start_as(directory: TempDir, store: PathBuf, settings: &str, command: Vec<String>) -> Self {
        let controller = Controller::start().await;
        let mut text = format!(
            "state_dir = {:?}\nreserve_bytes = 0\n{settings}\n",
            directory.path().join("state")
        );
        write!(text, "[store_map]\n{STORE:?} = {store:?}\n").unwrap();
        let line = format!(
            "type=secstorage name=s-1-VM guid=s-1-VM zone=1 pod=1 host=127.0.0.1 port={} eth2ip=127.0.0.1 \
             eth2mask=255.0.0.0",
            controller.port
        );
        let _ = files::replace(directory.path().join("ssvm.toml"), text, 0o644).unwrap();
        let _ = files::replace(directory.path().join("cmdline"), line, 0o644).unwrap();
        let mut machine = Self {
            controller,
            store,
            directory,
            running: None,
            starts: 0,
            command,
        };
        machine.run().await;
        machine.controller.set_up(STORE, &["127.0.0.1/32"]).await;
        machine
    }

    /// Starts the program and waits until it has connected.
    pub(crate) async fn run(&mut self) {
        let path = |name: &str| self.directory.path().join(name);
        let running = Cmd::new(&self.command[0])
            .args(&self.command[1..])
            .arg("--boot-args")
            .arg(path("cmdline"))
            .arg("--settings")
            .arg(path("ssvm.toml"))
            .env("SYSVM_LOG", "debug")
            .spawn(path("log"))
            .unwrap();
        self.running = Some(running);
        self.starts += 1;
        self.controller.connected(self.starts).await;
    }

    pub(crate) fn pid(&self) -> i32 {
        self.running.as_ref().unwrap().id().unwrap().try_into().unwrap()
    }

    /// As a power cut would.
    pub(crate) async fn kill(&mut self) {
        let mut running = self.running.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(running.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        running.wait().await.unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Asks until the job has ended, as a management server does, but more often.
    pub(crate) async fn ended(&self, command: &DownloadCommand, first: DownloadAnswer) -> DownloadAnswer {
        let started = Instant::now();
        let mut answer = first;
        while answer.download_status == Some(DownloadStatus::DownloadInProgress) {
            assert!(started.elapsed() < LIMIT, "{answer:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer = self.progress(command, &answer, DownloadRequest::GetStatus).await;
        }
        answer
    }

    pub(crate) async fn progress(
        &self,
        command: &DownloadCommand,
        answer: &DownloadAnswer,
        request: DownloadRequest,
    ) -> DownloadAnswer {
        let progress = DownloadProgressCommand {
            job_id: answer.job_id.clone(),
            request: Some(request),
            download: command.clone(),
        };
        self.controller.download(progress).await
    }

    /// A whole download.
    pub(crate) async fn download(&self, command: &DownloadCommand) -> DownloadAnswer {
        let first = self.controller.download(command.clone()).await;
        self.ended(command, first).await
    }

    /// A download that must fail: its text. Nothing of it is left in the store.
    pub(crate) async fn refusal(&self, command: &DownloadCommand) -> String {
        let before = self.tree();
        let answer = self.download(command).await;
        assert_eq!(
            answer.download_status,
            Some(DownloadStatus::DownloadError),
            "{answer:?}"
        );
        assert_eq!(self.tree(), before, "after {answer:?}");
        answer.error_string.unwrap()
    }

    /// Everything in the store but the directories that every store has.
    pub(crate) fn tree(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut directories = vec![self.store.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                found.insert(path.strip_prefix(&self.store).unwrap().to_str().unwrap().to_owned());
                if path.is_dir() {
                    directories.push(path);
                }
            }
        }
        for name in ["lost+found", "snapshots", "template", "template/tmpl", "volumes"] {
            found.remove(name);
        }
        found
    }

    /// Names in the install directory.
    pub(crate) fn files(&self, command: &DownloadCommand) -> Vec<String> {
        let directory = self.store.join(command.install_path.as_deref().unwrap());
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The bytes of an installed image.
    pub(crate) fn image(&self, answer: &DownloadAnswer) -> Vec<u8> {
        std::fs::read(self.path(answer)).unwrap()
    }

    pub(crate) fn path(&self, answer: &DownloadAnswer) -> PathBuf {
        self.store.join(Path::new(answer.install_path.as_deref().unwrap()))
    }
}

/// As a management server asks for a template.
pub(crate) fn template(url: &str, format: ImageFormat) -> DownloadCommand {
    DownloadCommand {
        hvm: true,
        url: Some(url.to_owned()),
        name: Some("207-2-demo".into()),
        id: 207,
        resource_type: Some(ResourceType::Template),
        format: Some(format),
        account_id: 2,
        install_path: Some("template/tmpl/2/207".into()),
        store: Some(nfs(STORE)),
        max_download_size_in_bytes: Some(53_687_091_200),
        ..DownloadCommand::default()
    }
}
