//! A start, step by step, as a KVM host does it (appliance.md §3.2, §9).

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::accelerator::Accelerator;
use hypervisor::disk;
use hypervisor::machine::{Disk, Format, Machine, Nic};
use hypervisor::network::Port;
use hypervisor::vm::{Places, Vm, VmError};
use ipnet::Ipv4Net;
use platform::logging::chain;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::facts::Deed;
use super::record::{Record, Written};
use super::{Known, Qemu, SharedFacts, Start, State, base, make_directory};
use crate::driver::last_words::last_lines;
use crate::driver::{DriverError, Purpose, Screen, Traffic, VmSpec};
use crate::zone_network;

/// For one connection to port 3922.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// Lines of the console in an error.
const CONSOLE_LINES: usize = 5;
/// For an archive of 100 MB over an emulated network card.
pub(super) const UPLOAD_LIMIT: Duration = Duration::from_mins(2);
const DISK: &str = "disk.qcow2";

/// Why a step failed.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// A step that failed.
pub(super) struct Failure {
    pub(super) deed: Deed,
    pub(super) cause: String,
}

/// Not an error of the system but of what is there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Because(String);

pub(super) fn because(text: impl Into<String>) -> Cause {
    Box::new(Because(text.into()))
}

/// Where QEMU writes what comes over the serial line.
pub(super) fn console(directory: &Path) -> PathBuf {
    Places::new(directory).console()
}

/// Where the screen of a VM that is on is.
pub(super) async fn screen(vm: &Vm, password: &Secret<String>) -> Result<Option<Screen>, VmError> {
    Ok(vm.screen().await?.map(|address| Screen {
        address,
        password: password.clone(),
    }))
}

impl Qemu {
    /// Starts a VM; one that is on is started already.
    pub(super) async fn power_on(&self, spec: &VmSpec) -> Result<(), DriverError> {
        let name = spec.name.as_str();
        let directory = self.inner.path(name)?;
        let (start, facts) = (Start::default(), SharedFacts::default());
        {
            let mut known = self.inner.known();
            match known.get(name).map(|known| &known.state) {
                Some(State::On(_)) => return Ok(()),
                Some(State::Starting { .. }) => return Err(DriverError::Busy(name.to_owned())),
                Some(State::Off(_)) | None => {}
            }
            let begun = Known {
                state: State::Starting {
                    vm: None,
                    start: start.clone(),
                },
                facts: facts.clone(),
                screen: None,
                silent_since: None,
            };
            known.insert(name.to_owned(), begun);
        }
        // Whatever happens, who waits for the end of this start is told.
        let _over = start.over.clone().drop_guard();
        let began = Instant::now();
        let outcome = start
            .give_up
            .run_until_cancelled(self.bring_up(spec, &directory, &start, &facts))
            .await;
        let error = match outcome {
            Some(Ok(())) => {
                info!(vm = name, elapsed = ?began.elapsed(), "VM started");
                return Ok(());
            }
            Some(Err(Failure { deed, cause })) => self.explain(name, &facts, deed, &cause),
            None => DriverError::GivenUp(name.to_owned()),
        };
        let why = chain(&error).to_string();
        facts.lock().failed(&why, OffsetDateTime::now_utc());
        warn!(vm = name, error = why, elapsed = ?began.elapsed(), "VM not started; ending what was started");
        if let Err(error) = self.end_of_start(name, &directory).await {
            warn!(vm = name, error = %chain(&error), "Cannot power off a VM whose start has failed");
        }
        self.inner.clear_away(name).await;
        self.inner.set(name, State::Off(why.clone()));
        if let Err(error) = self.inner.remember_off(name, &why) {
            warn!(vm = name, error = %chain(&error), "Cannot write why a VM is off");
        }
        Err(error)
    }

