//! The program's own settings: a TOML file beside the boot arguments (ssvm.md §9.1). All are optional.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::files::{self, FileError};
use serde::Deserialize;

/// More than any such file has.
const MAX_FILE: u64 = 1 << 20;

/// What an operator may set; `docs/ssvm.md` has them with units and examples.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Store URL to local directory. Not empty: plain-process mode (§1.2), without mounts, routes and filters.
    pub store_map: BTreeMap<String, PathBuf>,
    /// Own files: the journal and what was last set up.
    pub state_dir: PathBuf,
    /// `agent.properties`, the key store and the upload key; by default as in the image, or below `state_dir` in
    /// plain-process mode.
    pub agent_dir: Option<PathBuf>,
    /// Stores are mounted below.
    pub mount_root: PathBuf,
    /// For one mount, in seconds.
    pub mount_timeout_s: u64,
    /// Mount options by store host; they replace the default `soft,timeo=133,…` (§1.6).
    pub mount_options: BTreeMap<String, String>,
    /// For a TCP connection, in seconds.
    pub connect_timeout_s: u64,
    /// For a TLS handshake, in seconds.
    pub tls_timeout_s: u64,
    /// Longest silence of a source, in seconds.
    pub idle_timeout_s: u64,
    /// Hops that are followed, where the server allows redirects at all.
    pub max_redirects: u32,
    /// Ports that may be asked; empty: any.
    pub allowed_ports: Vec<u16>,
    /// Certificates that https sources are trusted by (PEM).
    pub ca_file: PathBuf,
    /// More of them, such as a company's own CA.
    pub extra_ca_files: Vec<PathBuf>,
    /// Attempts in a row that bring nothing new before a download fails.
    pub resume_attempts: u32,
    /// Downloads at work at once; others wait.
    pub active_jobs: usize,
    /// Bytes per second of all downloads together.
    pub rate_total: Option<NonZeroU64>,
    /// Bytes per second of one download.
    pub rate_per_job: Option<NonZeroU64>,
    /// Bytes that stay free on a store.
    pub reserve_bytes: u64,
    /// Largest growth by decompression, after the first 64 MiB.
    pub max_ratio: u64,
    /// Largest disk a guest may see, in bytes.
    pub max_virtual_size: u64,
    /// Accept QCOW2 with encryption.
    pub allow_encrypted_qcow2: bool,
    /// Accept LUKS containers as RAW.
    pub allow_luks: bool,
    /// Accept QCOW2 with extended L2 entries.
    pub allow_extended_l2: bool,
    /// Where metrics are served; absent: nowhere.
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            store_map: BTreeMap::new(),
            state_dir: "/var/lib/ssvm".into(),
            agent_dir: None,
            mount_root: "/mnt/SecStorage".into(),
            mount_timeout_s: 60,
            mount_options: BTreeMap::new(),
            connect_timeout_s: 30,
            tls_timeout_s: 30,
            idle_timeout_s: 120,
            max_redirects: 5,
            allowed_ports: Vec::new(),
            ca_file: "/etc/ssl/certs/ca-certificates.crt".into(),
            extra_ca_files: Vec::new(),
            resume_attempts: 5,
            active_jobs: 16,
            rate_total: None,
            rate_per_job: None,
            reserve_bytes: 1 << 30,
            max_ratio: 1000,
            max_virtual_size: 64 << 40,
            allow_encrypted_qcow2: false,
            allow_luks: false,
            allow_extended_l2: false,
            metrics_listen: None,
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file was named on the command line and is not there.
    #[error("{0} does not exist; leave --settings out to use the defaults")]
    Missing(PathBuf),
    /// The file is not what it should be.
    #[error("in {path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        problem: String,
    },
}

