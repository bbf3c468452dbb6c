//! VMs that run: each a QEMU of its own, which goes on when we end and is found again by the next one of us.
//!
//! Everything of a VM but its disks is in one directory, [`Places`]. A QEMU is known by its process (a file says which), and
//! by its monitor's socket, whose other end the kernel knows.

use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use platform::exec::{Cmd, ExecError, Process};
use platform::files::{self, FileError};
use protocol::secret::Secret;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::MAX_SOCKET_PATH;
use crate::guest_agent::{AgentError, GuestAgent};
use crate::guest_channel::GuestChannel;
use crate::machine::{BadMachine, Machine};
use crate::qmp::{Events, Qmp, QmpError};

mod ended;
mod limits;
mod logs;
mod places;
mod usage;
mod watch;

pub use ended::{Cause, Ended};
pub use places::Places;
pub use usage::Usage;
use watch::Watcher;

/// For a QEMU that has started to open its monitor, on a machine that is busy.
const START_LIMIT: Duration = Duration::from_secs(30);
/// For a QEMU that works to answer its monitor: management.md §1 wants a reason within 2 s.
const RESPONSE_LIMIT: Duration = Duration::from_secs(2);
/// For the guest's agent to take a request.
const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// Between two presses of the power button: a guest that boots does not feel the first.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// For a QEMU that was asked to end to write what it has, and to be gone.
const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// For a QEMU that has closed its monitor to be gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Behind ourselves: whoever manages VMs must have an answer while they are busy.
const NICENESS: &str = "5";
/// Bytes of the files that we have written.
const MAX_FILE: u64 = 256 * 1024;

/// A VM that runs, or has run. Clones are the same VM; dropping them leaves it running.
#[derive(Clone, Debug)]
pub struct Vm {
    machine: Arc<Machine>,
    places: Places,
    process: Process,
    watcher: Arc<Watcher>,
}

