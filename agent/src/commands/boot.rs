//! `agent boot`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::appliance::hypervisor::Hypervisor;
use agent::appliance::plan::Plan;
use platform::exit;

use super::cmdline::{parse, read_line};

/// Show what boot arguments make of a machine, as JSON, and touch nothing.
///
/// Works on any machine and without privileges. What cannot work in the arguments is listed under "problems"; a line that
/// makes no sense at all ends with everything that is wrong with it and exit status 78. Passwords are shown as ***.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Boot {
    /// Boot arguments: a file with the line of key=value words, or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    cmdline_file: PathBuf,
    /// Print the plan: what NICs, addresses, routes, firewall, sshd and services become.
    #[arg(long, required = true)]
    plan: bool,
    /// Where the VM runs: kvm, xen, vmware, hyperv or other. On xen every % in the line stands for a space.
    #[arg(long, default_value_t = Hypervisor::Kvm)]
    hypervisor: Hypervisor,
}

const EXAMPLES: &str = "\
Examples:
  agent boot --plan --cmdline-file /var/cache/cloud/cmdline
      What this VM should be like.
  echo type=router eth1ip=169.254.3.7 eth1mask=255.255.0.0 | agent boot --plan --cmdline-file - | jq .firewall
      What the firewall of a router lets in.
  agent boot --plan --hypervisor vmware --cmdline-file line | jq -r '.problems[]'
      What will not work.";

pub(crate) fn run(boot: &Boot) -> ExitCode {
    let line = match read_line(&boot.cmdline_file) {
        Ok(line) => line,
        Err(error) => return exit::failed(&error),
    };
    let vm = match parse(&line, boot.hypervisor == Hypervisor::Xen) {
        Ok(vm) => vm,
        Err(problems) => return exit::bad_config(&problems.found_in(boot.cmdline_file.display())),
    };
    match print(&Plan::of(&vm, boot.hypervisor)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

fn print(plan: &Plan) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(plan)?;
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes())
}
