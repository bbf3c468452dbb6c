//! A zone that `cargo xtask up` has started, as a user does: with a guest that has a screen with a password, or with virtual
//! machines.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::{Cmd, Output};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{built, guest_is_made, image, novnc};
use crate::qmp::Monitor;
use crate::vm::Format;
use crate::wait;

/// For `up`, in debug builds on two busy cores.
pub const UP_LIMIT: Duration = Duration::from_mins(4);
/// Likewise with virtual machines, without KVM.
pub const VMS_UP_LIMIT: Duration = Duration::from_mins(25);
/// For `down`, and for a killed process to be gone.
pub const DOWN_LIMIT: Duration = Duration::from_mins(1);
/// For `down` with virtual machines that shut down.
const VMS_DOWN_LIMIT: Duration = Duration::from_mins(6);

/// A zone in a directory and on ports of its own. Dropping it ends what is left of it.
#[derive(Debug)]
pub struct UpZone {
    directory: TempDir,
    ports: [SocketAddr; 3],
    kind: Kind,
}

/// What its system VMs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Processes,
    Vms,
}

impl UpZone {
    /// A place for one; nothing is started.
    ///
    /// # Panics
    /// No directory can be made, no port is free, or noVNC or the guest is missing: it says what to run.
    #[expect(clippy::new_without_default, reason = "it takes ports and makes a directory")]
    pub fn new() -> Self {
        novnc();
        Self::of(Kind::Processes)
    }

    /// A place for one whose system VMs are virtual machines from the image.
    ///
    /// # Panics
    /// As [`UpZone::new`]; or the image is missing.
    pub fn with_vms() -> Self {
        image(Format::Qcow2);
        Self::of(Kind::Vms)
    }

    fn of(kind: Kind) -> Self {
        guest_is_made();
        // All at once, so that they differ.
        let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port"));
        Self {
            directory: tempfile::Builder::new()
                .prefix("sysvm-up-")
                .tempdir()
                .expect("a temporary directory can be made"),
            ports: listeners.map(|listener| listener.local_addr().expect("a bound socket has an address")),
            kind,
        }
    }

    /// `--dir`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where consoles are.
    pub fn console(&self) -> SocketAddr {
        self.ports[1]
    }

    /// Where page and API are.
    pub fn http(&self) -> SocketAddr {
        self.ports[0]
    }

    /// `cargo xtask up` for this zone.
    pub fn up(&self) -> Cmd {
        let [http, console, agents] = self.ports.map(|port| port.to_string());
        let up = Cmd::new(built("xtask"))
            .args(["up", "--profile", "dev", "--no-build", "--no-install"])
            .args(["--http", &http, "--console", &console])
            .arg("--dir")
            .arg(self.path());
        match self.kind {
            Kind::Processes => up.args(["--processes", "--agents", &agents]).time_limit(UP_LIMIT),
            Kind::Vms => up.time_limit(VMS_UP_LIMIT),
        }
    }

    /// Brings it up; what was printed.
    ///
    /// # Panics
    /// `up` fails: it says why.
    pub async fn start(&self) -> String {
        let ran = self.up().env("SYSVM_LOG", "debug").run().await;
        ran.unwrap_or_else(|error| panic!("{error}")).stderr
    }

    /// `cargo xtask down`.
    ///
    /// # Panics
    /// It fails.
    pub async fn down(&self) -> Output {
        let down = Cmd::new(built("xtask")).args(["down", "--dir"]).arg(self.path());
        let limit = match self.kind {
            Kind::Processes => DOWN_LIMIT,
            Kind::Vms => VMS_DOWN_LIMIT,
        };
        let ran = down.time_limit(limit).run().await;
        ran.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What `up` has written for us.
    ///
    /// # Panics
    /// Nothing is up.
    pub fn state(&self) -> Value {
        let text = fs::read(self.path().join("zone.json")).expect("the zone is up");
        serde_json::from_slice(&text).expect("zone.json is JSON")
    }

    /// One API call through the server's own command line; the object inside the answer.
    ///
    /// # Errors
    /// What the command line printed.
    pub async fn api(&self, command: &str, parameters: &[&str]) -> Result<Value, String> {
        let call = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.path().join("data"))
            .args(["api", command])
            .args(parameters);
        let printed = call.run().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&printed.stdout).map_err(|error| format!("{error}: {}", printed.text()))
    }

    /// A new console of the guest: its URL, good for once.
    ///
    /// # Panics
    /// There is none within [`DOWN_LIMIT`]: a proxy that has just come back may still be on its way.
    pub async fn console_url(&self) -> String {
        let state = self.state();
        let id = format!("virtualmachineid={}", state["guest"]["id"].as_str().unwrap_or_default());
        wait::until("a console", DOWN_LIMIT, async || {
            let endpoint = self.api("createConsoleEndpoint", &[&id]).await?;
            let url = endpoint["consoleendpoint"]["url"].as_str().map(str::to_owned);
            url.ok_or_else(|| endpoint.to_string())
        })
        .await
    }

    /// Waits until the server counts so many open consoles.
    ///
    /// # Panics
    /// It does not.
    pub async fn consoles_are(&self, wanted: u64) {
        wait::until("the number of open consoles", UP_LIMIT, async || {
            let vms = self.api("listSystemVms", &["systemvmtype=consoleproxy"]).await?;
            let proxy = &vms["systemvm"][0];
            if proxy["agentstate"] == "Up" && proxy["activeviewersessions"] == wanted {
                Ok(())
            } else {
                Err(proxy.to_string())
            }
        })
        .await;
    }

    /// QEMU's view of the guest.
    ///
    /// # Panics
    /// It does not run.
    pub async fn monitor(&self) -> Monitor {
        let state = self.state();
        let socket = state["guest"]["qmp"].as_str().expect("there is a guest");
        let connected = Monitor::connect(Path::new(socket)).await;
        connected.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Prints the end of the server's log.
    pub fn show_log(&self) {
        let log = fs::read_to_string(self.path().join("mgmt-stub.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        for line in tail.iter().rev() {
            println!("mgmt-stub: {line}");
        }
    }

    /// Command lines of all processes that have to do with this zone.
    ///
    /// # Panics
    /// There is no `/proc`.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let directory = self.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
        let lines = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        });
        lines.filter(|(_, line)| line.contains(&directory)).collect()
    }

    /// `kill -9` for the one process that runs this program; returns when it is gone.
    ///
    /// # Panics
    /// There is none, or more.
    pub async fn kill(&self, program: &str) {
        let runs = |line: &str| {
            let first = line.split(' ').next().unwrap_or_default();
            Path::new(first).file_name().is_some_and(|name| name == program)
        };
        let pids = || -> Vec<i32> {
            let found = self.processes().into_iter().filter(|(_, line)| runs(line));
            found.map(|(pid, _)| pid).collect()
        };
        let [pid] = pids()[..] else {
            panic!("not one process of {program}: {:?}", self.processes());
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it can be killed");
        wait::until("it is gone", DOWN_LIMIT, async || {
            if pids().contains(&pid) {
                Err(program.to_owned())
            } else {
                Ok(())
            }
        })
        .await;
    }
}

impl Drop for UpZone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        for (pid, _) in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
