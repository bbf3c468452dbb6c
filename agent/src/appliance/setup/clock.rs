//! The host's clock, where the hypervisor shows it as a PTP device: no network and no trust in one is needed.

use std::fs;
use std::path::PathBuf;

use platform::exec::Cmd;
use platform::files;

use crate::appliance::root::Root;

/// Bytes of a file in sysfs.
const MAX_FILE: u64 = 4096;
/// `clock_name` of the devices that show a host's clock: ptp_kvm, hv_utils, ptp_vmw.
const CLOCKS: [&str; 3] = ["KVM virtual PTP", "hyperv", "ptp_vmw"];

/// The device, if the kernel has one now.
fn find(root: &Root) -> Option<PathBuf> {
    let mut devices: Vec<_> = fs::read_dir(root.path("/sys/class/ptp"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    devices.sort();
    let is_host = |device: &PathBuf| {
        let name = files::read_limited(device.join("clock_name"), MAX_FILE).ok().flatten();
        let name = String::from_utf8(name.unwrap_or_default()).unwrap_or_default();
        CLOCKS.contains(&name.trim())
    };
    let device = devices.into_iter().find(is_host)?;
    Some(PathBuf::from("/dev").join(device.file_name()?))
}

/// Whether KVM offers its clock: then the driver, which no device asks for, is of use.
fn is_offered(root: &Root) -> bool {
    let path = root.path("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    let sources = files::read_limited(path, MAX_FILE).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&sources)
        .split_ascii_whitespace()
        .any(|source| source == "kvm-clock")
}

/// The device, after its driver was loaded if that can help. A host without one is no failure.
pub async fn host_clock(root: &Root) -> Option<PathBuf> {
    if let Some(device) = find(root) {
        return Some(device);
    }
    if !is_offered(root) {
        return None;
    }
    // Loading a driver takes a right that nothing else here needs. Not every host that has kvm-clock has this.
    let load = Cmd::new("systemctl").args(["start", "cs-host-clock.service"]);
    load.run().await.ok()?;
    find(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_clock_of_the_host_counts() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(host_clock(&root).await, None);
        for (device, name) in [("ptp0", "e1000e 02:00\n"), ("ptp1", "KVM virtual PTP\n")] {
            let path = root.path("/sys/class/ptp").join(device);
            fs::create_dir_all(&path).unwrap();
            let _ = files::replace(path.join("clock_name"), name, 0o644).unwrap();
        }
        assert_eq!(host_clock(&root).await, Some("/dev/ptp1".into()));
    }
}
