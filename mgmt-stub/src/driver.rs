//! Who runs VMs: [`processes`], for which a system VM is an ordinary program, [`qemu`], and [`in_process`], which only
//! pretends them. What all drivers have in common is said by the trait and asked by [`conformance`].
//!
//! A driver starts and stops what it is told to, and says what is on; which VMs there should be is not its business.

use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use protocol::boot::MacAddr;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::ca::Issued;

pub mod conformance;
pub mod in_process;
mod last_words;
pub mod processes;
pub mod qemu;

/// Something that takes a while.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, DriverError>> + Send + 'a>>;

/// Runs VMs, by name. Each call may be repeated: a VM that is on is started already.
pub trait Driver: Send + Sync + 'static {
    /// In answers of the API.
    fn hypervisor(&self) -> &'static str;

    /// Makes the VM if need be, and powers it on.
    fn start<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()>;

    /// Asks it to end, and powers it off if it does not.
    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// Powers it off without asking it.
    fn power_off<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        self.stop(name)
    }

    /// Powers it off and removes what was made for it.
    fn destroy<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// Whether it is on. A VM that the driver does not know is off.
    fn power(&self, name: &str) -> Power;

    /// The end of what it printed, for a person who asks why.
    fn last_words(&self, name: &str) -> Option<String>;

    /// Restarts what runs in it, without powering it off: the same machine, the same boot arguments.
    fn reboot<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(async move {
            self.stop(&vm.name).await?;
            self.start(vm).await
        })
    }

    /// How far its start is and what stands in the way, as far as the driver can look inside.
    fn progress(&self, _name: &str) -> Option<Progress> {
        None
    }

    /// What it uses of this machine.
    fn usage(&self, _name: &str) -> Option<Usage> {
        None
    }

    /// Where its screen is, while it is on.
    fn screen(&self, _name: &str) -> Option<Screen> {
        None
    }

    /// The VMs that it has something of, whether they are on or off.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    /// Since when a VM that is on does not answer who runs it: it hangs, or was halted. `None`: it answers.
    fn silent_since(&self, _name: &str) -> Option<OffsetDateTime> {
        None
    }

    /// Since when the secondary storage that it offers does not answer, and which one that is. `None`: it does, or there is
    /// none.
    fn storage_silent_since(&self) -> Option<(OffsetDateTime, String)> {
        None
    }

    /// Starts that it takes at the same time; more of them wait.
    fn parallel_starts(&self) -> usize {
        2
    }

    /// Changes when the power of any VM has changed without being asked for.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Whether a VM is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Power {
    /// It is.
    On,
    /// It is not, for this reason.
    Off(String),
}

/// A VM as it shall be.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Its instance name.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its boot arguments.
    pub boot_args: Secret<String>,
    /// Its certificate and key, for drivers that hand files over; a real VM gets them by ssh. A user's VM has none.
    pub identity: Option<Issued>,
    /// Its NICs, in the order of its devices: the first is eth0. A process has none.
    pub nics: Vec<Nic>,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Of its screen; at most eight characters count (RFC 6143 §7.2.2).
    pub vnc_password: Secret<String>,
}

/// A NIC of a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// The network it is in.
    pub traffic: Traffic,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its address in that network, with the length of the prefix.
    pub address: Option<Ipv4Net>,
    /// Its gateway, where it has the default route.
    pub gateway: Option<Ipv4Addr>,
}

/// The networks of a zone (management.md §1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Traffic {
    /// Link-local: the host's way in.
    Control,
    /// Agents and their server.
    Management,
    /// Everybody.
    Public,
    /// Stores.
    Storage,
    /// VMs of users.
    Guest,
}

