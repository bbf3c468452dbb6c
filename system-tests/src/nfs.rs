//! A real NFS server, in a test's own network: nfs-ganesha with rpcbind, which serve v3, v4.0, v4.1 and v4.2 from a directory
//! of the host. The host's kernel needs no NFS.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use system_tests::{nfs::NfsServer, vm::Net};
//!
//! let net = Net::new().await?;
//! net.bridge("storage", "10.77.0.10/24").await?;
//! let server = NfsServer::start(&net, "10.77.0.10").await?;
//! let store = server.url(); // nfs://10.77.0.10/export/secondary, for `secUrl` and the like
//! let on_host = server.directory(); // the same directory, here
//! server.kill().await?; // VMs get no answer any more
//! server.start_again().await?; // what they have open goes on
//! # Ok(()) }
//! ```
//!
//! Nothing is left behind: the servers end with the [`NfsServer`], and the kernel ends them when the test run is killed.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use platform::exec::{Cmd, Running};
use platform::files;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::vm::{self, Net};

/// As clients name the export.
const EXPORT: &str = "/export/secondary";
/// For a server to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);
/// Of the log, in an error.
const LOG_TAIL: usize = 3000;
/// The grace period: for so long a server that has lost its clients' state lets them claim it again, and nobody open anything
/// new. Short, but longer than the lease.
const GRACE_S: u32 = 12;
const LEASE_S: u32 = 10;

/// A running server. It has one export, which root may write. In one [`Net`] there can be one: rpcbind has one port.
#[derive(Debug)]
pub struct NfsServer {
    address: Ipv4Addr,
    directory: PathBuf,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    /// Dropped last: the servers have their files in here.
    _files: Arc<TempDir>,
}

#[derive(Debug)]
enum Wish {
    Start,
    Stop,
    Kill,
}

#[derive(Debug)]
struct Order {
    wish: Wish,
    done: oneshot::Sender<anyhow::Result<()>>,
}

impl NfsServer {
    /// Starts one that listens on an address of the host in that network.
    ///
    /// # Errors
    /// A program is missing, or does not answer; the error has the end of its log.
    pub async fn start(net: &Net, address: &str) -> anyhow::Result<Self> {
        Self::start_with(net, address, "3, 4", "0, 1, 2").await
    }

    /// One that speaks only some versions, ganesha's `Protocols` and `Minor_Versions`: `"4"` and `"1, 2"`.
    ///
    /// # Errors
    /// As [`NfsServer::start`].
    pub async fn start_with(net: &Net, address: &str, protocols: &str, minor_versions: &str) -> anyhow::Result<Self> {
        let address: Ipv4Addr = address.parse().context("the address of an NFS server")?;
        let files = vm::run_directory()?;
        let directory = files.path().join("store");
        for path in [&directory, &files.path().join("recovery"), &files.path().join("run")] {
            fs::create_dir(path)?;
        }
        let _ = files::replace(
            files.path().join(CONFIG),
            config(address, protocols, minor_versions, files.path()),
            0o644,
        )?;
        let servers = Servers {
            address,
            files: files.path().to_owned(),
            has_v3: protocols.contains('3'),
            rpcbind: None,
            ganesha: None,
        };
        let (orders, received) = mpsc::channel(1);
        let namespace = net.open()?;
        let thread = thread::Builder::new()
            .name("nfs-server".to_owned())
            .spawn(move || servers.work(&namespace, received))?;
        let server = Self {
            address,
            directory,
            orders: Some(orders),
            thread: Some(thread),
            _files: files,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// The exported directory, on the host.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What clients mount: `10.77.0.10:/export/secondary`.
    pub fn device(&self) -> String {
        format!("{}:{EXPORT}", self.address)
    }

    /// The same as CloudStack names a store.
    pub fn url(&self) -> String {
        format!("nfs://{}{EXPORT}", self.address)
    }

    /// Ends the server as an orderly shutdown does.
    ///
    /// # Errors
    /// Its thread is gone.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.order(Wish::Stop).await
    }

    /// Ends it as a power cut does.
    ///
    /// # Errors
    /// Its thread is gone.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.order(Wish::Kill).await
    }

    /// Starts it after [`NfsServer::stop`] or [`NfsServer::kill`]: the files have the same handles.
    ///
    /// # Errors
    /// As [`NfsServer::start`].
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.order(Wish::Start).await
    }

    /// Puts another, empty directory in the place of the export, while the server is stopped: the handles that clients have
    /// are stale (`ESTALE`) from then on.
    ///
    /// # Errors
    /// The file system cannot.
    pub async fn replace_store(&self) -> anyhow::Result<()> {
        self.stop().await?;
        // The new one is made while the old one is there, so that it has another inode. Handles of what is gone are stale.
        let old = self.directory.with_file_name("store.old");
        fs::rename(&self.directory, &old)?;
        fs::create_dir(&self.directory)?;
        fs::remove_dir_all(&old)?;
        self.start_again().await
    }

    async fn order(&self, wish: Wish) -> anyhow::Result<()> {
        let (done, result) = oneshot::channel();
        let gone = || anyhow!("the thread of the NFS server has ended");
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(Order { wish, done }).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

impl Drop for NfsServer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it kills, it does not wait for anybody
        }
    }
}

