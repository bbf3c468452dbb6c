//! The programs of a system VM: its boot, its checks, and what hosts call under /opt/cloud/bin. (The link to the management
//! server is this crate's library; `ssvm` and `console-proxy` run it.)

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use platform::{crypto, exit, logging};

mod commands;

use commands::{check, cmdline, guest_channel, keystore, status};

/// Commands that CloudStack finds under /opt/cloud/bin.
const LINKS: [&str; 3] = ["keystore-setup", "keystore-cert-import", "ssvm-check.sh"];

/// Commands of a system VM's agent.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Check),
    #[command(name = "ssvm-check.sh")]
    SsvmCheck(check::SsvmCheck),
    Cmdline(cmdline::Cmdline),
    GuestChannel(guest_channel::GuestChannel),
    KeystoreSetup(keystore::Setup),
    KeystoreCertImport(keystore::CertImport),
    Status(status::Status),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse_from(command_line(std::env::args_os()));
    logging::init();
    crypto::install();
    match cli.command {
        Command::Check(args) => check::run(&args).await,
        Command::SsvmCheck(args) => check::ssvm(&args).await,
        Command::Cmdline(args) => cmdline::run(&args),
        Command::GuestChannel(args) => guest_channel::run(&args).await,
        Command::KeystoreSetup(args) => code(keystore::setup(&args).await),
        Command::KeystoreCertImport(args) => code(keystore::cert_import(&args).await),
        Command::Status(args) => status::run(&args).await,
    }
}

fn code(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

/// CloudStack calls some commands by names of their own, which are links to this program: the name is then the command.
fn command_line(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let called = args.first().and_then(|program| Path::new(program).file_name());
    if let Some(name) = called.filter(|name| LINKS.iter().any(|link| *name == *link)) {
        let name = name.to_owned();
        args.insert(1, name);
    }
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
        assert_eq!(words(&[]), [""; 0]);
        for name in LINKS {
            assert!(
                Cli::command()
                    .get_subcommands()
                    .any(|command| command.get_name() == name)
            );
            Cli::try_parse_from(command_line([name, "1", "--2"].map(OsString::from))).unwrap();
        }
    }
}
