//! What is up, in `zone.json`: for `down`, for the next `up`, and for tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use platform::exec::Process;
use platform::files;
use serde::{Deserialize, Serialize};

const FILE: &str = "zone.json";
const MAX: u64 = 64 << 10;

/// The zone as it was last started. Kept with mode 0600: it has the first password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// The web page.
    pub(crate) url: String,
    pub(crate) user: String,
    /// Good for the first login, in which the user chooses another.
    pub(crate) password: String,
    /// Where the programs that run were taken from.
    pub(crate) programs: PathBuf,
    /// Of `mgmt-stub`.
    pub(crate) data_dir: PathBuf,
    /// The image store.
    pub(crate) store: PathBuf,
    /// Where consoles are served.
    pub(crate) console: String,
    /// Where the agents of system VMs that are programs connect.
    pub(crate) agents: String,
    /// System VMs are programs, not virtual machines.
    pub(crate) processes: bool,
    pub(crate) server: Option<Running>,
    pub(crate) guest: Option<Guest>,
}

/// The demo guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guest {
    pub(crate) process: Running,
    /// Socket of QEMU's monitor protocol.
    pub(crate) qmp: PathBuf,
    /// Its id in the API, once it is registered.
    pub(crate) id: Option<String>,
}

/// A process that goes on without us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    /// [`Process`] as text.
    identity: String,
    pub(crate) log: PathBuf,
}

impl Running {
    pub(crate) fn new(process: &Process, log: PathBuf) -> Self {
        Self {
            pid: process.pid(),
            identity: process.to_string(),
            log,
        }
    }

    /// The process, if it still runs.
    pub(crate) fn alive(&self) -> Option<Process> {
        let process: Process = self.identity.parse().ok()?;
        process.is_alive().then_some(process)
    }
}

impl State {
    /// What an earlier `up` has left, if there was one.
    pub(crate) fn load(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(FILE);
        let Some(bytes) = files::read_limited(&path, MAX)? else {
            return Ok(None);
        };
        let state = serde_json::from_slice(&bytes)
            .with_context(|| format!("reading {}; was it written by another version?", path.display()))?;
        Ok(Some(state))
    }

    pub(crate) fn save(&self, directory: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let _ = files::replace(directory.join(FILE), text + "\n", 0o600)?;
        Ok(())
    }

    /// Nothing is up any more.
    pub(crate) fn forget(directory: &Path) -> anyhow::Result<()> {
        let path = directory.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("deleting {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_only_by_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), None);
        let us = Process::of(i32::try_from(std::process::id()).unwrap())
            .unwrap()
            .unwrap();
        let process = Running::new(&us, "server.log".into());
        assert_eq!(process.alive(), Some(us));
        let state = State {
            url: "http://127.0.0.1:8080/client/".into(),
            user: "admin".into(),
            password: "once".into(),
            programs: "target/release".into(),
            data_dir: "data".into(),
            store: "store".into(),
            console: "127.0.0.1:6080".into(),
            agents: "127.0.0.1:8250".into(),
            processes: true,
            server: Some(process.clone()),
            guest: Some(Guest {
                process,
                qmp: "qmp.sock".into(),
                id: None,
            }),
        };
        state.save(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), Some(state));
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        State::forget(directory.path()).unwrap();
        State::forget(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), None);
    }
}
