//! The management server of a zone: `mgmt-stub up` starts it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ipnet::Ipv4Net;
use platform::exec::{Cmd, Process};
use serde::Deserialize;

use super::api::text;
use super::end::stop_system_vms;
use super::state::Running;
use super::{SERVER_LOG, Zone, template};

/// Until it answers: `mgmt-stub up` itself gives up before.
const SERVER_LIMIT: Duration = Duration::from_mins(3);

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

/// What `mgmt-stub up --json` says of it.
#[derive(Deserialize)]
struct Up {
    pid: i32,
    /// Until the administrator has chosen another.
    password: Option<String>,
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
        let log = self.directory.join(SERVER_LOG);
        // Before it is started: whoever ends an interrupted `up` looks for it.
        self.state.save(&self.directory)?;
        let printed = self.server(parts)?.time_limit(SERVER_LIMIT).run().await?;
        let up: Up = serde_json::from_slice(&printed.stdout).context("reading what mgmt-stub up says")?;
        let process = Process::of(up.pid)?.context("mgmt-stub has ended")?;
        self.state.server = Some(Running::new(&process, log.clone()));
        if let Some(password) = up.password {
            self.state.password = password;
        }
        self.state.save(&self.directory)?;

        let api = self.api();
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

    /// The command that starts it.
    fn server(&self, parts: &Parts) -> anyhow::Result<Cmd> {
        let up = self
            .api()
            .mgmt_stub()
            .args(["up", "--json", "--no-wait"])
            .args(["--http", &self.arguments.http.to_string()])
            .args(["--console-listen", &self.arguments.console.to_string()])
            .arg("--log")
            .arg(self.directory.join(SERVER_LOG));
        Ok(match parts {
            Parts::Processes { novnc } => {
                fs::create_dir_all(&self.state.store)?;
                up.args(["--driver", "processes", "--"])
                    .args(["--listen", &self.arguments.agents.to_string()])
                    .arg("--novnc")
                    .arg(novnc)
                    .arg("--local-store")
                    .arg(&self.state.store)
            }
            Parts::Vms { image } => {
                let up = up
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
                    Some(files) => up.arg("--system-vm-files").arg(std::path::absolute(files)?),
                    None => up,
                }
            }
        })
    }
}
