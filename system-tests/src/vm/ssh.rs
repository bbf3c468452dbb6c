//! Into a VM over ssh, as hosts and the management server go: with the real OpenSSH, from inside the test's network.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use platform::exec::{Cmd, ExecError, Exited};
use tempfile::TempDir;

use super::network::Net;

/// CloudStack's port: appliance.md §4.2.
pub const PORT: &str = "3922";
/// A login under emulation takes one to three seconds.
const LIMIT: Duration = Duration::from_mins(1);

/// A key pair, and the VM that it should open. Clones have the same key.
#[derive(Clone, Debug)]
pub struct Ssh {
    net: Net,
    address: String,
    options: Vec<String>,
    limit: Duration,
    directory: Arc<TempDir>,
}

impl Ssh {
    /// A new key of the kind that the management server makes (appliance.md §4.1), for the VM at `address`.
    ///
    /// # Errors
    /// `ssh-keygen` fails.
    pub async fn new(net: &Net, address: &str) -> anyhow::Result<Self> {
        let ssh = Self {
            net: net.clone(),
            address: address.to_owned(),
            options: Vec::new(),
            limit: LIMIT,
            directory: Arc::new(tempfile::tempdir().context("making a directory for a key")?),
        };
        Cmd::new("ssh-keygen")
            .args(["-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-C", "test", "-f"])
            .arg(ssh.key())
            .run()
            .await?;
        Ok(ssh)
    }

    /// The line for `authorized_keys`, with its end.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn public_key(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.key().with_extension("pub"))?)
    }

    /// The same key for another address.
    #[must_use]
    pub fn at(&self, address: &str) -> Self {
        Self {
            address: address.to_owned(),
            ..self.clone()
        }
    }

    /// Sets an option of ssh_config(5): `Ciphers=aes128-ctr`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// For one command; a minute unless set.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// What a command line prints that the login shell of root runs. It is the one thing that a shell reads here: hosts
    /// send text.
    ///
    /// # Errors
    /// The exit code is not 0: that of the command line, or 255 when nobody logs in.
    pub async fn run(&self, command_line: &str) -> Result<String, ExecError> {
        let ssh = self
            .client("ssh")
            .args(["-p", PORT, "--", &self.root_at(), command_line]);
        Ok(self.net.command(ssh).run().await?.text())
    }

    /// As [`Ssh::run`], but any exit is an answer: what exactly came back. The command line reads `input`.
    ///
    /// # Errors
    /// `ssh` does not start or does not end.
    pub async fn exec(&self, command_line: &str, input: &[u8]) -> Result<Exited, ExecError> {
        let ssh = self
            .client("ssh")
            .args(["-p", PORT, "--", &self.root_at(), command_line])
            .stdin(input);
        self.net.command(ssh).run_to_exit().await
    }

    /// Copies files into a directory of the VM with their modes, with the protocol of scp before OpenSSH 9 if `legacy`.
    ///
    /// # Errors
    /// As [`Ssh::run`].
    pub async fn upload(&self, files: &[&Path], directory: &str, legacy: bool) -> Result<(), ExecError> {
        let target = format!("{}:{directory}", self.root_at());
        let scp = self.scp(legacy).args(files).arg(target);
        self.net.command(scp).run().await.map(drop)
    }

    /// Fetches a file of the VM.
    ///
    /// # Errors
    /// As [`Ssh::run`].
    pub async fn download(&self, file: &str, to: &Path, legacy: bool) -> Result<(), ExecError> {
        let source = format!("{}:{file}", self.root_at());
        let scp = self.scp(legacy).arg(source).arg(to);
        self.net.command(scp).run().await.map(drop)
    }

    fn scp(&self, legacy: bool) -> Cmd {
        let scp = self.client("scp").args(["-p", "-P", PORT]);
        scp.args(legacy.then_some("-O")).arg("--")
    }

    /// Nothing of this machine's user: no configuration, no agent, no other key, no known hosts.
    fn client(&self, program: impl AsRef<OsStr>) -> Cmd {
        let fixed = [
            "BatchMode=yes",
            "ConnectTimeout=30",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ];
        // Of two values for one option the first counts: the test's.
        let options = self.options.iter().map(String::as_str).chain(fixed);
        Cmd::new(program)
            .args(["-F", "none", "-i"])
            .arg(self.key())
            .args(options.flat_map(|option| ["-o", option]))
            .time_limit(self.limit)
    }

    fn root_at(&self) -> String {
        format!("root@{}", self.address)
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }
}
