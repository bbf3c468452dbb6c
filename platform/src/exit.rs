//! Exit codes, and the one `error: …` line that goes with them.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::logging::chain;

/// sysexits.h: `EX_CONFIG`. Our units say `RestartPreventExitStatus=78`: trying again cannot help.
const EX_CONFIG: u8 = 78;

/// What we were told makes no sense: prints the error with its causes and answers 78, so that systemd does not loop.
/// An `anyhow::Error` goes in as `&*error`.
#[must_use = "an exit code only counts when `main` returns it"]
pub fn bad_config(error: &dyn Error) -> ExitCode {
    print(&chain(error));
    ExitCode::from(EX_CONFIG)
}

/// The work failed: prints the error in its `{:#}` form (for `anyhow::Error`: with its causes) and answers 1, so that
/// systemd starts us again.
#[must_use = "an exit code only counts when `main` returns it"]
pub fn failed(error: &impl Display) -> ExitCode {
    print(error);
    ExitCode::FAILURE
}

fn print(error: &impl Display) {
    // Unlike `eprintln!` this does not panic when nobody reads standard error any more.
    writeln!(io::stderr(), "error: {error:#}").ok();
}
