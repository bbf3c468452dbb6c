//! The management server in a test's network, for VMs that somebody else starts: the real `mgmt-stub`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use platform::exec::{Cmd, Running};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::built;
use crate::vm::Net;

/// For the server to answer after its start; debug builds on busy cores are slow.
const START_LIMIT: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(200);
/// The port for agents.
pub const PORT: u16 = 8250;

/// A management server. Dropping it kills it and deletes all it knows.
#[derive(Debug)]
pub struct ManagementServer {
    program: PathBuf,
    net: Net,
    directory: TempDir,
    running: Option<Running>,
}

/// A certificate of the server's own authority, for an agent. Each as PEM.
#[derive(Debug)]
pub struct Certificate {
    /// The agent's.
    pub certificate: String,
    /// The authority's.
    pub authority: String,
    /// The agent's private key.
    pub key: String,
}

impl ManagementServer {
    /// Starts one that listens for agents at an address of the host in that network. `more` are more options of
    /// `mgmt-stub serve`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(net: &Net, address: &str, more: &[String]) -> anyhow::Result<Self> {
        Self::start_program(built("mgmt-stub"), net, address, more).await
    }

    /// As [`ManagementServer::start`], of any build.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_program(program: PathBuf, net: &Net, address: &str, more: &[String]) -> anyhow::Result<Self> {
        let mut server = Self {
            program,
            net: net.clone(),
            directory: tempfile::tempdir().context("making a directory for a management server")?,
            running: None,
        };
        server.start_again(address, more).await?;
        Ok(server)
    }

    /// Starts it after [`ManagementServer::kill`], maybe elsewhere. It knows what it knew.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_again(&mut self, address: &str, more: &[String]) -> anyhow::Result<()> {
        let serve = self
            .command()
            .args([
                "serve",
                "--driver",
                "none",
                "--ping-interval",
                "5",
                "--http",
                "127.0.0.1:8080",
            ])
            .args(["--listen", &format!("{address}:{PORT}")])
            .args(more)
            .env("SYSVM_LOG", "debug")
            .through(Cmd::new("setpriv").args(["--pdeathsig", "KILL"]));
        self.running = Some(self.net.command(serve).spawn(self.log_file())?);
        let started = Instant::now();
        while let Err(error) = self.api("listZones", &[]).await {
            if started.elapsed() > START_LIMIT {
                return Err(error.context(format!("the management server does not start: {}", self.log())));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// One API call; the object inside the answer.
    ///
    /// # Errors
    /// What the command line printed.
    pub async fn api(&self, command: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        let call = self
            .command()
            .args(["api", command])
            .args(parameters.iter().map(|(name, value)| format!("{name}={value}")));
        Ok(serde_json::from_slice(&call.run().await?.stdout)?)
    }

    /// The status of the agent of this name, such as `Up`; `None` before it has ever connected.
    ///
    /// # Errors
    /// The server's database cannot be read.
    pub async fn agent(&self, name: &str) -> anyhow::Result<Option<String>> {
        let printed = self.command().args(["hosts", "--json"]).run().await?;
        let hosts: Value = serde_json::from_slice(&printed.stdout)?;
        let host = hosts.as_array().into_iter().flatten().find(|host| host["name"] == name);
        Ok(host.and_then(|host| host["status"].as_str()).map(str::to_owned))
    }

    /// Waits until the agent of this name is Up; how long that took.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub async fn agent_up(&self, name: &str, limit: Duration) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            let status = self.agent(name).await?;
            if status.as_deref() == Some("Up") {
                return Ok(started.elapsed());
            }
            let tail: Vec<_> = self.log().lines().rev().take(5).map(str::to_owned).collect();
            ensure!(
                started.elapsed() < limit,
                "the agent {name} is {status:?} after {limit:?}; the server's last words, backwards: {tail:#?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How many links to agents have ended.
    pub fn links_ended(&self) -> usize {
        self.log().matches("Link ended").count()
    }

    /// Issues a certificate for an agent at these addresses.
    ///
    /// # Errors
    /// It cannot.
    pub async fn certificate(&self, name: &str, addresses: &[&str]) -> anyhow::Result<Certificate> {
        let out = tempfile::tempdir()?;
        self.command()
            .args(["issue-certificate", "--name", name, "--out"])
            .arg(out.path())
            .args(addresses.iter().flat_map(|address| ["--address", address]))
            .run()
            .await?;
        let read = |file: &str| fs::read_to_string(out.path().join(file));
        Ok(Certificate {
            certificate: read("cloud.crt")?,
            authority: read("cloud.ca.crt")?,
            key: read("cloud.key")?,
        })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("mgmt-stub.log")
    }

    fn command(&self) -> Cmd {
        Cmd::new(&self.program)
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
    }
}

impl Certificate {
    /// As CloudStack writes PEM into arguments of commands: appliance.md §9.
    pub fn as_argument(pem: &str) -> String {
        pem.replace('\n', "^").replace(' ', "~")
    }
}
