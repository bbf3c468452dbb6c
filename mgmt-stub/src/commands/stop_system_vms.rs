//! `stop-system-vms`: what a server has left running.

use std::path::{Path, PathBuf};

use anyhow::Context;
use mgmt_stub::driver::processes::{Processes, Programs};
use mgmt_stub::embedded::Embedded;
use mgmt_stub::store::Store;
use tracing::error;

use super::print;

/// Ends it, and says what that was.
pub(crate) async fn run(data_dir: &Path) -> anyhow::Result<()> {
    let names = stop_all(data_dir).await?;
    print(&names.into_iter().map(|name| name + "\n").collect::<String>())
}

/// Ends it; the names of the VMs.
pub(crate) async fn stop_all(data_dir: &Path) -> anyhow::Result<Vec<String>> {
    // Held until they have ended: a server that starts meanwhile would start them again.
    let _store = Store::open(data_dir).context("making sure that no server runs")?;
    let nothing = Programs {
        ssvm: PathBuf::new(),
        console_proxy: PathBuf::new(),
        novnc: None,
    };
    let (processes, not_stopped) = open_processes(data_dir, nothing)?.stop_all().await;
    let (vms, not_removed) = Embedded::remove(data_dir).await;
    // One reason to look is enough for the exit status; the log has all.
    let mut failed = not_stopped.into_iter().map(anyhow::Error::from).chain(not_removed);
    let first = failed.next();
    for error in failed {
        error!(error = format!("{error:#}"), "Something could not be ended");
    }
    match first {
        Some(error) => Err(error),
        None => Ok(processes.into_iter().chain(vms).collect()),
    }
}

pub(crate) fn open_processes(data_dir: &Path, programs: Programs) -> anyhow::Result<Processes> {
    let directory = std::path::absolute(data_dir.join("vms"))?;
    Processes::open(directory, programs).context("looking for system VMs that run")
}