impl Settings {
    /// Reads a file. One that `may_be_missing` and is means the defaults.
    ///
    /// # Errors
    /// It cannot be read, or something in it makes no sense; everything wrong with values is told at once.
    pub fn load(path: &Path, may_be_missing: bool) -> Result<Self, BadSettings> {
        let content = |problem: String| BadSettings::Content {
            path: path.to_owned(),
            problem,
        };
        let Some(bytes) = files::read_limited(path, MAX_FILE)? else {
            if may_be_missing {
                return Ok(Self::default());
            }
            return Err(BadSettings::Missing(path.to_owned()));
        };
        let text = String::from_utf8(bytes).map_err(|_| content("the file is not UTF-8 text".into()))?;
        let settings: Self = toml::from_str(&text).map_err(|error| content(error.to_string()))?;
        match settings.problems() {
            problems if problems.is_empty() => Ok(settings),
            problems => Err(content(problems.join("; "))),
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let seconds = [
            ("mount_timeout_s", self.mount_timeout_s),
            ("connect_timeout_s", self.connect_timeout_s),
            ("tls_timeout_s", self.tls_timeout_s),
            ("idle_timeout_s", self.idle_timeout_s),
        ];
        for (name, value) in seconds {
            if !(1..=86_400).contains(&value) {
                problems.push(format!("{name}={value}: expected 1 to 86400 seconds"));
            }
        }
        if !(1..=64).contains(&self.active_jobs) {
            problems.push(format!("active_jobs={}: expected 1 to 64", self.active_jobs));
        }
        if self.max_redirects > 20 {
            problems.push(format!("max_redirects={}: expected 0 to 20", self.max_redirects));
        }
        if self.resume_attempts > 100 {
            problems.push(format!("resume_attempts={}: expected 0 to 100", self.resume_attempts));
        }
        if self.max_ratio == 0 {
            problems.push("max_ratio=0: expected 1 or more, such as 1000".into());
        }
        for (url, directory) in &self.store_map {
            if !directory.is_absolute() {
                problems.push(format!(
                    "store_map.{url:?}={}: expected an absolute path",
                    directory.display()
                ));
            }
        }
        problems
    }

    /// Plain-process mode: stores are directories of this machine, and nothing of the machine is changed.
    pub fn is_plain_process(&self) -> bool {
        !self.store_map.is_empty()
    }

    /// Where `agent.properties`, the key store and the upload key are.
    pub fn agent_dir(&self) -> PathBuf {
        match &self.agent_dir {
            Some(directory) => directory.clone(),
            None if self.is_plain_process() => self.state_dir.join("agent"),
            None => "/etc/cloudstack/agent".into(),
        }
    }

    /// For a TCP connection.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_s)
    }

    /// For a TLS handshake.
    pub fn tls_timeout(&self) -> Duration {
        Duration::from_secs(self.tls_timeout_s)
    }

    /// Longest silence of a source.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s)
    }

    /// For one mount.
    pub fn mount_timeout(&self) -> Duration {
        Duration::from_secs(self.mount_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ssvm.toml");
        let _ = files::replace(&path, text, 0o644).unwrap();
        Settings::load(&path, false).map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn an_empty_and_a_missing_file_mean_the_defaults() {
        assert_eq!(load("").unwrap(), Settings::default());
        let missing = Path::new("/nonexistent/ssvm.toml");
        assert_eq!(Settings::load(missing, true).unwrap(), Settings::default());
        assert_eq!(
            Settings::load(missing, false).unwrap_err().to_string(),
            "/nonexistent/ssvm.toml does not exist; leave --settings out to use the defaults"
        );
    }

    #[test]
    fn everything_wrong_with_values_is_told_at_once() {
        let text = "idle_timeout_s = 0\nactive_jobs = 65\n[store_map]\n\"nfs://a/b\" = \"here\"";
        assert_eq!(
            load(text).unwrap_err(),
            "in FILE: idle_timeout_s=0: expected 1 to 86400 seconds; active_jobs=65: expected 1 to 64; \
             store_map.\"nfs://a/b\"=here: expected an absolute path"
        );
    }

    #[test]
    fn an_unknown_word_is_a_typo() {
        let error = load("idle_timeout = 3").unwrap_err();
        assert!(error.contains("unknown field `idle_timeout`"), "{error}");
    }

    #[test]
    fn a_store_map_makes_it_a_plain_process() {
        let settings = load("state_dir = \"/s\"\n[store_map]\n\"nfs://a/b\" = \"/data\"").unwrap();
        assert!(settings.is_plain_process());
        assert_eq!(settings.agent_dir(), Path::new("/s/agent"));
        assert_eq!(Settings::default().agent_dir(), Path::new("/etc/cloudstack/agent"));
    }
}
