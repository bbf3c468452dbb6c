//! The console proxy beside websockify: what a gigabyte costs, what a key takes, what a session occupies.

mod host;
mod proxy;
mod viewer;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use platform::exec::{Cmd, Running};
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use self::host::Host;
use self::viewer::Viewer;
use crate::machine::allow_descriptors;
use crate::process;
use crate::stats::Percentiles;

pub(crate) use self::proxy::{Args as ServeArgs, serve};

/// One of the percentiles.
type Of = fn(&Percentiles) -> Duration;

/// Measures the console proxy beside websockify (from PyPI, in a virtual environment that this command makes).
///
/// The proxy is a process of its own and complete but for the agent link: tokens, both RFB handshakes, the relay. Hosts
/// and viewers are this process, on loopback. Each figure is the median of runs that alternate between the two.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs of each kind.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Megabytes (10^6 bytes) that a host sends in a run.
    #[arg(long, value_name = "MB", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    megabytes: u32,
    /// Key presses in a run, each sent when the answer to the one before has come.
    #[arg(long, value_name = "COUNT", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    keys: u32,
    /// Sessions that do nothing.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    idle: u32,
    /// Sessions besides whose screens change five times a second.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    active: u32,
    /// Where websockify's virtual environment is kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench/websockify")]
    websockify: PathBuf,
}

/// The peer's version.
const WEBSOCKIFY: &str = "websockify==0.13.0";

/// For a program to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long sessions are watched.
const WATCH: Duration = Duration::from_secs(10);

/// Time for what connecting has left behind.
const SETTLE: Duration = Duration::from_secs(3);

/// A relay that is measured.
struct Relay {
    name: &'static str,
    running: Running,
    plain: u16,
    tls: u16,
    speaks_rfb: bool,
}

#[tokio::main]
pub(crate) async fn measure(args: &Args) -> anyhow::Result<String> {
    allow_descriptors(u64::from(2 * (args.idle + args.active) + 100))?;
    let data = tempfile::tempdir().context("making a directory")?;
    let throughput_host = Host::sending(u64::from(args.megabytes) * 1_000_000).await?;
    let echo_host = Host::echoing().await?;
    let websockify = websockify(&args.websockify).await?;

    let ours = ours(data.path()).await?;
    let theirs = |to: u16| theirs(&websockify, data.path(), to);
    let mut out = String::from("| | console-proxy | websockify | direct |\n|---|---|---|---|\n");

    info!("Throughput");
    let sending = theirs(throughput_host.port).await?;
    for (tls, what) in [(false, "plain"), (true, "TLS")] {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..args.runs {
            own.push(throughput(&ours, throughput_host.port, tls, args.megabytes).await?);
            other.push(throughput(&sending, throughput_host.port, tls, args.megabytes).await?);
        }
        let (own, other) = (median(own), median(other));
        writeln!(out, "| CPU for a GB, {what} | {own:.2} s | {other:.2} s | |")?;
    }
    sending.running.stop(START_LIMIT).await;

    info!("Key echo");
    let echoing = theirs(echo_host.port).await?;
    let mut echoes = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..args.runs {
        echoes[0].push(
            Viewer::through(&ours, echo_host.port, false)
                .await?
                .echo(args.keys)
                .await?,
        );
        echoes[1].push(
            Viewer::through(&echoing, echo_host.port, false)
                .await?
                .echo(args.keys)
                .await?,
        );
        echoes[2].push(Viewer::direct(echo_host.port).await?.echo(args.keys).await?);
    }
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let percentiles: [(&str, Of); 2] = [("p50", |it| it.p50), ("p99", |it| it.p99)];
    for (what, of) in percentiles {
        let found = echoes
            .each_ref()
            .map(|runs| median(runs.iter().map(|run| micros(of(run))).collect()));
        writeln!(
            out,
            "| key echo {what} | {:.0} µs | {:.0} µs | {:.0} µs |",
            found[0], found[1], found[2]
        )?;
    }
    echoing.running.stop(START_LIMIT).await;
    ours.running.stop(START_LIMIT).await;

    for (tls, what) in [(false, "plain"), (true, "TLS")] {
        info!(what, "Sessions");
        write!(out, "{}", sessions(args, data.path(), tls, what).await?)?;
    }
    Ok(out)
}

/// Processor time of a relay for a GB (10^9 bytes), in seconds.
async fn throughput(relay: &Relay, host: u16, tls: bool, megabytes: u32) -> anyhow::Result<f64> {
    let before = cpu_of_all(relay)?;
    let mut viewer = Viewer::through(relay, host, tls).await?;
    viewer.drain(u64::from(megabytes) * 1_000_000).await?;
    drop(viewer);
    // websockify handles each connection in a process of its own; its time is its parent's once it has ended.
    sleep(Duration::from_millis(500)).await;
    let cpu = cpu_of_all(relay)?.saturating_sub(before);
    Ok(cpu.as_secs_f64() * 1000.0 / f64::from(megabytes))
}

