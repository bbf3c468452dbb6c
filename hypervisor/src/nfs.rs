//! An NFS server in a network of VMs: nfs-ganesha, which needs nothing of the host's kernel.
//!
//! It goes on when we end, and the next one takes it over. Version 4.1 is what VMs use; version 3 with its rpcbind is there
//! when it is asked for. The exported directory is the host's.

use std::env;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use platform::exec::{Cmd, ExecError, Process};
use platform::files::{self, Change, FileError};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::network::namespace::Namespace;

mod rpc;

/// As clients name the export.
const EXPORT: &str = "/export/secondary";
/// TCP port: RFC 7530 §3.1.
pub const PORT: u16 = 2049;
/// Of `mountd` and of rpcbind, for version 3.
pub const V3_PORTS: [u16; 2] = [20048, 111];
/// For the server to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// For it to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// For an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at whether it is there.
const WATCH: Duration = Duration::from_secs(1);
/// Between two calls of a server that is there, and how many may stay without an answer.
const ASK: Duration = Duration::from_secs(15);
const MAX_SILENCE: u32 = 4;
/// Between two starts of one that ends again and again: the longest. One that has run for longer than [`CALM`] starts at
/// once.
const MAX_PAUSE: Duration = Duration::from_mins(1);
const CALM: Duration = Duration::from_mins(10);
/// For so long a server that has lost its clients' state lets them claim it again, and nobody open anything new. Short, but
/// longer than the lease.
const GRACE_S: u32 = 12;
const LEASE_S: u32 = 10;
/// Of its log, in an error.
const LOG_TAIL: usize = 2000;
const MAX_LOG: u64 = 16 << 20;
const MAX_PROCESS: u64 = 200;

/// capabilities(7) that the server keeps: to act for each user on files of all, by their handles.
const CAPABILITIES: &str =
    "-all,+chown,+dac_override,+dac_read_search,+fowner,+fsetid,+mknod,+setgid,+setuid,+sys_resource";

const CONFIG: &str = "ganesha.conf";
const LOG: &str = "ganesha.log";

/// What it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// An address of the host in the network.
    pub address: Ipv4Addr,
    /// What clients see; root may write.
    pub directory: PathBuf,
    /// Versions of NFS.
    pub versions: Versions,
}

/// Versions of NFS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Versions {
    /// 4.1 and 4.2: one port.
    V4,
    /// Also 3 and 4.0, with mountd and rpcbind.
    All,
}

/// A server. Clones are the same one; it stays when they are dropped.
#[derive(Clone, Debug)]
pub struct NfsServer(Arc<Server>);

#[derive(Debug)]
struct Server {
    namespace: Namespace,
    export: Export,
    files: PathBuf,
    /// Held by whoever starts or stops it.
    changing: Mutex<()>,
}

/// Why there is no NFS server.
#[derive(Debug, thiserror::Error)]
pub enum NfsError {
    /// A file of its own.
    #[error(transparent)]
    File(#[from] FileError),
    /// The same.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program.
    #[error("{program} is not installed; the Debian package {package} provides it")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Where it comes from.
        package: &'static str,
    },
    /// It does not start.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The place that it runs in.
    #[error("cannot {0} for the NFS server")]
    Place(&'static str, #[source] Errno),
    /// A path that its configuration cannot hold.
    #[error("{0} cannot be exported; choose a path of UTF-8 text without double quotes")]
    Path(PathBuf),
    /// It runs and says nothing, or has ended.
    #[error("the NFS server on {address} does not answer{}", after_colon(log))]
    Silent {
        /// Where.
        address: Ipv4Addr,
        /// The end of its log.
        log: String,
        /// What the last call said.
        source: io::Error,
    },
}

fn after_colon(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(": {log}")
    }
}

impl NfsServer {
    /// The server whose configuration and logs are in `files`. Nothing is started.
    ///
    /// # Errors
    /// The export has a path that cannot be written down.
    pub fn new(namespace: &Namespace, export: Export, files: &Path) -> Result<Self, NfsError> {
        for path in [&export.directory, files] {
            if path.to_str().is_none_or(|text| text.contains(['"', '\n'])) {
                return Err(NfsError::Path(path.to_owned()));
            }
        }
        Ok(Self(Arc::new(Server {
            namespace: namespace.clone(),
            export,
            files: files.to_owned(),
            changing: Mutex::new(()),
        })))
    }

    /// As CloudStack names the store: `nfs://172.31.3.5/export/secondary`.
    pub fn url(&self) -> String {
        format!("nfs://{}{EXPORT}", self.0.export.address)
    }

    /// The exported directory.
    pub fn directory(&self) -> &Path {
        &self.0.export.directory
    }

    /// Starts it unless it runs as it shall, and waits for its answer. The exported directory is made if need be.
    ///
    /// # Errors
    /// It does not answer, with the end of its log.
    pub async fn start(&self) -> Result<(), NfsError> {
        let _alone = self.0.changing.lock().await;
        self.0.start().await
    }

