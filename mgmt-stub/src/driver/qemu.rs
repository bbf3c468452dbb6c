//! VMs under QEMU, on this machine: what a KVM host and its management server do, in one.
//!
//! Each has a directory in `vms/`: the disk of a system VM, sockets, console, what is remembered of it. QEMU goes on when
//! this server ends, and the next one finds it by what is in there.
//!
//! ```text
//! off --start--> Starting: disk, NICs, QEMU, guest agent, boot arguments, ssh, files, certificate --> Started
//! Starting --a step fails, stop, our end--> off          Started --stop, its own end--> off
//! ```

mod base;
mod facts;
mod follow;
mod record;
mod set_up;
mod start;

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::accelerator::Accelerator;
use hypervisor::network::{Group, Network};
use hypervisor::ssh::Key;
use hypervisor::vm::{Vm, VmError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use self::facts::Facts;
use self::record::{Record, Written};
use super::last_words::last_line;
use super::{Doing, Driver, DriverError, Power, Progress, Screen, Usage, VmSpec, check_name};

/// For a system VM to shut down before it is powered off, on a machine with KVM; times the factor of the accelerator. It takes
/// a second, and it has nothing that it could lose; without its NFS server it would never end.
const GRACE: Duration = Duration::from_secs(4);
/// Likewise for the VM of a user, on any machine: one that does not listen to its power button shall not be waited for too long.
pub const USERS_GRACE: Duration = Duration::from_secs(30);
/// Of a VM's directory.
const MODE: u32 = 0o700;

/// Where and with what VMs are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A directory for each VM. Short: the paths of sockets in there have at most 107 bytes.
    pub directory: PathBuf,
    /// The image of system VMs, qcow2.
    pub image: PathBuf,
    /// Primary storage of this machine: a copy of the image is kept there.
    pub primary: PathBuf,
    /// Who runs guest code.
    pub accelerator: Accelerator,
    /// Where their NICs are.
    pub network: Network,
    /// VMs of this group reach screens.
    pub console_proxies: Group,
    /// The address in there on which screens are served.
    pub screens: Ipv4Addr,
    /// What is uploaded to system VMs at each start, where there is something: agent.zip, cloud-scripts.tgz,
    /// patch-sysvms.sh, sysvm-bundle.
    pub files: Option<PathBuf>,
    /// What system VMs let in by ssh.
    pub key: Key,
    /// For the VM of a user to shut down before it is powered off.
    pub users_grace: Duration,
}

/// Runs VMs under QEMU; cheap to clone.
#[derive(Clone)]
pub struct Qemu {
    inner: Arc<Inner>,
    /// Those who follow VMs end with the last clone; VMs go on.
    _following: Arc<DropGuard>,
}

struct Inner {
    settings: Settings,
    known: Mutex<HashMap<String, Known>>,
    changed: watch::Sender<u64>,
    /// Until then VMs are followed.
    following: CancellationToken,
    /// Held while the image is copied.
    copying: tokio::sync::Mutex<()>,
}

/// A VM that has a directory.
struct Known {
    state: State,
    /// Shared with who looks into it.
    facts: SharedFacts,
    screen: Option<Screen>,
    /// Since when QEMU does not answer.
    silent_since: Option<OffsetDateTime>,
}

#[derive(Clone)]
enum State {
    /// `vm` as soon as there is a process.
    Starting {
        vm: Option<Vm>,
        start: Start,
    },
    On(Vm),
    /// Why.
    Off(String),
}

/// A start that goes on.
#[derive(Clone, Default)]
struct Start {
    give_up: CancellationToken,
    /// All that it has begun is over.
    over: CancellationToken,
}

#[derive(Clone, Default)]
struct SharedFacts(Arc<Mutex<Facts>>);

impl SharedFacts {
    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Qemu {
    /// Looks for VMs that an earlier server has left running. Those whose start it has not finished are powered off.
    ///
    /// # Errors
    /// The directories cannot be made or read.
    pub async fn open(settings: Settings) -> Result<Self, DriverError> {
        for directory in [&settings.directory, &settings.primary] {
            make_directory(directory)?;
        }
        let following = CancellationToken::new();
        let driver = Self {
            _following: Arc::new(following.clone().drop_guard()),
            inner: Arc::new(Inner {
                following,
                settings,
                known: Mutex::default(),
                changed: watch::Sender::new(0),
                copying: tokio::sync::Mutex::default(),
            }),
        };
        let directory = &driver.inner.settings.directory;
        let mut bases = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
            let entry = entry.map_err(failed("read", directory))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let record = Record::load(&entry.path())?;
            bases.extend(record.iter().filter_map(|record| record.base.clone()));
            driver.adopt(name, record).await?;
        }
        let running = driver.running();
        let running: Vec<&str> = running.iter().map(String::as_str).collect();
        driver.inner.settings.network.detach_others(&running).await?;
        let primary = &driver.inner.settings.primary;
        base::forget_unused(primary, &bases).map_err(failed("read", primary))?;
        Ok(driver)
    }

