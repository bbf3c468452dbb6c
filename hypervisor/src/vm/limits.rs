//! What a VM may take of this machine: memory by a control group where we may make one; elsewhere the kernel is told to
//! end a VM before anything else when memory is short.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use crate::accelerator::Accelerator;
use crate::machine::{Machine, TRANSLATED_MIB};

/// MiB that QEMU needs besides the guest's memory: itself, its libraries, the screen, what is on its way to disks.
const OVERHEAD_MIB: u32 = 384;
/// Between 0 (as everybody) and 1000 (first): proc(5), `oom_score_adj`.
const ENDED_FIRST: &str = "500";
/// Of all groups of ours.
const GROUP: &str = "sysvm";
const MIB: u64 = 1024 * 1024;
/// Tries to remove a group, and what is between them.
const REMOVALS: u32 = 20;
const LOOK: Duration = Duration::from_millis(25);

/// Limits a QEMU that has just started.
pub(super) fn apply(machine: &Machine, pid: i32) {
    let Err(error) = group(machine, pid) else { return };
    let first = write(Path::new(&format!("/proc/{pid}/oom_score_adj")), ENDED_FIRST);
    debug!(vm = machine.name, %error, is_ended_first = first.is_ok(), "No control group for a VM");
}

/// Removes the group of a VM that has ended. The kernel needs a moment to see that nobody is in it.
pub(super) async fn remove(machine: &Machine) {
    let Some(hierarchy) = Hierarchy::find() else { return };
    let group = hierarchy.group(machine);
    for _ in 0..REMOVALS {
        match fs::remove_dir(&group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(LOOK).await,
            _ => return, // gone, or never made
        }
    }
}

/// Bytes that QEMU may have.
fn limit(machine: &Machine) -> u64 {
    let translated = match machine.accelerator {
        Accelerator::Kvm => 0,
        Accelerator::Tcg => TRANSLATED_MIB,
    };
    (u64::from(machine.memory_mib) + u64::from(translated) + u64::from(OVERHEAD_MIB)) * MIB
}

fn group(machine: &Machine, pid: i32) -> io::Result<()> {
    let hierarchy = Hierarchy::find().ok_or(ErrorKind::Unsupported)?;
    let group = hierarchy.group(machine);
    fs::create_dir_all(&group)?;
    if let Hierarchy::Unified(root) = &hierarchy {
        // Of the root by systemd already, where it runs.
        write(&root.join("cgroup.subtree_control"), "+memory")?;
        write(&root.join(GROUP).join("cgroup.subtree_control"), "+memory")?;
    }
    write(&group.join(hierarchy.limit()), &limit(machine).to_string())?;
    write(&group.join("cgroup.procs"), &pid.to_string())
}

/// cgroups(7).
enum Hierarchy {
    /// Version 2.
    Unified(PathBuf),
    /// The memory controller of version 1.
    Memory(PathBuf),
}

impl Hierarchy {
    fn find() -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        if root.join("cgroup.controllers").exists() {
            return Some(Self::Unified(root.to_owned()));
        }
        let memory = root.join("memory");
        memory.join("cgroup.procs").exists().then_some(Self::Memory(memory))
    }

    fn group(&self, machine: &Machine) -> PathBuf {
        let (Self::Unified(root) | Self::Memory(root)) = self;
        root.join(GROUP).join(machine.uuid.to_string())
    }

    fn limit(&self) -> &'static str {
        match self {
            Self::Unified(_) => "memory.max",
            Self::Memory(_) => "memory.limit_in_bytes",
        }
    }
}

/// Into a file of the kernel, which takes it at once or not at all.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path);
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
