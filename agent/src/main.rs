//! The agent's commands inside a system VM. (The link itself is this crate's library; `ssvm` and `console-proxy` run it.)

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::keystore::{self, Import, Machine, SYSTEM_CA};
use anyhow::Context;
use clap::{Parser, Subcommand};
use platform::{crypto, exit, files, logging};
use protocol::boot::{BootArgs, SystemVm};
use tracing::{info, warn};

/// More than any hypervisor can hand over.
const MAX_LINE: u64 = 1 << 20;

/// Commands that CloudStack finds under /opt/cloud/bin.
const LINKS: [&str; 2] = ["keystore-setup", "keystore-cert-import"];

/// How long `keystore-cert-import` waits for a directory that the boot makes.
const DIRECTORY_LIMIT: Duration = Duration::from_mins(1);

/// Commands of a system VM's agent.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read boot arguments and show what they mean, or everything that is wrong with them (exit status 78).
    ///
    /// Passwords are shown as ***. Works on any machine: `agent cmdline -` reads from standard input.
    Cmdline {
        /// The line of key=value words; `-` is standard input.
        #[arg(default_value = "/var/cache/cloud/cmdline")]
        file: PathBuf,
        /// The line came through XenServer, where every % stands for a space.
        #[arg(long)]
        xen: bool,
    },
    /// Make a key and print a request for its certificate, and nothing else.
    ///
    /// ARGS: <properties> <keystore> <password> <validity days> <csr file>, as CloudStack calls its script. There is
    /// no Java key store: the directory of <keystore> is the place of cloud.key and the other PEM files.
    KeystoreSetup {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Take a certificate into use; in mode ssh the agent is then restarted.
    ///
    /// ARGS: <properties> <password> <keystore> <ssh|agent> <certificate file> <certificate> <CA file> <CA
    /// certificates> <key file> <key>, as CloudStack calls its script: in PEM texts ^ is a newline and ~ a space.
    KeystoreCertImport {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse_from(command_line(std::env::args_os()));
    logging::init();
    crypto::install();
    let done = match cli.command {
        Command::Cmdline { file, xen } => return cmdline(&file, xen),
        Command::KeystoreSetup { args } => keystore_setup(&args).await,
        Command::KeystoreCertImport { args } => keystore_cert_import(&args).await,
    };
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

fn cmdline(file: &Path, xen: bool) -> ExitCode {
    let line = match read_line(file) {
        Ok(line) => line,
        Err(error) => return exit::failed(&error),
    };
    let args = if xen {
        BootArgs::parse_xen(line)
    } else {
        BootArgs::parse(line)
    };
    match args.and_then(|args| SystemVm::parse(&args)) {
        Ok(vm) => {
            let mut text = String::new();
            writeln!(text, "{vm:#?}").expect("a String takes everything");
            match std::io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => exit::failed(&error),
            }
        }
        Err(problems) => exit::bad_config(&problems.found_in(file.display())),
    }
}

fn read_line(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut line = Vec::new();
        std::io::stdin()
            .take(MAX_LINE + 1)
            .read_to_end(&mut line)
            .context("reading standard input")?;
        anyhow::ensure!(
            u64::try_from(line.len())? <= MAX_LINE,
            "standard input is longer than {MAX_LINE} bytes"
        );
        return Ok(line);
    }
    files::read_limited(file, MAX_LINE)?.with_context(|| format!("{} does not exist", file.display()))
}

async fn keystore_setup(args: &[String]) -> anyhow::Result<()> {
    let request = keystore::keystore_setup(args, &Machine::inspect().await?)?;
    std::io::stdout()
        .write_all(request.as_bytes())
        .context("printing the request")
}

async fn keystore_cert_import(args: &[String]) -> anyhow::Result<()> {
    match keystore::keystore_cert_import(args, Some(Path::new(SYSTEM_CA)), DIRECTORY_LIMIT).await? {
        Import::Skipped { missing } => warn!(missing = %missing.display(), "Nothing given and nothing there; done"),
        Import::Done {
            subject,
            not_after,
            commands,
        } => {
            info!(subject, not_after, "Certificate imported");
            for command in commands {
                // As the original: the files are in place, and a tool that fails changes nothing about that.
                if let Err(error) = command.run().await {
                    warn!(
                        error = logging::chain(&error).to_string(),
                        "Could not tell the rest of the system"
                    );
                }
            }
        }
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
