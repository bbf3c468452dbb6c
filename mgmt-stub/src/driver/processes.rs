//! System VMs as ordinary programs of this machine: `ssvm` and `console-proxy`.
//!
//! They go on when this server ends, and the next one finds them: each has a directory with the file `process`. Should
//! that be missing (a server that was killed between two lines), it is found by its command line.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use platform::exec::{Cmd, Detached, Process};
use platform::files;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

use super::last_words::last_line;
use super::{Doing, Driver, DriverError, Power, Purpose, Usage, VmSpec, check_name};

/// From SIGTERM to SIGKILL: a console proxy says goodbye to its browsers, an SSVM writes its journal.
const GRACE: Duration = Duration::from_secs(10);
/// Between two looks at a process that is not our child.
const LOOK: Duration = Duration::from_millis(500);
/// A log that is longer at a start becomes `log.old`.
const MAX_LOG: u64 = 16 << 20;
/// A directory of VMs has few of them; the file is one short line.
const MAX_PROCESS_FILE: u64 = 4096;

/// `kill -9`.
const SIGKILL: i32 = nix::libc::SIGKILL;

/// What the programs are told besides the boot arguments.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The program `ssvm`.
    pub ssvm: PathBuf,
    /// The program `console-proxy`.
    pub console_proxy: PathBuf,
    /// Directory of the unpacked noVNC package.
    pub novnc: Option<PathBuf>,
}

/// Runs system VMs as programs; cheap to clone.
#[derive(Clone)]
pub struct Processes {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    programs: Programs,
    known: Mutex<HashMap<String, Known>>,
    changed: watch::Sender<u64>,
}

#[derive(Clone)]
enum Known {
    On(Process),
    /// Why.
    Off(String),
}

/// `console-proxy --settings`.
#[derive(Serialize)]
struct ConsoleProxySettings<'a> {
    state_dir: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    novnc: Option<&'a Path>,
    listen: Listen,
}

#[derive(Serialize)]
struct Listen {
    http: SocketAddr,
}

/// `ssvm --settings`.
#[derive(Serialize)]
struct SsvmSettings<'a> {
    state_dir: &'a Path,
    agent_dir: &'a Path,
    store_map: BTreeMap<&'a str, &'a Path>,
}

impl Processes {
    /// Looks for programs that an earlier server has left running. Needs the runtime, for watching them. Blocks shortly.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: PathBuf, programs: Programs) -> Result<Self, DriverError> {
        make_directory(&directory)?;
        let driver = Self {
            inner: Arc::new(Inner {
                directory,
                programs,
                known: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        };
        driver.adopt_all()?;
        Ok(driver)
    }

    fn adopt_all(&self) -> Result<(), DriverError> {
        let directory = &self.inner.directory;
        for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
            let entry = entry.map_err(failed("read", directory))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if let Some(process) = self.find(&name)? {
                info!(vm = name, pid = process.pid(), "Found a system VM running");
                self.known().insert(name.clone(), Known::On(process.clone()));
                self.watch_stranger(name, process);
            } else {
                let why = self.with_last_words(&name, "ended while the management server was down".into());
                self.known().insert(name, Known::Off(why));
            }
        }
        Ok(())
    }