    /// Ends it in an orderly way; clients wait for the next start.
    pub async fn stop(&self) {
        self.end(STOP_LIMIT).await;
    }

    /// Ends it at once.
    pub async fn kill(&self) {
        self.end(Duration::ZERO).await;
    }

    async fn end(&self, grace: Duration) {
        let _alone = self.0.changing.lock().await;
        for program in [GANESHA, RPCBIND] {
            if let Some(process) = self.0.process(program) {
                process.stop(grace).await;
            }
        }
    }

    /// Whether its process is there.
    pub fn is_alive(&self) -> bool {
        self.0.process(GANESHA).is_some()
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// What it is that it does not.
    pub async fn answers(&self) -> io::Result<()> {
        self.0.answers().await
    }

    /// Starts it whenever it has ended or does not answer, until `stop`; then it is left running.
    pub async fn keep(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_for_ever()).await;
    }

    async fn keep_for_ever(&self) {
        let mut pause = Duration::ZERO;
        let (mut since, mut asked, mut silent) = (Instant::now(), Instant::now(), 0);
        loop {
            sleep(WATCH).await;
            if self.is_alive() {
                if asked.elapsed() < ASK {
                    continue;
                }
                silent = if self.answers().await.is_ok() { 0 } else { silent + 1 };
                asked = Instant::now();
                if let Err(error) = self.0.trim_log() {
                    warn!(
                        error = platform::logging::chain(&error).to_string(),
                        "Cannot shorten the NFS server's log"
                    );
                }
                if silent < MAX_SILENCE {
                    continue;
                }
                warn!("The NFS server does not answer and is ended");
                self.kill().await;
            }
            if since.elapsed() > CALM {
                pause = Duration::ZERO;
            }
            warn!(?pause, "The NFS server has ended and is started again");
            sleep(pause).await;
            pause = (pause * 2).clamp(WATCH, MAX_PAUSE);
            if let Err(error) = self.start().await {
                error!(
                    error = platform::logging::chain(&error).to_string(),
                    "The NFS server does not start"
                );
            }
            (since, asked, silent) = (Instant::now(), Instant::now(), 0);
        }
    }
}

const GANESHA: &str = "ganesha";
const RPCBIND: &str = "rpcbind";

impl Server {
    async fn start(&self) -> Result<(), NfsError> {
        is_installed("ganesha.nfsd", "nfs-ganesha")?;
        for path in [
            &self.export.directory,
            &self.files.join("recovery"),
            &self.files.join("run"),
        ] {
            fs::create_dir_all(path).map_err(failed("create", path))?;
        }
        let config = config(&self.export, &self.files);
        let change = files::replace(self.files.join(CONFIG), config, 0o644)?;
        let lacks_rpcbind = self.export.versions == Versions::All && self.process(RPCBIND).is_none();
        if let Some(running) = self.process(GANESHA) {
            if change == Change::Same && !lacks_rpcbind && self.answers().await.is_ok() {
                info!(pid = running.pid(), address = %self.export.address, "NFS server taken over");
                return Ok(());
            }
            running.stop(STOP_LIMIT).await;
        }
        if lacks_rpcbind {
            is_installed("rpcbind", "rpcbind")?;
            self.spawn(RPCBIND, &Cmd::new("rpcbind").arg("-f"))?;
            self.opens(V3_PORTS[1]).await?;
        }
        self.trim_log()?;
        let ganesha = Cmd::new("ganesha.nfsd").args(["-F", "-L"]).arg(self.files.join(LOG));
        let ganesha = ganesha.arg("-f").arg(self.files.join(CONFIG));
        let ganesha = ganesha.arg("-p").arg(self.files.join("ganesha.pid"));
        // VMs talk to it: it has root's rights to files, and none to the machine.
        let modest = format!("--bounding-set={CAPABILITIES}");
        let ganesha = ganesha.through(Cmd::new("setpriv").args(["--no-new-privs", &modest, "--"]));
        let process = self.spawn(GANESHA, &ganesha)?;
        let started = Instant::now();
        loop {
            let Err(source) = self.answers().await else { break };
            if started.elapsed() > START_LIMIT || !process.is_alive() {
                process.stop(Duration::ZERO).await;
                let (address, log) = (self.export.address, self.log_tail());
                return Err(NfsError::Silent { address, log, source });
            }
            sleep(LOOK).await;
        }
        info!(pid = process.pid(), address = %self.export.address, elapsed = ?started.elapsed(), "NFS server started");
        Ok(())
    }

