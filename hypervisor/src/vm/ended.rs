//! How a VM ended.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use crate::plain::plain;
use crate::qmp::Shutdown;

/// Bytes of the end of QEMU's output.
const LOG_TAIL: u32 = 4096;

/// How a VM ended. Displayed as a phrase for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Why.
    pub cause: Cause,
    /// The end of what QEMU printed in its last run; empty when it printed nothing.
    pub log: String,
}

/// Why a VM ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// QEMU said why.
    Shutdown(Shutdown),
    /// We have killed it.
    Killed,
    /// A signal has ended QEMU.
    Signal(i32),
    /// QEMU has failed with this exit code.
    Failed(i32),
    /// QEMU was gone when we looked.
    Unseen,
}

impl Ended {
    /// From all that is known.
    pub(super) fn new(killed: bool, shutdown: Option<Shutdown>, status: Option<ExitStatus>, log: &Path) -> Self {
        let failure = status.and_then(|status| {
            let signal = status.signal().map(Cause::Signal);
            signal.or_else(|| status.code().filter(|code| *code != 0).map(Cause::Failed))
        });
        let cause = match (killed, shutdown, failure) {
            (true, ..) => Cause::Killed,
            (_, Some(shutdown), _) => Cause::Shutdown(shutdown),
            (_, None, Some(failure)) => failure,
            (_, None, None) => Cause::Unseen,
        };
        let log = end_of(log);
        Self { cause, log }
    }
}

impl Display for Ended {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let is_odd = matches!(self.cause, Cause::Signal(_) | Cause::Failed(_) | Cause::Unseen);
        match &self.cause {
            Cause::Shutdown(shutdown) => Display::fmt(shutdown, f)?,
            Cause::Killed => f.write_str("it was powered off by force")?,
            Cause::Signal(signal) => write!(f, "QEMU was ended by signal {signal}")?,
            Cause::Failed(code) => write!(f, "QEMU failed with exit code {code}")?,
            Cause::Unseen => f.write_str("QEMU is gone, and nobody saw how it ended")?,
        }
        match self.log.lines().next_back() {
            Some(line) if is_odd => write!(f, ": {line}"),
            _ => Ok(()),
        }
    }
}

/// The end of a log, from the beginning of a line; empty when there is none.
pub(super) fn end_of(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let tail = file.metadata()?.len().saturating_sub(LOG_TAIL.into());
        file.seek(SeekFrom::Start(tail))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL.into()).read_to_end(&mut bytes)?;
        let start = if tail == 0 {
            None
        } else {
            bytes.iter().position(|byte| *byte == b'\n')
        };
        Ok(bytes.split_off(start.map_or(0, |newline| newline + 1)))
    };
    let text = read().unwrap_or_default();
    plain(String::from_utf8_lossy(&text).trim(), usize::MAX)
}