    /// The names of those that run.
    pub fn running(&self) -> Vec<String> {
        let known = self.known();
        let on = known.iter().filter(|(_, known)| matches!(known, Known::On(_)));
        let mut names: Vec<String> = on.map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Ends them all. Says which, and what could not be ended.
    pub async fn stop_all(&self) -> (Vec<String>, Vec<DriverError>) {
        let names = self.running();
        let stops = names.iter().map(|name| self.power_off(name));
        let outcomes = futures_util::future::join_all(stops).await;
        (names, outcomes.into_iter().filter_map(Result::err).collect())
    }

    fn find(&self, name: &str) -> Result<Option<Process>, DriverError> {
        let file = self.path(name, "process")?;
        let written = files::read_limited(&file, MAX_PROCESS_FILE)?;
        let process = written.and_then(|text| String::from_utf8(text).ok()?.parse::<Process>().ok());
        if let Some(process) = process
            && process.is_alive()
        {
            return Ok(Some(process));
        }
        Ok(find_by_argument(&self.path(name, "cmdline")?))
    }

    fn power_on(&self, vm: &VmSpec) -> Result<(), DriverError> {
        let name = vm.name.as_str();
        if let Power::On = self.power(name) {
            return Ok(());
        }
        let detached = self.launch(vm)?;
        let process = detached.process().clone();
        info!(vm = name, pid = process.pid(), "System VM started as a process");
        self.known().insert(name.to_owned(), Known::On(process.clone()));
        self.watch_child(name.to_owned(), process, detached);
        Ok(())
    }

    /// Writes everything the program reads, and starts it.
    fn launch(&self, vm: &VmSpec) -> Result<Detached, DriverError> {
        let name = vm.name.as_str();
        let Some(identity) = &vm.identity else {
            return Err(DriverError::NotAProcess(name.to_owned()));
        };
        let (state, agent) = (self.path(name, "state")?, self.path(name, "state/agent")?);
        for directory in [&self.path(name, "")?, &state, &agent] {
            make_directory(directory)?;
        }
        let boot_args = self.path(name, "cmdline")?;
        let _ = files::replace(&boot_args, vm.boot_args.expose(), 0o600)?;
        let (program, keys, settings) = match &vm.purpose {
            Purpose::ConsoleProxy { listen } => {
                let settings = ConsoleProxySettings {
                    state_dir: &state,
                    novnc: self.inner.programs.novnc.as_deref(),
                    listen: Listen { http: *listen },
                };
                (&self.inner.programs.console_proxy, &state, toml::to_string(&settings))
            }
            Purpose::SecondaryStorage { stores } => {
                let settings = SsvmSettings {
                    state_dir: &state,
                    agent_dir: &agent,
                    store_map: stores
                        .iter()
                        .map(|(url, path)| (url.as_str(), path.as_path()))
                        .collect(),
                };
                (&self.inner.programs.ssvm, &agent, toml::to_string(&settings))
            }
            Purpose::User { .. } => return Err(DriverError::NotAProcess(name.to_owned())),
        };
        let text = settings.map_err(|error| DriverError::Settings(name.to_owned(), error))?;
        let settings = self.path(name, "settings.toml")?;
        let _ = files::replace(&settings, text, 0o600)?;
        let signed = &identity.signed;
        // The order in which a key store stays readable: agent/src/keystore.rs.
        let _ = files::replace(keys.join("cloud.ca.crt"), &signed.ca, 0o644)?;
        let _ = files::replace(keys.join("cloud.key"), identity.private_key.expose(), 0o600)?;
        let _ = files::replace(keys.join("cloud.crt"), &signed.certificate, 0o644)?;

        let log = self.path(name, "log")?;
        if fs::metadata(&log).is_ok_and(|file| file.len() > MAX_LOG) {
            fs::rename(&log, self.path(name, "log.old")?).map_err(failed("rename", &log))?;
        }
        let command = Cmd::new(program).arg("--boot-args").arg(&boot_args);
        let detached = command.arg("--settings").arg(&settings).spawn_detached(&log)?;
        let _ = files::replace(self.path(name, "process")?, detached.process().to_string(), 0o600)?;
        Ok(detached)
    }

    async fn power_off(&self, name: &str) -> Result<(), DriverError> {
        let known = self.known().get(name).cloned();
        if let Some(Known::On(process)) = known {
            // First, so that whoever watches it does not report an accident.
            self.known().insert(name.to_owned(), Known::Off("stopped".into()));
            if !process.stop(GRACE).await {
                let pid = process.pid();
                self.known().insert(name.to_owned(), Known::On(process));
                let name = name.to_owned();
                return Err(DriverError::Stuck { name, pid });
            }
            info!(vm = name, "System VM stopped");
        }
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), DriverError> {
        self.power_off(name).await?;
        let directory = self.path(name, "")?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &directory)(error)),
            _ => {}
        }
        self.known().remove(name);
        Ok(())
    }

    fn watch_child(&self, name: String, process: Process, mut detached: Detached) {
        let driver = self.clone();
        tokio::spawn(async move {
            let why = match detached.wait().await {
                // Who kills does not ask: the log knows nothing of it.
                Ok(status) if status.signal() == Some(SIGKILL) => end_of(status),
                Ok(status) => driver.with_last_words(&name, end_of(status)),
                Err(error) => driver.with_last_words(&name, error.to_string()),
            };
            driver.ended(&name, &process, why);
        });
    }

    /// One that an earlier server has started: only its parent gets to know how it ended.
    fn watch_stranger(&self, name: String, process: Process) {
        let driver = self.clone();
        tokio::spawn(async move {
            while process.is_alive() {
                tokio::time::sleep(LOOK).await;
            }
            let why = driver.with_last_words(&name, "exited".into());
            driver.ended(&name, &process, why);
        });
    }

    fn ended(&self, name: &str, process: &Process, why: String) {
        let mut known = self.known();
        if matches!(known.get(name), Some(Known::On(current)) if current == process) {
            warn!(vm = name, pid = process.pid(), why, "System VM ended by itself");
            known.insert(name.to_owned(), Known::Off(why));
            drop(known);
            self.inner.changed.send_modify(|count| *count += 1);
        }
    }

    fn with_last_words(&self, name: &str, why: String) -> String {
        match self.last_words(name) {
            Some(words) => format!("{why}; last log line: {words}"),
            None => why,
        }
    }

    fn path(&self, name: &str, file: &str) -> Result<PathBuf, DriverError> {
        check_name(name)?;
        Ok(self.inner.directory.join(name).join(file))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Processes {
    fn hypervisor(&self) -> &'static str {
        "External"
    }

    fn start<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(async { self.power_on(vm) })
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(self.power_off(name))
    }

    fn destroy<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(self.remove(name))
    }

    fn power(&self, name: &str) -> Power {
        match self.known().get(name) {
            Some(Known::On(_)) => Power::On,
            Some(Known::Off(why)) => Power::Off(why.clone()),
            None => Power::Off("there is no process for it".into()),
        }
    }

    fn last_words(&self, name: &str) -> Option<String> {
        let log = self.path(name, "log").ok()?;
        last_line(&log).ok()?
    }

    fn names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    fn parallel_starts(&self) -> usize {
        8
    }

    /// Of the network a program uses this machine's: nobody counts its part.
    fn usage(&self, name: &str) -> Option<Usage> {
        let Some(Known::On(process)) = self.known().get(name).cloned() else {
            return None;
        };
        let used = hypervisor::vm::Usage::of(process.pid(), std::iter::empty()).ok();
        // Its number may be another program's by now.
        let used = used.filter(|_| process.is_alive())?;
        Some(Usage {
            cpu: used.cpu,
            memory: used.memory,
            received: used.received,
            sent: used.sent,
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

fn end_of(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited: status {code}"),
        (None, Some(signal)) => format!("exited: signal {signal}"),
        (None, None) => format!("exited: {status}"),
    }
}

/// The process that was started with this file: its path is nobody else's.
fn find_by_argument(argument: &Path) -> Option<Process> {
    let pids = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.any(|word| word == argument.as_os_str().as_bytes())
    };
    let process = pids.filter(is_it).find_map(|pid| Process::of(pid).ok()?);
    process.filter(Process::is_alive)
}

fn make_directory(path: &Path) -> Result<(), DriverError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(failed("create", path))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DriverError {
    let path = path.to_owned();
    move |source| DriverError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_do_not_leave_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let programs = Programs {
            ssvm: "/bin/true".into(),
            console_proxy: "/bin/true".into(),
            novnc: None,
        };
        let driver = Processes::open(directory.path().join("vms"), programs).unwrap();
        for name in ["", "..", "a/b", "a\0b", "s-1-VM\n"] {
            assert!(matches!(driver.path(name, ""), Err(DriverError::Name(_))), "{name:?}");
            assert!(driver.destroy(name).await.is_err(), "{name:?}");
        }
    }
}
