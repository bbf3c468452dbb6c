//! What is told of this machine, read from the kernel: no program is run for it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::sys::statvfs::statvfs;
use platform::files;

use super::message::{Disk, Interface, Memory, ToHost};
use crate::appliance::addresses;
use crate::appliance::progress;
use crate::appliance::root::{RELEASE, Root};
use crate::link_status;

/// Of a file of the kernel, in bytes.
const MAX_PROC: u64 = 256 * 1024;
/// File systems that are told: those on disk.
const ON_DISK: [&str; 4] = ["ext4", "xfs", "vfat", "btrfs"];

/// A file as text; empty when it cannot be read.
fn text(root: &Root, path: &str) -> String {
    let bytes = files::read_limited(root.path(path), MAX_PROC).ok().flatten();
    String::from_utf8_lossy(&bytes.unwrap_or_default()).trim().to_owned()
}

pub(super) fn host_name(root: &Root) -> ToHost {
    ToHost::HostName {
        name: text(root, "/proc/sys/kernel/hostname"),
    }
}

pub(super) fn os_version(root: &Root) -> ToHost {
    ToHost::OsVersion {
        version: text(root, "/proc/sys/kernel/osrelease"),
    }
}

/// Our programs, the kernel, and which CloudStack this VM is made for.
pub(super) fn applications(root: &Root) -> ToHost {
    let mut applications = vec![concat!("sysvm-agent-", env!("CARGO_PKG_VERSION")).to_owned()];
    applications.push(format!("linux-{}", text(root, "/proc/sys/kernel/osrelease")));
    // Cloudstack Release 4.22.0 Mon Oct 13 09:12:44 UTC 2025
    let release = text(root, RELEASE);
    let compatible = release.split_ascii_whitespace().nth(2);
    applications.extend(compatible.map(|version| format!("cloudstack-{version}")));
    ToHost::Applications { applications }
}

pub(super) fn cpus(root: &Root) -> ToHost {
    let cpus = text(root, "/proc/cpuinfo");
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    ToHost::NumberOfCpus { count }
}

pub(super) fn interfaces(root: &Root) -> ToHost {
    let found = addresses::interfaces(root).unwrap_or_default();
    let interfaces = found.into_iter().filter(|interface| interface.is_up).map(|interface| {
        let (inet, inet6) = interface
            .addresses
            .iter()
            .partition::<Vec<IpAddr>, _>(|ip| ip.is_ipv4());
        let texts = |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect();
        Interface {
            name: interface.name,
            hw: interface.mac,
            inet: texts(inet),
            inet6: texts(inet6),
        }
    });
    ToHost::NetworkInterfaces {
        interfaces: interfaces.collect(),
    }
}

pub(super) fn disks(root: &Root) -> ToHost {
    // By device, so that a file system mounted twice is told once: the first is the one that counts.
    let mut disks: BTreeMap<String, Disk> = BTreeMap::new();
    for line in text(root, "/proc/self/mounts").lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(path), Some(fs)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some(status) = ON_DISK.contains(&fs).then(|| statvfs(&root.path(path)).ok()).flatten() else {
            continue;
        };
        let size = status.fragment_size();
        let bytes = |blocks: u64| (blocks * size).to_string();
        disks.entry(device.to_owned()).or_insert_with(|| Disk {
            path: path.to_owned(),
            fs: fs.to_owned(),
            total: bytes(status.blocks()),
            used: bytes(status.blocks().saturating_sub(status.blocks_free())),
        });
    }
    ToHost::DisksUsage {
        disks: disks.into_values().collect(),
    }
}

pub(super) fn memory(root: &Root) -> Memory {
    let text = text(root, "/proc/meminfo");
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_default()
    };
    Memory {
        mem_total: kib("MemTotal"),
        mem_unused: kib("MemFree"),
        mem_free: kib("MemFree") + kib("Buffers") + kib("Cached"),
        mem_available: kib("MemAvailable"),
        swap_total: kib("SwapTotal"),
        swap_usage: kib("SwapTotal").saturating_sub(kib("SwapFree")),
    }
}

pub(super) fn boot_progress(root: &Root) -> ToHost {
    let steps = progress::read(root);
    let problem = progress::problem(&steps);
    ToHost::BootProgress {
        ready: progress::is_ready(&steps),
        problem: problem.map(|entry| format!("{}: {}", entry.step.name(), entry.detail)),
        steps,
    }
}

pub(super) fn agent_state(root: &Root) -> ToHost {
    ToHost::AgentState {
        link: link_status::read(&root.path(link_status::FILE)).ok().flatten(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_told() {
        let root = Root::default();
        assert!(matches!(host_name(&root), ToHost::HostName { name } if !name.is_empty()));
        assert!(matches!(cpus(&root), ToHost::NumberOfCpus { count } if count > 0));
        let memory = memory(&root);
        assert!(memory.mem_total > memory.mem_available && memory.mem_available > 0);
        let ToHost::Applications { applications } = applications(&root) else {
            panic!("no applications");
        };
        assert!(applications[0].starts_with("sysvm-agent-") && applications[1].starts_with("linux-"));
    }
}
