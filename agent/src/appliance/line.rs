//! Which line of boot arguments counts, and since when (§3.2).
//!
//! Hosts write the line through the guest agent into [`LINE`] at every start, but not at a reboot, and the file of the
//! last start is still there. So:
//!
//! 1. what is in the file when we start is the line of an earlier boot: [`record`] remembers which line was the last good one,
//!    and keeps a copy, since a power cut may leave half a file;
//! 2. a file that is written from then on is the host's word, at once, whatever it holds;
//! 3. if nobody writes within 20 s after the guest agent can be heard, this is a reboot: the old line counts;
//! 4. if there is none, we wait, without limit;
//! 5. a different line that comes later counts, too.
//!
//! Other channels ([`channel`]) cannot be old: their line counts at once. A line that makes no sense changes nothing: it is
//! put aside, and we wait for a better one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use platform::files::{self, FileError};
use platform::watch::{Watch, WatchError, Written};
use protocol::boot::{BadBootArgs, BootArgs, SystemVm};
use tokio::time::{Instant, sleep};

use super::channel::{self, Channel, Line, MAX_LINE, is_blank};
use super::hypervisor::Hypervisor;
use super::hypervisor::detect::{self, Detected};
use super::progress::{Outcome, Progress, Step};
use super::root::{LINE, LINE_JSON, Root, STATE, UPLOADS};

mod record;

use record::{Record, sha256};

/// How long a host may take to write a line once it can. It tries ten times a second (§3.2).
const HOST_LIMIT: Duration = Duration::from_secs(20);
/// How long a guest agent may take to start where there is a port for it. It takes seconds, also under emulation.
const GUEST_AGENT_LIMIT: Duration = Duration::from_mins(1);
/// Between looks at the channels: first short, since drivers are loaded while we look.
const EAGER: Duration = Duration::from_millis(500);
const EAGER_FOR: Duration = Duration::from_secs(10);
const PATIENT: Duration = Duration::from_secs(2);
/// Between words about what we wait for.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The last good line, for a boot that finds half a line in the file. Mode 0600.
const GOOD: &str = "/var/lib/sysvm/line";
/// Lines that made no sense, remembered.
const MAX_REFUSED: usize = 32;
/// A line that makes no sense, for people: `agent cmdline` explains it. Mode 0600.
pub const REFUSED: &str = "/var/cache/cloud/cmdline.refused";
/// Processes of the guest agent, one in each line. It opens its port as soon as it runs.
const GUEST_AGENT: &str = "/sys/fs/cgroup/system.slice/qemu-guest-agent.service/cgroup.procs";

/// Where lines come from, one after the other.
#[derive(Debug)]
pub struct Source {
    root: Root,
    boot_id: String,
    started: Instant,
    watch: Watch,
    named: Option<PathBuf>,
    forced: Option<Hypervisor>,
    detected: Detected,
    record: Option<Record>,
    /// A program before us, in the same boot, worked with it.
    resumed: Option<Candidate>,
    /// Of an earlier boot.
    cached: Option<Line>,
    /// In force.
    current: Option<Vec<u8>>,
    /// Digests of lines that made no sense: they are not told again.
    refused: Vec<String>,
    guest_agent_since: Option<Instant>,
    told: Option<Instant>,
}

/// A line that may count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// As it came.
    pub line: Line,
    /// Whether the host has given it for this start: what was configured after an earlier one is obsolete.
    pub is_fresh: bool,
}

/// A line that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Its words.
    pub args: BootArgs,
    /// What they mean.
    pub vm: SystemVm,
}

/// Why lines cannot be watched or kept.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// A file of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory that hosts write to.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// No such directory, and none can be made.
    #[error("cannot make the directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Candidate {
    /// What the line says, or everything that is wrong with it.
    pub fn parse(&self) -> Result<Parsed, BadBootArgs> {
        parse(&self.line.text).map_err(|problems| problems.found_in(&self.line.channel))
    }
}

fn parse(text: &[u8]) -> Result<Parsed, BadBootArgs> {
    let args = BootArgs::parse(text)?;
    let vm = SystemVm::parse(&args)?;
    Ok(Parsed { args, vm })
}

impl Source {
    /// Watches from now on. `named` is a file that replaces all channels, `forced` the hypervisor that this is said to be.
    pub fn open(root: &Root, named: Option<PathBuf>, forced: Option<Hypervisor>) -> Result<Self, LineError> {
        let watch = watch(root)?;
        make(root.path(STATE))?;
        let record = record::read(root);
        let mut source = Self {
            boot_id: record::boot_id(root),
            started: Instant::now(),
            watch,
            named,
            detected: detected(root, forced),
            forced,
            resumed: None,
            cached: None,
            current: None,
            refused: Vec::new(),
            guest_agent_since: None,
            told: None,
            record,
            root: root.clone(),
        };
        source.remember();
        Ok(source)
    }

