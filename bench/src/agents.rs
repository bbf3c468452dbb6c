//! Many simulated agents against the real `mgmt-stub serve` on one core.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::keystore::KeyStore;
use agent::trust::{TrustUnknown, client_config};
use anyhow::{Context, anyhow, ensure};
use mgmt_stub::ca::{Ca, Presented};
use mgmt_stub::client_auth::{Expired, Strictness, verifier};
use platform::exec::{Cmd, Running};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::machine::{Addresses, Cores, allow_descriptors, fsync_time};
use crate::process;
use crate::simulated::{Event, Simulated, Zone};
use crate::stats::Percentiles;
use crate::tls::{self, Cost};

/// Connects simulated agents to the real management server and measures it: how fast all are Up, what their pings cost,
/// and the memory of each.
///
/// Everything is real but the agents' work: TCP on loopback, TLS with a client certificate, the agents' own link code,
/// SQLite on disk. The server has one core to itself (`taskset`, package util-linux), the agents have another. Each agent
/// takes a file descriptor on either side; the limit is raised as far as it may be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many.
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    agents: u32,
    /// Seconds between the pings of an agent. Real servers say 60.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    ping_interval: u64,
    /// Seconds of measuring once all are Up.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: u64,
    /// New agents in a second. Without it: as fast as the server takes them, with 256 on their way at a time.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    connect_rate: Option<u32>,
    /// Where the server keeps its database for the time of the measurement; each new agent waits for this disk.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// The mgmt-stub program to measure, instead of the one built from this checkout.
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
}

/// Agents between their first packet and Up, unless a rate is given.
const CONNECTING: usize = 256;

/// For descriptors other than agents: the runtime's, the database's, the log.
const OTHER_DESCRIPTORS: u32 = 64;

/// For the server to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Without a new agent for so long, the rest will not come.
const STUCK_AFTER: Duration = Duration::from_mins(1);

/// Between the last agent's Up and the measuring, so that nothing of connecting is measured.
const SETTLE: Duration = Duration::from_secs(2);

/// The goal of `docs/benchmarks.md`, TLS apart.
const GOAL_KIB: f64 = 40.0;

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn measure(args: &Args) -> anyhow::Result<String> {
    allow_descriptors(u64::from(args.agents + OTHER_DESCRIPTORS))?;
    let program = match &args.server {
        Some(program) => program.clone(),
        None => build().await?,
    };
    let addresses = Addresses::for_agents(args.agents)?;
    let cores = Cores::settle()?;
    let data = tempfile::Builder::new()
        .prefix("sysvm-bench-")
        .tempdir_in(&args.dir)
        .with_context(|| format!("making a directory in {}", args.dir.display()))?;
    let (server_tls, client_tls) = tls_of_both_ends(&program, data.path()).await?;
    let tls = tls::measure(&server_tls, &client_tls)?;
    let disk = fsync_time(data.path())?;

    let port = free_port(addresses.listen())?;
    let (mut running, server) =
        Server::start(&program, data.path(), (addresses.listen(), port).into(), args, cores).await?;
    let measured = tokio::select! {
        measured = observe(args, &server, addresses, port, client_tls) => measured,
        ended = running.wait() => Err(anyhow!("the server ended ({})", ended?)),
    };
    let measured = measured.map_err(|error| anyhow!("{error:#}; {}", server.end_of_log()))?;
    running.stop(Duration::from_secs(20)).await;
    table(args, cores, tls, disk, &measured)
}

async fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // This package, too: then everything they share is built once, in one way.
    let build = Cmd::new(cargo).args(["build", "--release", "--package", "mgmt-stub", "--package", "bench"]);
    let status = build.run_inherited().await?;
    ensure!(status.success(), "`{build}` failed ({status})");
    let program = std::env::current_exe()
        .context("finding this program")?
        .with_file_name("mgmt-stub");
    ensure!(
        program.exists(),
        "{} is not there; say with --server where it is",
        program.display()
    );
    Ok(program)
}

/// What the server will use, and what a set-up system VM uses: one certificate of the server's CA for all agents.
async fn tls_of_both_ends(program: &Path, data: &Path) -> anyhow::Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
    let out = data.join("agent");
    let issue = Cmd::new(program)
        .arg("--data-dir")
        .arg(data)
        .args(["issue-certificate", "--name", "v-1-VM"]);
    issue.args(["--address", "127.0.0.1", "--out"]).arg(&out).run().await?;
    let identity = KeyStore::in_directory(&out).load()?;
    let client = client_config(identity.as_ref(), TrustUnknown::Refuse)?;

    let ca = Ca::open_or_create(data.join("ca"))?;
    let verifier = verifier(&ca, Strictness::Optional, Expired::Accepted)?;
    let presented = Presented::Leaf {
        names: vec!["mgmt-stub".to_owned()],
        addresses: Vec::new(),
    };
    Ok((ca.server_config(presented, verifier)?, client))
}

