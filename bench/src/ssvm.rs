//! A download with its SHA-512, as `ssvm` does it and as people do it by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::ssvm::service::{Boot, Storage};
use ::ssvm::settings::Settings;
use agent::service::Service;
use anyhow::{Context, bail, ensure};
use platform::exec::Cmd;
use platform::files;
use protocol::answer::AnswerBody;
use protocol::boot::{BootArgs, SystemVm};
use protocol::command::Command;
use protocol::secondary_storage::{
    DownloadAnswer, DownloadCommand, DownloadProgressCommand, DownloadRequest, DownloadStatus, ResourceType,
    SecStorageVMSetupCommand,
};
use protocol::transfer::{DataStoreTO, ImageFormat, NfsTO};

/// Downloads a file of random bytes from nginx on loopback, with SHA-512, until it is on disk: `ssvm` beside a pipe of
/// curl, tee and openssl (one pass), curl and then sha512sum (two passes), aria2c with a checksum, and curl without any.
///
/// Every round runs each once, in turn, so that whatever else the machine does hits all alike. Needs nginx, curl, aria2
/// and openssl (Debian packages of these names).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Size of the file.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=65536))]
    size: u64,
    /// Rounds; medians are shown.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Directory for the file and its copies: three times the size must be free there.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
}

const STORE: &str = "nfs://127.0.0.1/bench";

/// A disk slower than that measures nothing.
const LIMIT: Duration = Duration::from_mins(30);

const METHODS: [&str; 5] = [
    "ssvm",
    "curl | tee | openssl (one pass)",
    "curl, then sha512sum (two passes)",
    "aria2c with checksum",
    "curl without a digest",
];

pub(crate) fn measure(args: &Args) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let table = runtime.block_on(run(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    table
}

async fn run(args: &Args) -> anyhow::Result<String> {
    let scene = Scene::new(args).await?;
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); METHODS.len()];
    for round in 0..args.rounds {
        for step in 0..METHODS.len() {
            let method = (step + usize::try_from(round)?) % METHODS.len();
            scene.clean()?;
            let started = Instant::now();
            match method {
                0 => scene.ours(round).await?,
                1 => scene.pipe().await?,
                2 => scene.two_passes().await?,
                3 => scene.aria2c().await?,
                _ => scene.plain().await?,
            }
            let elapsed = started.elapsed();
            tracing::info!(round, method = METHODS[method], ?elapsed, "Measured");
            times[method].push(elapsed);
        }
    }
    table(args, &times)
}

