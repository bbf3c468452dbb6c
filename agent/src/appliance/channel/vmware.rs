//! VMware: the extra configuration `machine.id` (§3.4).

use std::time::Duration;

use platform::exec::{Cmd, ExecError};

use super::ChannelError;

/// It asks the hypervisor through an I/O port.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn read() -> Result<Option<Vec<u8>>, ChannelError> {
    let asked = Cmd::new("vmtoolsd").args(["--cmd", "machine.id.get"]).time_limit(LIMIT);
    match asked.run().await {
        Ok(output) => Ok(Some(output.stdout)),
        // Nobody has set it.
        Err(ExecError::Failed { printed, .. }) if printed.contains("No machine id") => Ok(None),
        Err(error) => Err(error.into()),
    }
}