    /// What is there of a VM becomes known.
    async fn adopt(&self, name: String, record: Option<Record>) -> Result<(), DriverError> {
        let directory = self.inner.path(&name)?;
        let vm = Vm::adopt(&directory).await?;
        let written = record.as_ref().map(|record| record.state.clone());
        let facts = SharedFacts::default();
        let state = match (vm, written) {
            (Some(vm), Some(Written::Started)) => {
                info!(vm = name, pid = vm.process().pid(), "Found a VM running");
                facts.lock().found(vm.process().pid(), OffsetDateTime::now_utc());
                State::On(vm)
            }
            (Some(vm), _) => {
                warn!(
                    vm = name,
                    pid = vm.process().pid(),
                    "Powering off a VM whose start was interrupted"
                );
                vm.kill().await?;
                State::Off("its start was interrupted by the end of the management server".into())
            }
            (None, Some(Written::Off(why))) => State::Off(why),
            (None, _) => State::Off(
                self.inner
                    .with_last_words(&name, "ended while the management server was down".into()),
            ),
        };
        let screen = match (&state, &record) {
            (State::On(vm), Some(record)) => start::screen(vm, &record.vnc_password).await.ok().flatten(),
            _ => None,
        };
        let follow = match &state {
            State::On(vm) => Some(vm.clone()),
            _ => None,
        };
        let known = Known {
            state,
            facts: facts.clone(),
            screen,
            silent_since: None,
        };
        self.inner.known().insert(name.clone(), known);
        if let Some(vm) = follow {
            self.follow(name, vm, facts);
        }
        Ok(())
    }

    /// Those that are on or being started, in order of their names.
    pub fn running(&self) -> Vec<String> {
        let known = self.inner.known();
        let on = known.iter().filter(|(_, known)| !matches!(known.state, State::Off(_)));
        let mut names: Vec<String> = on.map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    async fn shut_down(&self, name: &str) -> Result<(), DriverError> {
        let settings = &self.inner.settings;
        let grace = if is_users(&self.inner.path(name)?)? {
            settings.users_grace
        } else {
            settings.accelerator.scaled(GRACE)
        };
        self.turn_off(name, async |vm| vm.stop(grace).await.map(drop)).await
    }

    async fn cut_power(&self, name: &str) -> Result<(), DriverError> {
        self.turn_off(name, async |vm| vm.kill().await.map(drop)).await
    }

    /// Whoever starts it gives up; then it goes off as it is told to.
    async fn turn_off(&self, name: &str, end: impl AsyncFnOnce(&Vm) -> Result<(), VmError>) -> Result<(), DriverError> {
        let state = self.inner.known().get(name).map(|known| known.state.clone());
        match state {
            Some(State::Starting { start, .. }) => {
                start.give_up.cancel();
                start.over.cancelled().await;
            }
            Some(State::On(vm)) => {
                // First, so that whoever follows it does not report an accident.
                self.inner.set(name, State::Off("stopped".into()));
                if let Err(error) = end(&vm).await {
                    self.inner.set(name, State::On(vm));
                    return Err(error.into());
                }
                self.inner.clear_away(name).await;
                self.inner.remember_off(name, "stopped")?;
                info!(vm = name, "VM stopped");
            }
            Some(State::Off(_)) | None => {}
        }
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), DriverError> {
        let directory = self.inner.path(name)?;
        self.cut_power(name).await?;
        self.inner.clear_away(name).await;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &directory)(error)),
            _ => {}
        }
        self.inner.known().remove(name);
        Ok(())
    }
}

impl Inner {
    /// The end of its console.
    fn last_words(&self, name: &str) -> Option<String> {
        let console = start::console(&self.path(name).ok()?);
        last_line(&console).ok()?
    }

    /// NICs of a VM that is off. What stays is replaced by its next start.
    async fn clear_away(&self, name: &str) {
        if let Err(error) = self.settings.network.detach(name).await {
            warn!(vm = name, error = %platform::logging::chain(&error), "Cannot remove the NICs of a VM");
        }
    }

    fn remember_off(&self, name: &str, why: &str) -> Result<(), DriverError> {
        let directory = self.path(name)?;
        if let Some(mut record) = Record::load(&directory)? {
            record.state = Written::Off(why.into());
            record.save(&directory)?;
        }
        Ok(())
    }

    /// It has ended. Nothing to do when that was asked for.
    async fn ended(&self, name: &str, vm: &Vm, why: String) {
        if !self.is_current(name, vm) {
            return;
        }
        // First: whoever hears that it is off may start it, and would lose its new NICs.
        self.clear_away(name).await;
        if !self.is_current(name, vm) {
            return;
        }
        self.set(name, State::Off(why.clone()));
        warn!(vm = name, pid = vm.process().pid(), why, "VM ended by itself");
        self.changed.send_modify(|count| *count += 1);
        if let Err(error) = self.remember_off(name, &why) {
            warn!(vm = name, error = %platform::logging::chain(&error), "Cannot write why a VM is off");
        }
    }

