//! The end of a zone: of the server, of the system VMs that it has started, and of the guest.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use platform::exec::{Cmd, ExecError};

use super::state::{Running, State};

/// For a process to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// For virtual machines to shut down, without KVM.
const VMS_LIMIT: Duration = Duration::from_mins(5);

/// Ends all processes of a zone. Carries on when one does not end, and tells at the end.
pub(super) async fn end(directory: &Path, state: &State) -> anyhow::Result<()> {
    let mut left = Vec::new();
    // First the server, or it would start again what is ended next.
    if let Some(process) = state.server.as_ref().and_then(Running::alive) {
        eprintln!("Ending the management server (process {})", process.pid());
        if !process.stop(GRACE).await {
            left.push(format!("mgmt-stub (process {})", process.pid()));
        }
    }
    if state.server.is_some() {
        eprintln!("Ending the system VMs");
        if let Err(error) = stop_system_vms(state).await {
            left.push(format!("the system VMs: {error}"));
        }
    }
    if let Some(process) = state.guest.as_ref().and_then(|guest| guest.process.alive()) {
        eprintln!("Ending the guest (process {})", process.pid());
        if !process.stop(GRACE).await {
            left.push(format!("QEMU (process {})", process.pid()));
        }
    }
    ensure!(left.is_empty(), "not ended: {}", left.join("; "));
    State::forget(directory)?;
    eprintln!("All is down. The data are in {}.", directory.display());
    Ok(())
}

/// Only while there is no server, which would start them again.
pub(super) async fn stop_system_vms(state: &State) -> Result<(), ExecError> {
    let program = Cmd::new(state.programs.join("mgmt-stub"));
    let stop = program.arg("--data-dir").arg(&state.data_dir).arg("stop-system-vms");
    stop.time_limit(VMS_LIMIT).run().await.map(drop)
}
