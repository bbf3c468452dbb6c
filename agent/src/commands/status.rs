//! `agent status`.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::appliance::root::Root;
use agent::appliance::screen::{Facts, draw};
use nix::fcntl::OFlag;
use platform::{exit, shutdown};
use tokio::time::sleep;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Clears a terminal and hides its cursor: ECMA-48 ED, CUP; DECTCEM.
const CLEAR: &str = "\x1b[2J\x1b[H\x1b[?25l";

/// Show who this system VM is, how far its boot is, whether its agent is connected, what is wrong and what to do.
///
/// This is what the VM's console shows. Looks at files only: it is there at once. `agent check` asks the network, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent status            once
  agent status --follow   again whenever something is different; ctrl-C ends it")]
pub(crate) struct Status {
    /// Show it again whenever something is different.
    #[arg(long)]
    follow: bool,
    /// Also write one short line to this device when the VM becomes ready or has a problem.
    #[arg(long, value_name = "DEVICE", requires = "follow")]
    short: Option<PathBuf>,
}

pub(crate) async fn run(args: &Status) -> ExitCode {
    let root = Root::default();
    let shown = if args.follow {
        follow(&root, args.short.as_deref()).await
    } else {
        write!(io::stdout(), "{}", draw(&Facts::of(&root)))
    };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

async fn follow(root: &Root, short: Option<&Path>) -> io::Result<()> {
    let mut stop = std::pin::pin!(shutdown::signal());
    let (mut shown, mut told) = (String::new(), None);
    let start = if io::stdout().is_terminal() { CLEAR } else { "\n" };
    loop {
        let facts = Facts::of(root);
        let text = draw(&facts);
        if text != shown {
            let mut out = io::stdout().lock();
            write!(out, "{start}{text}")?;
            out.flush()?;
            shown = text;
        }
        let news = facts.news();
        if let Some(device) = short.filter(|_| news.is_some() && news != told) {
            tell(device, &facts.in_short());
            told = news;
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = &mut stop => return Ok(()),
        }
    }
}

/// A machine without such a device, or one that nobody reads, is none of our concern.
fn tell(device: &Path, line: &str) {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().write(true).custom_flags(flags.bits()).open(device);
    if let Err(error) = opened.and_then(|mut device| write!(device, "\r\n{line}\r\n")) {
        tracing::debug!(device = %device.display(), error = error.to_string(), "Cannot tell the serial console");
    }
}
