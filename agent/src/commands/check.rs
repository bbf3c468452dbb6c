//! `agent check`, and `ssvm-check.sh`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::appliance::check::{self, Outcome, ssvm_check};
use agent::appliance::root::Root;
use platform::exit;

/// Say whether this system VM is well, and if not, what is to be done.
///
/// Looks at the boot, the boot arguments, units, memory, disk, clock, NICs, gateways, name servers and listening ports, and on
/// a secondary storage VM or console proxy at its management servers, service, certificate and stores. Changes nothing but a
/// small file in each store, which it removes. Takes at most 15 seconds.
///
/// Exit status: 0 all is well; 1 there are warnings: the VM does its work; 2 there are errors: it cannot.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent check                       what a person reads
  agent check --json | less         the same for programs: outcome, findings with check, about, what, todo
  agent check --problems            only what is not well
  ssh -p 3922 root@169.254.14.87 agent check   from the host of the VM")]
pub(crate) struct Check {
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Leave out what is well.
    #[arg(long)]
    problems: bool,
    /// Exit with status 0 whatever was found.
    #[arg(long)]
    exit_zero: bool,
    /// Where the files of the system VM are.
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
}

pub(crate) async fn run(args: &Check) -> ExitCode {
    let mut report = check::run(&Root::new(&args.root)).await;
    if args.problems {
        report.findings.retain(|finding| finding.outcome != Outcome::Ok);
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report).expect("plain data") + "\n"
    } else {
        report.to_string()
    };
    print(
        &text,
        match report.outcome {
            _ if args.exit_zero => 0,
            Outcome::Ok => 0,
            Outcome::Warning => 1,
            Outcome::Error => 2,
        },
    )
}

/// Check a secondary storage VM or console proxy as CloudStack's script of this name does: the same words and exit status.
///
/// Installed as /usr/local/cloud/systemvm/ssvm-check.sh. `agent check` looks at more and says what to do.
///
/// Exit status: 0 well; 2 no name server answers; 3 the agent does not run; 4 no management server can be reached.
#[derive(Debug, clap::Args)]
pub(crate) struct SsvmCheck {
    /// Ignored: the script took none, and callers may pass some.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    ignored: Vec<String>,
}

pub(crate) async fn ssvm(args: &SsvmCheck) -> ExitCode {
    if !args.ignored.is_empty() {
        tracing::debug!(arguments = ?args.ignored, "Arguments ignored");
    }
    let checked = ssvm_check::run(&Root::default()).await;
    print(&checked.text, checked.code)
}

fn print(text: &str, code: u8) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(code),
        Err(error) => exit::failed(&error),
    }
}
