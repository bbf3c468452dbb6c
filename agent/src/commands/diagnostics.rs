//! `agent diagnostics`.

use std::io::Write;
use std::process::ExitCode;

use agent::appliance::diagnostics;
use agent::appliance::root::Root;
use platform::exit;

/// Print all that helps to find a fault: checks, boot, network, firewall, units, the end of the journal. At most 4 MiB.
///
/// Secrets of the boot arguments appear as ***. Hosts get the same over the guest channel.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  ssh -p 3922 root@169.254.14.87 agent diagnostics > v-2-VM.txt")]
pub(crate) struct Diagnostics {}

pub(crate) async fn run(_args: &Diagnostics) -> ExitCode {
    let text = diagnostics::collect(&Root::default()).await;
    match std::io::stdout().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}