    /// Where we are, as far as it is known now.
    pub fn detected(&self) -> &Detected {
        &self.detected
    }

    /// The next line that is not the one in force. Waits for it without limit, and says what for. May be dropped and called
    /// again.
    pub async fn next(&mut self, progress: &mut Progress) -> Candidate {
        if let Some(resumed) = self.resumed.take() {
            return resumed;
        }
        loop {
            if self.current.is_none()
                && let Some(candidate) = self.look(progress).await
            {
                return candidate;
            }
            let pause = self.pause();
            tokio::select! {
                written = self.watch.next() => match written {
                    Ok(Written::File(name)) if self.root.path(LINE).file_name() != Some(&name) => {}
                    Ok(_) => if let Some(candidate) = self.written(progress) {
                        return candidate;
                    },
                    Err(error) => self.watch_again(&error).await,
                },
                () = sleep(pause), if self.current.is_none() => {}
            }
        }
    }

    /// The line is good: from now on it is the one in force, also after a reboot or a power cut. Everybody finds it in
    /// [`LINE`], and as JSON beside it.
    pub fn accept(&mut self, candidate: &Candidate, parsed: &Parsed) -> Result<(), LineError> {
        let Line { text, channel } = &candidate.line;
        let record = Record {
            sha256: sha256(text),
            boot_id: self.boot_id.clone(),
            channel: channel.clone(),
        };
        self.current = Some(text.clone());
        self.cached = None;
        // The copy first: a record of a line that nobody has would be of no use.
        let _ = files::replace(self.root.path(GOOD), text, 0o600)?;
        record::write(&self.root, &record)?;
        self.record = Some(record);
        let _ = files::replace(self.root.path(LINE), text, 0o600)?;
        let json = serde_json::to_vec(&parsed.args.cmd_line()).expect("plain text");
        let _ = files::replace(self.root.path(LINE_JSON), json, 0o600)?;
        Ok(())
    }

    /// The line makes no sense: it is put aside, and the one in force, if any, is again where everybody looks. After
    /// a bad one that the host has written for this start, an old one does not count any more.
    pub fn refuse(&mut self, candidate: &Candidate) -> Result<(), LineError> {
        if self.refused.len() == MAX_REFUSED {
            self.refused.remove(0);
        }
        self.refused.push(sha256(&candidate.line.text));
        if !candidate.line.channel.is_fixed() {
            self.cached = None;
        }
        let _ = files::replace(self.root.path(REFUSED), &candidate.line.text, 0o600)?;
        if let Some(current) = &self.current {
            let _ = files::replace(self.root.path(LINE), current, 0o600)?;
        }
        Ok(())
    }

    /// Sorts out what earlier boots, or a program before us in this one, have left.
    fn remember(&mut self) {
        let file = files::read_limited(self.root.path(LINE), MAX_LINE)
            .ok()
            .flatten()
            .unwrap_or_default();
        let good = files::read_limited(self.root.path(GOOD), MAX_LINE).ok().flatten();
        let good = good.filter(|good| self.record.as_ref().is_some_and(|record| record.sha256 == sha256(good)));
        let from_file = || Line {
            text: file.clone(),
            channel: Channel::GuestAgent,
        };
        let from_record = |text: &Vec<u8>| Line {
            text: text.clone(),
            channel: self
                .record
                .as_ref()
                .map_or(Channel::GuestAgent, |record| record.channel.clone()),
        };
        let is_new = !is_blank(&file) && good.as_ref() != Some(&file);
        if self
            .record
            .as_ref()
            .is_some_and(|record| record.boot_id == self.boot_id)
        {
            self.resumed = match &good {
                // Somebody wrote while nobody watched.
                _ if is_new => Some(Candidate {
                    line: from_file(),
                    is_fresh: true,
                }),
                Some(good) => Some(Candidate {
                    line: from_record(good),
                    is_fresh: false,
                }),
                None => None,
            };
        }
        // Hosts end a line with a newline: without one, the power went while it was written.
        let is_whole = is_new && file.ends_with(b"\n") && parse(&file).is_ok();
        self.cached = if is_whole {
            Some(from_file())
        } else {
            good.as_ref().map(from_record)
        };
    }

