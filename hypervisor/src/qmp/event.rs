//! What QEMU tells without being asked: <https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html>.

use std::fmt::{self, Display, Formatter};

use serde_json::Value;

/// Something happened to a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It ends.
    Shutdown(Shutdown),
    /// It starts anew.
    Reset {
        /// By its own wish.
        guest: bool,
    },
    /// Its power button was pressed.
    Powerdown,
    /// Its processors stand still.
    Stop,
    /// They run again.
    Resume,
    /// The guest's kernel says that it cannot go on.
    GuestPanicked,
    /// Nobody has reset its watchdog in time.
    Watchdog,
    /// How much memory it has now.
    BalloonChange {
        /// Bytes.
        actual: u64,
    },
    /// A disk could not be read or written.
    BlockIoError {
        /// Its name for QEMU.
        device: String,
        /// `read` or `write`.
        operation: String,
        /// What the system said.
        reason: String,
        /// There is no space left.
        is_full: bool,
    },
    /// Another one.
    Other {
        /// Such as `DEVICE_DELETED`.
        name: String,
        /// As it came.
        data: Value,
    },
}

/// Why a VM ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shutdown {
    /// By the guest's own wish.
    pub guest: bool,
    /// `ShutdownCause`: `guest-shutdown`, `host-qmp-quit`, `host-signal`, …
    pub reason: String,
}

impl Event {
    pub(super) fn new(name: String, data: Value) -> Self {
        let flag = |name: &str| data[name] == true;
        let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        match name.as_str() {
            "SHUTDOWN" => Self::Shutdown(Shutdown {
                guest: flag("guest"),
                reason: text("reason"),
            }),
            "RESET" => Self::Reset { guest: flag("guest") },
            "POWERDOWN" => Self::Powerdown,
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "GUEST_PANICKED" => Self::GuestPanicked,
            "WATCHDOG" => Self::Watchdog,
            "BALLOON_CHANGE" => Self::BalloonChange {
                actual: data["actual"].as_u64().unwrap_or_default(),
            },
            "BLOCK_IO_ERROR" => Self::BlockIoError {
                is_full: flag("nospace"),
                device: text("device"),
                operation: text("operation"),
                reason: text("reason"),
            },
            _ => Self::Other { name, data },
        }
    }
}

impl Display for Shutdown {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "guest-shutdown" => f.write_str("its guest has powered it off"),
            "guest-reset" => f.write_str("its guest has restarted it"),
            "guest-panic" => f.write_str("the kernel of its guest has panicked"),
            "host-qmp-quit" => f.write_str("it was powered off over QEMU's monitor"),
            "host-qmp-system-reset" => f.write_str("it was reset over QEMU's monitor"),
            "host-signal" => f.write_str("QEMU was asked to end by a signal"),
            "host-error" => f.write_str("QEMU cannot go on"),
            reason if self.guest => write!(f, "its guest has ended it ({reason})"),
            reason => write!(f, "this host has ended it ({reason})"),
        }
    }
}
