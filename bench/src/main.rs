//! Measurements of this project, each one command. What they measure and what came out: `docs/benchmarks.md`.

mod agents;
mod appliance;
mod codec;
mod console;
mod image;
mod machine;
mod process;
mod simulated;
mod ssvm;
mod stats;
mod tls;
mod zone;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use platform::{crypto, exit, logging};

/// Measures this project on this machine. The result is a table on standard output; progress goes to standard error.
///
/// Run on a calm machine: whatever else runs is in the numbers, and only release builds are measured.
#[derive(Debug, Parser)]
#[command(version, bin_name = "cargo run --release -p bench --", max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p bench -- agents                 10,000 agents against one core
  cargo run --release -p bench -- agents --agents 200    a quick look
  cargo run --release -p bench -- appliance              how fast system VMs of each type are up
  cargo run --release -p bench -- codec                  messages per second, without a network
  cargo run --release -p bench -- console                consoles, beside websockify
  cargo run --release -p bench -- image                  the system VM image, beside mmdebstrap
  cargo run --release -p bench -- ssvm                   a download beside curl and aria2c
  cargo run --release -p bench -- zone                   a zone of virtual machines, up and down

docs/benchmarks.md explains each line of the tables. SYSVM_LOG=debug shows the programs that are run.";

#[derive(Debug, Subcommand)]
enum Measurement {
    Agents(agents::Args),
    Appliance(appliance::Args),
    Codec(codec::Args),
    Ssvm(ssvm::Args),
    Console(console::Args),
    Image(image::Args),
    Zone(zone::Args),
    /// The console proxy of `console`, in a process of its own.
    #[command(hide = true)]
    ConsoleProxyOnly(console::ServeArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    crypto::install();
    match run(cli.measurement) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

fn run(measurement: Measurement) -> anyhow::Result<()> {
    ensure!(
        !cfg!(debug_assertions),
        "a debug build says nothing about speed; add --release"
    );
    let table = match measurement {
        Measurement::Agents(args) => agents::measure(&args)?,
        Measurement::Appliance(args) => appliance::measure(&args)?,
        Measurement::Codec(args) => codec::measure(&args)?,
        Measurement::Console(args) => console::measure(&args)?,
        Measurement::ConsoleProxyOnly(args) => console::serve(&args)?,
        Measurement::Image(args) => image::measure(&args)?,
        Measurement::Ssvm(args) => ssvm::measure(&args)?,
        Measurement::Zone(args) => zone::measure(&args)?,
    };
    std::io::stdout()
        .lock()
        .write_all(table.as_bytes())
        .context("writing the table")
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
