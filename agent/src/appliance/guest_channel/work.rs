//! What takes longer than an answer may: checks and diagnostics. They need to look everywhere; who talks to the host does not.

use std::time::Duration;

use platform::exec::Cmd;

use crate::appliance::check::{self, Report};
use crate::appliance::diagnostics;
use crate::appliance::root::Root;

/// For one piece of work, with the start of a program on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// This process.
    Here,
    /// `agent check` and `agent diagnostics` in units of their own, which systemd starts: this process then needs no right for
    /// them, and whatever hangs ends with its unit.
    Apart,
}

impl Work {
    pub(super) async fn check(self, root: &Root) -> Result<Report, String> {
        match self {
            Self::Here => Ok(check::run(root).await),
            Self::Apart => {
                let printed = apart(&["check", "--json", "--exit-zero"]).await?;
                serde_json::from_slice(&printed).map_err(|error| format!("`agent check` prints no report: {error}"))
            }
        }
    }

    pub(super) async fn diagnostics(self, root: &Root) -> Result<Vec<u8>, String> {
        match self {
            Self::Here => Ok(diagnostics::collect(root).await),
            Self::Apart => apart(&["diagnostics"]).await,
        }
    }
}

/// Runs this program in a unit of its own: systemd-run(1).
async fn apart(words: &[&str]) -> Result<Vec<u8>, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let limit = format!("--property=RuntimeMaxSec={}", LIMIT.as_secs());
    let command = Cmd::new("systemd-run")
        .args(["--quiet", "--wait", "--pipe", "--collect", &limit, "--"])
        .arg(program)
        .args(words)
        .time_limit(LIMIT + Duration::from_secs(5));
    let output = command.run().await;
    output
        .map(|output| output.stdout)
        .map_err(|error| platform::logging::chain(&error).to_string())
}
