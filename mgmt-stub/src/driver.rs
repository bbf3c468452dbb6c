//! Who runs VMs. So far: [`processes`], for which a system VM is an ordinary program.
//!
//! A driver starts and stops what it is told to, and says what is on; which VMs there should be is not its business.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

use protocol::secret::Secret;
use tokio::sync::watch;

use crate::ca::Issued;

pub mod processes;

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

    /// Powers it off and removes what was made for it.
    fn destroy<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// Whether it is on. A VM that the driver does not know is off.
    fn power(&self, name: &str) -> Power;

    /// The end of what it printed, for a person who asks why.
    fn last_words(&self, name: &str) -> Option<String>;

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
    /// Its certificate and key, for drivers that hand files over; a real VM gets them by ssh.
    pub identity: Issued,
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
    /// Its settings have no text form.
    #[error("cannot write the settings of {0}")]
    Settings(String, #[source] toml::ser::Error),
    /// The program.
    #[error(transparent)]
    Exec(#[from] platform::exec::ExecError),
    /// It hangs in the kernel.
    #[error("{name} (process {pid}) does not end, not even killed: it waits for a device or a file system")]
    Stuck {
        /// Which VM.
        name: String,
        /// Its process.
        pid: i32,
    },
}
