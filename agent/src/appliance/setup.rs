//! What comes after the network, when SSH is open already (§5): the disk, kernel settings, services, user data, and the
//! mark that says "ready". Nothing here can close SSH, and one thing that fails keeps no other from being done.
//!
//! | module | |
//! |---|---|
//! | [`disk`], [`gpt`] | the root file system takes the whole disk |
//! | [`memory`] | kernel settings by the size of memory |
//! | [`service_files`] | what dnsmasq, haproxy and chrony are told |
//! | [`clock`] | the host's clock |
//! | [`identity`] | `agent.properties` |
//! | [`services`] | which units run |
//! | [`user_data`], [`first_start`] | what an administrator wants at the first start: understood, done |

use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::Context;
use platform::exec::{Cmd, ExecError};
use platform::files;
use protocol::boot::{BadBootArgs, BootArgs, SystemVm};
use protocol::secret::Secret;
use time::OffsetDateTime;
use time::macros::format_description;
use tracing::{error, info, warn};

use super::channel::MAX_LINE;
use super::hypervisor::Hypervisor;
use super::plan::Plan;
use super::progress::{Outcome, Progress, Step};
use super::root::{BOOT_UP_DONE, LINE, RUN, Root};
use disk::RootDisk;
use services::Occasion;
use user_data::UserData;

pub mod clock;
pub mod disk;
pub mod first_start;
pub mod gpt;
pub mod identity;
pub mod memory;
pub mod service_files;
pub mod services;
pub mod user_data;

/// Hosts ask for the version for four minutes, and get no answer before the end (§7.3): user data that takes longer goes on
/// beside it.
const USER_DATA_LIMIT: Duration = Duration::from_mins(2);
/// Growing a file system, at most.
const DISK_LIMIT: Duration = Duration::from_mins(11);
/// A file of the kernel.
const MAX_MEMINFO: u64 = 64 * 1024;
/// Below [`RUN`]: the line of the last set-up since the machine started.
const LAST_LINE: &str = "set-up-line";
/// Below [`RUN`]: what became of the user data; empty when it was done.
const USER_DATA_RESULT: &str = "user-data-result";
const CHRONY: &str = "chrony.service";
/// They are there from the start, and the router's from then on.
const LISTS_OF_DHCP: [&str; 2] = ["/etc/dhcphosts.txt", "/etc/dhcpopts.txt"];

