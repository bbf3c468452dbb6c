//! What runs a VM's processors: the machine's own (KVM), or an emulation.

use std::time::{Duration, Instant};

use platform::exec::Cmd;
use platform::files;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::time::sleep;
use tracing::info;

use crate::machine::{QEMU, TRANSLATED_MIB};

/// For the firmware to say its name: milliseconds where KVM works.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// What the firmware prints first.
const SIGN: &[u8] = b"SeaBIOS";
/// Bytes of what the probe printed that are looked at.
const PRINTED: u64 = 64 * 1024;
/// How much longer everything in a guest takes without KVM: the image is up after 3 s with it, after 20 to 40 s without.
const EMULATION_FACTOR: u32 = 8;

/// What runs the processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor's own virtualisation.
    Kvm,
    /// QEMU's translator, with a thread for each processor.
    Tcg,
}

impl Accelerator {
    /// The best one that works here. Tried once in a process.
    ///
    /// `/dev/kvm` may be there and useless: only a guest that has run an instruction tells. So the firmware is started, and
    /// must say its name on its debug port.
    pub async fn detect() -> Self {
        static ANSWER: OnceCell<Accelerator> = OnceCell::const_new();
        *ANSWER
            .get_or_init(async || {
                let found = if kvm_runs(PROBE_LIMIT).await {
                    Self::Kvm
                } else {
                    Self::Tcg
                };
                info!(accelerator = ?found, "Looked for KVM");
                found
            })
            .await
    }

    /// A limit for something that the guest does, given for KVM.
    pub fn scaled(self, limit: Duration) -> Duration {
        match self {
            Self::Kvm => limit,
            Self::Tcg => limit * EMULATION_FACTOR,
        }
    }

    /// The value of `-accel`.
    pub(crate) fn argument(self) -> String {
        match self {
            Self::Kvm => "kvm".to_owned(),
            Self::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATED_MIB}"),
        }
    }
}

async fn kvm_runs(limit: Duration) -> bool {
    firmware_speaks("kvm", limit).await
}

/// Whether the firmware of a small machine comes to print something.
async fn firmware_speaks(accelerator: &str, limit: Duration) -> bool {
    let started = Instant::now();
    let Ok(directory) = tempfile::tempdir() else {
        return false;
    };
    let log = directory.path().join("firmware");
    let words = "-machine pc -cpu max -m 16 -no-user-config -nodefaults -display none -no-reboot \
                 -debugcon stdio -global isa-debugcon.iobase=0x402 -accel";
    let probe = Cmd::new(QEMU).args(words.split_whitespace()).arg(accelerator);
    let Ok(mut running) = probe.spawn(&log) else {
        return false;
    };
    while started.elapsed() < limit {
        let has_ended = tokio::time::timeout(LOOK, running.wait()).await.is_ok();
        let printed = files::read_limited(&log, PRINTED).ok().flatten().unwrap_or_default();
        if printed.windows(SIGN.len()).any(|window| window == SIGN) {
            return true;
        }
        if has_ended {
            return false;
        }
        sleep(LOOK).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_processor_that_runs_is_told_from_none() {
        assert!(firmware_speaks("tcg", PROBE_LIMIT * 3).await);
        assert!(!firmware_speaks("no-such-thing", PROBE_LIMIT).await);
    }

    #[test]
    fn limits_are_longer_without_kvm() {
        let limit = Duration::from_secs(5);
        assert_eq!(Accelerator::Kvm.scaled(limit), limit);
        assert_eq!(Accelerator::Tcg.scaled(limit), Duration::from_secs(40));
    }
}
