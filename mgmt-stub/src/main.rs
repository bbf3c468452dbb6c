//! The management server.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use mgmt_stub::ca::{Ca, Presented, Request, Signed};
use mgmt_stub::client::Client;
use mgmt_stub::client_auth::{Expired, Strictness};
use mgmt_stub::configuration::Configuration;
use mgmt_stub::driver::Driver;
use mgmt_stub::driver::in_process::{self as simulation, InProcess};
use mgmt_stub::driver::processes::{Processes, Programs};
use mgmt_stub::embedded::{Embedded, EmbeddedOptions};
use mgmt_stub::management::Management;
use mgmt_stub::password;
use mgmt_stub::server::{Fixed, Server};
use mgmt_stub::settings::Settings;
use mgmt_stub::store::host::Host;
use mgmt_stub::store::id::{PodId, ZoneId};
use mgmt_stub::store::{OpenError, Store};
use mgmt_stub::system_vms::{Networks, Place, SystemVms};
use mgmt_stub::user_vms::UserVms;
use mgmt_stub::web::WebServer;
use mgmt_stub::zone::{Zone, ZoneHooks};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use platform::{crypto, exit, files, logging, shutdown};
use protocol::boot::HostList;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// The management server of a zone: keeps the agents of its system VMs.
///
/// All state is in one directory: the database (mgmt-stub.sqlite3) and the certificate authority (ca/). Logs go to
/// standard error; SYSVM_LOG=debug shows every message.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Where the database and the certificate authority are.
    #[arg(
        long,
        value_name = "DIR",
        env = "SYSVM_DATA_DIR",
        default_value = "/var/lib/sysvm",
        global = true
    )]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT.
    Serve(Box<Serve>),
    /// List the hosts, also while the server runs.
    Hosts {
        /// As JSON, one object for each host.
        #[arg(long)]
        json: bool,
    },
    /// Call a command of the running server's API, over its socket, as administrator.
    Api(Api),
    /// Make a new password for the administrator and print it, also while the server runs. It is good for one login,
    /// after which he chooses another; his sessions end.
    ResetAdminPassword,
    /// End the system VMs that `serve --driver processes` or `--driver qemu` has left running, and with the latter the NFS
    /// server and the zone's network. Stop the server first: it would start them again. Works also after everything was
    /// killed.
    StopSystemVms,
    /// Issue a certificate with its key, to be copied to a system VM. Works only where the server's files are.
    IssueCertificate(IssueCertificate),
}

/// The answer is printed as JSON; a job's result when it is over. What the server refuses is told on standard error, and
/// the exit code is 1.
///
/// Examples:
///   mgmt-stub api listZones
///   mgmt-stub api listEvents level=ERROR page=1 pagesize=10
///   mgmt-stub api updateConfiguration name=storage.stats.interval value=30000
///   mgmt-stub api createTags resourcetype=Zone resourceids=UUID tags[0].key=color tags[0].value=blue
///   mgmt-stub api listApis name=listEvents     (what a command takes)
///   mgmt-stub api updateUser id=UUID password@/run/new     (the value is what the file holds: seen by nobody in `ps`)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct Api {
    /// Name of the command, such as listZones.
    command: String,
    /// Parameters. KEY@FILE takes the value from a file, without the newline at its end.
    #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
    parameters: Vec<(String, String)>,
    /// Print the job's id instead of waiting for its end.
    #[arg(long)]
    no_wait: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let at = text.find(['=', '@']).ok_or("write it like name=value, or name@file")?;
    let (key, value) = (&text[..at], &text[at + 1..]);
    if text[at..].starts_with('=') {
        return Ok((key.into(), value.into()));
    }
    let bytes = match files::read_limited(value, MAX_VALUE) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(format!("there is no file {value}")),
        Err(error) => return Err(logging::chain(&error).to_string()),
    };
    let contents = String::from_utf8(bytes).map_err(|_| format!("{value} is not UTF-8 text"))?;
    Ok((key.into(), contents.strip_suffix('\n').unwrap_or(&contents).into()))
}

/// The addresses of simulated VMs: nobody has them.
const SIMULATED_ZONE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 0, 0), 16);

