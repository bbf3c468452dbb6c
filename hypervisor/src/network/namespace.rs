//! A network namespace with a name: another network of the same machine, for whoever is inside.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use platform::exec::{Cmd, ExecError, Process};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info};

use super::interface::fnv1a;

/// Where ip-netns(8) keeps them.
const DIRECTORY: &str = "/run/netns";
/// `NSFS_MAGIC` of linux/magic.h: a file that is a namespace is on this file system.
const NSFS: FsType = FsType(0x6e73_6673);
const MAX_NAME: usize = 60;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// For a program inside to end by itself when the namespace is removed.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Looks at who is inside: one that starts others while it ends is found by the next look.
const END_LOOKS: usize = 5;

/// The name of a namespace: lower case letters, digits and `-`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Name(String);

/// The text is no such name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a name for a network namespace; it needs 1 to 60 lower case letters, digits and `-`, and a letter first"
)]
pub struct BadName(String);

impl Name {
    /// The one that belongs to a directory, wherever it is called from: `sysvm-` and a digest of the path.
    pub fn of_directory(directory: &Path) -> Self {
        // One that is not there yet may come to have another path by a link in it: make it first.
        let path = fs::canonicalize(directory).or_else(|_| std::path::absolute(directory));
        let path = path.unwrap_or_else(|_| directory.to_owned());
        Self(format!("sysvm-{:08x}", fnv1a(path.as_os_str().as_bytes())))
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let starts_well = text.starts_with(|first: char| first.is_ascii_lowercase());
        if starts_well && text.len() <= MAX_NAME && text.chars().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName(text.chars().take(100).collect()))
        }
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network namespace. Clones are the same one; it stays when they are dropped, until [`Namespace::remove`].
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    name: Name,
    path: PathBuf,
    file: File,
}

/// What cannot be done with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// It cannot be made.
    #[error("cannot make the network namespace {name}; are you root?")]
    Create {
        /// Which.
        name: Name,
        /// What `ip` said.
        source: ExecError,
    },
    /// It, or one of its files.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed that changes the network in it.
    #[error("cannot change the network in the namespace {name}")]
    Change {
        /// In which.
        name: Name,
        /// What it said.
        source: ExecError,
    },
    /// A port in it.
    #[error("cannot listen on {address} in the network namespace {name}; is another program using the port?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// In which.
        name: Name,
        /// What the system said.
        source: io::Error,
    },
    /// Processes in it hang in the kernel.
    #[error(
        "processes {pids:?} in the network namespace {name} do not end, not even killed: they wait for a device or a file system"
    )]
    Stuck {
        /// In which.
        name: Name,
        /// Their ids.
        pids: Vec<i32>,
    },
}

