//! `image-builder`: makes, checks and explains the system VM image.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use platform::{exit, logging, shutdown};

mod commands;

use commands::{fetch, lock};

const EXAMPLES: &str = "\
Examples:
  image-builder lock     which packages: what Debian has today (image-builder/image.lock keeps it)
  image-builder fetch    get them

docs/image.md explains what is in the image. Logs and progress go to standard error; SYSVM_LOG=debug shows more.
Exit status: 0 done; 1 it failed, or what was compared is not the same; 2 the command line makes no sense.";

/// Makes the system VM image from Debian packages: byte for byte the same each time, without root.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fetch(fetch::Fetch),
    Lock(lock::Lock),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(&error),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(&cli.command) => outcome,
            // Dropping the work ends the programs that it runs and takes its temporary files away.
            () = shutdown::signal() => Err(anyhow::anyhow!("interrupted; run it again to go on")),
        }
    });
    // Not waiting for threads that were not asked to stop: what they write has no final name yet.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome.unwrap_or_else(|error| exit::failed(&error))
}

async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Fetch(args) => fetch::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Lock(args) => lock::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_makes_sense_to_clap() {
        Cli::command().debug_assert();
    }
}
