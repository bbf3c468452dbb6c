//! Secondary storage: fetches templates, ISOs and volumes into the zone's stores.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::agent::{Agent, Ended};
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use platform::notify::Notifier;
use platform::{crypto, exit, files, logging, shutdown};
use protocol::boot::{BootArgs, SystemVm};
use ssvm::service::{Boot, Storage};
use ssvm::settings::Settings;
use tracing::info;

/// Longest line of boot arguments that a hypervisor can hand over.
const MAX_LINE: u64 = 1 << 20;

const SETTINGS: &str = "/etc/sysvm/ssvm.toml";

const EXAMPLES: &str = "\
Examples:
  ssvm                                            as in a system VM: all defaults
  ssvm --check                                    are boot arguments and settings good?
  ssvm --boot-args ssvm.cmdline --settings ssvm.toml
                                                  beside a management server, with stores that are
                                                  directories of this machine:

  ssvm.cmdline: type=secstorage name=s-1-VM guid=s-1-VM zone=1 pod=1 host=127.0.0.1 port=8250
  ssvm.toml:    state_dir = \"/var/lib/zone/ssvm\"
                [store_map]
                \"nfs://127.0.0.1/secondary\" = \"/var/lib/zone/secondary\"

docs/ssvm.md explains all settings, states and error texts. Logs go to standard error; SYSVM_LOG=debug shows more.
Exit status 78: boot arguments or settings make no sense, and trying again cannot help.";

/// Secondary storage VM: downloads templates, ISOs and volumes into the zone's stores, as a management server tells it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT; what is done without a command, too.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// Boot arguments: one line of key=value words.
    #[arg(long, value_name = "FILE", default_value = "/var/cache/cloud/cmdline")]
    boot_args: PathBuf,
    /// Settings (TOML). Without this option /etc/sysvm/ssvm.toml is read if it is there.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Only check boot arguments and settings.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    crypto::install();
    let arguments = match cli.command {
        Some(Command::Run(run)) => run,
        None => cli.run,
    };
    let settings_file = arguments.settings.clone().unwrap_or_else(|| SETTINGS.into());
    let settings = match Settings::load(&settings_file, arguments.settings.is_none()) {
        Ok(settings) => settings,
        Err(error) => return exit::bad_config(&error),
    };
    let line = match read_line(&arguments.boot_args) {
        Ok(line) => line,
        Err(error) => return exit::failed(&error),
    };
    let vm = match BootArgs::parse(line).and_then(|args| SystemVm::parse(&args)) {
        Ok(vm) => vm,
        Err(problems) => return exit::bad_config(&problems.found_in(arguments.boot_args.display())),
    };
    let boot = match Boot::new(&vm, &settings) {
        Ok(boot) => boot,
        Err(error) => return exit::bad_config(&error),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        vm = boot.name(),
        ?settings,
        "Boot arguments and settings are good"
    );
    if arguments.check {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(&error),
    };
    let outcome = runtime.block_on(run(boot, settings));
    // Not waiting for threads that a hanging store holds: the journal knows how far they were.
    runtime.shutdown_timeout(Duration::from_millis(500));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

fn read_line(file: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    files::read_limited(file, MAX_LINE)?.with_context(|| format!("{} does not exist; see --boot-args", file.display()))
}

async fn run(boot: Boot, settings: Settings) -> anyhow::Result<()> {
    let stop = shutdown::signal();
    let storage = Storage::start(&boot, &settings).await?;
    let agent = Agent::new(boot.agent, |_server| storage.clone()).context("starting the agent link")?;
    let systemd = Arc::new(Notifier::from_env());
    // A task of the runtime that does the work: when none of its threads can run it, systemd hears nothing any more.
    let alive = Arc::clone(&systemd);
    tokio::spawn(async move { alive.prove_life().await });
    systemd.ready();
    info!("Serving secondary storage");
    let ended = agent.run(stop).await?;
    systemd.stopping();
    storage.stop();
    if ended == Ended::ByServer {
        info!("The management server ended this agent");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