impl Namespace {
    /// The namespace of this name; `None` when there is none. A file that a reboot or a half removal has left is none.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(name: &Name) -> Result<Option<Self>, NamespaceError> {
        let path = Path::new(DIRECTORY).join(&name.0);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("open", &path, source)),
        };
        let kind = fstatfs(&file).map_err(|error| failed("open", &path, error.into()))?;
        if kind.filesystem_type() != NSFS {
            return Ok(None);
        }
        let name = name.clone();
        Ok(Some(Self(Arc::new(Opened { name, path, file }))))
    }

    /// The same; without one a new one is made, with nothing in it but a loopback interface, which is up.
    ///
    /// # Errors
    /// We are not root.
    pub async fn open_or_create(name: &Name) -> Result<Self, NamespaceError> {
        if let Some(there) = Self::open(name)? {
            info!(namespace = %name, "Network namespace taken over");
            return Ok(there);
        }
        let path = Path::new(DIRECTORY).join(&name.0);
        remove_file(&path)?;
        let create = |source| NamespaceError::Create {
            name: name.clone(),
            source,
        };
        Cmd::new("ip")
            .args(["netns", "add", &name.0])
            .run()
            .await
            .map_err(create)?;
        let made = Self::open(name)?.ok_or_else(|| failed("open", &path, ErrorKind::NotFound.into()))?;
        made.ip("link set lo up").await?;
        info!(namespace = %name, "Network namespace made");
        Ok(made)
    }

    /// As `ip netns` shows it.
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// Its file, for nsenter(1) and setns(2).
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The same command, inside: `nsenter` becomes the program, so the process is the program's.
    pub fn command(&self, cmd: Cmd) -> Cmd {
        let net = format!("--net={}", self.0.path.display());
        cmd.through(Cmd::new("nsenter").args([net.as_str(), "--"]))
    }

    /// Calls `work` on a thread that is inside. Sockets made there stay inside wherever they are used then.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let entered = thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.0.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            worker.join().expect("the work inside does not panic")
        });
        entered.map_err(|error: Errno| failed("enter", self.path(), error.into()))
    }

    /// A listener inside, for this runtime.
    ///
    /// # Errors
    /// The port cannot be had.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener, NamespaceError> {
        let bound = self.inside(|| {
            let socket = tcp_socket(address)?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        })?;
        bound
            .and_then(|socket| socket.listen(BACKLOG))
            .map_err(|source| self.cannot_listen(address, source))
    }

    /// A socket for UDP inside, for this runtime.
    ///
    /// # Errors
    /// The port cannot be had.
    pub fn bind_udp(&self, address: SocketAddr) -> Result<UdpSocket, NamespaceError> {
        let bound = self.inside(|| {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        bound
            .and_then(UdpSocket::from_std)
            .map_err(|source| self.cannot_listen(address, source))
    }

    /// Connects to an address as it is inside.
    ///
    /// # Errors
    /// Nobody is there, or nobody answers within `limit`.
    pub async fn connect(&self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let socket = self.inside(|| tcp_socket(address)).map_err(io::Error::other)??;
        timeout(limit, socket.connect(address))
            .await
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    /// Runs commands of ip(8), one on each line: `link set br0 mtu 9000`. Nothing is run for no line.
    ///
    /// # Errors
    /// One of them fails; the message of `ip` has its number.
    pub async fn ip(&self, batch: &str) -> Result<(), NamespaceError> {
        if batch.trim().is_empty() {
            return Ok(());
        }
        debug!(namespace = %self.name(), batch, "Changing interfaces");
        let ip = Cmd::new("ip").args(["-n", &self.name().0, "-batch", "-"]);
        ip.stdin(batch)
            .run()
            .await
            .map(drop)
            .map_err(|source| self.cannot_change(source))
    }

    /// What `ip -j` prints about something: `["address", "show"]`.
    ///
    /// # Errors
    /// `ip` fails.
    pub async fn ip_json(&self, about: &[&str]) -> Result<Vec<u8>, NamespaceError> {
        let ip = Cmd::new("ip").args(["-n", &self.name().0, "-j", "-d"]).args(about);
        let printed = ip.run().await.map_err(|source| self.cannot_change(source))?;
        Ok(printed.stdout)
    }

    /// Loads a script of nft(8), all of it or nothing.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub async fn nft(&self, script: &str) -> Result<(), NamespaceError> {
        debug!(namespace = %self.name(), script, "Loading rules");
        let nft = self.command(Cmd::new("nft").args(["-f", "-"]).stdin(script));
        nft.run().await.map(drop).map_err(|source| self.cannot_change(source))
    }

    /// What `nft -j` prints about something: `["list", "tables"]`.
    ///
    /// # Errors
    /// `nft` fails.
    pub async fn nft_json(&self, about: &[&str]) -> Result<Vec<u8>, NamespaceError> {
        let nft = self.command(Cmd::new("nft").arg("-j").args(about));
        let printed = nft.run().await.map_err(|source| self.cannot_change(source))?;
        Ok(printed.stdout)
    }

    /// Sets kernel parameters by their paths below `/proc/sys/net`: `ipv4/ip_forward`. A kernel without one has none of
    /// what it would switch.
    ///
    /// # Errors
    /// The kernel refuses a value.
    pub fn set_parameters(&self, parameters: &[(&str, &str)]) -> Result<(), NamespaceError> {
        self.inside(|| {
            parameters
                .iter()
                .try_for_each(|(path, value)| set_parameter(path, value))
        })?
    }

    /// The processes that are inside, this one excepted.
    ///
    /// # Errors
    /// The system does not say.
    pub fn processes(&self) -> Result<Vec<Process>, NamespaceError> {
        let proc = Path::new("/proc");
        let of_file = |source| failed("look at", self.path(), source);
        let ours = self.0.file.metadata().map_err(of_file)?;
        let entries = fs::read_dir(proc).map_err(|source| failed("list", proc, source))?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let is_inside = |pid: &i32| {
            // One that has ended meanwhile is not inside.
            fs::metadata(proc.join(pid.to_string()).join("ns/net"))
                .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
        };
        let own = i32::try_from(std::process::id()).ok();
        let others = pids.filter(|pid| Some(*pid) != own).filter(is_inside);
        Ok(others.filter_map(|pid| Process::of(pid).ok().flatten()).collect())
    }

    /// Ends every process inside, then the namespace with all that is in it: interfaces, rules, the other ends of its
    /// wires.
    ///
    /// # Errors
    /// A process hangs in the kernel; the others are gone then, and the namespace is there.
    pub async fn remove(self) -> Result<(), NamespaceError> {
        for _ in 0..END_LOOKS {
            let inside = self.processes()?;
            if inside.is_empty() {
                break;
            }
            let mut ending = JoinSet::new();
            for process in inside {
                ending.spawn(async move { process.stop(END_LIMIT).await });
            }
            ending.join_all().await;
        }
        let left: Vec<_> = self.processes()?.iter().map(Process::pid).collect();
        if !left.is_empty() {
            return Err(NamespaceError::Stuck {
                name: self.name().clone(),
                pids: left,
            });
        }
        Self::drop_name(self.name())?;
        info!(namespace = %self.name(), "Network namespace removed");
        Ok(())
    }

    /// Takes the name away: the namespace goes with its last process and socket. For those who cannot wait, or have ended the
    /// processes themselves. A name that nobody has is fine.
    ///
    /// # Errors
    /// We are not root.
    pub fn drop_name(name: &Name) -> Result<(), NamespaceError> {
        let path = Path::new(DIRECTORY).join(&name.0);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not a mount point, or nothing at all.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => remove_file(&path),
            Err(error) => Err(failed("unmount", &path, error.into())),
        }
    }

    fn cannot_change(&self, source: ExecError) -> NamespaceError {
        let name = self.name().clone();
        NamespaceError::Change { name, source }
    }

    fn cannot_listen(&self, address: SocketAddr, source: io::Error) -> NamespaceError {
        NamespaceError::Listen {
            address,
            name: self.name().clone(),
            source,
        }
    }
}

fn tcp_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Sets a parameter of the network that this thread is in.
pub(crate) fn set_parameter(path: &str, value: &str) -> Result<(), NamespaceError> {
    let path = Path::new("/proc/sys/net").join(path);
    match OpenOptions::new().write(true).open(&path) {
        Ok(mut file) => file
            .write_all(value.as_bytes())
            .map_err(|source| failed("set", &path, source)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed("set", &path, source)),
    }
}

fn remove_file(path: &Path) -> Result<(), NamespaceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> NamespaceError {
    NamespaceError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_name() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("zone"), directory.path().join("link"));
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let name = Name::of_directory(&path);
        assert_eq!(Name::of_directory(&link), name);
        assert_eq!(Name::of_directory(&path.join("../zone/.")), name);
        assert_ne!(Name::of_directory(directory.path()), name);
        assert_eq!(name.to_string().parse::<Name>(), Ok(name.clone()));
        assert_eq!(name.to_string().len(), "sysvm-1f2e3d4c".len());
    }
}