/// Why there is nothing to set up.
#[derive(Debug, thiserror::Error)]
pub enum NoVm {
    /// There are no boot arguments yet.
    #[error("there are no boot arguments in {LINE} yet; `agent boot` waits for them")]
    NoLine,
    /// The file cannot be read.
    #[error("the boot arguments cannot be read")]
    Unreadable(#[from] files::FileError),
    /// They make no sense.
    #[error(transparent)]
    Bad(#[from] BadBootArgs),
}

/// The boot arguments of this VM.
#[derive(Debug)]
pub struct Told {
    line: Vec<u8>,
    args: BootArgs,
    vm: SystemVm,
}

impl Told {
    /// Reads what `agent boot` or the host has left.
    pub fn read(root: &Root) -> Result<Self, NoVm> {
        let line = files::read_limited(root.path(LINE), MAX_LINE)?.unwrap_or_default();
        if line.trim_ascii().is_empty() {
            return Err(NoVm::NoLine);
        }
        let args = BootArgs::parse(&line)?;
        let vm = SystemVm::parse(&args)?;
        Ok(Self { line, args, vm })
    }

    fn name(&self) -> String {
        self.vm
            .machine
            .name
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    }
}

/// Does it all. `Ok(false)`: something has failed, which is logged and in the progress; the VM is marked ready all the same.
pub async fn run(root: &Root) -> Result<bool, NoVm> {
    unmark(root);
    let told = Told::read(root)?;
    let plan = Plan::of(&told.vm, hypervisor(root));
    fs::create_dir_all(root.path(RUN)).ok();
    let mut steps = Steps {
        progress: Progress::new(root, "setup"),
        is_good: true,
    };
    steps.take(Step::Disk, grow_disk(root)).await;
    steps.take(Step::Settings, set_kernel(root, &told.vm)).await;
    steps.take(Step::Services, start_services(root, &told, &plan)).await;
    steps.take_lightly(Step::UserData, do_user_data(root, &told)).await;
    steps.take(Step::Ready, async { mark_ready(root) }).await;
    Ok(steps.is_good)
}

/// As `agent boot` has found or was told.
fn hypervisor(root: &Root) -> Hypervisor {
    let told = files::read_limited(root.path(RUN).join("hypervisor"), MAX_MEMINFO)
        .ok()
        .flatten();
    let told = String::from_utf8(told.unwrap_or_default()).unwrap_or_default();
    told.trim()
        .parse()
        .unwrap_or_else(|_| Hypervisor::detect(root).hypervisor)
}

struct Steps {
    progress: Progress,
    is_good: bool,
}

impl Steps {
    async fn take(&mut self, step: Step, work: impl Future<Output = anyhow::Result<String>>) {
        self.is_good &= self.take_lightly(step, work).await;
    }

    /// One whose failure is somebody else's.
    async fn take_lightly(&mut self, step: Step, work: impl Future<Output = anyhow::Result<String>>) -> bool {
        self.progress.set(step, Outcome::Running, "");
        match work.await {
            Ok(detail) => {
                info!(?step, detail, "Step of the set-up done");
                self.progress.set(step, Outcome::Done, detail);
                true
            }
            Err(failure) => {
                let text = format!("{failure:#}");
                error!(?step, error = text, "Step of the set-up failed");
                self.progress.set(step, Outcome::Failed, text);
                false
            }
        }
    }
}

fn unmark(root: &Root) {
    match fs::remove_file(root.path(BOOT_UP_DONE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            warn!(
                error = error.to_string(),
                path = BOOT_UP_DONE,
                "Cannot remove the mark of an earlier start"
            );
        }
        _ => {}
    }
}

fn mark_ready(root: &Root) -> anyhow::Result<String> {
    // As date(1) prints it, and stock writes it.
    let format = format_description!(
        "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] UTC [year]"
    );
    let time = OffsetDateTime::now_utc().format(format)?;
    let _ = files::replace(root.path(BOOT_UP_DONE), time + "\n", 0o644)?;
    Ok(String::new())
}

/// Growing needs rights that nothing else here needs, and is rare: a unit of its own has them.
async fn grow_disk(root: &Root) -> anyhow::Result<String> {
    match RootDisk::find(root)? {
        Some(disk) if disk.may_grow(root) => {
            let start = Cmd::new("systemctl").args(["start", "cs-grow-disk.service"]);
            start.time_limit(DISK_LIMIT).run().await?;
            Ok("the root file system has been grown".to_owned())
        }
        Some(_) => Ok("the root file system has the whole disk".to_owned()),
        None => Ok("the root file system is not on a partition".to_owned()),
    }
}

#[expect(clippy::unused_async, reason = "a step like the others")]
async fn set_kernel(root: &Root, vm: &SystemVm) -> anyhow::Result<String> {
    let meminfo = files::read_limited(root.path("/proc/meminfo"), MAX_MEMINFO)?.unwrap_or_default();
    let memory = memory::total(&String::from_utf8_lossy(&meminfo)).context("/proc/meminfo does not say MemTotal")?;
    let settings = memory::settings(vm.vm_type(), memory);
    for (name, value) in &settings {
        let path = root.path("/proc/sys").join(name);
        // Not `replace`: these are the kernel's, and cannot be renamed over.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        std::io::Write::write_all(&mut file, value.as_bytes())
            .with_context(|| format!("setting {} to {value}", path.display()))?;
    }
    let set: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(set.join(" "))
}

async fn start_services(root: &Root, told: &Told, plan: &Plan) -> anyhow::Result<String> {
    let clock = if plan.services.enable.contains(&CHRONY) {
        clock::host_clock(root).await
    } else {
        None
    };
    for (path, text) in service_files::files(&told.vm, clock.as_deref())
        .into_iter()
        .chain(plan.files.clone())
    {
        write_file(root, path, text.as_bytes())?;
    }
    for path in LISTS_OF_DHCP {
        if !root.path(path).exists() {
            write_file(root, path, b"")?;
        }
    }
    identity::write(&told.vm, &told.args, root)?;
    services::note(&plan.services, root)?;

    let last_line = root.path(RUN).join(LAST_LINE);
    let occasion = match files::read_limited(&last_line, MAX_LINE)? {
        None => Occasion::Start,
        Some(line) if line == told.line => Occasion::Again,
        Some(_) => Occasion::Changed,
    };
    for command in services::commands(&plan.services, occasion) {
        command.run().await?;
    }
    let _ = files::replace(last_line, &told.line, 0o600)?;
    Ok(plan.services.enable.join(" "))
}

fn write_file(root: &Root, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = root.path(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making the directory {}", parent.display()))?;
    }
    let _ = files::replace(&path, bytes, 0o644)?;
    Ok(())
}

/// The boot goes on whatever it says: it is understood here, and done by a unit of its own, which may do anything.
async fn do_user_data(root: &Root, told: &Told) -> anyhow::Result<String> {
    let Some(bytes) = told.vm.machine.user_data.as_ref().map(Secret::expose) else {
        return Ok("none".to_owned());
    };
    if first_start::is_begun(root, &told.name(), bytes) {
        return Ok("done at an earlier start".to_owned());
    }
    let wanted = UserData::parse(bytes).context("the user data is ignored")?;
    let ignored = match &wanted {
        None => return Ok("empty".to_owned()),
        Some(UserData::Script(_)) => String::new(),
        Some(UserData::CloudConfig(config)) => config.ignored.join(", "),
    };
    if !ignored.is_empty() {
        warn!(
            keys = ignored,
            "Parts of the user data are ignored: only write_files and runcmd are done"
        );
    }
    let result = root.path(RUN).join(USER_DATA_RESULT);
    fs::remove_file(&result).ok();
    let start = Cmd::new("systemctl").args(["start", "cs-user-data.service"]);
    let start = start.time_limit(USER_DATA_LIMIT);
    // The first call may only have waited for the user data of boot arguments before these.
    for _ in 0..2 {
        match start.run().await {
            Ok(_) if first_start::is_begun(root, &told.name(), bytes) => break,
            Ok(_) => {}
            Err(ExecError::TimedOut { .. }) => {
                return Ok("still running; see `journalctl -u cs-user-data`".to_owned());
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    let said = files::read_limited(&result, MAX_LINE)?.context("cs-user-data.service has left no result")?;
    anyhow::ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said).trim_end());
    Ok(if ignored.is_empty() {
        "done".to_owned()
    } else {
        format!("done but for {ignored}")
    })
}

/// What `cs-user-data.service` runs: does what the boot arguments' user data wants, if that has not begun before.
pub async fn first_start(root: &Root) -> Result<(), NoVm> {
    let told = Told::read(root)?;
    let Some(bytes) = told.vm.machine.user_data.as_ref().map(Secret::expose) else {
        return Ok(());
    };
    if first_start::is_begun(root, &told.name(), bytes) {
        info!("User data was done before");
        return Ok(());
    }
    let result = match UserData::parse(bytes) {
        Ok(None) => Ok(()),
        Ok(Some(wanted)) => first_start::run(root, &told.name(), bytes, &wanted)
            .await
            .map_err(anyhow::Error::from),
        Err(failure) => Err(anyhow::Error::from(failure).context("the user data is ignored")),
    };
    let said = result.err().map(|failure| format!("{failure:#}\n")).unwrap_or_default();
    if !said.is_empty() {
        error!(error = said.trim_end(), "User data was not done, or not all of it");
    }
    let _ = files::replace(root.path(RUN).join(USER_DATA_RESULT), said, 0o600)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::progress;

    /// A VM's files, without systemd: the type has no services of ours.
    fn vm(line: &str) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for path in ["var/cache/cloud", "proc/self", "run/sysvm", "etc/systemd/system"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        let mounts = "22 1 0:31 / / rw - overlay overlay rw\n";
        for (path, text) in [(LINE, line), (BOOT_UP_DONE, "old\n"), ("/proc/self/mountinfo", mounts)] {
            let _ = files::replace(root.path(path), text, 0o600).unwrap();
        }
        (directory, root)
    }

    fn outcomes(root: &Root) -> Vec<(Step, Outcome)> {
        let entries = progress::read(root);
        entries.into_iter().map(|entry| (entry.step, entry.outcome)).collect()
    }

    #[tokio::test]
    async fn one_step_that_fails_keeps_no_other_from_being_done() {
        let (_directory, root) = vm("type=cksnode name=k-1-VM");
        assert!(!run(&root).await.unwrap(), "there is no /proc/meminfo");
        assert_eq!(
            outcomes(&root),
            [
                (Step::Disk, Outcome::Done),
                (Step::Settings, Outcome::Failed),
                (Step::Services, Outcome::Done),
                (Step::UserData, Outcome::Done),
                (Step::Ready, Outcome::Done),
            ]
        );
        let mark = fs::read_to_string(root.path(BOOT_UP_DONE)).unwrap();
        assert!(mark.contains(" UTC 20"), "{mark}");
        assert_eq!(
            fs::read_to_string(root.path("/var/cache/cloud/enabled_svcs")).unwrap(),
            "\n"
        );

        let _ = files::replace(root.path("/proc/meminfo"), "MemTotal: 500000 kB\n", 0o644).unwrap();
        assert!(run(&root).await.unwrap());
    }

    #[tokio::test]
    async fn user_data_that_makes_no_sense_is_told_and_is_no_failure_of_the_set_up() {
        // base64 of `#include http://…`.
        let (_directory, root) = vm("type=cksnode userdata=I2luY2x1ZGUgaHR0cDovL3g=");
        let _ = files::replace(root.path("/proc/meminfo"), "MemTotal: 500000 kB\n", 0o644).unwrap();
        assert!(run(&root).await.unwrap());
        let told = progress::read(&root);
        let told = told.iter().find(|entry| entry.step == Step::UserData).unwrap();
        assert_eq!(
            (told.outcome, told.detail.as_str()),
            (
                Outcome::Failed,
                "the user data is ignored: it begins with \"#include http://x\"; only a script (`#!`) or `#cloud-config` is \
                 understood here"
            )
        );
    }

    #[tokio::test]
    async fn without_a_line_or_with_a_bad_one_the_mark_of_an_earlier_start_goes_all_the_same() {
        for (line, said) in [
            (
                "\n",
                "there are no boot arguments in /var/cache/cloud/cmdline yet; `agent boot` waits for them",
            ),
            (
                "type=cksnode dns1=x",
                "1 boot argument(s) need fixing\n  dns1=\"x\": expected the IPv4 address of a DNS server",
            ),
        ] {
            let (_directory, root) = vm(line);
            assert_eq!(run(&root).await.unwrap_err().to_string(), said);
            assert!(!root.path(BOOT_UP_DONE).exists());
        }
    }
}
