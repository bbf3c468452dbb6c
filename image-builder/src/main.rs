//! `image-builder`: makes, checks and explains the system VM image.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use platform::{exit, logging, shutdown};

mod commands;

use commands::{build, bundle, check_signature, convert, diff, fetch, inspect, lock, publish, sbom, sign, verify};

const EXAMPLES: &str = "\
Examples:
  image-builder lock                             which packages: what Debian has today
  image-builder build --programs DIR             images, in image/
  image-builder inspect image/sysvm.qcow2        what is in it: kernel, packages, units, users
  image-builder diff old.qcow2 new.ova           which packages and files changed
  image-builder verify image/ --programs DIR     build again: are these the bytes that recipe and lock file make?
  image-builder sign image/ --key image.key      sign its list of digests
  image-builder bundle --programs DIR --key K    our programs alone, for VMs that run
  image-builder convert sysvm.qcow2 sysvm.ova    the same disk in another format
  image-builder publish sysvm.qcow2 --out DIR    the files that a CloudStack server expects

`image-builder COMMAND --help` has more. docs/image-builder.md is the manual.
Logs and progress go to standard error; SYSVM_LOG=debug shows more.
Exit status: 0 done, 1 failed or not as it should be, 2 wrong usage; diff: 0 same, 1 different, 2 trouble.";

/// Makes the system VM image from Debian packages, byte for byte the same each time and without root; checks and explains it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Lock(lock::Lock),
    Fetch(fetch::Fetch),
    Build(build::Build),
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Diff(diff::Diff),
    Verify(verify::Verify),
    Sbom(sbom::Sbom),
    Sign(sign::Sign),
    Bundle(bundle::Bundle),
    CheckSignature(check_signature::CheckSignature),
    Publish(publish::Publish),
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
    // Threads that were asked to stop take their temporary files away. Others are not waited for: what they write has no
    // final name yet.
    runtime.shutdown_timeout(Duration::from_secs(3));
    outcome.unwrap_or_else(|error| exit::failed(&error))
}

async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Lock(args) => return lock::run(args).await,
        Command::Diff(args) => return Ok(diff::run(args).await),
        Command::Fetch(args) => fetch::run(args).await,
        Command::Build(args) => build::run(args).await,
        Command::Convert(args) => convert::run(args).await,
        Command::Publish(args) => publish::run(args).await,
        Command::Inspect(args) => inspect::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Sbom(args) => sbom::run(args).await,
        Command::Sign(args) => sign::run(args).await,
        Command::Bundle(args) => bundle::run(args).await,
        Command::CheckSignature(args) => check_signature::run(args).await,
    };
    done.map(|()| ExitCode::SUCCESS)
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
