//! The management server of a zone, as a process that goes on without us.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use ipnet::Ipv4Net;
use platform::exec::Cmd;
use platform::files;
use tokio::time::sleep;

use super::api::text;
use super::end::stop_system_vms;
use super::state::Running;
use super::{FIRST_PASSWORD, LOOK, OLD_SERVER_LOG, SERVER_LOG, Zone, end_of, template};

/// The server opens its database and its sockets, a second in a debug build; with virtual machines it makes their networks
/// and starts the NFS server before.
const SERVER_LIMIT: Duration = Duration::from_mins(2);

/// Options of a zone whose system VMs are virtual machines.
#[derive(Args)]
pub(super) struct VmOptions {
    /// Networks of the zone: management, public and storage are its second, third and fourth /24.
    #[arg(
        long,
        value_name = "CIDR",
        default_value = "172.31.0.0/16",
        conflicts_with = "processes"
    )]
    pub(super) zone_cidr: Ipv4Net,
    /// Let the zone reach the world through this machine, with its address (NAT).
    #[arg(long, conflicts_with = "processes")]
    uplink: bool,
    /// Upload the files in there to each system VM: see `mgmt-stub serve --help`.
    #[arg(long, value_name = "DIR", conflicts_with = "processes")]
    system_vm_files: Option<PathBuf>,
}

/// What the kinds of zones need.
pub(super) enum Parts {
    /// System VMs are programs.
    Processes {
        /// The unpacked package.
        novnc: PathBuf,
    },
    /// They are virtual machines.
    Vms {
        /// Their image.
        image: PathBuf,
    },
}

impl Zone {
    pub(super) async fn start_server(&mut self, parts: &Parts) -> anyhow::Result<()> {
        if self.is_up() {
            eprintln!("It runs.");
            return Ok(());
        }
        if self.has_moved {
            // The server was killed and they go on; they would look for it at the old address for ever.
            eprintln!("The addresses have changed: ending the system VMs that know the old ones");
            stop_system_vms(&self.state).await?;
        }
        let mut ports = vec![("--http", self.arguments.http)];
        if let Parts::Processes { .. } = parts {
            ports.push(("--agents", self.arguments.agents));
        }
        if self.state.server.is_none() || self.has_moved || matches!(parts, Parts::Vms { .. }) {
            // Otherwise the console proxy of a killed server still has it.
            ports.push(("--console", self.arguments.console));
        }
        for (option, address) in ports {
            // Only a look, but the server itself could not name the option.
            TcpListener::bind(address).with_context(|| {
                format!("cannot listen on {address}; if another program or zone has it, choose another with {option}")
            })?;
        }
        let is_new = !self.state.data_dir.exists();
        let log = self.directory.join(SERVER_LOG);
        let _ = fs::rename(&log, self.directory.join(OLD_SERVER_LOG));
        let serve = self.serve(parts)?;
        let process = serve.spawn_detached(&log)?.process().clone();
        self.state.server = Some(Running::new(&process, log.clone()));
        self.state.save(&self.directory)?;

        let api = self.api();
        let waited = Instant::now();
        while let Err(error) = api.call("listZones", &[]).await {
            ensure!(process.is_alive(), "mgmt-stub has ended; {}", end_of(&log)?);
            ensure!(
                waited.elapsed() < SERVER_LIMIT,
                "mgmt-stub does not answer: {error:#}; {}",
                end_of(&log)?
            );
            sleep(LOOK).await;
        }
        // Once: later it would undo the user's own.
        let first = self.directory.join(FIRST_PASSWORD);
        if is_new || !first.exists() {
            let reset = api.mgmt_stub().arg("reset-admin-password").run().await?;
            let _ = files::replace(&first, reset.text().trim(), 0o600)?;
        }
        let password = files::read_limited(&first, 1024)?.unwrap_or_default();
        self.state.password = String::from_utf8_lossy(&password).into_owned();
        self.state.save(&self.directory)?;
        // What `up` itself serves is where an SSVM does not go unless it is allowed to.
        let setting = "secstorage.allowed.internal.sites";
        let sites = match parts {
            Parts::Processes { .. } => "127.0.0.0/8".to_owned(),
            Parts::Vms { .. } => format!("{}/32", template::source_address(self.arguments.vms.zone_cidr).ip()),
        };
        let found = api
            .list("listConfigurations", "configuration", &[("name", setting)])
            .await?;
        if found.first().is_none_or(|setting| text(setting, "value").is_empty()) {
            let allow = [("name", setting), ("value", sites.as_str())];
            api.call("updateConfiguration", &allow).await?;
        }
        eprintln!(
            "It serves {} (process {}, log {})",
            self.state.url,
            process.pid(),
            log.display()
        );
        Ok(())
    }

    /// The command that runs it.
    fn serve(&self, parts: &Parts) -> anyhow::Result<Cmd> {
        let serve = self
            .api()
            .mgmt_stub()
            .arg("serve")
            .args(["--http", &self.arguments.http.to_string()])
            .args(["--console-listen", &self.arguments.console.to_string()]);
        Ok(match parts {
            Parts::Processes { novnc } => {
                fs::create_dir_all(&self.state.store)?;
                serve
                    .args(["--driver", "processes", "--listen", &self.arguments.agents.to_string()])
                    .arg("--novnc")
                    .arg(novnc)
                    .arg("--local-store")
                    .arg(&self.state.store)
            }
            Parts::Vms { image } => {
                let serve = serve
                    .args([
                        "--driver",
                        "qemu",
                        "--zone-cidr",
                        &self.arguments.vms.zone_cidr.to_string(),
                    ])
                    .args(self.arguments.vms.uplink.then_some("--uplink"))
                    .arg("--image")
                    .arg(image);
                match &self.arguments.vms.system_vm_files {
                    Some(files) => serve.arg("--system-vm-files").arg(std::path::absolute(files)?),
                    None => serve,
                }
            }
        })
    }
}