fn cpu_of_all(relay: &Relay) -> anyhow::Result<Duration> {
    let pid = relay
        .running
        .id()
        .with_context(|| format!("{} has ended", relay.name))?;
    Ok(process::cpu(pid)? + process::children_cpu(pid)?)
}

/// Memory of idle sessions, then of idle and active ones, and how the active ones fare.
async fn sessions(args: &Args, data: &Path, tls: bool, what: &str) -> anyhow::Result<String> {
    let relay = ours(data).await?;
    let pid = relay.running.id().context("the proxy has ended")?;
    let quiet = Host::quiet().await?;
    let updating = Host::updating().await?;
    drop(Viewer::through(&relay, quiet.port, tls).await?); // what all share
    sleep(SETTLE).await;
    let before = process::rss(pid)?;
    let mut idle = Vec::new();
    for _ in 0..args.idle {
        idle.push(Viewer::through(&relay, quiet.port, tls).await?);
    }
    sleep(SETTLE).await;
    let with_idle = process::rss(pid)?;
    let cpu = process::cpu(pid)?;
    sleep(WATCH).await;
    let idle_cpu = process::cpu(pid)?.saturating_sub(cpu);
    let mut watching = tokio::task::JoinSet::new();
    for _ in 0..args.active {
        let viewer = Viewer::through(&relay, updating.port, tls).await?;
        let epoch = updating.epoch;
        watching.spawn(async move { viewer.watch(epoch, WATCH).await });
    }
    let cpu = process::cpu(pid)?;
    let started = Instant::now();
    let mut delays = Vec::new();
    while let Some(watched) = watching.join_next().await {
        delays.extend(watched??);
    }
    let active_cpu = process::cpu(pid)?.saturating_sub(cpu).as_secs_f64() / started.elapsed().as_secs_f64();
    let all = process::rss(pid)?;
    let updates = delays.len();
    let delays = Percentiles::of(delays).context("there were updates")?;
    relay.running.stop(START_LIMIT).await;
    let each = f64::from(with_idle.saturating_sub(before)) / f64::from(args.idle);
    let mib = |kib: u32| f64::from(kib) / 1024.0;
    let percent = 100.0 * idle_cpu.as_secs_f64() / WATCH.as_secs_f64();
    let (idle, active) = (args.idle, args.active);
    let mut out = String::new();
    writeln!(
        out,
        "| memory of one of {idle} idle sessions, {what} | {each:.1} KiB | | |"
    )?;
    writeln!(
        out,
        "| CPU of {idle} idle sessions, {what} | {percent:.1} % of a core | | |"
    )?;
    writeln!(
        out,
        "| process with {idle} idle and {active} active sessions, {what} | {:.1} MiB | | |",
        mib(all)
    )?;
    writeln!(out, "| … its CPU | {:.1} % of a core | | |", 100.0 * active_cpu)?;
    writeln!(out, "| … an update ({updates} of 16 KiB) | {delays} | | |")?;
    Ok(out)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Our proxy, in a process of its own.
async fn ours(data: &Path) -> anyhow::Result<Relay> {
    let (plain, tls) = (free_port()?, free_port()?);
    let program = std::env::current_exe().context("finding this program")?;
    let serve = Cmd::new(program).args([
        "console-proxy-only",
        "--plain",
        &plain.to_string(),
        "--tls",
        &tls.to_string(),
    ]);
    let running = serve.env("SYSVM_LOG", "warn").spawn(data.join("console-proxy.log"))?;
    listening(plain).await?;
    Ok(Relay {
        name: "console-proxy",
        running,
        plain,
        tls,
        speaks_rfb: true,
    })
}

/// websockify on one port: it finds out by itself whether a connection is TLS.
async fn theirs(program: &Path, data: &Path, to: u16) -> anyhow::Result<Relay> {
    let port = free_port()?;
    let (certificate, key) = proxy::certificate(data)?;
    let running = Cmd::new(program)
        .arg("--cert")
        .arg(certificate)
        .arg("--key")
        .arg(key)
        .args([format!("127.0.0.1:{port}"), format!("127.0.0.1:{to}")])
        .spawn(data.join("websockify.log"))?;
    listening(port).await?;
    Ok(Relay {
        name: "websockify",
        running,
        plain: port,
        tls: port,
        speaks_rfb: false,
    })
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

async fn listening(port: u16) -> anyhow::Result<()> {
    let connects = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(START_LIMIT, connects).await.context("a relay does not listen")
}

async fn websockify(directory: &Path) -> anyhow::Result<PathBuf> {
    let program = directory.join("bin/websockify");
    if !program.exists() {
        info!(directory = %directory.display(), "Making a virtual environment with {WEBSOCKIFY}");
        Cmd::new("python3")
            .args(["-m", "venv"])
            .arg(directory)
            .time_limit(Duration::from_mins(5))
            .run()
            .await?;
        let pip = Cmd::new(directory.join("bin/pip")).args(["install", "--quiet", WEBSOCKIFY]);
        pip.time_limit(Duration::from_mins(10)).run().await?;
    }
    Ok(program)
}