fn table(args: &Args, times: &[Vec<Duration>]) -> anyhow::Result<String> {
    let mut table = format!(
        "{} MiB from nginx on loopback, until on disk; {} rounds\n{:<36}{:>9}{:>9}{:>9}{:>14}\n",
        args.size, args.rounds, "method", "median s", "best s", "MiB/s", "ours takes"
    );
    for (name, times_of) in METHODS.iter().zip(times) {
        let median = median_of(times_of.iter().map(Duration::as_secs_f64).collect());
        let best = times_of.iter().min().context("there is a round")?.as_secs_f64();
        // Of each round by itself: what disturbed a round is in both.
        let pairs = times[0].iter().zip(times_of);
        let ratio = median_of(
            pairs
                .map(|(ours, other)| ours.as_secs_f64() / other.as_secs_f64())
                .collect(),
        );
        let rate = f64::from(u32::try_from(args.size)?) / median;
        writeln!(table, "{name:<36}{median:>9.2}{best:>9.2}{rate:>9.0}{ratio:>12.2} ×")?;
    }
    Ok(table)
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

struct Scene {
    directory: tempfile::TempDir,
    port: u16,
    sha512: String,
    storage: Storage,
    _nginx: platform::exec::Running,
}

impl Scene {
    async fn new(args: &Args) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir_in(&args.dir).with_context(|| format!("using {}", args.dir.display()))?;
        let path = |name: &str| directory.path().join(name);
        for name in ["www", "store", "copies"] {
            std::fs::create_dir(path(name))?;
        }
        random(&path("www/random.raw"), args.size)?;
        let sum = Cmd::new("sha512sum")
            .arg(path("www/random.raw"))
            .time_limit(LIMIT)
            .run()
            .await?
            .text();
        let sha512 = sum.split(' ').next().context("sha512sum prints a sum")?.to_owned();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let nginx = nginx(directory.path(), port).await?;
        let storage = storage(directory.path()).await?;
        Ok(Self {
            directory,
            port,
            sha512,
            storage,
            _nginx: nginx,
        })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/random.raw", self.port)
    }

    fn copy(&self) -> PathBuf {
        self.directory.path().join("copies/random.raw")
    }

    /// No method starts with what another left: neither files, nor pages to be written.
    fn clean(&self) -> anyhow::Result<()> {
        for name in ["copies", "store"] {
            let path = self.directory.path().join(name);
            std::fs::remove_dir_all(&path)?;
            std::fs::create_dir(&path)?;
        }
        nix::unistd::sync();
        Ok(())
    }

    async fn ours(&self, round: u32) -> anyhow::Result<()> {
        let command = DownloadCommand {
            url: Some(self.url()),
            name: Some(format!("{round}-2-bench")),
            id: 1,
            resource_type: Some(ResourceType::Template),
            format: Some(ImageFormat::Raw),
            install_path: Some(format!("template/tmpl/2/{round}")),
            store: Some(DataStoreTO::Nfs(NfsTO {
                url: Some(STORE.into()),
                ..NfsTO::default()
            })),
            max_download_size_in_bytes: Some(1 << 40),
            ..DownloadCommand::default()
        };
        let mut answer = self.ask(Command::new(command.clone())).await?;
        while answer.download_status == Some(DownloadStatus::DownloadInProgress) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let progress = DownloadProgressCommand {
                job_id: answer.job_id.clone(),
                request: Some(DownloadRequest::GetStatus),
                download: command.clone(),
            };
            answer = self.ask(Command::new(progress)).await?;
        }
        let expected = format!("{{SHA-512}}{}", self.sha512);
        let is_right = answer.check_sum.as_ref() == Some(&expected);
        ensure!(
            answer.download_status == Some(DownloadStatus::Downloaded) && is_right,
            "our download failed: {answer:?}"
        );
        Ok(())
    }

    async fn ask(&self, command: Command) -> anyhow::Result<DownloadAnswer> {
        match self.storage.execute(command).await.map(|answer| answer.body) {
            Some(AnswerBody::Download(answer)) => Ok(answer),
            other => bail!("an unexpected answer: {other:?}"),
        }
    }

    /// The shell is what is measured here: people type this line.
    async fn pipe(&self) -> anyhow::Result<()> {
        let (url, copy) = (self.url(), self.copy().display().to_string());
        let line = format!("set -o pipefail; curl -sf '{url}' | tee '{copy}' | openssl dgst -sha512 -r; sync '{copy}'");
        self.check(&Cmd::new("bash").args(["-c", &line])).await
    }

    async fn two_passes(&self) -> anyhow::Result<()> {
        self.plain().await?;
        self.check(&Cmd::new("sha512sum").arg(self.copy())).await
    }

    async fn aria2c(&self) -> anyhow::Result<()> {
        let command = Cmd::new("aria2c").args(["-q", "-x4", "-s4", "--allow-overwrite=true", "--file-allocation=none"]);
        let command = command.arg(format!("--checksum=sha-512={}", self.sha512));
        let command = command
            .arg("-d")
            .arg(self.directory.path().join("copies"))
            .args(["-o", "random.raw"]);
        command.arg(self.url()).time_limit(LIMIT).run().await?;
        self.sync().await
    }

    async fn plain(&self) -> anyhow::Result<()> {
        let command = Cmd::new("curl").args(["-sf", "-o"]).arg(self.copy()).arg(self.url());
        command.time_limit(LIMIT).run().await?;
        self.sync().await
    }

    async fn sync(&self) -> anyhow::Result<()> {
        Cmd::new("sync").arg(self.copy()).time_limit(LIMIT).run().await?;
        Ok(())
    }

    async fn check(&self, command: &Cmd) -> anyhow::Result<()> {
        let printed = command.clone().time_limit(LIMIT).run().await?.text();
        ensure!(printed.starts_with(&self.sha512), "a wrong sum: {printed}");
        Ok(())
    }
}

async fn storage(directory: &Path) -> anyhow::Result<Storage> {
    let settings = Settings {
        store_map: BTreeMap::from([(STORE.to_owned(), directory.join("store"))]),
        state_dir: directory.join("state"),
        reserve_bytes: 0,
        ..Settings::default()
    };
    let line = "type=secstorage name=s-1-VM guid=s-1-VM zone=1 pod=1 host=127.0.0.1";
    let vm = SystemVm::parse(&BootArgs::parse(line)?)?;
    let storage = Storage::start(&Boot::new(&vm, &settings)?, &settings).await?;
    let sites = SecStorageVMSetupCommand {
        allowed_internal_sites: Some(vec!["127.0.0.1/32".into()]),
        ..SecStorageVMSetupCommand::default()
    };
    let answer = storage.execute(Command::new(sites)).await;
    ensure!(
        answer.is_some_and(|answer| answer.result),
        "loopback could not be allowed"
    );
    Ok(storage)
}

/// One worker, as most small sources have; sendfile, no log.
async fn nginx(directory: &Path, port: u16) -> anyhow::Result<platform::exec::Running> {
    let at = directory.display();
    let user = if nix::unistd::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    let config = format!(
        "{user}worker_processes 1;\ndaemon off;\npid {at}/nginx.pid;\nerror_log {at}/nginx.log;\nevents {{}}\n\
         http {{\n  access_log off;\n  sendfile on;\n  client_body_temp_path {at}/t1;\n  proxy_temp_path {at}/t2;\n  \
         fastcgi_temp_path {at}/t3;\n  uwsgi_temp_path {at}/t4;\n  scgi_temp_path {at}/t5;\n  \
         server {{ listen 127.0.0.1:{port}; root {at}/www; }}\n}}\n"
    );
    let file = directory.join("nginx.conf");
    let _ = files::replace(&file, config, 0o600)?;
    let running = Cmd::new("nginx")
        .arg("-c")
        .arg(&file)
        .spawn(directory.join("nginx.out"))?;
    let started = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "nginx does not listen; see {at}/nginx.log"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(running)
}

/// Bytes that neither compress nor repeat.
fn random(path: &Path, mib: u64) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..mib {
        block.clear();
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert!((median_of(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median_of(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
