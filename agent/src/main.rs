//! The programs of a system VM: its boot, its checks, and what hosts call under /opt/cloud/bin. (The link to the management
//! server is this crate's library; `ssvm` and `console-proxy` run it.)

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use agent::appliance::remote::{self, SUBCOMMANDS};
use clap::{Parser, Subcommand};
use platform::{crypto, exit, logging};

mod commands;

use commands::{
    boot, check, cmdline, diagnostics, guest_channel, keystore, patch_watch, run, setup, ssh_gate, status, upgrade,
};

/// What administrators and CloudStack's integration tests run, under /usr/local/cloud/systemvm.
const SSVM_CHECK: &str = "ssvm-check.sh";

/// Commands of a system VM's agent.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Boot(boot::Boot),
    Check(check::Check),
    #[command(name = SSVM_CHECK)]
    SsvmCheck(check::SsvmCheck),
    Cmdline(cmdline::Cmdline),
    Setup(setup::Setup),
    GrowDisk(setup::GrowDisk),
    UserData(setup::UserData),
    KeystoreSetup(keystore::Setup),
    KeystoreCertImport(keystore::CertImport),
    SshGate(ssh_gate::SshGate),
    PatchWatch(patch_watch::PatchWatch),
    Run(run::Run),
    Diagnostics(diagnostics::Diagnostics),
    GuestChannel(guest_channel::GuestChannel),
    Status(status::Status),
    Upgrade(upgrade::Upgrade),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse_from(command_line(std::env::args_os()));
    // Hosts take what these print, also on standard error, for the answer.
    if !matches!(cli.command, Command::SshGate(_) | Command::Run(_)) {
        logging::init();
    }
    crypto::install();
    match cli.command {
        Command::Boot(args) => boot::run(args).await,
        Command::Check(args) => check::run(&args).await,
        Command::SsvmCheck(args) => check::ssvm(&args).await,
        Command::Cmdline(args) => cmdline::run(&args).await,
        Command::Setup(args) => setup::run(&args).await,
        Command::GrowDisk(args) => setup::grow_disk(&args).await,
        Command::UserData(args) => setup::user_data(&args).await,
        Command::KeystoreSetup(args) => code(keystore::setup(&args).await),
        Command::KeystoreCertImport(args) => code(keystore::cert_import(&args).await),
        Command::SshGate(args) => ssh_gate::run(&args),
        Command::PatchWatch(args) => patch_watch::run(&args).await,
        Command::Run(args) => run::run(&args).await,
        Command::Diagnostics(args) => diagnostics::run(&args).await,
        Command::GuestChannel(args) => guest_channel::run(&args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Upgrade(args) => upgrade::run(&args).await,
    }
}

fn code(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

/// CloudStack calls commands by names of its own, which are links to this program: the name is then a subcommand, or what
/// `run` runs.
fn command_line(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let called = args
        .first()
        .and_then(|program| Path::new(program).file_name()?.to_str());
    let words: Vec<OsString> = match called {
        Some(name) if SUBCOMMANDS.contains(&name) || name == SSVM_CHECK => vec![name.into()],
        Some(name) if remote::find(name).is_some() => vec!["run".into(), "--".into(), name.into()],
        _ => return args,
    };
    args.splice(1..1, words);
    args
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_link_with_the_name_of_a_command_is_that_command() {
        let words = |args: &[&str]| {
            let read = command_line(args.iter().map(OsString::from));
            read.into_iter()
                .map(|word| word.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            words(&["/opt/cloud/bin/keystore-setup", "a", "-b"]),
            ["/opt/cloud/bin/keystore-setup", "keystore-setup", "a", "-b"]
        );
        assert_eq!(
            words(&["agent", "keystore-setup", "a"]),
            ["agent", "keystore-setup", "a"]
        );
        assert_eq!(
            words(&["patched.sh", "/opt"]),
            ["patched.sh", "run", "--", "patched.sh", "/opt"]
        );
        assert_eq!(words(&[]), [""; 0]);
        let names = remote::COMMANDS.iter().map(|command| command.name).chain(SUBCOMMANDS);
        for name in names {
            Cli::try_parse_from(command_line([name, "1", "--help", "-h", "--2"].map(OsString::from))).unwrap();
        }
    }
}
