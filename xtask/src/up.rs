//! `cargo xtask up` and `cargo xtask down`: a whole zone on this machine, to look at and to try things with.
//!
//! System VMs are virtual machines from our image, or with `--processes` ordinary programs. What `up` starts goes on without
//! it; `zone.json` says what that is.

mod api;
mod directory;
mod end;
mod instance;
mod server;
mod source;
mod state;
mod template;
mod vm;

use std::env;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use platform::exec::Cmd;
use platform::{files, shutdown};

use crate::tools::{self, Install};
use crate::{assets, must_succeed};
use crate::{guest, image};
use api::{Api, text};
use end::end;
use state::State;

/// What a zone with programs needs of this machine.
const PROCESSES_NEED: [tools::Tool; 5] = [tools::CC, tools::LIBC, tools::NPM, tools::QEMU, tools::QEMU_IMG];
/// What one with virtual machines does.
const VMS_NEED: [tools::Tool; 10] = [
    tools::CC,
    tools::LIBC,
    tools::NPM,
    tools::QEMU,
    tools::QEMU_IMG,
    tools::IP,
    tools::NFT,
    tools::SSH,
    tools::GANESHA,
    tools::GANESHA_VFS,
];
const DIRECTORY: &str = "target/zone";
const USER: &str = "admin";
const GUEST_NAME: &str = "demo-guest";
/// For programs to be Up as system VMs.
const PROCESSES_LIMIT: Duration = Duration::from_mins(3);
/// For virtual machines, without KVM and on a loaded machine, with a start that is tried again.
const VMS_LIMIT: Duration = Duration::from_mins(20);
/// Lines of a failed program's log that are shown.
const LOG_LINES: usize = 25;
const SERVER_LOG: &str = "mgmt-stub.log";
/// It may say why an earlier zone has ended.
const OLD_SERVER_LOG: &str = "mgmt-stub.log.old";
const LOG_BYTES: u64 = 64 << 20;

/// A zone on this machine: management server, system VMs, secondary storage and a demo template. Prints where to look.
///
/// System VMs are virtual machines from our image, in a network of their own, with an NFS server; this needs root. With
/// --processes they are ordinary programs, which needs no root, and there is a demo guest.
///
/// It returns when everything is up and leaves it running; `cargo xtask down` ends it. If it fails or is interrupted it
/// ends what it has started. While the zone is up it only says what is up, and starts what has ended meanwhile.
///
/// The first call installs Debian packages, compiles and makes the image or the guest (some minutes).
#[derive(Args)]
#[command(after_help = UP_EXAMPLES)]
pub(crate) struct Up {
    /// System VMs as ordinary programs of this machine, instead of virtual machines.
    #[arg(long)]
    processes: bool,
    /// Stay, and end the zone at Ctrl-C.
    #[arg(long)]
    foreground: bool,
    /// Where the zone keeps its data, logs, and zone.json with what is up. Relative to the repository.
    #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
    dir: PathBuf,
    /// Cargo's profile for the programs: `release` is quick at work and slow to build, `dev` the other way round.
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: String,
    /// Take the programs as they were built before.
    #[arg(long)]
    no_build: bool,
    /// Web page and API.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Consoles.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6080")]
    console: SocketAddr,
    /// With --processes: where agents connect. Virtual machines connect inside of the zone's network.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8250",
        requires = "processes"
    )]
    agents: SocketAddr,
    #[command(flatten)]
    vms: server::VmOptions,
    #[command(flatten)]
    install: Install,
}

const UP_EXAMPLES: &str = "\
Examples:
  cargo xtask up                                  as root; then open the printed URL
  cargo xtask up --processes                      without root and without virtual machines
  cargo xtask up --processes --profile dev        while you work on the programs
  cargo xtask up --foreground                     for as long as you look
  cargo xtask up --dir /tmp/b --http 127.0.0.1:8081 --console 127.0.0.1:6090
                                                  a second zone beside the first";