fn free_port(address: Ipv4Addr) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((address, 0)).context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
}

struct Server {
    pid: u32,
    log: PathBuf,
}

/// Processor time.
#[derive(Debug, Clone, Copy)]
struct Usage {
    server: Duration,
    /// The part of the server's database thread.
    store: Duration,
    agents: Duration,
}

impl Usage {
    fn since(self, earlier: Self) -> Self {
        Self {
            server: self.server.saturating_sub(earlier.server),
            store: self.store.saturating_sub(earlier.store),
            agents: self.agents.saturating_sub(earlier.agents),
        }
    }
}

impl Server {
    async fn start(
        program: &Path,
        data: &Path,
        listen: SocketAddr,
        args: &Args,
        cores: Cores,
    ) -> anyhow::Result<(Running, Self)> {
        let log = data.join("log");
        let running = Cmd::new("taskset")
            .args(["--cpu-list", &cores.server.to_string()])
            .arg(program)
            .arg("--data-dir")
            .arg(data)
            .args(["serve", "--threads", "1", "--listen", &listen.to_string()])
            .args(["--ping-interval", &args.ping_interval.to_string()])
            .args(["--max-agents", &args.agents.to_string()])
            .spawn(&log)?;
        let pid = running.id().context("the server ended at once")?;
        let server = Self { pid, log };
        let listens = async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, listen.port())).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let started = timeout(START_LIMIT, listens).await;
        started.with_context(|| {
            format!(
                "the server does not listen after {START_LIMIT:?}; {}",
                server.end_of_log()
            )
        })?;
        Ok((running, server))
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Ok(Usage {
            server: process::cpu(self.pid)?,
            store: process::thread_cpu(self.pid, "store")?,
            agents: process::cpu(std::process::id())?,
        })
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("the server's log ends with:\n{}\n", lines.join("\n"))
    }
}

/// What came out.
struct Measured {
    up: u32,
    lost: u32,
    connecting: Duration,
    steady: Duration,
    pings: u32,
    latency: Option<Percentiles>,
    /// Processor time of connecting.
    to_connect: Usage,
    /// Processor time of the steady state.
    to_stay: Usage,
    rss_before_kib: u32,
    rss_kib: u32,
}

/// Connects all agents, lets them ping, and watches.
async fn observe(
    args: &Args,
    server: &Server,
    addresses: Addresses,
    port: u16,
    tls: Arc<ClientConfig>,
) -> anyhow::Result<Measured> {
    let (events_to, events) = mpsc::channel(1024);
    let zone = Arc::new(Zone {
        port,
        tls,
        ping_interval: Duration::from_secs(args.ping_interval),
        connecting: Semaphore::new(args.connect_rate.map_or(CONNECTING, |_| Semaphore::MAX_PERMITS)),
        events: events_to,
    });
    let (before, rss_before_kib) = (server.usage()?, process::rss(server.pid)?);
    let started = Instant::now();
    let mut agents = JoinSet::new();
    for number in 0..args.agents {
        let after = |rate| Duration::from_secs(1) * number / rate;
        let agent = Simulated {
            number: number + 1,
            host: addresses.of_agent(number),
            starts: started + args.connect_rate.map_or(Duration::ZERO, after),
            first_ping: started + zone.ping_interval * number / args.agents,
        };
        agents.spawn(agent.live(Arc::clone(&zone)));
    }

    let mut seen = Seen::new(events);
    while seen.up + seen.lost < args.agents {
        let (up, of) = (seen.up, args.agents);
        ensure!(
            seen.next(seen.changed + STUCK_AFTER).await,
            "only {up} of {of} agents are Up"
        );
        if seen.up > up && seen.up.is_multiple_of(1000) {
            info!(up = seen.up, elapsed = ?started.elapsed(), "Connecting");
        }
    }
    let connecting = started.elapsed();
    let to_connect = server.usage()?.since(before);
    info!(up = seen.up, lost = seen.lost, elapsed = ?connecting, "All agents have connected; measuring");

    let from = Instant::now() + SETTLE;
    while seen.next(from).await {}
    let settled = server.usage()?;
    seen.latencies.clear();
    let to = from + Duration::from_secs(args.duration);
    while seen.next(to).await {}
    Ok(Measured {
        up: seen.up,
        lost: seen.lost,
        connecting,
        steady: to - from,
        pings: u32::try_from(seen.latencies.len())?,
        latency: Percentiles::of(seen.latencies),
        to_connect,
        to_stay: server.usage()?.since(settled),
        rss_before_kib,
        rss_kib: process::rss(server.pid)?,
    })
}

