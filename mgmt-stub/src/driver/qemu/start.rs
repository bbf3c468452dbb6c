//! A start, step by step, as a KVM host does it (appliance.md §3.2, §9).

use std::error::Error;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::accelerator::Accelerator;
use hypervisor::disk;
use hypervisor::machine::{Disk, Format, Machine, Nic};
use hypervisor::network::Port;
use hypervisor::ssh::Ssh;
use hypervisor::vm::{Ended, Places, Vm, VmError};
use ipnet::Ipv4Net;
use platform::exec::Exited;
use platform::logging::chain;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::facts::Deed;
use super::record::{Record, Written};
use super::{Known, Qemu, SharedFacts, Start, State, base, make_directory};
use crate::ca::Issued;
use crate::driver::last_words::last_lines;
use crate::driver::{DriverError, Purpose, Screen, Traffic, VmSpec};
use crate::zone_network;

/// Between two looks at what is not there yet; hosts wait for a second.
const LOOK: Duration = Duration::from_secs(1);
/// For one connection to port 3922.
const CONNECT: Duration = Duration::from_secs(5);
/// For the end of a VM to be known, after its sockets were closed.
const TO_BE_KNOWN: Duration = Duration::from_secs(1);
/// Lines of the console in an error.
const CONSOLE_LINES: usize = 5;
/// CloudStack's own number for the certificate; some errors of a loaded VM go by.
const TRIES: u32 = 3;
/// Names of what may be uploaded, in the order of a KVM host; the last is a bundle of our own (docs/upgrade.md).
const UPLOADS: [&str; 4] = ["agent.zip", "cloud-scripts.tgz", "patch-sysvms.sh", "sysvm-bundle"];
/// Where to.
const UPLOAD_TO: &str = "/var/cache/cloud/";
/// For an archive of 100 MB over an emulated network card.
const UPLOAD_LIMIT: Duration = Duration::from_mins(2);
/// What a host runs to see that a system VM has its files.
const FILES: &str = "/opt/cloud/bin/patched.sh /opt/cloud/bin/keystore*";
/// Characters of what a command in the VM printed that go into an error.
const MAX_PRINTED: usize = 400;
const DISK: &str = "disk.qcow2";
/// A system VM with less would stop in its boot, and could not say why (docs/image.md).
const MIN_MEMORY_MIB: u32 = 128;

/// Why a step failed.
type Cause = Box<dyn Error + Send + Sync>;

/// A step that failed.
struct Failure {
    deed: Deed,
    cause: String,
}

/// Not an error of the system but of what is there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Because(String);