    /// rpcbind keeps the ports of a server that was killed: only an answer from the server itself tells.
    async fn answers(&self) -> io::Result<()> {
        let started = Instant::now();
        let mut stream = self
            .namespace
            .connect((self.export.address, PORT).into(), ANSWER_LIMIT)
            .await?;
        let left = ANSWER_LIMIT.saturating_sub(started.elapsed());
        let answer = tokio::time::timeout(left, rpc::null(&mut stream, 4)).await;
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Waits until a port takes connections.
    async fn opens(&self, port: u16) -> Result<(), NfsError> {
        let started = Instant::now();
        loop {
            let Err(source) = self
                .namespace
                .connect((self.export.address, port).into(), ANSWER_LIMIT)
                .await
            else {
                return Ok(());
            };
            if started.elapsed() > START_LIMIT {
                let (address, log) = (self.export.address, String::new());
                return Err(NfsError::Silent { address, log, source });
            }
            sleep(LOOK).await;
        }
    }

    /// Starts a program that goes on without us, in the network namespace, with a `/run` of its own: rpcbind has its socket
    /// there, and ganesha would talk to the host's rpcbind and D-Bus otherwise.
    fn spawn(&self, name: &str, program: &Cmd) -> Result<Process, NfsError> {
        let runtime = Handle::current();
        let namespace = fs::File::open(self.namespace.path()).map_err(failed("open", self.namespace.path()))?;
        let start = || {
            let _runtime = runtime.enter();
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(at("enter the network"))?;
            unshare(CloneFlags::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
            let (none, own_run): (Option<&str>, _) = (None, self.files.join("run"));
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(at("keep mounts apart"))?;
            mount(Some(&own_run), "/run", none, MsFlags::MS_BIND, none).map_err(at("mount an own /run"))?;
            let detached = program.spawn_detached(self.files.join(format!("{name}.out")))?;
            Ok::<_, NfsError>(detached.process().clone())
        };
        // Namespaces are a thread's, and a program has those of the thread that starts it.
        let process = thread::scope(|scope| scope.spawn(start).join().expect("starting a program does not panic"))?;
        let _ = files::replace(self.process_file(name), process.to_string(), 0o600)?;
        Ok(process)
    }

    /// The one that runs, also when an earlier one of us has started it.
    fn process(&self, name: &str) -> Option<Process> {
        let text = files::read_limited(self.process_file(name), MAX_PROCESS)
            .ok()
            .flatten()?;
        let process: Process = String::from_utf8(text).ok()?.parse().ok()?;
        process.is_alive().then_some(process)
    }

    fn process_file(&self, name: &str) -> PathBuf {
        self.files.join(format!("{name}.process"))
    }

    /// ganesha opens its log anew for each line. VMs can make it write many.
    fn trim_log(&self) -> Result<(), NfsError> {
        let log = self.files.join(LOG);
        if fs::metadata(&log).is_ok_and(|log| log.len() > MAX_LOG) {
            fs::rename(&log, log.with_extension("log.old")).map_err(failed("rename", &log))?;
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let logs = [LOG, "ganesha.out"].map(|name| fs::read(self.files.join(name)).unwrap_or_default());
        let log = logs.into_iter().find(|log| !log.is_empty()).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
        String::from_utf8_lossy(tail).trim().to_owned()
    }
}

/// A program that is started in a session of its own fails where nobody sees it when it is not there.
fn is_installed(program: &'static str, package: &'static str) -> Result<(), NfsError> {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join(program).exists()) {
        Ok(())
    } else {
        Err(NfsError::Missing { program, package })
    }
}

fn at(what: &'static str) -> impl FnOnce(Errno) -> NfsError {
    move |error| NfsError::Place(what, error)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NfsError {
    move |source| NfsError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// ganesha-core-config(8), ganesha-export-config(8).
fn config(export: &Export, files: &Path) -> String {
    let (protocols, minor_versions) = match export.versions {
        Versions::V4 => ("4", "1, 2"),
        Versions::All => ("3, 4", "0, 1, 2"),
    };
    let (address, files, directory) = (export.address, files.display(), export.directory.display());
    format!(
        "NFS_CORE_PARAM {{\n\
         \x20 Protocols = {protocols};\n\
         \x20 Bind_addr = {address};\n\
         \x20 NFS_Port = {PORT};\n\
         \x20 MNT_Port = {};\n\
         \x20 Enable_UDP = false;\n\
         \x20 Enable_NLM = false;\n\
         \x20 Enable_RQUOTA = false;\n\
         \x20 mount_path_pseudo = true;\n\
         }}\n\
         NFSv4 {{\n\
         \x20 Minor_Versions = {minor_versions};\n\
         \x20 Lease_Lifetime = {LEASE_S};\n\
         \x20 Grace_Period = {GRACE_S};\n\
         \x20 Only_Numeric_Owners = true;\n\
         \x20 RecoveryRoot = \"{files}/recovery\";\n\
         }}\n\
         EXPORT {{\n\
         \x20 Export_Id = 1;\n\
         \x20 Path = \"{directory}\";\n\
         \x20 Pseudo = \"{EXPORT}\";\n\
         \x20 Access_Type = RW;\n\
         \x20 Squash = No_Root_Squash;\n\
         \x20 SecType = sys;\n\
         \x20 Protocols = {protocols};\n\
         \x20 Transports = TCP;\n\
         \x20 FSAL {{ Name = VFS; }}\n\
         }}\n\
         LOG {{ Default_Log_Level = EVENT; }}\n",
        V3_PORTS[0]
    )
}