/// Bytes of a parameter's value in a file.
const MAX_VALUE: u64 = 64 << 10;

#[derive(Debug, Args)]
struct Serve {
    /// Address and port of the HTTP API and the web page. Browsers and clients of other machines reach it only when this
    /// is an address of a network; it is not encrypted, so put a TLS proxy in front then.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Address and port for agents; with --driver qemu it is in the zone's own network, port 8250.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8250")]
    listen: SocketAddr,
    /// Address of this server as agents shall use it; may be given several times. Agents with another list are told.
    /// Without it agents keep the list that they were started with.
    #[arg(long = "host", value_name = "ADDRESS", value_parser = one_host)]
    hosts: Vec<String>,
    /// NFS export for templates and snapshots of the zone, such as nfs://10.0.0.5/export; may be given several times.
    /// Once known a store stays known.
    #[arg(long = "image-store", value_name = "URL", value_parser = nfs_url)]
    image_stores: Vec<String>,
    /// Directory of this machine as an image store of the zone, for system VMs that are processes of this machine.
    #[arg(long = "local-store", value_name = "DIR", value_parser = local_store, conflicts_with = "image")]
    local_store: Option<PathBuf>,
    /// Who runs system VMs: `processes` runs the programs ssvm and console-proxy on this machine; `qemu` makes this machine
    /// a host with virtual machines, in a network of its own, and an NFS server for them (needs root). Both keep them
    /// alive, and they go on when this server ends (`stop-system-vms` ends them). With `none` somebody else starts them.
    /// `simulator` is for trying out the server: its VMs are agents inside of it, which do no work and end with it.
    #[arg(long, value_enum, default_value = "none")]
    driver: DriverKind,
    /// Where browsers find the first console proxy; further ones take the next ports. An address that browsers can reach;
    /// with --driver qemu what comes there goes to the VM.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6080", value_parser = one_address)]
    console_listen: SocketAddr,
    /// Directory of the unpacked noVNC package, for console proxy processes.
    #[arg(long, value_name = "DIR")]
    novnc: Option<PathBuf>,
    /// The program ssvm; else the one beside this program.
    #[arg(long, value_name = "FILE")]
    ssvm: Option<PathBuf>,
    /// The program console-proxy; else the one beside this program.
    #[arg(long, value_name = "FILE")]
    console_proxy: Option<PathBuf>,
    /// NFS version for the image stores given in this call, such as 4.1.
    #[arg(long, value_name = "VERSION", requires = "image_stores", value_parser = ["3", "4", "4.0", "4.1", "4.2"])]
    nfs_version: Option<String>,
    /// Seconds between the pings of agents; a silence of two and a half intervals ends a link.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    ping_interval: u64,
    /// Let in only agents with a certificate of ours for the address that they come from.
    #[arg(long)]
    require_client_certificate: bool,
    /// Refuse certificates that have expired, instead of renewing them.
    #[arg(long)]
    refuse_expired_certificate: bool,
    /// Which certificate agents see.
    #[arg(long, value_enum, default_value = "leaf")]
    present: Present,
    /// Most connections at the same time, a tenth of them before registration. Needs as many file descriptors.
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    max_agents: usize,
    /// Threads for the agents' links.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    #[command(flatten)]
    embedded: EmbeddedOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverKind {
    None,
    Processes,
    Qemu,
    Simulator,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Present {
    /// One issued by our CA.
    Leaf,
    /// The CA certificate itself, as Apache CloudStack does.
    Ca,
}

#[derive(Debug, Args)]
struct IssueCertificate {
    /// Host name of the system VM, such as s-1-VM.
    #[arg(long)]
    name: String,
    /// Address of the system VM; may be given several times. Its connections must come from one of them when client
    /// certificates are required.
    #[arg(long = "address", value_name = "IP", required = true)]
    addresses: Vec<IpAddr>,
    /// Directory for cloud.crt, cloud.ca.crt and cloud.key.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A server as agents shall use it: the protocol's list has no ports.
fn one_host(text: &str) -> Result<String, String> {
    match text.parse::<HostList>() {
        Ok(HostList { hosts, algorithm: None }) if hosts.len() == 1 => Ok(text.to_owned()),
        Ok(_) => Err("give each server with a --host of its own".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn nfs_url(text: &str) -> Result<String, String> {
    let wanted = "write it like nfs://10.0.0.5/export/secondary";
    let (host, path) = text
        .strip_prefix("nfs://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or(wanted)?;
    let is_plain = path.chars().all(|c| c.is_ascii_graphic());
    if one_host(host).is_err() || path.is_empty() || !is_plain {
        return Err(wanted.into());
    }
    Ok(text.to_owned())
}

/// Absolute, because other programs get it, too, and without what a URL or a settings file would have to escape.
fn local_store(text: &str) -> Result<PathBuf, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.+".contains(c);
    if text.starts_with('/') && text.len() > 1 && text.chars().all(is_plain) {
        Ok(PathBuf::from(text.trim_end_matches('/')))
    } else {
        Err("write it like /srv/secondary: an absolute path of letters, digits and - _ . +".into())
    }
}

fn one_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "write it like 192.0.2.10:6080".to_owned())?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err("name one address and port: browsers are sent there".into());
    }
    Ok(address)
}

/// Takes as many file descriptors as the system lets us: each agent needs one.
fn raise_descriptor_limit(max_agents: usize) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(limit) if usize::try_from(limit).is_ok_and(|limit| limit < max_agents + 64) => {
            warn!(
                limit,
                max_agents, "Too few file descriptors for so many agents; raise LimitNOFILE= or ulimit -Hn"
            );
        }
        Ok(_) => {}
        Err(error) => warn!(%error, "Cannot raise the limit of file descriptors"),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    crypto::install();
    let threads = match &cli.command {
        Command::Serve(serve) => usize::from(serve.threads),
        _ => 1,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let outcome = runtime
        .context("starting the threads")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(arguments) => serve(&cli.data_dir, *arguments).await,
        Command::Hosts { json } => hosts(&cli.data_dir, json).await,
        Command::Api(arguments) => api(&cli.data_dir, arguments).await,
        Command::ResetAdminPassword => reset_admin_password(&cli.data_dir).await,
        Command::StopSystemVms => stop_system_vms(&cli.data_dir).await,
        Command::IssueCertificate(arguments) => issue_certificate(&cli.data_dir, arguments).await,
    }
}

fn open_ca(data_dir: &Path) -> anyhow::Result<Ca> {
    Ca::open_or_create(data_dir.join("ca")).context("opening the certificate authority")
}

async fn serve(data_dir: &Path, arguments: Serve) -> anyhow::Result<()> {
    let stop = shutdown::signal();
    raise_descriptor_limit(arguments.max_agents);
    let store = Store::open(data_dir).context("opening the database")?;
    let ca = open_ca(data_dir)?;
    add_image_stores(&store, &arguments).await?;
    let settings = settings(&arguments);
    let embedded = match arguments.driver {
        DriverKind::Qemu => Some(Embedded::open(data_dir, &arguments.embedded).await?),
        DriverKind::None | DriverKind::Processes | DriverKind::Simulator => None,
    };
    let inside = embedded.as_ref().map(|embedded| embedded.agents().ip());
    let presented = presented(&arguments, inside);
    info!(version = env!("CARGO_PKG_VERSION"), ?settings, data_dir = %data_dir.display(), "Effective configuration");
    let web = WebServer::bind(arguments.http, data_dir).await?;
    let hooks = ZoneHooks::new();
    let listener = if let Some(embedded) = &embedded {
        embedded.listen_for_agents()?
    } else {
        let address = arguments.listen;
        let bound = TcpListener::bind(address).await;
        bound.with_context(|| format!("cannot listen on {address}; is another program using the port?"))?
    };
    let server = Server::on(
        listener,
        store.clone(),
        ca.clone(),
        presented,
        settings,
        Arc::<ZoneHooks>::clone(&hooks),
        Fixed::default(),
    )
    .await?;
    let agents = server.agents();
    let configuration = Configuration::load(store.clone()).await?;
    let driver = match &embedded {
        Some(embedded) => {
            embedded.register(&store).await?;
            let driver: Arc<dyn Driver> = Arc::new(embedded.driver());
            Some((driver, embedded.place(arguments.console_listen)))
        }
        None => driver(data_dir, &arguments, server.local_addr()?)?,
    };
    let system_vms = driver.map(|(driver, place)| {
        let (store, agents) = (store.clone(), agents.clone());
        SystemVms::new(store, agents, configuration.clone(), ca, driver, place)
    });
    let user_vms = user_vms(&store, &configuration, system_vms.as_ref(), data_dir).await?;
    let (zone, books) = Zone::new(
        store.clone(),
        agents.clone(),
        configuration.clone(),
        system_vms,
        user_vms,
    );
    hooks.set(zone.clone());
    let management = Arc::new(Management::new(store, agents, configuration, zone.clone()).await?);
    let administrator = management.store.administrator().await?.user;
    if administrator.password_hash.is_none() {
        let command = format!("mgmt-stub --data-dir {} reset-admin-password", data_dir.display());
        info!(
            user = administrator.username,
            command, "The administrator has no password yet; this makes one"
        );
    }
    info!(listen = %server.local_addr()?, id = server.id(), "Serving agents");
    info!(listen = %web.local_addr()?, "Serving the page at /client/ and the API at /client/api");
    let stopping = CancellationToken::new();
    let mut background = JoinSet::new();
    background.spawn(web.serve(mgmt_stub::api::Api::new(Arc::clone(&management)), stopping.clone()));
    background.spawn(zone.run(books, management.store.clone(), stopping.clone()));
    if let Some(embedded) = embedded {
        background.spawn(embedded.run(management.store.clone(), arguments.console_listen, stopping.clone()));
    }
    let (purging, until) = (Arc::clone(&management), stopping.clone());
    background.spawn(async move { purging.purge(until).await });
    server
        .serve(async move {
            stop.await;
            stopping.cancel();
        })
        .await;
    while background.join_next().await.is_some() {}
    management.jobs.stop().await;
    Ok(())
}

/// How the agents' side behaves.
fn settings(arguments: &Serve) -> Settings {
    Settings {
        ping_interval: Duration::from_secs(arguments.ping_interval),
        max_links: arguments.max_agents,
        max_strangers: (arguments.max_agents / 10).max(64),
        hosts: arguments.hosts.clone(),
        strictness: if arguments.require_client_certificate {
            Strictness::Required
        } else {
            Strictness::Optional
        },
        expired: if arguments.refuse_expired_certificate {
            Expired::Refused
        } else {
            Expired::Accepted
        },
        ..Settings::default()
    }
}

/// What agents see. `inside` is our address in the zone's network.
fn presented(arguments: &Serve, inside: Option<IpAddr>) -> Presented {
    match arguments.present {
        Present::Leaf => Presented::Leaf {
            names: vec!["mgmt-stub".into()],
            addresses: arguments
                .hosts
                .iter()
                .filter_map(|host| host.parse().ok())
                .chain(inside)
                .collect(),
        },
        Present::Ca => Presented::CaCertificate,
    }
}

/// Who runs system VMs besides the embedded host, and where.
fn driver(
    data_dir: &Path,
    arguments: &Serve,
    listening: SocketAddr,
) -> anyhow::Result<Option<(Arc<dyn Driver>, Place)>> {
    let place = place(arguments, listening);
    Ok(match arguments.driver {
        DriverKind::None | DriverKind::Qemu => None,
        DriverKind::Processes => Some((Arc::new(processes(data_dir, arguments)?), place)),
        DriverKind::Simulator => {
            let place = Place {
                networks: Some(Networks::of_zone(SIMULATED_ZONE)?),
                ..place
            };
            Some((Arc::new(InProcess::new(simulation::Options::default())), place))
        }
    })
}

/// Where disks of instances are, if the driver runs virtual machines.
async fn user_vms(
    store: &Store,
    configuration: &Configuration,
    system_vms: Option<&SystemVms>,
    data_dir: &Path,
) -> anyhow::Result<Option<UserVms>> {
    let driver = system_vms.map(SystemVms::shared_driver);
    let Some(driver) = driver.filter(|driver| driver.hypervisor() != "External") else {
        return Ok(None);
    };
    let path = std::path::absolute(data_dir.join("primary"))?;
    let opened = UserVms::open(store.clone(), configuration.clone(), driver, ZoneId(1), path).await;
    Ok(Some(opened.context("opening primary storage")?))
}

async fn add_image_stores(store: &Store, arguments: &Serve) -> anyhow::Result<()> {
    let zone = store.find_zone("1").await?.context("the database has no zone 1")?;
    for url in &arguments.image_stores {
        store
            .add_image_store(zone.id, url.clone(), url.clone(), arguments.nfs_version.clone())
            .await?;
    }
    if let Some(directory) = &arguments.local_store {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        let path = directory.display().to_string();
        // What an NFS client on this machine would mount (decision 0026).
        let added = store
            .add_image_store(zone.id, path.clone(), format!("nfs://127.0.0.1{path}"), None)
            .await?;
        store.set_image_store_directory(added.id, path).await?;
    }
    Ok(())
}

fn processes(data_dir: &Path, arguments: &Serve) -> anyhow::Result<Processes> {
    let own = std::env::current_exe().context("looking for the programs beside this one")?;
    let beside = |given: &Option<PathBuf>, name: &str| given.clone().unwrap_or_else(|| own.with_file_name(name));
    let programs = Programs {
        ssvm: beside(&arguments.ssvm, "ssvm"),
        console_proxy: beside(&arguments.console_proxy, "console-proxy"),
        novnc: arguments.novnc.as_deref().map(std::path::absolute).transpose()?,
    };
    for (option, program) in [("--ssvm", &programs.ssvm), ("--console-proxy", &programs.console_proxy)] {
        anyhow::ensure!(
            program.is_file(),
            "{} is not there; say where the program is with {option}",
            program.display()
        );
    }
    open_processes(data_dir, programs)
}

fn open_processes(data_dir: &Path, programs: Programs) -> anyhow::Result<Processes> {
    let directory = std::path::absolute(data_dir.join("vms"))?;
    Processes::open(directory, programs).context("looking for system VMs that run")
}

/// Where agents find this server. Without `--host` they are processes of this machine.
fn place(arguments: &Serve, listening: SocketAddr) -> Place {
    let own = match listening.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        ip => ip.to_string(),
    };
    let hosts = arguments.hosts.clone();
    Place {
        zone: ZoneId(1),
        pod: PodId(1),
        servers: if hosts.is_empty() { vec![own] } else { hosts },
        port: listening.port(),
        console: arguments.console_listen,
        authorized_key: None,
        networks: None,
    }
}

async fn stop_system_vms(data_dir: &Path) -> anyhow::Result<()> {
    // Held until they have ended: a server that starts meanwhile would start them again.
    let _store = Store::open(data_dir).context("making sure that no server runs")?;
    let nothing = Programs {
        ssvm: PathBuf::new(),
        console_proxy: PathBuf::new(),
        novnc: None,
    };
    let (processes, not_stopped) = open_processes(data_dir, nothing)?.stop_all().await;
    let (vms, not_removed) = Embedded::remove(data_dir).await;
    let mut stdout = std::io::stdout();
    for name in processes.into_iter().chain(vms) {
        writeln!(stdout, "{name}").context("writing the list")?;
    }
    // One reason to look is enough for the exit status; the log has all.
    let mut failed = not_stopped.into_iter().map(anyhow::Error::from).chain(not_removed);
    let first = failed.next();
    for error in failed {
        error!(error = format!("{error:#}"), "Something could not be ended");
    }
    first.map_or(Ok(()), Err)
}

async fn api(data_dir: &Path, arguments: Api) -> anyhow::Result<()> {
    let client = Client::new(data_dir);
    let Api {
        command, parameters, ..
    } = &arguments;
    let answer = if arguments.no_wait {
        client.call(command, parameters).await?
    } else {
        client.call_and_wait(command, parameters).await?
    };
    let text = format!("{answer:#}\n");
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing the answer")
}

async fn reset_admin_password(data_dir: &Path) -> anyhow::Result<()> {
    let store = open_for_one_change(data_dir)?;
    let administrator = store.administrator().await?.user;
    let password = password::one_time();
    store
        .set_one_time_password(administrator.id, password::hash(&password))
        .await?;
    info!(
        user = administrator.username,
        "New password, good for one login; the web page then asks for another"
    );
    std::io::stdout()
        .write_all(format!("{}\n", password.expose()).as_bytes())
        .context("writing the password")
}

/// Also while the server runs, and before its first start.
fn open_for_one_change(data_dir: &Path) -> anyhow::Result<Store> {
    let store = match Store::open(data_dir) {
        Err(OpenError::InUse(_)) => Store::open_beside_server(data_dir),
        opened => opened,
    };
    store.context("opening the database")
}

async fn hosts(data_dir: &Path, json: bool) -> anyhow::Result<()> {
    let hosts = Store::open_read_only(data_dir)
        .context("opening the database")?
        .hosts()
        .await?;
    let text = if json { hosts_json(&hosts) } else { hosts_table(&hosts) };
    std::io::stdout().write_all(text.as_bytes()).context("writing the list")
}

fn hosts_json(hosts: &[Host]) -> String {
    let rows: Vec<_> = hosts
        .iter()
        .map(|host| {
            serde_json::json!({
                "id": host.id.0,
                "uuid": host.uuid.to_string(),
                "name": host.name,
                "type": host.host_type.as_str(),
                "status": host.status.as_str(),
                "reason": host.status_reason,
                "zoneid": host.zone.0,
                "podid": host.pod.map(|pod| pod.0),
                "version": host.version,
                "arch": host.arch,
                "privateip": host.private.ip,
                "publicip": host.public.ip,
                "lastping": host.last_ping.and_then(|time| time.format(&Rfc3339).ok()),
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::from(rows))
}

fn hosts_table(hosts: &[Host]) -> String {
    if hosts.is_empty() {
        return "No agent has connected yet.\n".into();
    }
    let header = [
        "ID",
        "NAME",
        "TYPE",
        "STATUS",
        "PRIVATE IP",
        "PUBLIC IP",
        "LAST PING",
        "REASON",
    ];
    let rows = hosts.iter().map(|host| {
        let ip = |ip: Option<IpAddr>| ip.map_or_else(|| "-".into(), |ip| ip.to_string());
        [
            host.id.to_string(),
            host.name.clone(),
            host.host_type.as_str().into(),
            host.status.as_str().into(),
            ip(host.private.ip),
            ip(host.public.ip),
            host.last_ping.map_or_else(|| "never".into(), ago),
            host.status_reason.clone(),
        ]
        .map(|cell| cell.escape_debug().to_string())
    });
    let rows: Vec<[String; 8]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// How long ago, in one unit.
fn ago(time: OffsetDateTime) -> String {
    let seconds = (OffsetDateTime::now_utc() - time).whole_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

async fn issue_certificate(data_dir: &Path, arguments: IssueCertificate) -> anyhow::Result<()> {
    let ca = open_ca(data_dir)?;
    let request = Request::new(arguments.name.clone(), vec![arguments.name], arguments.addresses);
    let issued = ca.issue(&request)?;
    let Signed {
        certificate,
        ca,
        serial,
        not_after,
        ..
    } = &issued.signed;
    open_for_one_change(data_dir)?
        .record_certificate(&issued.signed, None)
        .await?;
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("creating {}", arguments.out.display()))?;
    let written = [
        ("cloud.ca.crt", ca.as_bytes(), 0o644),
        ("cloud.key", issued.private_key.expose().as_bytes(), 0o600),
        ("cloud.crt", certificate.as_bytes(), 0o644),
    ];
    for (name, contents, mode) in written {
        let _ = files::replace(arguments.out.join(name), contents, mode)?;
    }
    info!(%serial, %not_after, out = %arguments.out.display(), "Certificate issued");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_parameter_has_its_value_or_names_the_file_with_it() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(key_value("email=a@b=c"), pair("email", "a@b=c"));
        assert_eq!(key_value("tags[0].key="), pair("tags[0].key", ""));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("value");
        let _ = files::replace(&file, "s=cr@t\n", 0o600).unwrap();
        assert_eq!(
            key_value(&format!("password@{}", file.display())),
            pair("password", "s=cr@t")
        );
        assert_eq!(key_value("password@/missing").unwrap_err(), "there is no file /missing");
        assert_eq!(
            key_value("password").unwrap_err(),
            "write it like name=value, or name@file"
        );
    }
}