    /// Whether it is this process that is believed to run.
    fn is_current(&self, name: &str, vm: &Vm) -> bool {
        let known = self.known();
        let state = known.get(name).map(|known| &known.state);
        matches!(state, Some(State::On(current)) if current.process() == vm.process())
    }

    fn with_last_words(&self, name: &str, why: String) -> String {
        match self.last_words(name) {
            Some(words) => format!("{why}; last line of its console: {words}"),
            None => why,
        }
    }

    fn set(&self, name: &str, state: State) {
        if let Some(known) = self.known().get_mut(name) {
            if matches!(state, State::Off(_)) {
                known.screen = None;
                known.silent_since = None;
            }
            known.state = state;
        }
    }

    /// The directory of a VM.
    fn path(&self, name: &str) -> Result<PathBuf, DriverError> {
        check_name(name)?;
        Ok(self.settings.directory.join(name))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on(&self, name: &str) -> Option<Vm> {
        match &self.known().get(name)?.state {
            State::On(vm) | State::Starting { vm: Some(vm), .. } => Some(vm.clone()),
            State::Off(_) | State::Starting { vm: None, .. } => None,
        }
    }
}

impl Driver for Qemu {
    fn hypervisor(&self) -> &'static str {
        "KVM"
    }

    fn start<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        let (driver, vm) = (self.clone(), vm.clone());
        Box::pin(async move {
            let name = vm.name.clone();
            // A task of its own: what it has begun it also ends, even when the caller goes.
            let start = tokio::spawn(async move { driver.power_on(&vm).await });
            start.await.unwrap_or(Err(DriverError::Abandoned(name)))
        })
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(self.shut_down(name))
    }

    fn power_off<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(self.cut_power(name))
    }

    fn destroy<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(self.remove(name))
    }

    fn power(&self, name: &str) -> Power {
        match self.inner.known().get(name).map(|known| &known.state) {
            Some(State::On(_) | State::Starting { vm: Some(_), .. }) => Power::On,
            Some(State::Starting { vm: None, .. }) => Power::Off("its start has just begun".into()),
            Some(State::Off(why)) => Power::Off(why.clone()),
            None => Power::Off("there is no VM of this name".into()),
        }
    }

    fn last_words(&self, name: &str) -> Option<String> {
        self.inner.last_words(name)
    }

    fn reboot<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(self.restart_inside(vm))
    }

    fn progress(&self, name: &str) -> Option<Progress> {
        let facts = self.inner.known().get(name)?.facts.clone();
        let mut progress = facts.lock().progress();
        if progress.problem.is_none() {
            progress.problem = self.inner.on(name).and_then(|vm| vm.trouble());
        }
        Some(progress)
    }

    fn usage(&self, name: &str) -> Option<Usage> {
        let vm = self.inner.on(name)?;
        let used = vm.usage().ok()?;
        Some(Usage {
            cpu: used.cpu,
            memory: used.memory,
            received: used.received,
            sent: used.sent,
        })
    }

    fn screen(&self, name: &str) -> Option<Screen> {
        self.inner.known().get(name)?.screen.clone()
    }

    fn names(&self) -> Vec<String> {
        self.inner.known().keys().cloned().collect()
    }

    fn silent_since(&self, name: &str) -> Option<OffsetDateTime> {
        self.inner.known().get(name)?.silent_since
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

/// Whether its disk is not ours.
fn is_users(directory: &Path) -> Result<bool, DriverError> {
    Ok(Record::load(directory)?.is_some_and(|record| record.base.is_none()))
}

/// Stops all VMs below a directory, without a driver: for the end of a zone whose server has ended or was killed. Says which,
/// and what could not be stopped. VMs of users may take `users_grace` to shut down.
///
/// # Errors
/// The directory cannot be read.
pub async fn end_all(directory: &Path, users_grace: Duration) -> Result<(Vec<String>, Vec<DriverError>), DriverError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        entries => entries.map_err(failed("read", directory))?,
    };
    let mut ends = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("read", directory))?.path();
        ends.push(async move {
            let ended = end_of(&path, users_grace).await;
            (
                path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                ended,
            )
        });
    }
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    for (name, ended) in futures_util::future::join_all(ends).await {
        match ended {
            Ok(true) => names.push(name),
            Ok(false) => {}
            Err(error) => problems.push(error),
        }
    }
    names.sort();
    Ok((names, problems))
}

/// Whether it was on.
async fn end_of(directory: &Path, users_grace: Duration) -> Result<bool, DriverError> {
    let Some(vm) = Vm::adopt(directory).await? else {
        return Ok(false);
    };
    let grace = if is_users(directory)? {
        users_grace
    } else {
        vm.machine().accelerator.scaled(GRACE)
    };
    vm.stop(grace).await?;
    if let Some(mut record) = Record::load(directory)? {
        record.state = Written::Off("stopped".into());
        record.save(directory)?;
    }
    Ok(true)
}

fn make_directory(path: &Path) -> Result<(), DriverError> {
    let created = DirBuilder::new().recursive(true).mode(MODE).create(path);
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
