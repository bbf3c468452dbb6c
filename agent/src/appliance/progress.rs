//! How far the boot is. `agent boot` and `agent setup` write it, a file each; the guest channel, the screen, `agent check` and
//! whoever wonders why a VM is not up read both.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};

use super::cloud_log;
use super::root::{RUN, Root};

/// More than all steps with all their details.
const MAX_FILE: u64 = 1 << 20;
/// Of one step's detail, in characters: it is for a screen and one line of a log.
const MAX_DETAIL: usize = 4000;

/// What a machine does from its start until it serves, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Which hypervisor this is.
    Hypervisor,
    /// Wait for the boot arguments.
    Line,
    /// Understand them.
    Arguments,
    /// The base firewall of this type of VM.
    Firewall,
    /// NICs, addresses, routes, names.
    Network,
    /// Keys, and sshd on the control address.
    Ssh,
    /// The root file system takes the whole disk.
    Disk,
    /// Kernel settings.
    Settings,
    /// What runs on this type of VM.
    Services,
    /// User data from the boot arguments.
    UserData,
    /// All is done.
    Ready,
}

/// How a step is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Begun.
    Running,
    /// It needs something from outside.
    Waiting,
    /// It has succeeded.
    Done,
    /// It has failed; the boot went on without it, or tries again.
    Failed,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hypervisor => "hypervisor",
            Self::Line => "line",
            Self::Arguments => "arguments",
            Self::Firewall => "firewall",
            Self::Network => "network",
            Self::Ssh => "ssh",
            Self::Disk => "disk",
            Self::Settings => "settings",
            Self::Services => "services",
            Self::UserData => "user-data",
            Self::Ready => "ready",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

/// One step, as far as it has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which.
    pub step: Step,
    /// How it is going.
    pub outcome: Outcome,
    /// Milliseconds since the kernel started when it came to this.
    pub at_ms: u64,
    /// For people: what was found, waited for, or wrong with what to do. No secrets.
    pub detail: String,
}

/// The steps of one program, kept in a file.
#[derive(Debug)]
pub struct Progress {
    root: Root,
    program: String,
    file: PathBuf,
    entries: Vec<Entry>,
}

impl Step {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hypervisor => "hypervisor",
            Self::Line => "boot arguments",
            Self::Arguments => "reading the boot arguments",
            Self::Firewall => "firewall",
            Self::Network => "network",
            Self::Ssh => "ssh",
            Self::Disk => "disk",
            Self::Settings => "kernel settings",
            Self::Services => "services",
            Self::UserData => "user data",
            Self::Ready => "ready",
        }
    }
}

impl Progress {
    /// An empty one. `program` is `boot` or `setup`.
    pub fn new(root: &Root, program: &str) -> Self {
        Self {
            root: root.clone(),
            program: program.to_owned(),
            file: root.path(RUN).join(format!("{program}.json")),
            entries: Vec::new(),
        }
    }

    /// Says how a step is going: here, in the journal, and in `/var/log/cloud.log`. Whether that could be written does not
    /// decide whether the boot goes on: it is logged.
    pub fn set(&mut self, step: Step, outcome: Outcome, detail: impl Into<String>) {
        let entry = Entry {
            step,
            outcome,
            at_ms: since_start(),
            detail: detail.into().chars().take(MAX_DETAIL).collect(),
        };
        self.log(&entry);
        match self.entries.iter_mut().find(|known| known.step == step) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
        if let Err(error) = self.write() {
            tracing::warn!(
                error = platform::logging::chain(&error).to_string(),
                "Cannot tell how far the boot is"
            );
        }
    }

    fn log(&self, entry: &Entry) {
        let Entry {
            step, outcome, detail, ..
        } = entry;
        match outcome {
            Outcome::Running => return,
            Outcome::Waiting | Outcome::Done => tracing::info!(%step, %outcome, detail, "Boot goes on"),
            Outcome::Failed => tracing::warn!(%step, %outcome, detail, "A step of the boot failed"),
        }
        cloud_log::append(&self.root, &self.program, &format!("{step} {outcome}: {detail}"));
    }

    fn write(&self) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(&self.entries).expect("plain data");
        // Readable for everybody: console-proxy's status page and people ask, and no secret is in it.
        files::replace(&self.file, bytes, 0o644).map(|_change| ())
    }
}

/// All that is known now, in the order of the steps. What cannot be read counts as not begun.
pub fn read(root: &Root) -> Vec<Entry> {
    let mut entries = Vec::new();
    for program in ["boot", "setup"] {
        let file = root.path(RUN).join(format!("{program}.json"));
        let bytes = files::read_limited(&file, MAX_FILE).ok().flatten().unwrap_or_default();
        entries.extend(serde_json::from_slice::<Vec<Entry>>(&bytes).unwrap_or_default());
    }
    entries.sort_by_key(|entry| entry.step);
    entries
}

/// Whether all is done.
pub fn is_ready(entries: &[Entry]) -> bool {
    let ready = |entry: &Entry| entry.step == Step::Ready && entry.outcome == Outcome::Done;
    entries.iter().any(ready)
}

/// What stands in the way: the first step that has failed, else the first that waits. (After boot arguments that make no sense
/// the machine waits for others: why it does is what people must know.)
pub fn problem(entries: &[Entry]) -> Option<&Entry> {
    let first = |outcome| entries.iter().find(|entry| entry.outcome == outcome);
    first(Outcome::Failed).or_else(|| first(Outcome::Waiting))
}

/// Milliseconds since the kernel started.
pub fn since_start() -> u64 {
    let clock = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has this clock");
    u64::try_from(Duration::from(clock).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_steps_are_read_in_their_order_and_the_last_word_counts() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(read(&root), []);
        std::fs::create_dir_all(root.path(RUN)).unwrap();
        let mut setup = Progress::new(&root, "setup");
        setup.set(Step::Services, Outcome::Failed, "cs-ssvm does not start");
        let mut boot = Progress::new(&root, "boot");
        boot.set(Step::Line, Outcome::Waiting, "no line yet");
        boot.set(Step::Line, Outcome::Done, "from the guest agent");
        let steps: Vec<_> = read(&root)
            .into_iter()
            .map(|entry| (entry.step, entry.outcome))
            .collect();
        assert_eq!(steps, [(Step::Line, Outcome::Done), (Step::Services, Outcome::Failed)]);
        assert_eq!(problem(&read(&root)).unwrap().step, Step::Services);
        assert!(!is_ready(&read(&root)));
        setup.set(Step::Services, Outcome::Done, "");
        setup.set(Step::Ready, Outcome::Done, "");
        assert!(is_ready(&read(&root)) && problem(&read(&root)).is_none());
    }
}