/// Why a VM cannot be had, or asked.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// It cannot be made.
    #[error(transparent)]
    Machine(#[from] BadMachine),
    /// unix(7).
    #[error("{} is too long for the path of a socket, which has at most {MAX_SOCKET_PATH} bytes; choose a shorter directory", .0.display())]
    LongPath(PathBuf),
    /// It runs already.
    #[error("the VM in {} runs already (process {pid})", .directory.display())]
    Runs {
        /// Its directory.
        directory: PathBuf,
        /// Its QEMU.
        pid: i32,
    },
    /// QEMU did not like something.
    #[error("QEMU has ended at once; {}", if .printed.is_empty() { "it said nothing" } else { .printed })]
    EndedAtOnce {
        /// The end of what it said.
        printed: String,
    },
    /// What we wrote about it is gone.
    #[error("the VM in {} runs (process {pid}), but what it is made of is not in {}; end that process", .directory.display(), Places::MACHINE)]
    Forgotten {
        /// Its directory.
        directory: PathBuf,
        /// Its QEMU.
        pid: i32,
    },
    /// What we wrote about it is something else.
    #[error("cannot read what the VM is made of from {}", .path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is off.
    #[error("{name} is off: {ended}")]
    Off {
        /// The VM.
        name: String,
        /// How it ended.
        ended: Ended,
    },
    /// Its QEMU hangs.
    #[error("QEMU of {0} does not answer; it hangs, or was stopped")]
    Silent(String),
    /// Not even a kill helps.
    #[error("{name} (process {pid}) does not end, not even killed: it waits for a device or a file system")]
    Stuck {
        /// The VM.
        name: String,
        /// Its process.
        pid: i32,
    },
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// A program.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// `query-vnc`.
#[derive(Deserialize)]
struct Screen {
    enabled: bool,
    host: Option<IpAddr>,
    service: Option<String>,
}

impl Vm {
    /// Starts a VM whose files are in `directory`, which is made if need be. Its taps are in `namespace`
    /// (`/run/netns/NAME`), or in ours. Done when QEMU's monitor answers; the guest has just begun to start.
    ///
    /// When this is dropped half-way, the VM may run: [`Vm::adopt`] tells.
    pub async fn start(directory: &Path, machine: &Machine, namespace: Option<&Path>) -> Result<Self, VmError> {
        machine.check()?;
        let places = Places::new(directory);
        if let Some(socket) = places
            .sockets()
            .into_iter()
            .find(|socket| socket.as_os_str().len() > MAX_SOCKET_PATH)
        {
            return Err(VmError::LongPath(socket));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("create", directory))?;
        if let Some(process) = places.find().await {
            return Err(VmError::Runs {
                directory: directory.to_owned(),
                pid: process.pid(),
            });
        }
        places.clear()?;
        let text = serde_json::to_vec_pretty(machine).map_err(|source| VmError::BadFile {
            path: places.machine(),
            source,
        })?;
        let _ = files::replace(places.machine(), text, 0o600)?;

        // Each becomes the next: the process is QEMU's.
        let mut command = machine.command(&places);
        if let Some(namespace) = namespace {
            let mut net = std::ffi::OsString::from("--net=");
            net.push(namespace);
            command = command.through(Cmd::new("nsenter").arg(net).arg("--"));
        }
        let command = command.through(Cmd::new("nice").args(["-n", NICENESS]));
        let mut detached = command.spawn_detached(places.log())?;
        let process = detached.process().clone();
        let _ = files::replace(places.process(), process.to_string(), 0o600)?;
        limits::apply(machine, process.pid());

        let qmp = places.qmp();
        let connected = tokio::select! {
            connected = Qmp::connect_and_listen(&qmp, START_LIMIT) => connected.map_err(VmError::from),
            ended = detached.wait() => Err(ended_at_once(ended, &places)),
        };
        let (qmp, events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                // A QEMU that does not like something may open its monitor before it says so.
                let ended = timeout(LAST_WORDS, detached.wait()).await;
                process.stop(Duration::ZERO).await;
                limits::remove(machine).await;
                return Err(ended.map_or(error, |ended| ended_at_once(ended, &places)));
            }
        };
        info!(vm = machine.name, pid = process.pid(), "VM started");
        let machine = Arc::new(machine.clone());
        let watcher = Watcher::of_new(&machine, &places, detached, qmp, events);
        Ok(Self {
            machine,
            places,
            process,
            watcher: Arc::new(watcher),
        })
    }

    /// Takes over a VM that runs, from whoever started it; `None` when none runs in this directory. Does not wait for its
    /// QEMU, which may hang: [`Vm::responds`] tells.
    pub async fn adopt(directory: &Path) -> Result<Option<Self>, VmError> {
        let places = Places::new(directory);
        let process = places.find().await;
        let path = places.machine();
        let text = files::read_limited(&path, MAX_FILE)?;
        let (process, text) = match (process, text) {
            (Some(process), Some(text)) => (process, text),
            (Some(process), None) => {
                return Err(VmError::Forgotten {
                    directory: directory.to_owned(),
                    pid: process.pid(),
                });
            }
            (None, text) => {
                // It ended while nobody watched.
                if let Some(machine) = text.and_then(|text| serde_json::from_slice(&text).ok()) {
                    limits::remove(&machine).await;
                }
                return Ok(None);
            }
        };
        let machine: Machine = serde_json::from_slice(&text).map_err(|source| VmError::BadFile { path, source })?;
        let machine = Arc::new(machine);
        info!(vm = machine.name, pid = process.pid(), "VM found running");
        let watcher = Watcher::of_found(&machine, &places, process.clone());
        Ok(Some(Self {
            machine,
            places,
            process,
            watcher: Arc::new(watcher),
        }))
    }

    /// What it is made of.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Where its files are.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Its QEMU.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Whether its QEMU is there.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// Whether its QEMU answers within 2 s: one that hangs or was stopped does not.
    pub async fn responds(&self) -> bool {
        let asked = timeout(RESPONSE_LIMIT, async {
            let qmp = self.qmp().await?;
            Ok::<_, VmError>(qmp.call("query-status", json!({})).await?)
        });
        asked.await.is_ok_and(|answer| answer.is_ok())
    }

    /// What is wrong with it while it runs, such as a disk that cannot be written.
    pub fn trouble(&self) -> Option<String> {
        self.watcher.state().borrow().trouble.clone()
    }

    /// How it ended, once it has. May be waited for again and again.
    pub async fn ended(&self) -> Ended {
        self.watcher.ended().await
    }

    /// All events of its QEMU from now on.
    pub fn events(&self) -> Events {
        self.watcher.events()
    }

    /// Its monitor.
    pub async fn qmp(&self) -> Result<Qmp, VmError> {
        match timeout(RESPONSE_LIMIT, self.watcher.qmp()).await {
            Ok(Ok(qmp)) => Ok(qmp),
            Ok(Err(ended)) => Err(self.off(ended)),
            Err(_) => Err(VmError::Silent(self.machine.name.clone())),
        }
    }

    /// Asks its guest to power off, by its agent and its power button; after `grace` QEMU is asked to end, then killed.
    pub async fn stop(&self, grace: Duration) -> Result<Ended, VmError> {
        if let Ok(ended) = timeout(grace, self.ask_to_power_off()).await {
            return Ok(ended);
        }
        warn!(vm = self.machine.name, ?grace, "VM does not power off by itself");
        // Unlike a kill, this writes what QEMU has not written yet. The answer may be lost when it ends.
        let quit = async {
            let qmp = self.qmp().await?;
            Ok(qmp.call_within(RESPONSE_LIMIT, "quit", json!({})).await?)
        };
        let hangs = matches!(
            quit.await,
            Err(VmError::Silent(_) | VmError::Qmp(QmpError::Silent { .. }))
        );
        if !hangs && let Ok(ended) = timeout(QUIT_LIMIT, self.ended()).await {
            return Ok(ended);
        }
        self.kill().await
    }

    /// Powers it off by force, whatever its QEMU does. What its guest has flushed to its disks is in their files.
    pub async fn kill(&self) -> Result<Ended, VmError> {
        if self.is_alive() {
            self.watcher.killed();
        }
        if !self.process.stop(Duration::ZERO).await {
            return Err(VmError::Stuck {
                name: self.machine.name.clone(),
                pid: self.process.pid(),
            });
        }
        Ok(self.ended().await)
    }

    /// Presses its reset button: the same machine starts anew.
    pub async fn reset(&self) -> Result<(), VmError> {
        self.qmp().await?.call("system_reset", json!({})).await?;
        Ok(())
    }

    /// What it uses of this machine.
    pub fn usage(&self) -> Result<Usage, VmError> {
        let taps = self.machine.nics.iter().map(|nic| nic.tap.as_str());
        let usage = Usage::of(self.process.pid(), taps);
        // Its number may be somebody else's by now.
        match usage {
            Ok(usage) if self.is_alive() => Ok(usage),
            Ok(_) => Err(VmError::Silent(self.machine.name.clone())),
            Err(source) => Err(VmError::Io {
                operation: "read what is used by",
                path: PathBuf::from(format!("/proc/{}", self.process.pid())),
                source,
            }),
        }
    }

    /// Lets people who know the password (of which eight letters count, RFC 6143 §7.2.2) see its screen. Before, nobody
    /// does.
    pub async fn set_screen_password(&self, password: &Secret<String>) -> Result<(), VmError> {
        let arguments = json!({"protocol": "vnc", "password": password.expose()});
        self.qmp().await?.call("set_password", arguments).await?;
        Ok(())
    }

    /// Where its screen is, in its network namespace; `None` when it has none.
    pub async fn screen(&self) -> Result<Option<SocketAddr>, VmError> {
        const COMMAND: &str = "query-vnc";
        if self.machine.screen.is_none() {
            return Ok(None);
        }
        let answer = self.qmp().await?.call(COMMAND, json!({})).await?;
        let read = Screen::deserialize(answer)
            .ok()
            .filter(|screen| screen.enabled)
            .and_then(|screen| {
                let port = screen.service?.parse().ok()?;
                Some(SocketAddr::new(screen.host?, port))
            });
        read.map(Some).ok_or_else(|| {
            VmError::Qmp(QmpError::Refused {
                command: COMMAND.to_owned(),
                why: "it tells no address".to_owned(),
            })
        })
    }

    /// Its guest's agent, once that answers. QEMU serves one connection at a time.
    pub async fn guest_agent(&self, limit: Duration) -> Result<GuestAgent, AgentError> {
        let mut agent = GuestAgent::connect(&self.places.guest_agent(), limit).await?;
        agent.up(limit).await?;
        Ok(agent)
    }

    /// Its guest's channel. QEMU serves one connection at a time.
    pub fn guest_channel(&self) -> GuestChannel {
        GuestChannel::open(&self.places.channel())
    }

    /// Until it is off.
    async fn ask_to_power_off(&self) -> Ended {
        let asking = async {
            // It may have no agent, or one that serves somebody else: then there is the button.
            let by_agent = async {
                let mut agent = GuestAgent::connect(&self.places.guest_agent(), Duration::ZERO).await?;
                agent.shutdown().await?;
                Ok::<_, AgentError>(agent)
            };
            let _agent = timeout(AGENT_LIMIT, by_agent).await;
            loop {
                if let Ok(qmp) = self.qmp().await {
                    qmp.call_within(RESPONSE_LIMIT, "system_powerdown", json!({}))
                        .await
                        .ok();
                }
                sleep(PRESS_AGAIN).await;
            }
        };
        tokio::select! {
            ended = self.ended() => ended,
            () = asking => self.ended().await,
        }
    }

    fn off(&self, ended: Ended) -> VmError {
        VmError::Off {
            name: self.machine.name.clone(),
            ended,
        }
    }
}

fn ended_at_once(ended: Result<ExitStatus, ExecError>, places: &Places) -> VmError {
    match ended {
        Ok(_) => VmError::EndedAtOnce {
            printed: ended::end_of(&places.log()),
        },
        Err(error) => error.into(),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
