//! `agent run`: what CloudStack calls by names of its own under /opt/cloud/bin.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::appliance::remote::{self, COMMANDS, Reply};
use agent::appliance::root::Root;
use platform::exit;

/// Run what CloudStack calls over ssh by a name under /opt/cloud/bin; without a NAME, list the names.
///
/// Each name is also a link to this program: `/opt/cloud/bin/get_template_version.sh` and `agent run
/// get_template_version.sh` are the same. `agent run NAME --help` says what one is for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  agent run\n  agent run get_template_version.sh\n  agent run diagnostics.py ping 192.0.2.1 -c 2"
)]
pub(crate) struct Run {
    /// The VM's files are below this directory: for looking at another VM's disk, and for tests
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
    /// Such as get_template_version.sh
    name: Option<String>,
    /// Its own arguments, as CloudStack gives them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) async fn run(Run { root, name, args }: &Run) -> ExitCode {
    let Some(name) = name else {
        return print(&Reply {
            stdout: list().into_bytes(),
            ..Reply::default()
        });
    };
    let Some(command) = remote::find(name) else {
        return exit::failed(&format!(
            "{name:?} is no name that CloudStack calls; `agent run` lists them"
        ));
    };
    print(&command.run(&Root::new(root), args).await)
}

fn list() -> String {
    COMMANDS.iter().fold(String::new(), |mut text, command| {
        writeln!(text, "{} {}\n    {}", command.name, command.usage, command.about).expect("a String takes everything");
        text
    })
}

/// Standard output carries the answer; an error of ours goes beside it, as `error: …`.
fn print(reply: &Reply) -> ExitCode {
    let written = std::io::stdout()
        .write_all(&reply.stdout)
        .and_then(|()| std::io::stdout().flush());
    if let Err(error) = written {
        return exit::failed(&format!("cannot write the answer: {error}"));
    }
    if !reply.stderr.is_empty() {
        writeln!(std::io::stderr(), "error: {}", reply.stderr).ok();
    }
    ExitCode::from(reply.code)
}
