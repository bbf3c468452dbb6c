//! `agent ssh-gate`: every login over SSH.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::appliance::gate::Request;
use agent::appliance::patch::{self, Taken};
use agent::appliance::root::Root;
use anyhow::{Context, bail};
use platform::exit;
use platform::logging::chain;

/// As a shell says that a program cannot be started.
const CANNOT_START: u8 = 127;

/// What every SSH login runs: sshd's ForceCommand.
///
/// It reads SSH_ORIGINAL_COMMAND. Without one it becomes a login shell, for sftp the sftp server, and otherwise a shell
/// that runs the command. Only the stock patch script, /var/cache/cloud/patch-sysvms.sh, is not executed: the uploaded
/// scripts are taken as `agent patch-watch` takes them, and the answer is `version:` and their SHA-512.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, in sshd_config:\n  ForceCommand /usr/lib/sysvm/bin/agent ssh-gate")]
pub(crate) struct SshGate {
    /// The VM's files are below this directory: for tests
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
}

pub(crate) fn run(SshGate { root }: &SshGate) -> ExitCode {
    let Some(program) = Request::read(std::env::var_os("SSH_ORIGINAL_COMMAND")).program() else {
        return match patched(&Root::new(root)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => exit::failed(&error),
        };
    };
    let error = program.exec();
    writeln!(std::io::stderr(), "error: {}", chain(&error)).ok();
    ExitCode::from(CANNOT_START)
}

/// The live patch (§7.4): idempotent, and nothing but the answer on standard output.
fn patched(root: &Root) -> anyhow::Result<()> {
    if let Taken::Incomplete(why) = patch::take(root).context("taking the uploaded scripts")? {
        bail!("the uploaded cloud-scripts.tgz is not complete ({why}); upload it again");
    }
    for name in [patch::AGENT_ZIP, patch::SCRIPT] {
        patch::discard(root, name)?;
    }
    // No blank after the colon, one before the newline: the host cuts the text there.
    let answer = format!("version:{} \n", patch::signature(root)?);
    std::io::stdout()
        .write_all(answer.as_bytes())
        .context("printing the version")
}
