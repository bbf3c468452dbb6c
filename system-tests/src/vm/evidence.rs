//! What an operator would ask for when a test with a VM fails: written to `target/vm-logs/TEST/`, its end printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hypervisor::guest_agent::GuestAgent;
use platform::files;
use platform::logging::chain;
use tokio::time::timeout;

use super::hardware::Places;
use crate::programs::target_dir;
use crate::qmp::Monitor;

/// What QEMU itself has printed, in the VM's directory.
pub(super) const QEMU_LOG: &str = "qemu.log";
/// For the guest to answer: a guest that hangs must not hide the rest.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// Lines printed of each log.
const TAIL: usize = 40;

/// How many VMs each test of this run has had.
static COUNTS: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// Where the evidence of one VM goes.
#[derive(Debug)]
pub(super) struct Label(pub(super) PathBuf);

/// The directory that the evidence goes into, and what is printed of it.
pub(super) struct Evidence {
    directory: PathBuf,
    printed: String,
}

impl Label {
    /// For the next VM of the test that runs in this thread. With its first one, what an earlier run has left goes.
    pub(super) fn next() -> Self {
        let thread = thread::current();
        let test = thread.name().unwrap_or("unnamed").replace("::", "-");
        let directory = target_dir().join("vm-logs").join(&test);
        let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(test).or_default();
        if *count == 0 {
            fs::remove_dir_all(&directory).ok();
        }
        let label = Self(directory.join(format!("vm{count}")));
        *count += 1;
        label
    }
}

impl Evidence {
    /// Takes what the VM has left in its directory.
    pub(super) fn new(label: &Label, run_directory: &Path) -> Self {
        let directory = label.0.clone();
        let printed = match fs::create_dir_all(&directory) {
            Ok(()) => format!("--- evidence of the failure is in {} ---\n", directory.display()),
            Err(error) => format!("--- evidence cannot be kept in {}: {error} ---\n", directory.display()),
        };
        let mut evidence = Self { directory, printed };
        for name in ["console.log", QEMU_LOG] {
            let log = fs::read(run_directory.join(name)).unwrap_or_default();
            evidence.add(name, &plain(&log));
        }
        evidence
    }

    /// Takes a picture of the screen.
    pub(super) async fn ask_monitor(&mut self, monitor: &mut Monitor) {
        let picture = self.directory.join("screen.png");
        if let Ok(Err(error)) | Err(error) = timeout(ASK_LIMIT, monitor.picture(&picture)).await.map_err(Into::into) {
            self.add("no-screen.txt", &format!("{error:#}"));
        }
    }

    /// Asks the guest for its journal and its failed units, if it answers at all.
    pub(super) async fn ask_agent(&mut self, agent: &mut GuestAgent) {
        let questions: [(&str, &[&str]); 2] = [
            ("journal.txt", &["journalctl", "--boot", "--no-pager"]),
            ("failed-units.txt", &["systemctl", "--failed", "--no-pager", "--plain"]),
        ];
        for (name, words) in questions {
            let answer = timeout(ASK_LIMIT, agent.exec(words, b"", ASK_LIMIT)).await;
            match answer {
                Ok(Ok(ran)) => self.add(name, &format!("{}{}", ran.stdout, ran.stderr)),
                Ok(Err(error)) => return self.add("no-journal.txt", &chain(&error).to_string()),
                Err(_) => return self.add("no-journal.txt", "the guest does not answer"),
            }
        }
    }

    fn add(&mut self, name: &str, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        if let Err(error) = files::replace(self.directory.join(name), text, 0o644) {
            let _ = writeln!(self.printed, "{error}");
        }
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        let _ = writeln!(
            self.printed,
            "--- {name}, the last {} of {} lines ---",
            tail.len(),
            lines.len()
        );
        let _ = writeln!(self.printed, "{}", tail.join("\n"));
    }

    /// Prints it: cargo shows what a failed test printed.
    pub(super) fn tell(self) {
        println!("{}", self.printed);
    }
}

/// Collects while the thread panics: on another one, with a connection of its own to the guest, which is only asked when it
/// has answered before.
pub(super) fn collect_outside(label: &Label, places: &Places, monitor: Option<Monitor>, has_agent: bool) {
    thread::scope(|scope| {
        let collector = scope.spawn(move || {
            let mut evidence = Evidence::new(label, &places.directory);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(ask_all(&mut evidence, places, monitor, has_agent));
            }
            evidence
        });
        if let Ok(evidence) = collector.join() {
            evidence.tell(); // in the test's own thread, so that it is part of the test's output
        }
    });
}

async fn ask_all(evidence: &mut Evidence, places: &Places, monitor: Option<Monitor>, has_agent: bool) {
    if let Some(mut monitor) = monitor {
        evidence.ask_monitor(&mut monitor).await;
    }
    if !has_agent {
        return;
    }
    if let Ok(mut agent) = GuestAgent::connect(&places.guest_agent(), ASK_LIMIT).await {
        match agent.up(ASK_LIMIT).await {
            Ok(()) => evidence.ask_agent(&mut agent).await,
            Err(error) => evidence.add("no-journal.txt", &chain(&error).to_string()),
        }
    }
}

/// Text of a terminal without its escapes and carriage returns.
pub(super) fn plain(terminal: &[u8]) -> String {
    let mut text = String::new();
    let terminal = String::from_utf8_lossy(terminal);
    let mut letters = terminal.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => match letters.next() {
                // Control sequences end with a letter or one of `@[\]^_`{|}~`: ECMA-48 §5.4.
                Some('[') => while letters.next().is_some_and(|letter| !('@'..='~').contains(&letter)) {},
                // Commands to the system end with a bell or ESC \: ECMA-48 §5.6.
                Some(']' | 'P' | '^' | '_') => {
                    while let Some(letter) = letters.next() {
                        if letter == '\u{7}' || (letter == '\u{1b}' && letters.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                // Character sets have one more letter.
                Some('(' | ')') => drop(letters.next()),
                _ => {}
            },
            '\n' | '\t' => text.push(letter),
            letter if letter.is_control() => {}
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_read_without_its_escapes() {
        let console =
            b"\x1b[2J\x1b[1;31mFAILED\x1b[0m to start\r\n\x1b]104\x07\x1b[?7hlogin:\x1b(B \x1b]0;t\x1b\\x\xff";
        assert_eq!(plain(console), "FAILED to start\nlogin: x\u{fffd}");
        assert_eq!(plain(b"cut \x1b["), "cut ");
    }
}
