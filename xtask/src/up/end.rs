//! The end of a zone: of the server and all that it has started, and of the guest.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use platform::exec::{Cmd, ExecError};

use super::state::State;

/// For a process to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// For virtual machines to shut down, without KVM.
const VMS_LIMIT: Duration = Duration::from_mins(5);

/// Ends all processes of a zone. Carries on when one does not end, and tells at the end.
pub(super) async fn end(directory: &Path, state: &State) -> anyhow::Result<()> {
    let mut left = Vec::new();
    if state.data_dir.exists() {
        eprintln!("Ending the management server and the system VMs");
        if let Err(error) = mgmt_stub(state).arg("down").time_limit(VMS_LIMIT).run().await {
            left.push(format!("the management server and the system VMs: {error}"));
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
    let stop = mgmt_stub(state).arg("stop-system-vms");
    stop.time_limit(VMS_LIMIT).run().await.map(drop)
}

fn mgmt_stub(state: &State) -> Cmd {
    let program = Cmd::new(state.programs.join("mgmt-stub"));
    program.arg("--data-dir").arg(&state.data_dir)
}
