//! What a host and this VM tell each other over a virtio-serial port, before there is any network: how far the boot is, what the
//! VM is like, and what the host wants of it. The manual is docs/guest-channel.md.
//!
//! | module | |
//! |---|---|
//! | [`message`] | what travels |
//! | `port` | the device, and whether a host is there |
//! | `session` | one host, until it goes |
//! | `machine` | what is told of this machine |
//! | `work` | who runs checks and diagnostics |

use std::path::Path;
use std::pin::pin;

use tracing::{info, warn};

use super::root::Root;
use port::Device;
use session::Agent;

mod machine;
pub mod message;
mod port;
mod session;
mod work;

pub use port::NoPort;
pub use work::Work;

/// The port, as udev names it.
pub const PORT: &str = "/dev/virtio-ports/org.sysvm.agent.0";

/// Serves one host after the other, until `stop` completes.
///
/// # Errors
/// The port is not there, is in use, or was taken away.
pub async fn run(root: &Root, port: &Path, work: Work, stop: impl Future<Output = ()>) -> Result<(), NoPort> {
    let device = Device::open(port)?;
    let mut agent = Agent::new(root, work);
    let mut stop = pin!(stop);
    loop {
        let port = tokio::select! {
            port = device.connected() => port?,
            () = &mut stop => return Ok(()),
        };
        info!("A host is there");
        let mut is_stopped = false;
        let mut stop_once = pin!(async {
            (&mut stop).await;
            is_stopped = true;
        });
        match agent.serve(port, &mut stop_once).await {
            Ok(()) => info!("The host has gone"),
            Err(error) => warn!(error = error.to_string(), "The host cannot be reached any more"),
        }
        if is_stopped {
            return Ok(());
        }
    }
}
