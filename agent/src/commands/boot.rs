//! `agent boot`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::appliance::boot;
use agent::appliance::hypervisor::Hypervisor;
use agent::appliance::plan::Plan;
use agent::appliance::root::Root;
use platform::exit;
use platform::notify::Notifier;

use super::cmdline::{parse, read_line};

/// Make this machine the system VM that its boot arguments describe, for as long as it runs; or, with --plan, show what
/// that would be and touch nothing.
///
/// Without --plan this is the daemon of the unit cs-preinit: it waits for boot arguments as long as it takes (from a file
/// that the host writes through the guest agent, the kernel command line, fw_cfg, SMBIOS, xenstore, machine.id, a Hyper-V
/// pair or a CD), then sets firewall, network, keys and sshd, and starts ssh.service and cs-setup.service. A different
/// line later is applied again; one that makes no sense changes nothing. `agent status` and /var/log/cloud.log tell how far
/// it is.
///
/// With --plan it works on any machine and without privileges. What cannot work in the arguments is listed under
/// "problems"; a line that makes no sense at all ends with everything that is wrong with it and exit status 78. Passwords
/// are shown as ***.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Boot {
    /// Boot arguments: a file with the line of key=value words, instead of all other sources. With --plan, `-` is standard
    /// input.
    #[arg(long, value_name = "FILE")]
    cmdline_file: Option<PathBuf>,
    /// Print the plan: what NICs, addresses, routes, firewall, sshd and services become.
    #[arg(long, requires = "cmdline_file")]
    plan: bool,
    /// Where the VM runs: kvm, xen, vmware, hyperv or other. By default it finds out; with --plan it is kvm. With --plan on
    /// xen every % in the line stands for a space.
    #[arg(long)]
    hypervisor: Option<Hypervisor>,
    /// Where the machine's files are.
    #[arg(long, value_name = "DIRECTORY", default_value = "/", hide = true)]
    root: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  agent boot
      What cs-preinit.service runs.
  agent boot --plan --cmdline-file /var/cache/cloud/cmdline
      What this VM should be like.
  echo type=router eth1ip=169.254.3.7 eth1mask=255.255.0.0 | agent boot --plan --cmdline-file - | jq .firewall
      What the firewall of a router lets in.
  agent boot --plan --hypervisor vmware --cmdline-file line | jq -r '.problems[]'
      What will not work.";

pub(crate) async fn run(args: Boot) -> ExitCode {
    let Boot {
        cmdline_file,
        plan,
        hypervisor,
        root,
    } = args;
    match cmdline_file {
        Some(file) if plan => show(&file, hypervisor.unwrap_or(Hypervisor::Kvm)),
        cmdline_file => {
            daemon(boot::Options {
                root: Root::new(root),
                cmdline_file,
                hypervisor,
            })
            .await
        }
    }
}

async fn daemon(options: boot::Options) -> ExitCode {
    let notifier = Notifier::from_env();
    let done = tokio::select! {
        done = boot::run(options, &notifier) => done,
        () = notifier.prove_life() => Ok(()), // it never ends
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&anyhow::Error::from(error)),
    }
}

fn show(file: &Path, hypervisor: Hypervisor) -> ExitCode {
    let line = match read_line(file) {
        Ok(line) => line,
        Err(error) => return exit::failed(&error),
    };
    let vm = match parse(&line, hypervisor == Hypervisor::Xen) {
        Ok(vm) => vm,
        Err(problems) => return exit::bad_config(&problems.found_in(file.display())),
    };
    match print(&Plan::of(&vm, hypervisor)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

fn print(plan: &Plan) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(plan)?;
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes())
}
