//! Programs that go on when we end, and how to find them again.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use tokio::process::Child;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{Cmd, ExecError, open_log};

/// A process id alone may be somebody else's by the time it is used: between two looks at a process that ends.
const LOOK: Duration = Duration::from_millis(20);
/// After SIGKILL: only a process that hangs in the kernel is still there.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// One process and no other, also after a restart of ours or of the machine: process ids are used again, but not in the
/// same moment of the same boot. Its text form goes into a file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Process {
    pid: i32,
    /// Clock ticks from the machine's boot to the process's start: proc(5), `stat` field 22.
    started: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

/// The text is not that of a [`Process`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name a process; written by this program it looks like 4711 123456 <boot id>")]
pub struct BadProcess(String);

/// A program that [`Cmd::spawn_detached`] started. Dropping it leaves the program running.
#[derive(Debug)]
pub struct Detached {
    process: Process,
    child: Child,
    command: String,
}

impl Detached {
    /// By which it is found again.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until it ends. May be dropped and called again.
    pub async fn wait(&mut self) -> Result<ExitStatus, ExecError> {
        self.child.wait().await.map_err(|source| ExecError::Lost {
            command: self.command.clone(),
            source,
        })
    }
}

impl Cmd {
    /// Starts the program in a session of its own and leaves it running, also when this program ends: no terminal, no
    /// ctrl-C, no hang-up reaches it. What it prints is appended to the file `log` (made with mode 0600).
    ///
    /// Needs `setsid` of util-linux, which is part of every Debian.
    pub fn spawn_detached(&self, log: impl AsRef<Path>) -> Result<Detached, ExecError> {
        let command = self.to_string();
        let log = log.as_ref();
        let lost = |source| ExecError::Lost {
            command: command.clone(),
            source,
        };
        if Path::new(&self.program).components().count() > 1 {
            // Else it would be `setsid` that starts well and fails then, with the reason in the log only.
            fs::metadata(&self.program).map_err(|source| self.cannot_start(source))?;
        }
        // It is not a leader of a process group, so it makes the session and becomes the program without a fork: the
        // process id is the program's.
        let mut session = Self::new("setsid").arg("--").arg(&self.program);
        session.args.extend(self.args.iter().cloned());
        session.env.clone_from(&self.env);
        session.is_env_ours = self.is_env_ours;
        let (stdout, stderr) = open_log(log, &command)?;
        let mut child = session.command();
        child
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(false);
        let child = child.spawn().map_err(|source| self.cannot_start(source))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let process = Process::of(pid).map_err(lost)?;
        let process = process.ok_or_else(|| lost(io::Error::other("it ended at once")))?;
        debug!(%command, pid, log = %log.display(), "Program started in a session of its own");
        Ok(Detached {
            process,
            child,
            command,
        })
    }
}

impl Process {
    /// The process that has this id now; also one that has ended and was not waited for yet.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let Some((_, started)) = look(pid)? else {
            return Ok(None);
        };
        let boot = boot_id()?;
        Ok(Some(Self { pid, started, boot }))
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        let is_same = matches!(look(self.pid), Ok(Some((state, started)))
            if started == self.started && state != 'Z' && state != 'X');
        is_same && boot_id().is_ok_and(|boot| boot == self.boot)
    }

    /// Waits until it is gone; `false` when it is still there after `limit`.
    pub async fn ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    /// Asks it to end (SIGTERM, to its process group if it leads one), and kills it if it has not ended after `grace`.
    /// `false` when it hangs in the kernel and is still there.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        if self.ended(grace).await {
            return true;
        }
        self.signal(Signal::SIGKILL);
        self.ended(KILL_LIMIT).await
    }

    fn signal(&self, signal: Signal) {
        if !self.is_alive() {
            return;
        }
        let pid = Pid::from_raw(self.pid);
        // Failing means that it has ended just now.
        if getpgid(Some(pid)) == Ok(pid) {
            killpg(pid, signal).ok();
        } else {
            kill(pid, signal).ok();
        }
    }
}

impl Display for Process {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.started, self.boot)
    }
}

impl FromStr for Process {
    type Err = BadProcess;

    fn from_str(text: &str) -> Result<Self, BadProcess> {
        let parse = || {
            let mut words = text.split_ascii_whitespace();
            let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
            let started = words.next()?.parse().ok()?;
            let boot = words.next()?.to_owned();
            words.next().is_none().then_some(Self { pid, started, boot })
        };
        parse().ok_or_else(|| BadProcess(text.chars().take(100).collect()))
    }
}

/// State and start time; `None` when there is no such process.
fn look(pid: i32) -> io::Result<Option<(char, u64)>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => state_and_start(&stat).map(Some).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat has an unknown form"),
            )
        }),
        // It may end between opening and reading.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(None),
        Err(error) => Err(error),
    }
}

/// proc(5): the second field is the program's name in parentheses, and may hold anything.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_process_is_found_again_by_its_text(pid in 1..i32::MAX, started: u64, boot in "[0-9a-f-]{1,36}") {
            let process = Process { pid, started, boot };
            prop_assert_eq!(process.to_string().parse::<Process>(), Ok(process));
        }

        #[test]
        fn noise_is_no_process_and_no_panic(noise: String) {
            drop(noise.parse::<Process>());
            state_and_start(&noise);
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_start_time() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        assert_eq!(state_and_start(stat), Some(('S', 98765)));
    }

    #[test]
    fn we_are_alive_and_our_successor_is_not_us() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let us = Process::of(pid).unwrap().unwrap();
        assert!(us.is_alive());
        let successor = Process {
            started: us.started + 1,
            ..us.clone()
        };
        assert!(!successor.is_alive());
        let after_a_reboot = Process {
            boot: "other".into(),
            ..us
        };
        assert!(!after_a_reboot.is_alive());
    }
}