const CONFIG: &str = "ganesha.conf";
const LOG: &str = "ganesha.log";

/// What belongs to the thread. It is in the network namespace, and its `/run` is its own: rpcbind has a socket there, and
/// several servers run side by side.
#[derive(Debug)]
struct Servers {
    address: Ipv4Addr,
    files: PathBuf,
    has_v3: bool,
    rpcbind: Option<Running>,
    ganesha: Option<Running>,
}

impl Servers {
    fn work(mut self, namespace: &File, mut orders: mpsc::Receiver<Order>) {
        let entered = self.enter(namespace);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the runtime of the test has started, too");
        runtime.block_on(async move {
            while let Some(Order { wish, done }) = orders.recv().await {
                let result = match (&entered, wish) {
                    (Err(error), _) => Err(anyhow!("{error:#}")),
                    (Ok(()), Wish::Start) => self.start().await,
                    (Ok(()), Wish::Kill) => {
                        self.ganesha = None;
                        Ok(())
                    }
                    (Ok(()), Wish::Stop) => {
                        if let Some(ganesha) = self.ganesha.take() {
                            ganesha.stop(START_LIMIT).await;
                        }
                        Ok(())
                    }
                };
                let _ = done.send(result);
            }
        });
    }

    fn enter(&self, namespace: &File) -> anyhow::Result<()> {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
        unshare(CloneFlags::CLONE_NEWNS).context("having mounts of one's own")?;
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        mount(
            Some(&self.files.join("run")),
            "/run",
            nothing,
            MsFlags::MS_BIND,
            nothing,
        )
        .context("having a /run of one's own")
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        let on_leash = || Cmd::new("setpriv").args(["--pdeathsig", "KILL", "--"]);
        if self.rpcbind.is_none() {
            let rpcbind = on_leash().args(["rpcbind", "-f"]);
            self.rpcbind = Some(rpcbind.spawn(self.files.join("rpcbind.log"))?);
            self.answers(&["100000", "4"]).await?;
        }
        let ganesha = on_leash()
            .args(["ganesha.nfsd", "-F", "-L"])
            .arg(self.files.join(LOG))
            .arg("-f")
            .arg(self.files.join(CONFIG))
            .arg("-p")
            .arg(self.files.join("ganesha.pid"));
        self.ganesha = Some(ganesha.spawn(self.files.join("ganesha.out"))?);
        // rpcbind keeps the ports of one that was killed: only an answer from it tells.
        let version = if self.has_v3 { "3" } else { "4" };
        self.answers(&["100003", version]).await
    }

    /// Waits until a program with this number and version answers.
    async fn answers(&mut self, program: &[&str]) -> anyhow::Result<()> {
        let started = Instant::now();
        let ask = Cmd::new("rpcinfo")
            .args(["-T", "tcp", &self.address.to_string()])
            .args(program);
        loop {
            let Err(error) = ask.run().await else { return Ok(()) };
            if started.elapsed() > START_LIMIT {
                let log = fs::read_to_string(self.files.join(LOG)).unwrap_or_default();
                let tail: String = log.chars().skip(log.chars().count().saturating_sub(LOG_TAIL)).collect();
                return Err(error).with_context(|| format!("the NFS server does not start: {tail}"));
            }
            sleep(LOOK).await;
        }
    }
}

/// ganesha-core-config(8), ganesha-export-config(8).
fn config(address: Ipv4Addr, protocols: &str, minor_versions: &str, files: &Path) -> String {
    let files = files.display();
    format!(
        "NFS_CORE_PARAM {{\n\
         \x20 Protocols = {protocols};\n\
         \x20 Bind_addr = {address};\n\
         \x20 MNT_Port = 20048;\n\
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
         \x20 Path = \"{files}/store\";\n\
         \x20 Pseudo = \"{EXPORT}\";\n\
         \x20 Access_Type = RW;\n\
         \x20 Squash = No_Root_Squash;\n\
         \x20 SecType = sys;\n\
         \x20 Protocols = {protocols};\n\
         \x20 Transports = TCP;\n\
         \x20 FSAL {{ Name = VFS; }}\n\
         }}\n\
         LOG {{ Default_Log_Level = EVENT; }}\n"
    )
}
