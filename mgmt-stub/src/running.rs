//! Which server runs on a data directory, in `server.json`: for the command line, and for who wants to know where it listens.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use platform::exec::Process;
use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};

const FILE: &str = "server.json";
/// Bytes.
const MAX_FILE: u64 = 16 << 10;

/// A server that runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Running {
    /// [`Process`] as text: its id and when it was started.
    process: String,
    /// Its version.
    pub version: String,
    /// What runs its VMs, as `serve --driver` has it.
    pub driver: String,
    /// Where the web page and the API are.
    pub http: SocketAddr,
    /// Where the first console proxy is for browsers.
    pub console: SocketAddr,
    /// Where agents connect, once it listens.
    pub agents: Option<SocketAddr>,
}

impl Running {
    /// This process.
    pub fn this(driver: String, http: SocketAddr, console: SocketAddr, agents: SocketAddr) -> Self {
        let own = i32::try_from(std::process::id()).ok();
        let process = own.and_then(|pid| Process::of(pid).ok().flatten());
        Self {
            process: process.map(|process| process.to_string()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            driver,
            http,
            console,
            agents: Some(agents),
        }
    }

    /// One that was just started.
    pub fn of(process: &Process, driver: String, http: SocketAddr, console: SocketAddr) -> Self {
        Self {
            process: process.to_string(),
            agents: None,
            ..Self::this(driver, http, console, http)
        }
    }

    /// Says that it runs. What an earlier one has said is replaced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, data_dir: &Path) -> Result<(), FileError> {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        files::replace(data_dir.join(FILE), text, 0o600).map(drop)
    }

    /// It has ended.
    pub fn forget(data_dir: &Path) {
        let removed = fs::remove_file(data_dir.join(FILE));
        // One that stays names a process that is not there.
        if let Err(error) = removed
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, file = FILE, "Cannot remove the file that names this server");
        }
    }

    /// The one of this data directory, if it runs. What a killed one has left is no server.
    ///
    /// # Errors
    /// The file cannot be read. One that makes no sense names no server.
    pub fn find(data_dir: &Path) -> Result<Option<Self>, FileError> {
        let bytes = files::read_limited(data_dir.join(FILE), MAX_FILE)?;
        let running: Option<Self> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(running.filter(|running| running.process().is_some()))
    }

    /// Its process, if that runs.
    pub fn process(&self) -> Option<Process> {
        let process: Process = self.process.parse().ok()?;
        process.is_alive().then_some(process)
    }

    /// The web page.
    pub fn url(&self) -> String {
        format!("http://{}/client/", self.http)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_server_is_found_while_it_runs() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Running::find(directory.path()).unwrap(), None);
        let address = "127.0.0.1:8080".parse().unwrap();
        let us = Running::this("none".into(), address, address, address);
        us.save(directory.path()).unwrap();
        assert_eq!(Running::find(directory.path()).unwrap(), Some(us.clone()));
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut other = us;
        let mut words: Vec<&str> = other.process.split(' ').collect();
        words[1] = "1"; // when it was started
        other.process = words.join(" ");
        other.save(directory.path()).unwrap();
        assert_eq!(
            Running::find(directory.path()).unwrap(),
            None,
            "another process has its id"
        );
        Running::forget(directory.path());
        Running::forget(directory.path());
        let _ = files::replace(directory.path().join(FILE), "{", 0o600).unwrap();
        assert_eq!(Running::find(directory.path()).unwrap(), None);
    }
}