/// End the zone that `up` started: all its processes, its virtual machines and its network. Its data stay for the next
/// `up`. Works also after everything was killed.
#[derive(Args)]
pub(crate) struct Down {
    /// Where the zone is. Relative to the repository.
    #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
    dir: PathBuf,
    /// Also delete the data: templates, database, certificate authority, logs.
    #[arg(long)]
    purge: bool,
}

/// Starts what is not up, and reports.
pub(crate) async fn up(arguments: Up) -> anyhow::Result<ExitCode> {
    let stop = shutdown::signal();
    let foreground = arguments.foreground;
    let mut zone = Zone::open(arguments)?;
    let (was_up, mut stop) = (zone.is_up(), std::pin::pin!(stop));
    let outcome = tokio::select! {
        outcome = zone.start() => outcome,
        () = &mut stop => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = outcome {
        if was_up {
            eprintln!("\nThe zone was up before and is left as it is.");
        } else {
            eprintln!("\nEnding what was started.");
            zone.end().await.context("ending what was started")?;
        }
        return Err(error);
    }
    if foreground {
        eprintln!("\nCtrl-C ends the zone.");
        stop.await;
        zone.end().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends what is up.
pub(crate) async fn down(arguments: Down) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(&arguments.dir)?;
    match State::load(&directory)? {
        Some(state) => end(&directory, &state).await?,
        None => eprintln!("Nothing is up in {}.", directory.display()),
    }
    if arguments.purge {
        if directory::purge(&directory)? {
            eprintln!("Its data are deleted.");
        } else {
            eprintln!(
                "Its data are deleted; what is left in {} is not the zone's.",
                directory.display()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Zone {
    arguments: Up,
    /// Absolute, as everything that goes on without us needs it.
    directory: PathBuf,
    /// What is up, or is about to be; on disk as soon as a process has been started.
    state: State,
    /// The addresses of this call are not those of the one before.
    has_moved: bool,
    started: Instant,
}

impl Zone {
    fn open(arguments: Up) -> anyhow::Result<Self> {
        let directory = std::path::absolute(&arguments.dir)?;
        directory::claim(&directory)?;
        let fresh = State {
            url: format!("http://{}/client/", arguments.http),
            user: USER.into(),
            password: String::new(),
            programs: programs(&arguments.profile)?,
            data_dir: directory.join("data"),
            store: directory.join("store"),
            console: arguments.console.to_string(),
            agents: arguments.agents.to_string(),
            processes: arguments.processes,
            server: None,
            guest: None,
        };
        let old = State::load(&directory)?;
        let addresses = |state: &State| (state.url.clone(), state.console.clone(), state.agents.clone());
        let mut zone = Self {
            arguments,
            has_moved: old.as_ref().is_some_and(|old| addresses(old) != addresses(&fresh)),
            state: old.unwrap_or_else(|| fresh.clone()),
            directory,
            started: Instant::now(),
        };
        if !zone.is_up() {
            // The server is about to be started where this call says, not where an earlier one said.
            (zone.state.url, zone.state.console, zone.state.agents) = addresses(&fresh);
            ensure!(
                zone.state.server.is_none() || zone.state.processes == fresh.processes,
                "the system VMs of this zone are of the other kind; `cargo xtask down` first"
            );
            zone.state.processes = fresh.processes;
        } else if zone.has_moved {
            eprintln!("The zone is up on other addresses; `cargo xtask down` first if it shall move.");
        }
        Ok(zone)
    }

    fn is_up(&self) -> bool {
        self.state
            .server
            .as_ref()
            .is_some_and(|server| server.alive().is_some())
    }

    fn api(&self) -> Api {
        Api {
            program: self.state.programs.join("mgmt-stub"),
            data_dir: self.state.data_dir.clone(),
        }
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        self.step("environment");
        ensure!(
            self.arguments.processes || tools::is_root().await?,
            "a zone with virtual machines needs root, for their network; run it as root, or add --processes"
        );
        let needed: &[_] = if self.arguments.processes {
            &PROCESSES_NEED
        } else {
            &VMS_NEED
        };
        tools::ensure(needed, self.arguments.install).await?;

        if self.is_up() {
            eprintln!("The zone is up; `cargo xtask down` first if it shall run newly built programs.");
        } else {
            self.build().await?;
        }
        let parts = if self.arguments.processes {
            self.step("console page");
            server::Parts::Processes {
                novnc: std::path::absolute(assets::novnc().await?)?,
            }
        } else {
            self.step("system VM image");
            server::Parts::Vms {
                image: self.image().await?,
            }
        };
        self.step("demo guest");
        let demo = guest::ensure(self.arguments.install).await?;

        self.step("management server");
        self.start_server(&parts).await?;
        if self.arguments.processes {
            self.step("guest");
            self.start_guest(&demo).await?;
        }
        self.step("system VMs");
        self.system_vms_up().await?;
        self.step("template");
        template::ready(self, &demo).await?;
        if !self.arguments.processes {
            self.step("guest");
            instance::running(self).await?;
        }

        let table = self.table().await?;
        eprintln!("\nUp after {:.0} s.\n\n{table}", self.started.elapsed().as_secs_f64());
        Ok(())
    }

    /// The image of system VMs; built unless it is there.
    async fn image(&self) -> anyhow::Result<PathBuf> {
        let directory = if self.arguments.no_build {
            PathBuf::from(image::DIRECTORY)
        } else {
            image::ensure(&image::Image::for_kvm(self.arguments.install)).await?
        };
        let file = std::path::absolute(directory.join("sysvm.qcow2"))?;
        ensure!(file.exists(), "{} is not there; leave out --no-build", file.display());
        Ok(file)
    }

    fn step(&self, name: impl Display) {
        eprintln!("\n==> {name} [{:.1} s]", self.started.elapsed().as_secs_f64());
    }

    async fn build(&mut self) -> anyhow::Result<()> {
        self.state.programs = programs(&self.arguments.profile)?;
        // What else runs in virtual machines is in their image.
        let names: &[&str] = if self.arguments.processes {
            &["mgmt-stub", "ssvm", "console-proxy"]
        } else {
            &["mgmt-stub"]
        };
        if !self.arguments.no_build {
            self.step(format_args!("programs, profile {}", self.arguments.profile));
            if self.arguments.profile == "release" {
                eprintln!("The first time this takes some minutes; --profile dev is quicker to build.");
            }
            let build = Cmd::new("cargo").args(["build", "--profile", &self.arguments.profile]);
            must_succeed(&build.args(names.iter().flat_map(|name| ["-p", name]))).await?;
        }
        for name in names {
            let program = self.state.programs.join(name);
            ensure!(
                program.exists(),
                "{} is not built; leave out --no-build",
                program.display()
            );
        }
        Ok(())
    }

    async fn start_guest(&mut self, demo: &guest::Guest) -> anyhow::Result<()> {
        let directory = self.directory.join("guest");
        let running = self.state.guest.take().filter(|guest| guest.process.alive().is_some());
        if running.as_ref().is_some_and(|guest| guest.id.is_some()) {
            eprintln!("It runs.");
            self.state.guest = running;
            return Ok(());
        }
        let mut guest = match running {
            Some(guest) => guest,
            None => vm::start(demo, &directory)?,
        };
        self.state.guest = Some(guest.clone());
        self.state.save(&self.directory)?;

        let port = vm::vnc_port(&guest).await?.to_string();
        let api = self.api();
        let known = api
            .list("listVirtualMachines", "virtualmachine", &[("listall", "true")])
            .await?;
        for old in known.iter().filter(|vm| text(vm, "name") == GUEST_NAME) {
            // Its port and password were those of an earlier process.
            api.call("unregisterExternalVirtualMachine", &[("id", text(old, "id"))])
                .await?;
        }
        let zone = zone_id(&api).await?;
        let parameters = [
            ("zoneid", zone.as_str()),
            ("name", GUEST_NAME),
            ("displayname", "Demo guest"),
            ("vncaddress", "127.0.0.1"),
            ("vncport", &port),
        ];
        let password = vm::password_file(&directory);
        let answer = api
            .call_with_secret(
                "registerExternalVirtualMachine",
                &parameters,
                ("vncpassword", &password),
            )
            .await?;
        guest.id = Some(text(&answer["virtualmachine"], "id").to_owned());
        eprintln!("It boots (process {}, VNC on 127.0.0.1:{port}).", guest.process.pid);
        self.state.guest = Some(guest);
        self.state.save(&self.directory)
    }

    async fn system_vms_up(&self) -> anyhow::Result<()> {
        let limit = if self.state.processes {
            PROCESSES_LIMIT
        } else {
            VMS_LIMIT
        };
        let status = self.api().mgmt_stub().args(["status", "--quiet", "--wait"]);
        let ended = status.arg(limit.as_secs().to_string()).run_inherited().await?;
        self.check_server()?;
        ensure!(
            ended.success(),
            "the system VMs are not Up after {limit:?}; their logs are in {}; {}",
            self.state.data_dir.join("vms").display(),
            self.server_log()?
        );
        Ok(())
    }

    fn check_server(&self) -> anyhow::Result<()> {
        ensure!(self.is_up(), "mgmt-stub has ended; {}", self.server_log()?);
        Ok(())
    }

    fn server_log(&self) -> anyhow::Result<String> {
        match &self.state.server {
            Some(server) => end_of(&server.log),
            None => Ok(String::new()),
        }
    }

    /// What is up, and how to look at it.
    async fn table(&self) -> anyhow::Result<String> {
        let status = self.api().mgmt_stub().arg("status").run().await?;
        let State {
            url,
            user,
            password,
            console,
            ..
        } = &self.state;
        let end = if self.arguments.dir == Path::new(DIRECTORY) {
            String::new()
        } else {
            format!(" --dir {}", self.arguments.dir.display())
        };
        Ok(format!(
            "{}\nPage      {url}\nUser      {user}\n\
             Password  {password} (for the first login; from then on the one that you choose)\n\
             Console   the button beside {GUEST_NAME} on the page; consoles are on {console}\n\
             State     {}\n\
             End it    cargo xtask down{end}\n",
            status.text(),
            self.directory.join("zone.json").display(),
        ))
    }

    async fn end(&self) -> anyhow::Result<()> {
        end(&self.directory, &self.state).await
    }
}

/// Where cargo puts the programs of a profile.
fn programs(profile: &str) -> anyhow::Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(std::path::absolute(target.join(directory))?)
}

async fn zone_id(api: &Api) -> anyhow::Result<String> {
    let zones = api.list("listZones", "zone", &[]).await?;
    let zone = zones.first().context("the management server has no zone")?;
    Ok(text(zone, "id").to_owned())
}

/// The end of a program's log, for the error that says it failed.
fn end_of(log: &Path) -> anyhow::Result<String> {
    let bytes = files::read_limited(log, LOG_BYTES)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    Ok(format!("the end of {}:\n{end}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn down_where_nothing_is_up_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = Down {
            dir: directory.path().join("zone"),
            purge: true,
        };
        assert_eq!(down(nothing).await.unwrap(), ExitCode::SUCCESS);
    }

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let lines: Vec<String> = (1..=100).map(|line| line.to_string()).collect();
        let _ = files::replace(&log, lines.join("\n"), 0o600).unwrap();
        let end = end_of(&log).unwrap();
        assert!(end.ends_with("\n99\n100"), "{end}");
        assert_eq!(end.lines().count(), 1 + LOG_LINES);
    }
}
