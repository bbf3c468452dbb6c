//! `stop-system-vms`: what a server has left running.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mgmt_stub::driver::processes::{Processes, Programs};
use mgmt_stub::embedded::Embedded;
use mgmt_stub::store::Store;
use tracing::error;

/// Ends it.
pub(crate) async fn run(data_dir: &Path) -> anyhow::Result<()> {
    // Held until they have ended: a server that starts meanwhile would start them again.
    let _store = Store::open(data_dir).context("making sure that no server runs")?;
    let nothing = Programs {
        ssvm: PathBuf::new(),
        console_proxy: PathBuf::new(),
        novnc: None,
    };
    let (processes, not_stopped) = open_processes(data_dir, nothing)?.stop_all().await;
    let (vms, not_removed) = Embedded::remove(data_dir).await;
    let mut stdout = std::io::stdout();
    for name in processes.into_iter().chain(vms) {
        writeln!(stdout, "{name}").context("writing the list")?;
    }
    // One reason to look is enough for the exit status; the log has all.
    let mut failed = not_stopped.into_iter().map(anyhow::Error::from).chain(not_removed);
    let first = failed.next();
    for error in failed {
        error!(error = format!("{error:#}"), "Something could not be ended");
    }
    first.map_or(Ok(()), Err)
}

pub(crate) fn open_processes(data_dir: &Path, programs: Programs) -> anyhow::Result<Processes> {
    let directory = std::path::absolute(data_dir.join("vms"))?;
    Processes::open(directory, programs).context("looking for system VMs that run")
}