impl Traffic {
    /// CloudStack's spelling of traffic types.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "Control",
            Self::Management => "Management",
            Self::Public => "Public",
            Self::Storage => "Storage",
            Self::Guest => "Guest",
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Traffic {
    type Err = BadTraffic;

    fn from_str(text: &str) -> Result<Self, BadTraffic> {
        let known = [
            Self::Control,
            Self::Management,
            Self::Public,
            Self::Storage,
            Self::Guest,
        ];
        let found = known.into_iter().find(|traffic| traffic.as_str() == text);
        found.ok_or_else(|| BadTraffic(text.to_owned()))
    }
}

/// The text is no type of traffic.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a type of traffic; there are Control, Management, Public, Storage and Guest")]
pub struct BadTraffic(String);

/// How far the start of a VM is. It is kept while the VM is on: it also says what is wrong later.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// In the order in which they began: those of the driver (`qemu`, `guest agent`, `boot arguments`, `ssh`, `files`,
    /// `certificate`) and those that the VM tells of itself (docs/guest-channel.md).
    pub steps: Vec<Step>,
    /// What stands in the way, with what to do.
    pub problem: Option<String>,
}

/// A step of a start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// How it is.
    pub outcome: Outcome,
    /// When it came to this.
    pub at: OffsetDateTime,
    /// More, for people.
    pub detail: String,
}

/// How a step is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// It waits for somebody else.
    Waiting,
    /// It is over.
    Done,
    /// It has failed; it may be tried again.
    Failed,
}

/// What a VM uses. Counters begin anew with each start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Processor time.
    pub cpu: Duration,
    /// Memory of this machine.
    pub memory: u64,
    /// Bytes that came to its NICs.
    pub received: u64,
    /// Bytes that its NICs sent.
    pub sent: u64,
}

/// Where a screen is, as console proxies reach it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Screen {
    /// Where.
    pub address: SocketAddr,
    /// RFB's VncAuth.
    pub password: Secret<String>,
}

/// What a system VM is for, with what an ordinary program must know besides the boot arguments.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// CPVM.
    ConsoleProxy {
        /// Where it serves browsers.
        listen: SocketAddr,
    },
    /// SSVM.
    SecondaryStorage {
        /// Stores that are directories of this machine: their URLs, and where they are.
        stores: Vec<(String, PathBuf)>,
    },
    /// A VM of a user.
    User {
        /// Its root disk.
        disk: PathBuf,
    },
}

/// Why a VM is not as it shall be.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The name would leave its place.
    #[error("{0:?} is not a name for a VM; it needs letters, digits and `-` only")]
    Name(String),
    /// A file.
    #[error(transparent)]
    File(#[from] platform::files::FileError),
    /// A file.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A VM of a user.
    #[error("{0} needs a virtual machine; start the server with --driver qemu")]
    NotAProcess(String),
    /// Its settings have no text form.
    #[error("cannot write the settings of {0}")]
    Settings(String, #[source] toml::ser::Error),
    /// The program.
    #[error(transparent)]
    Exec(#[from] platform::exec::ExecError),
    /// The driver says why.
    #[error("{0} cannot be started: {1}")]
    Failed(String, String),
    /// A step of its start.
    #[error("step `{step}` of its start failed: {cause}{told}; {remedy}{console}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why, as far as we see it.
        cause: String,
        /// What the VM says; empty, or begins with `; `.
        told: String,
        /// What to do.
        remedy: &'static str,
        /// The end of its console; empty, or begins with `; `.
        console: String,
    },
    /// Twice at once.
    #[error("{0} is being started already")]
    Busy(String),
    /// Stopped or destroyed meanwhile.
    #[error("the start of {0} was given up because it was told to stop")]
    GivenUp(String),
    /// Its task is gone.
    #[error("the start of {0} was not finished; the management server is ending, or its log says more")]
    Abandoned(String),
    /// NICs.
    #[error(transparent)]
    Network(#[from] hypervisor::network::NetworkError),
    /// QEMU.
    #[error(transparent)]
    Vm(#[from] hypervisor::vm::VmError),
    /// It hangs in the kernel.
    #[error("{name} (process {pid}) does not end, not even killed: it waits for a device or a file system")]
    Stuck {
        /// Which VM.
        name: String,
        /// Its process.
        pid: i32,
    },
}

/// Bytes of a VM's name: it is a host name and a part of paths of sockets, which have at most 107.
const MAX_NAME: usize = 64;

/// Names become directories, and words of commands.
///
/// # Errors
/// It is no name.
pub(crate) fn check_name(name: &str) -> Result<(), DriverError> {
    let is_good = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_good && name.len() <= MAX_NAME && !name.starts_with('-') {
        Ok(())
    } else {
        Err(DriverError::Name(name.to_owned()))
    }
}
