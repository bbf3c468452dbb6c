//! Where everything of a VM is.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use platform::exec::Process;
use platform::files;
use tokio::net::UnixStream;

use super::{VmError, failed};

/// Bytes of the file that names a process.
const MAX_FILE: u64 = 1024;

/// The directory of a VM; only its owner may look into it (mode 0700). Its path must be short: sockets are in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places(PathBuf);

impl Places {
    pub(super) const MACHINE: &str = "machine.json";

    /// Of a VM in this directory.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Itself.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Which process its QEMU is: [`Process`] as text.
    pub fn process(&self) -> PathBuf {
        self.0.join("qemu-process")
    }

    /// What it is made of: [`Machine`](crate::machine::Machine) as JSON.
    pub fn machine(&self) -> PathBuf {
        self.0.join(Self::MACHINE)
    }

    /// The socket of QEMU's monitor.
    pub fn qmp(&self) -> PathBuf {
        self.0.join("qmp")
    }

    /// The socket of the guest agent's port.
    pub fn guest_agent(&self) -> PathBuf {
        self.0.join("guest-agent")
    }

    /// The socket of the guest channel's port.
    pub fn channel(&self) -> PathBuf {
        self.0.join("channel")
    }

    /// What QEMU prints; what was before, at most the last run's, is beside it, with `.1`.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// What the guest writes to its serial console; what was before, at most the last run's, is beside it, with `.1`.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// What is left of a log's past.
    pub(super) fn last(log: &Path) -> PathBuf {
        let mut last = log.as_os_str().to_owned();
        last.push(".1");
        last.into()
    }

    pub(super) fn sockets(&self) -> [PathBuf; 3] {
        [self.qmp(), self.guest_agent(), self.channel()]
    }

    /// The QEMU that runs here. Whoever started it may have been killed before it could write down which one that is: then
    /// the kernel knows who listens.
    pub(super) async fn find(&self) -> Option<Process> {
        let text = files::read_limited(self.process(), MAX_FILE)
            .ok()
            .flatten()
            .unwrap_or_default();
        let written = String::from_utf8_lossy(&text).parse::<Process>().ok();
        if let Some(process) = written.filter(Process::is_alive) {
            return Some(process);
        }
        let listener = UnixStream::connect(self.qmp()).await.ok()?.peer_cred().ok()?.pid()?;
        let process = Process::of(listener).ok().flatten().filter(Process::is_alive)?;
        // When this fails, the next one finds it in the same way.
        files::replace(self.process(), process.to_string(), 0o600).ok();
        Some(process)
    }

    /// Makes place for the next run. Logs of the last one are kept: they say why it ended.
    pub(super) fn clear(&self) -> Result<(), VmError> {
        for path in self.sockets().into_iter().chain([self.process()]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => {}
            }
        }
        for path in [self.log(), self.console()] {
            match fs::rename(&path, Self::last(&path)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("rename", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}
