//! `agent cmdline`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use platform::{exit, files};
use protocol::boot::{BadBootArgs, BootArgs, SystemVm};

/// More than any hypervisor can hand over.
const MAX_LINE: u64 = 1 << 20;

/// Read boot arguments and show what they mean, or everything that is wrong with them (exit status 78).
///
/// Passwords are shown as ***. Works on any machine: `agent cmdline -` reads from standard input.
#[derive(Debug, clap::Args)]
pub(crate) struct Cmdline {
    /// The line of key=value words; `-` is standard input.
    #[arg(default_value = "/var/cache/cloud/cmdline")]
    file: PathBuf,
    /// The line came through XenServer, where every % stands for a space.
    #[arg(long)]
    xen: bool,
}

pub(crate) fn run(cmdline: &Cmdline) -> ExitCode {
    let Cmdline { file, xen } = cmdline;
    let line = match read_line(file) {
        Ok(line) => line,
        Err(error) => return exit::failed(&error),
    };
    match parse(&line, *xen) {
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

/// Bytes of a line, as a system VM; or all that is wrong with them.
pub(crate) fn parse(line: &[u8], is_xen: bool) -> Result<SystemVm, BadBootArgs> {
    let args = if is_xen {
        BootArgs::parse_xen(line)
    } else {
        BootArgs::parse(line)
    };
    SystemVm::parse(&args?)
}

/// From a file, or for `-` from standard input.
pub(crate) fn read_line(file: &Path) -> anyhow::Result<Vec<u8>> {
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