fn because(text: impl Into<String>) -> Cause {
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
        let (told, are_arguments_bad) = {
            let facts = facts.lock();
            (facts.guest_problem(), facts.bad_arguments().is_some())
        };
        // Without a QEMU it is the one of the run before.
        let has_run = deed != Deed::Qemu;
        let console = self.inner.path(name).ok().filter(|_| has_run);
        let console = console.map(|directory| self::console(&directory));
        let lines = console
            .and_then(|console| last_lines(&console, CONSOLE_LINES).ok())
            .unwrap_or_default();
        DriverError::Step {
            step: deed.name(),
            cause: cause.to_owned(),
            told: told
                .filter(|told| told != cause)
                .map_or_else(String::new, |told| format!("; the VM says: {told}")),
            remedy: if are_arguments_bad {
                "correct the setting that the argument comes from"
            } else {
                deed.remedy()
            },
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
                if spec.memory_mib < MIN_MEMORY_MIB {
                    return Err(because(format!(
                        "{} MiB are too little memory for a system VM, it needs {MIN_MEMORY_MIB}; set \
                         consoleproxy.ram.size or secstorage.vm.ram.size",
                        spec.memory_mib
                    )));
                }
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

    /// Makes a system VM of a machine that runs. When the machine ends meanwhile, then that is why it fails, and not what
    /// its end did to a step.
    async fn set_up_or_ended(
        &self,
        vm: &Vm,
        spec: &VmSpec,
        directory: &Path,
        facts: &SharedFacts,
    ) -> Result<(), Failure> {
        let mut doing = Deed::GuestAgent;
        let has_ended = |doing, ended: &Ended| Failure {
            deed: doing,
            cause: format!("the VM has ended: {ended}"),
        };
        let failure = tokio::select! {
            outcome = self.set_up(vm, spec, directory, facts, &mut doing) => match outcome {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            },
            ended = vm.ended() => return Err(has_ended(doing, &ended)),
        };
        match timeout(TO_BE_KNOWN, vm.ended()).await {
            Ok(ended) => Err(has_ended(failure.deed, &ended)),
            Err(_) => Err(failure),
        }
    }

    /// Guest agent, boot arguments, ssh, files, certificate.
    async fn set_up(
        &self,
        vm: &Vm,
        spec: &VmSpec,
        directory: &Path,
        facts: &SharedFacts,
        doing: &mut Deed,
    ) -> Result<(), Failure> {
        *doing = Deed::GuestAgent;
        let limit = self.limit(Deed::GuestAgent);
        let mut agent = self
            .step(facts, Deed::GuestAgent, async {
                let began = Instant::now();
                let agent = vm.guest_agent(limit).await?;
                Ok((agent, format!("answered after {} s", began.elapsed().as_secs())))
            })
            .await?;
        *doing = Deed::BootArguments;
        let limit = self.limit(Deed::BootArguments);
        self.step(facts, Deed::BootArguments, async {
            agent.pass_cmdline(spec.boot_args.expose(), limit).await?;
            Ok(((), format!("{} bytes", spec.boot_args.expose().len())))
        })
        .await?;
        drop(agent);

        *doing = Deed::Ssh;
        let ssh = self.step(facts, Deed::Ssh, self.log_in(spec, directory, facts)).await?;
        *doing = Deed::Files;
        self.step(facts, Deed::Files, self.files(&ssh)).await?;
        if let Some(identity) = &spec.identity {
            *doing = Deed::Certificate;
            self.step(facts, Deed::Certificate, self.import(&ssh, identity)).await?;
        }
        ssh.close().await;
        Ok(())
    }

    /// Waits for port 3922 on the control address.
    async fn log_in(&self, spec: &VmSpec, directory: &Path, facts: &SharedFacts) -> Result<(Ssh, String), Cause> {
        let settings = &self.inner.settings;
        let address = control_address(spec).ok_or_else(|| because("the VM has no control address"))?;
        let ssh = Ssh::new(settings.network.namespace(), address, &settings.key, directory)?;
        // What another start has left: its host keys are new whenever its disk is.
        ssh.forget().await?;
        let began = Instant::now();
        while !ssh.is_open(CONNECT).await {
            if let Some(problem) = facts.lock().bad_arguments() {
                return Err(because(problem));
            }
            sleep(LOOK).await;
        }
        Ok((ssh, format!("{address} is open after {} s", began.elapsed().as_secs())))
    }

    /// Uploads what there is to upload, and waits until the VM has what a host looks for.
    async fn files(&self, ssh: &Ssh) -> Result<((), String), Cause> {
        let settings = &self.inner.settings;
        let limit = self.limit(Deed::Files);
        let uploads = settings.files.as_deref().map(uploads).unwrap_or_default();
        if !uploads.is_empty() {
            let paths: Vec<&Path> = uploads.iter().map(PathBuf::as_path).collect();
            ssh.upload(&paths, UPLOAD_TO, settings.accelerator.scaled(UPLOAD_LIMIT))
                .await?;
        }
        let names: Vec<_> = uploads.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        let detail = if names.is_empty() {
            "there".into()
        } else {
            format!("uploaded {}", names.join(", "))
        };
        let deadline = Instant::now() + limit;
        loop {
            let last = match ssh.exec(FILES, b"", limit).await {
                Ok(exited) if exited.status.success() => return Ok(((), detail)),
                Ok(exited) => said(&exited),
                Err(error) => chain(&error).to_string(),
            };
            if Instant::now() + LOOK >= deadline {
                return Err(because(last));
            }
            sleep(LOOK).await;
        }
    }

    /// Gives the VM its certificate and key. The command line, with the key, goes through standard input: arguments of ssh
    /// could be read by everybody on this machine.
    async fn import(&self, ssh: &Ssh, identity: &Issued) -> Result<((), String), Cause> {
        let limit = self.limit(Deed::Certificate);
        let command = import_command(identity)?;
        let mut last = String::new();
        for _ in 0..TRIES {
            match ssh.exec("bash -s", command.expose().as_bytes(), limit / TRIES).await {
                Ok(exited) if exited.status.success() => {
                    let detail = format!("good until {}", identity.signed.not_after.date());
                    return Ok(((), detail));
                }
                Ok(exited) => last = said(&exited),
                Err(error) => last = chain(&error).to_string(),
            }
            sleep(LOOK).await;
        }
        Err(because(last))
    }

    /// One step, with its beginning and its end in what is known.
    async fn step<T>(
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

    fn limit(&self, deed: Deed) -> Duration {
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

/// What there is, of what a system VM knows what to do with.
fn uploads(directory: &Path) -> Vec<PathBuf> {
    let paths = UPLOADS.iter().map(|name| directory.join(name));
    paths.filter(|path| path.is_file()).collect()
}

fn control_address(spec: &VmSpec) -> Option<Ipv4Addr> {
    let nic = spec.nics.iter().find(|nic| nic.traffic == Traffic::Control)?;
    nic.address.map(|net| net.addr())
}

/// The end of what a command in the VM printed.
fn said(exited: &Exited) -> String {
    let printed = if exited.stderr.trim().is_empty() {
        String::from_utf8_lossy(&exited.stdout).into_owned()
    } else {
        exited.stderr.clone()
    };
    let start = printed.trim().chars().count().saturating_sub(MAX_PRINTED);
    let end: String = printed
        .trim()
        .chars()
        .skip(start)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("{}: {end}", exited.status)
}

/// `keystore-cert-import` with its ten arguments (appliance.md §9). The passphrase is for a Java key store; ours has none.
fn import_command(identity: &Issued) -> Result<Secret<String>, Cause> {
    let conf = "/usr/local/cloud/systemvm/conf";
    let signed = &identity.signed;
    let [certificate, ca, key] =
        [&signed.certificate, &signed.ca, identity.private_key.expose()].map(|pem| armoured(pem));
    let (certificate, ca, key) = (certificate?, ca?, key?);
    let passphrase = crate::random::letters(16);
    Ok(Secret::new(format!(
        "/opt/cloud/bin/keystore-cert-import {conf}/agent.properties {passphrase} {conf}/cloud.jks ssh \
         {conf}/cloud.crt '{certificate}' {conf}/cloud.ca.crt '{ca}' {conf}/cloud.key '{key}'\n"
    )))
}

/// A PEM text on one line, as CloudStack writes it: `^` is a newline, `~` a blank. It stands between quotes that a shell
/// reads, so nothing else may be in it.
fn armoured(pem: &str) -> Result<String, Cause> {
    let text = pem.replace('\n', "^").replace(' ', "~");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+/=-^~".contains(c);
    if text.chars().all(is_plain) {
        Ok(text)
    } else {
        Err(because("a certificate is not plain PEM"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_system_vm_knows_is_uploaded() {
        let directory = tempfile::tempdir().unwrap();
        assert!(uploads(directory.path()).is_empty());
        for name in ["patch-sysvms.sh", "notes.txt", "cloud-scripts.tgz"] {
            let _ = platform::files::replace(directory.path().join(name), "", 0o600).unwrap();
        }
        let wanted = ["cloud-scripts.tgz", "patch-sysvms.sh"].map(|name| directory.path().join(name));
        assert_eq!(uploads(directory.path()), wanted);
    }

    #[test]
    fn a_pem_text_is_one_word_and_nothing_else() {
        let pem = "-----BEGIN CERTIFICATE-----\nMIIB+/=\n-----END CERTIFICATE-----\n";
        assert_eq!(
            armoured(pem).unwrap(),
            "-----BEGIN~CERTIFICATE-----^MIIB+/=^-----END~CERTIFICATE-----^"
        );
        for bad in ["'", "$(reboot)", "`", "\\", "\r"] {
            assert!(armoured(bad).is_err(), "{bad:?}");
        }
    }
}
