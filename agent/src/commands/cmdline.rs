//! `agent cmdline`.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::appliance::channel;
use agent::appliance::hypervisor::Hypervisor;
use agent::appliance::hypervisor::detect::Detected;
use agent::appliance::root::Root;
use anyhow::Context;
use platform::logging::chain;
use platform::{exit, files};
use protocol::boot::{BadBootArgs, BootArgs, SystemVm};

/// More than any hypervisor can hand over.
const MAX_LINE: u64 = 1 << 20;

/// Read boot arguments and show what they mean, or everything that is wrong with them (exit status 78).
///
/// Passwords are shown as ***. Works on any machine: `agent cmdline -` reads from standard input.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Cmdline {
    /// The line of key=value words; `-` is standard input.
    #[arg(default_value = "/var/cache/cloud/cmdline")]
    file: PathBuf,
    /// The line came through XenServer, where every % stands for a space.
    #[arg(long)]
    xen: bool,
    /// Say instead what is in each place that `agent boot` looks at, besides the file that hosts write through the guest
    /// agent. The first line with boot arguments is the one that counts.
    #[arg(long, conflicts_with_all = ["file", "xen"])]
    sources: bool,
}

const EXAMPLES: &str = "\
Examples:
  agent cmdline
      What this VM was told.
  agent cmdline /var/cache/cloud/cmdline.refused
      What is wrong with the last line that made no sense.
  agent cmdline --sources
      Where boot arguments are, and why one of the places cannot be read.";

pub(crate) async fn run(cmdline: &Cmdline) -> ExitCode {
    let Cmdline { file, xen, sources } = cmdline;
    if *sources {
        return match print(&self::sources().await) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => exit::failed(&error),
        };
    }
    let line = match read_line(file) {
        Ok(line) => line,
        Err(error) => return exit::failed(&error),
    };
    match parse(&line, *xen) {
        Ok(vm) => {
            let mut text = String::new();
            writeln!(text, "{vm:#?}").expect("a String takes everything");
            match print(&text) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => exit::failed(&error),
            }
        }
        Err(problems) => exit::bad_config(&problems.found_in(file.display())),
    }
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

/// A line for each place; no secrets, since of boot arguments only their size is said.
async fn sources() -> String {
    let root = Root::default();
    let Detected { hypervisor, because } = Hypervisor::detect(&root);
    let mut text = format!("hypervisor: {hypervisor}, {because}\n");
    for look in channel::all(&root, hypervisor, None).await {
        let found = match look.line {
            Ok(Some(line)) => format!("{} bytes", line.text.len()),
            Ok(None) => "nothing".to_owned(),
            Err(error) => format!("error: {}", chain(&error)),
        };
        writeln!(text, "{}: {found}", look.channel).expect("a String takes everything");
    }
    text
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
        io::stdin()
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