    /// A line that is there without anybody writing it now.
    async fn look(&mut self, progress: &mut Progress) -> Option<Candidate> {
        if self.detected.hypervisor == Hypervisor::Other {
            self.detected = detected(&self.root, self.forced);
        }
        let found = channel::first(&self.root, self.detected.hypervisor, self.named.as_ref(), |line| {
            self.refused.contains(&sha256(line))
        })
        .await;
        if let Some(line) = found.line {
            return Some(self.unless_known(line));
        }
        let now = Instant::now();
        if self.guest_agent_since.is_none() && is_guest_agent_running(&self.root) {
            self.guest_agent_since = Some(now);
        }
        if self.named.is_none()
            && now >= self.reboot_at()
            && let Some(line) = self.cached.take()
        {
            return Some(self.unless_known(line));
        }
        if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
            self.told = Some(now);
            let problems = found
                .problems
                .iter()
                .map(|problem| platform::logging::chain(problem).to_string());
            let words: Vec<_> = std::iter::once(self.waiting_for(now)).chain(problems).collect();
            progress.set(Step::Line, Outcome::Waiting, words.join("\n"));
        }
        None
    }

    /// A line that nobody has written just now is fresh if it is not that of the last start.
    fn unless_known(&self, line: Line) -> Candidate {
        let is_fresh = self
            .record
            .as_ref()
            .is_none_or(|record| record.sha256 != sha256(&line.text));
        Candidate { line, is_fresh }
    }

    /// When a host that wanted to give a new line would have done so.
    fn reboot_at(&self) -> Instant {
        match self.guest_agent_since {
            Some(since) => since + HOST_LIMIT,
            None if detect::has_guest_agent_port(&self.root) => self.started + GUEST_AGENT_LIMIT,
            None => self.started + HOST_LIMIT,
        }
    }

    fn waiting_for(&self, now: Instant) -> String {
        let waited = (now - self.started).as_secs();
        if let Some(named) = &self.named {
            return format!("no boot arguments for {waited} s: waiting for {}", named.display());
        }
        let from = match self.detected.hypervisor {
            Hypervisor::Xen => "vm-data/cloudstack/init in xenstore",
            Hypervisor::Vmware => "machine.id in the VM's extra configuration",
            Hypervisor::HyperV => "the key-value pair cloudstack-vm-userdata",
            Hypervisor::Kvm | Hypervisor::Other => "the host to write /var/cache/cloud/cmdline through the guest agent",
        };
        let agent = match self.guest_agent_since {
            Some(since) => format!("; the guest agent runs since {} s", (now - since).as_secs()),
            None if detect::has_guest_agent_port(&self.root) => "; the guest agent does not run".to_owned(),
            None => String::new(),
        };
        let then = match &self.cached {
            Some(_) => {
                let left = self.reboot_at().saturating_duration_since(now).as_secs();
                format!("; in {left} s those of the last start count")
            }
            None => String::new(),
        };
        format!("no boot arguments for {waited} s: waiting for {from}{agent}{then}")
    }

    /// What somebody has just written into the file, if it says anything new.
    fn written(&mut self, progress: &mut Progress) -> Option<Candidate> {
        match files::read_limited(self.root.path(LINE), MAX_LINE) {
            Ok(Some(text)) if self.is_known(&text) => None,
            Ok(Some(text)) => Some(Candidate {
                line: Line {
                    text,
                    channel: Channel::GuestAgent,
                },
                is_fresh: true,
            }),
            Ok(None) => None,
            Err(error) => {
                let error = platform::logging::chain(&error).to_string();
                let outcome = if self.current.is_some() {
                    Outcome::Failed
                } else {
                    Outcome::Waiting
                };
                progress.set(Step::Line, outcome, error);
                None
            }
        }
    }

    /// Nothing, the line in force, or one that made no sense.
    fn is_known(&self, text: &Vec<u8>) -> bool {
        is_blank(text) || self.current.as_ref() == Some(text) || self.refused.contains(&sha256(text))
    }

    fn pause(&self) -> Duration {
        if self.started.elapsed() < EAGER_FOR {
            EAGER
        } else {
            PATIENT
        }
    }

    /// Somebody has removed the directory. What they write until it is there again must be seen, too.
    async fn watch_again(&mut self, error: &WatchError) {
        let error = platform::logging::chain(error).to_string();
        tracing::warn!(error, "Boot arguments cannot be watched, will try again");
        sleep(PATIENT).await;
        match watch(&self.root) {
            Ok(watch) => self.watch = watch,
            Err(error) => tracing::warn!(error = platform::logging::chain(&error).to_string(), "Not yet"),
        }
    }
}

fn detected(root: &Root, forced: Option<Hypervisor>) -> Detected {
    match forced {
        Some(hypervisor) => Detected {
            hypervisor,
            because: "the command line says so".to_owned(),
        },
        None => Hypervisor::detect(root),
    }
}

fn watch(root: &Root) -> Result<Watch, LineError> {
    let directory = root.path(UPLOADS);
    make(directory.clone())?;
    Ok(Watch::new(directory)?)
}

fn make(path: PathBuf) -> Result<(), LineError> {
    fs::create_dir_all(&path).map_err(|source| LineError::Directory { path, source })
}

fn is_guest_agent_running(root: &Root) -> bool {
    const MAX_FILE: u64 = 4096;
    let processes = files::read_limited(root.path(GUEST_AGENT), MAX_FILE);
    processes.is_ok_and(|processes| processes.is_some_and(|processes| !processes.is_empty()))
}

#[cfg(test)]
mod tests;
