//! `down`: the end of a server and its zone.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use mgmt_stub::running::Running;
use serde_json::json;

use super::{Ended, print, stop_system_vms, tell};

/// For a server to end its links and its work.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// What a data directory has once a server has used it.
const MARK: &str = "mgmt-stub.lock";

/// End the server, its VMs and their network. The data stay
///
/// Works also after everything was killed; where nothing is up it does nothing.
///
/// Examples:
///   mgmt-stub down
///   mgmt-stub --data-dir /tmp/try down
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Down {
    /// For programs: the server's pid if it ran, and the names of the VMs that were ended.
    #[arg(long)]
    json: bool,
}

/// Ends it.
pub(crate) async fn run(data_dir: &Path, arguments: Down) -> anyhow::Result<Ended> {
    // First the server, or it would start again what is ended next.
    let server = Running::find(data_dir)?.and_then(|running| running.process());
    if let Some(process) = &server {
        tell(format_args!("Ending the management server (process {})", process.pid()));
        ensure!(
            process.stop(GRACE).await,
            "mgmt-stub (process {}) does not end; it hangs in the kernel",
            process.pid()
        );
    }
    let mut names = Vec::new();
    if data_dir.join(MARK).exists() {
        tell("Ending the system VMs");
        names = stop_system_vms::stop_all(data_dir).await?;
        Running::forget(data_dir);
        tell(format_args!("All is down. The data are in {}.", data_dir.display()));
    } else {
        tell(format_args!("Nothing is up in {}.", data_dir.display()));
    }
    if arguments.json {
        let server = server.map(|process| process.pid());
        print(&format!("{:#}\n", json!({ "server": server, "vms": names })))?;
    }
    Ok(Ended::Done)
}
