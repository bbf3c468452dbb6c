//! The management server.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use commands::{
    Ended, api, doctor, down, hosts, issue_certificate, reset_admin_password, serve, status, stop_system_vms,
    system_vm, template, up, vm,
};
use mgmt_stub::client::ClientError;
use platform::{crypto, exit, logging};

/// Nobody answers, or what was waited for is not ready.
const NOT_UP: u8 = 3;

/// The management server of a zone: keeps the agents of its system VMs.
///
/// All state is in one directory: the database (mgmt-stub.sqlite3) and the certificate authority (ca/). Logs go to
/// standard error; SYSVM_LOG=debug shows every message.
///
/// Exit codes: 0 done; 1 refused, or failed; 2 the command line is wrong; 3 the server does not run, or what was waited for
/// is not ready.
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
    Api(api::Api),
    /// Make a new password for the administrator and print it, also while the server runs. It is good for one login,
    /// after which he chooses another; his sessions end.
    ResetAdminPassword,
    /// End the system VMs that `serve --driver processes` or `--driver qemu` has left running, and with the latter the NFS
    /// server and the zone's network. Stop the server first: it would start them again. Works also after everything was
    /// killed.
    StopSystemVms,
    Doctor(doctor::Doctor),
    Up(Box<up::Up>),
    Down(down::Down),
    Status(status::Status),
    Sysvm(system_vm::SystemVm),
    Template(template::Template),
    Vm(vm::Vm),
    Console(vm::Console),
    /// Issue a certificate with its key, to be copied to a system VM. Works only where the server's files are.
    IssueCertificate(issue_certificate::IssueCertificate),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Serve(_) | Command::ResetAdminPassword | Command::StopSystemVms | Command::IssueCertificate(_) => {
            logging::init();
        }
        // They answer a person, who is not to read how.
        _ => logging::init_quietly(),
    }
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
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Failed) => ExitCode::FAILURE,
        Ok(Ended::NotReady) => ExitCode::from(NOT_UP),
        Err(error) => {
            let code = exit::failed(&error);
            let is_not_up = matches!(error.downcast_ref(), Some(ClientError::NotThere { .. }));
            if is_not_up { ExitCode::from(NOT_UP) } else { code }
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Ended> {
    match cli.command {
        Command::Up(arguments) => return up::run(&cli.data_dir, *arguments).await,
        Command::Down(arguments) => return down::run(&cli.data_dir, arguments).await,
        Command::Status(arguments) => return status::run(&cli.data_dir, arguments).await,
        Command::Sysvm(arguments) => return system_vm::run(&cli.data_dir, arguments).await,
        Command::Template(arguments) => return template::run(&cli.data_dir, arguments).await,
        Command::Vm(arguments) => return vm::run(&cli.data_dir, arguments).await,
        Command::Console(arguments) => return vm::console(&cli.data_dir, arguments).await,
        Command::Doctor(arguments) => return doctor::run(&cli.data_dir, arguments).await,
        Command::Serve(arguments) => serve::run(&cli.data_dir, *arguments).await,
        Command::Hosts { json } => hosts::run(&cli.data_dir, json).await,
        Command::Api(arguments) => api::run(&cli.data_dir, arguments).await,
        Command::ResetAdminPassword => reset_admin_password::run(&cli.data_dir).await,
        Command::StopSystemVms => stop_system_vms::run(&cli.data_dir).await,
        Command::IssueCertificate(arguments) => issue_certificate::run(&cli.data_dir, arguments).await,
    }?;
    Ok(Ended::Done)
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