    /// Nothing runs any more, also when the start was given up between QEMU's beginning and our knowing of it.
    async fn end_of_start(&self, name: &str, directory: &Path) -> Result<(), VmError> {
        let vm = match self.inner.on(name) {
            Some(vm) => Some(vm),
            None => Vm::adopt(directory).await?,
        };
        match vm {
            Some(vm) => vm.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// The text that a person gets: which step, why, what the VM says, and what to do.
    fn explain(&self, name: &str, facts: &SharedFacts, deed: Deed, cause: &str) -> DriverError {
        let told = facts.lock().guest_problem();
        let console = self.inner.path(name).ok().map(|directory| console(&directory));
        let lines = console
            .and_then(|console| last_lines(&console, CONSOLE_LINES).ok())
            .unwrap_or_default();
        DriverError::Step {
            step: deed.name(),
            cause: cause.to_owned(),
            told: told.map_or_else(String::new, |told| format!("; the VM says: {told}")),
            remedy: deed.remedy(),
            console: if lines.is_empty() {
                String::new()
            } else {
                format!("; the end of its console: {}", lines.join(" | "))
            },
        }
    }

    async fn bring_up(
        &self,
        spec: &VmSpec,
        directory: &Path,
        start: &Start,
        facts: &SharedFacts,
    ) -> Result<(), Failure> {
        let name = spec.name.as_str();
        let made = self.step(facts, Deed::Qemu, self.run_qemu(spec, directory)).await;
        let (vm, screen, mut record) = made?;
        if let Some(known) = self.inner.known().get_mut(name) {
            known.state = State::Starting {
                vm: Some(vm.clone()),
                start: start.clone(),
            };
            known.screen = screen;
        }
        self.follow(name.to_owned(), vm.clone(), facts.clone());
        if !matches!(spec.purpose, Purpose::User { .. }) {
            self.set_up_or_ended(&vm, spec, directory, facts).await?;
        }
        record.state = Written::Started;
        let written = record.save(directory).map_err(|error| Failure {
            deed: Deed::Qemu,
            cause: chain(&error).to_string(),
        });
        written?;
        self.inner.set(name, State::On(vm.clone()));
        if vm.is_alive() {
            return Ok(());
        }
        // It has ended between the last step and now, and those who follow it did not call it news.
        let ended = vm.ended().await;
        Err(Failure {
            deed: Deed::Qemu,
            cause: format!("the VM has ended: {ended}"),
        })
    }

    /// Everything up to a machine that runs.
    async fn run_qemu(&self, spec: &VmSpec, directory: &Path) -> Result<((Vm, Option<Screen>, Record), String), Cause> {
        let settings = &self.inner.settings;
        make_directory(directory)?;
        let mut record = Record {
            state: Written::Starting,
            vnc_password: spec.vnc_password.clone(),
            base: None,
        };
        let disk = match &spec.purpose {
            Purpose::User { disk } => disk.clone(),
            Purpose::ConsoleProxy { .. } | Purpose::SecondaryStorage { .. } => {
                let (disk, base) = self.system_disk(directory).await?;
                record.base = base;
                disk
            }
        };
        record.save(directory)?;
        let is_proxy = matches!(spec.purpose, Purpose::ConsoleProxy { .. });
        let mut nics = Vec::new();
        for (device, nic) in (0..).zip(&spec.nics) {
            let port = Port {
                vm: spec.name.clone(),
                device,
                bridge: zone_network::bridge_name(nic.traffic),
                mac: nic.mac,
                addresses: nic.address.iter().map(Ipv4Net::addr).collect(),
                groups: (is_proxy && nic.traffic == Traffic::Management)
                    .then_some(settings.console_proxies)
                    .into_iter()
                    .collect(),
            };
            let tap = settings.network.attach(&port).await?.to_string();
            nics.push(Nic { mac: nic.mac, tap });
        }
        let machine = Machine {
            name: spec.name.clone(),
            uuid: Uuid::new_v4(),
            accelerator: settings.accelerator,
            memory_mib: spec.memory_mib,
            cpus: spec.cpus,
            disks: vec![Disk {
                path: disk,
                format: Format::Qcow2,
            }],
            nics,
            screen: Some(settings.screens),
        };
        let vm = Vm::start(directory, &machine, Some(settings.network.namespace().path())).await?;
        vm.set_screen_password(&spec.vnc_password).await?;
        let screen = screen(&vm, &spec.vnc_password).await?;
        let how = match settings.accelerator {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "emulation (no KVM)",
        };
        let detail = format!("process {}, {}, {} MiB", vm.process().pid(), how, spec.memory_mib);
        info!(vm = spec.name, pid = vm.process().pid(), "QEMU started");
        Ok(((vm, screen, record), detail))
    }

    /// The disk of a system VM and what it builds upon. It stays until the VM is destroyed.
    async fn system_disk(&self, directory: &Path) -> Result<(PathBuf, Option<PathBuf>), Cause> {
        let disk = directory.join(DISK);
        if disk.exists() {
            let base = Record::load(directory)?.and_then(|record| record.base);
            return Ok((disk, base));
        }
        let settings = self.inner.settings.clone();
        let copying = self.inner.copying.lock().await;
        let copied = tokio::task::spawn_blocking(move || base::copy_of(&settings.image, &settings.primary));
        let base = copied.await??;
        drop(copying);
        disk::overlay(&base, &disk, None).await?;
        Ok((disk, Some(base)))
    }

    /// One step, with its beginning and its end in what is known.
    pub(super) async fn step<T>(
        &self,
        facts: &SharedFacts,
        deed: Deed,
        work: impl Future<Output = Result<(T, String), Cause>>,
    ) -> Result<T, Failure> {
        facts.lock().begin(deed, OffsetDateTime::now_utc());
        let limit = match deed {
            Deed::Files => self.limit(deed) + self.inner.settings.accelerator.scaled(UPLOAD_LIMIT),
            _ => self.limit(deed),
        };
        // Those who have the limit themselves know more of why.
        let cause = match timeout(limit + 2 * CONNECT, work).await {
            Ok(Ok((value, detail))) => {
                facts.lock().done(detail, OffsetDateTime::now_utc());
                return Ok(value);
            }
            Ok(Err(error)) => chain(error.as_ref()).to_string(),
            Err(_) => format!("not within {} s", limit.as_secs()),
        };
        Err(Failure { deed, cause })
    }

    pub(super) fn limit(&self, deed: Deed) -> Duration {
        self.inner.settings.accelerator.scaled(deed.limit())
    }

    /// Resets a machine, and gives it its boot arguments again, as a KVM host does. One that is off is started.
    pub(super) async fn restart_inside(&self, spec: &VmSpec) -> Result<(), DriverError> {
        let name = spec.name.as_str();
        let found = self
            .inner
            .known()
            .get(name)
            .map(|known| (known.state.clone(), known.facts.clone()));
        let Some((State::On(vm), facts)) = found else {
            return self.power_on(spec).await;
        };
        let directory = self.inner.path(name)?;
        facts.lock().restarted();
        vm.reset().await?;
        info!(vm = name, "VM reset");
        if matches!(spec.purpose, Purpose::User { .. }) {
            return Ok(());
        }
        let outcome = self.set_up_or_ended(&vm, spec, &directory, &facts).await;
        outcome.map_err(|Failure { deed, cause }| {
            let error = self.explain(name, &facts, deed, &cause);
            facts
                .lock()
                .failed(&chain(&error).to_string(), OffsetDateTime::now_utc());
            error
        })
    }
}
