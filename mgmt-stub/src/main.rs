//! The management server.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use commands::{api, hosts, issue_certificate, reset_admin_password, serve, stop_system_vms};
use platform::{crypto, exit, logging};

/// The management server of a zone: keeps the agents of its system VMs.
///
/// All state is in one directory: the database (mgmt-stub.sqlite3) and the certificate authority (ca/). Logs go to
/// standard error; SYSVM_LOG=debug shows every message.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Where the database and the certificate authority are.
    #[arg(
        long,
        value_name = "DIR",
        env = "SYSVM_DATA_DIR",
        default_value = "/var/lib/sysvm",
        global = true
    )]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT.
    Serve(Box<serve::Serve>),
    /// List the hosts, also while the server runs.
    Hosts {
        /// As JSON, one object for each host.
        #[arg(long)]
        json: bool,
    },
    /// Call a command of the running server's API, over its socket, as administrator.
    Api(api::Api),
    /// Make a new password for the administrator and print it, also while the server runs. It is good for one login,
    /// after which he chooses another; his sessions end.
    ResetAdminPassword,
    /// End the system VMs that `serve --driver processes` or `--driver qemu` has left running, and with the latter the NFS
    /// server and the zone's network. Stop the server first: it would start them again. Works also after everything was
    /// killed.
    StopSystemVms,
    /// Issue a certificate with its key, to be copied to a system VM. Works only where the server's files are.
    IssueCertificate(issue_certificate::IssueCertificate),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    crypto::install();
    let threads = match &cli.command {
        Command::Serve(serve) => usize::from(serve.threads),
        _ => 1,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let outcome = runtime
        .context("starting the threads")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(arguments) => serve::run(&cli.data_dir, *arguments).await,
        Command::Hosts { json } => hosts::run(&cli.data_dir, json).await,
        Command::Api(arguments) => api::run(&cli.data_dir, arguments).await,
        Command::ResetAdminPassword => reset_admin_password::run(&cli.data_dir).await,
        Command::StopSystemVms => stop_system_vms::run(&cli.data_dir).await,
        Command::IssueCertificate(arguments) => issue_certificate::run(&cli.data_dir, arguments).await,
    }
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