/// What the agents have told.
struct Seen {
    events: mpsc::Receiver<Event>,
    up: u32,
    lost: u32,
    /// When one of these two last changed.
    changed: Instant,
    latencies: Vec<Duration>,
}

impl Seen {
    fn new(events: mpsc::Receiver<Event>) -> Self {
        Self {
            events,
            up: 0,
            lost: 0,
            changed: Instant::now(),
            latencies: Vec::new(),
        }
    }

    /// Takes one event; `false` when the time is over.
    async fn next(&mut self, until: Instant) -> bool {
        let Ok(Some(event)) = timeout_at(until, self.events.recv()).await else {
            return false;
        };
        match event {
            Event::Pinged(latency) => {
                self.latencies.push(latency);
                return true;
            }
            Event::Up => self.up += 1,
            Event::Lost { was_up, error } => {
                if self.lost < 5 {
                    warn!(error = format!("{error:#}"), "Agent lost");
                }
                self.up -= u32::from(was_up);
                self.lost += 1;
            }
        }
        self.changed = Instant::now();
        true
    }
}

fn table(args: &Args, cores: Cores, tls: Cost, disk: Percentiles, measured: &Measured) -> anyhow::Result<String> {
    let Measured {
        up,
        lost,
        to_connect,
        to_stay,
        ..
    } = measured;
    ensure!(*up > 0, "no agent is Up");
    let (connecting, steady) = (measured.connecting.as_secs_f64(), measured.steady.as_secs_f64());
    let percent = |used: Duration| used.as_secs_f64() / steady * 100.0;
    let mib = |kib: u32| f64::from(kib) / 1024.0;
    let each = f64::from(measured.rss_kib.saturating_sub(measured.rss_before_kib)) / f64::from(*up);
    let own = each - tls.kib;
    Ok(format!(
        "\
{agents} agents, mgmt-stub on core {server_core}, agents on core {agents_core}, a ping each {interval} s, measured for {steady} s
  Up, lost                          {up}, {lost}
  all Up after                      {connecting:.1} s, {rate:.0} agents/s
    an fsync of this disk           {disk}
    server's CPU time               {server:.1} s
      of it its database thread     {store:.1} s
      of it TLS handshakes          {handshakes:.1} s, {handshake:.0} µs each
    agents' CPU time                {agents_cpu:.1} s
  pings answered                    {pings:.0}/s
    after                           {latency}
    server's CPU                    {server_percent:.1} % of one core
    agents' CPU                     {agents_percent:.1} % of one core
  server's memory before, with all  {before:.1} MiB, {after:.1} MiB
    for each agent                  {each:.1} KiB
      of it TLS                     {tls_kib:.1} KiB, mean of {connections} connections
      of it own structures          {own:.1} KiB; goal: below {GOAL_KIB} KiB, {verdict}
Memory is RSS, without what the kernel keeps for sockets. No peer to compare with runs here.
",
        agents = args.agents,
        server_core = cores.server,
        agents_core = cores.agents,
        interval = args.ping_interval,
        rate = f64::from(*up) / connecting,
        server = to_connect.server.as_secs_f64(),
        store = to_connect.store.as_secs_f64(),
        handshakes = f64::from(*up) * tls.handshake.as_secs_f64(),
        handshake = tls.handshake.as_secs_f64() * 1e6,
        agents_cpu = to_connect.agents.as_secs_f64(),
        pings = f64::from(measured.pings) / steady,
        latency = measured.latency.map_or_else(|| "-".to_owned(), |latency| latency.to_string()),
        server_percent = percent(to_stay.server),
        agents_percent = percent(to_stay.agents),
        before = mib(measured.rss_before_kib),
        after = mib(measured.rss_kib),
        tls_kib = tls.kib,
        connections = tls::CONNECTIONS,
        verdict = if own < GOAL_KIB { "met" } else { "MISSED" },
    ))
}
