//! What the link to the management server is like, in a file: `agent check`, the screen and the guest channel read it, and so
//! does whoever wonders why a VM is not Up. No secrets.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use platform::files::{self, FileError};
use platform::notify::Notifier;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Where it is in a system VM. The directory is there while `cs-ssvm` or `cs-console-proxy` runs, and goes with it.
pub const FILE: &str = "/run/cloud/agent.json";
/// Of the file, in bytes: far more than one status.
const MAX_FILE: u64 = 64 * 1024;
/// Of an error's text, in characters: it is for a screen.
const MAX_ERROR: usize = 1000;

/// How far the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There is none: one is being made, or it is not yet time for the next attempt.
    Connecting,
    /// TLS is established; the server has not yet said that it is ready.
    Connected,
    /// The server uses this agent.
    Ready,
    /// The agent has ended and makes no more attempts.
    Stopped,
}

/// The link, as its agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// How far it is.
    pub state: State,
    /// The server it is or was about, as `address:port`.
    pub server: Option<String>,
    /// Since when the state is this one; seconds since 1970.
    pub since: u64,
    /// Why the last attempt failed or the last link was lost; gone when a server is ready.
    pub last_error: Option<String>,
    /// When the next attempt begins, while the agent waits for it; seconds since 1970.
    pub next_attempt: Option<u64>,
    /// Attempts since the program started, with the one under way.
    pub attempts: u64,
    /// Links that became ready since the program started.
    pub links: u64,
}

impl Display for LinkStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let server = self.server.as_deref().unwrap_or("a management server");
        let why = self
            .last_error
            .as_deref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        match self.state {
            State::Connecting => write!(f, "Not connected to {server}{why}"),
            State::Connected => write!(f, "Connected to {server}, which has not yet said that it is ready"),
            State::Ready => write!(f, "Ready at {server}"),
            State::Stopped => write!(f, "The agent has stopped{why}"),
        }
    }
}

/// Reads the status that an agent publishes; `None` when none runs that does.
///
/// # Errors
/// The file cannot be read, or is none of ours.
pub fn read(file: &Path) -> Result<Option<LinkStatus>, BadLinkStatus> {
    let Some(bytes) = files::read_limited(file, MAX_FILE)? else {
        return Ok(None);
    };
    let status = serde_json::from_slice(&bytes);
    status.map(Some).map_err(|source| BadLinkStatus::Text {
        path: file.to_owned(),
        source,
    })
}

/// Why a status cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadLinkStatus {
    /// The system says no.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another program has written it.
    #[error("{path} is not the status of an agent's link; restart the unit `cloud`")]
    Text {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// Tells the status when it changes: in the file, and to systemd.
#[derive(Debug)]
pub(crate) struct Publisher {
    systemd: Notifier,
    file: Option<PathBuf>,
    status: LinkStatus,
    was_written: bool,
}

impl Publisher {
    /// `None` publishes nothing.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self {
            systemd: Notifier::from_env(),
            file,
            status: LinkStatus {
                state: State::Connecting,
                server: None,
                since: now(),
                last_error: None,
                next_attempt: None,
                attempts: 0,
                links: 0,
            },
            was_written: true,
        }
    }

    pub(crate) fn connecting(&mut self, server: &str) {
        self.change(|status| {
            status.state = State::Connecting;
            status.server = Some(server.to_owned());
            status.next_attempt = None;
            status.attempts += 1;
        });
    }

    pub(crate) fn connected(&mut self) {
        self.change(|status| status.state = State::Connected);
    }

    pub(crate) fn ready(&mut self) {
        self.change(|status| {
            status.state = State::Ready;
            status.last_error = None;
            status.links += 1;
        });
    }

    /// An attempt failed, or a link was lost; the next attempt begins after `delay`.
    pub(crate) fn lost(&mut self, error: &str, delay: Duration) {
        self.change(|status| {
            status.state = State::Connecting;
            status.last_error = Some(error.chars().take(MAX_ERROR).collect());
            // Half seconds and more round up: it is a time to wait for.
            status.next_attempt = Some(now() + (delay + Duration::from_millis(500)).as_secs());
        });
    }

    /// The agent ends; `error` says why, unless it was asked to.
    pub(crate) fn stopped(&mut self, error: Option<&str>) {
        self.change(|status| {
            status.state = State::Stopped;
            status.next_attempt = None;
            if let Some(error) = error {
                status.last_error = Some(error.chars().take(MAX_ERROR).collect());
            }
        });
    }

    fn change(&mut self, change: impl FnOnce(&mut LinkStatus)) {
        let before = self.status.clone();
        change(&mut self.status);
        if self.status.state != before.state {
            self.status.since = now();
        }
        if self.status == before {
            return;
        }
        self.systemd.status(&self.status.to_string());
        let Some(file) = &self.file else { return };
        let bytes = serde_json::to_vec(&self.status).expect("plain data");
        // In memory: /run. Everybody may read it, no secret is in it.
        let written = files::replace(file, bytes, 0o644);
        // Once is enough: the next attempt would say it again.
        if let (Err(error), true) = (&written, self.was_written) {
            let error = platform::logging::chain(error).to_string();
            warn!(error, "Cannot tell what the link is like");
        }
        self.was_written = written.is_ok();
    }
}

/// Seconds since 1970; a clock before that counts as then.
pub fn now() -> u64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    elapsed.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn every_change_is_in_the_file_and_nothing_else_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.json");
        assert!(read(&file).unwrap().is_none());
        let mut publisher = Publisher::new(Some(file.clone()));
        assert!(read(&file).unwrap().is_none(), "nothing is known yet");

        publisher.connecting("192.0.2.10:8250");
        publisher.lost("cannot connect: Connection refused", Duration::from_secs(5));
        let waiting = read(&file).unwrap().unwrap();
        assert_eq!(waiting.state, State::Connecting);
        assert_eq!(
            waiting.last_error.as_deref(),
            Some("cannot connect: Connection refused")
        );
        assert!(waiting.next_attempt.unwrap() >= waiting.since + 4);

        publisher.connecting("192.0.2.11:8250");
        publisher.connected();
        publisher.ready();
        let ready = read(&file).unwrap().unwrap();
        assert_eq!((ready.state, ready.attempts, ready.links), (State::Ready, 2, 1));
        assert_eq!(ready.server.as_deref(), Some("192.0.2.11:8250"));
        assert_eq!((ready.last_error, ready.next_attempt), (None, None));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);

        let inode = std::fs::metadata(&file).unwrap().ino();
        publisher.connected();
        assert_ne!(std::fs::metadata(&file).unwrap().ino(), inode);
        let inode = std::fs::metadata(&file).unwrap().ino();
        publisher.connected();
        assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode, "no change, no write");

        publisher.stopped(Some("the server ended it"));
        assert_eq!(read(&file).unwrap().unwrap().state, State::Stopped);
    }

    #[test]
    fn a_directory_that_is_not_there_stops_no_link() {
        let mut publisher = Publisher::new(Some("/nonexistent/agent.json".into()));
        publisher.connecting("192.0.2.10:8250");
        publisher.ready();
        assert_eq!(publisher.status.links, 1);
    }
}
