//! `image-builder`: makes, checks and explains the system VM image.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use platform::{exit, logging};

mod commands;

use commands::{check_signature, diff, inspect, sbom, sign, verify};

const EXAMPLES: &str = "\
Examples:
  image-builder inspect sysvm.qcow2              what is in it: kernel, packages, units, users
  image-builder diff old.qcow2 new.ova           which packages and files changed
  image-builder verify out/ --checksums-only     did all files of a build arrive whole?
  image-builder sign out/ --key image.key        sign its list of digests
  image-builder check-signature out/ --public-key image.pub

`image-builder COMMAND --help` has more. docs/image-builder.md is the manual.
Logs go to standard error; SYSVM_LOG=debug shows more.
Exit status: 0 done, 1 failed or not as it should be, 2 wrong usage; diff: 0 same, 1 different, 2 trouble.";

/// Makes, checks and explains the system VM image.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Diff(diff::Diff),
    Verify(verify::Verify),
    Sbom(sbom::Sbom),
    Sign(sign::Sign),
    CheckSignature(check_signature::CheckSignature),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let outcome = match &cli.command {
        Command::Inspect(args) => inspect::run(args).await,
        Command::Diff(args) => return diff::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Sbom(args) => sbom::run(args).await,
        Command::Sign(args) => sign::run(args).await,
        Command::CheckSignature(args) => check_signature::run(args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}
