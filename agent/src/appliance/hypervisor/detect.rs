//! Finding out which hypervisor a machine runs on, by what its kernel shows.

use std::fs;
use std::path::Path;

use platform::files;

use super::Hypervisor;
use crate::appliance::root::Root;

/// The virtio port of the QEMU guest agent: only KVM hosts make one.
pub const GUEST_AGENT_PORT: &str = "org.qemu.guest_agent.0";
/// Of a file in /sys: one line.
const MAX_FILE: u64 = 4096;

/// What [`Hypervisor::detect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// Which.
    pub hypervisor: Hypervisor,
    /// What told it, for people.
    pub because: String,
}

impl Hypervisor {
    /// Looks at what the kernel shows: the guest agent's port (KVM whatever the firmware says, since hosts can set that),
    /// Xen's own mark, the firmware's tables, and virtio devices, in this order (§3.1). Right after the start devices may be
    /// missing: `Other` is worth another look a second later.
    pub fn detect(root: &Root) -> Detected {
        let (hypervisor, because) = Self::by_port(root)
            .or_else(|| Self::by_xen(root))
            .or_else(|| Self::by_firmware(root))
            .or_else(|| Self::by_devices(root))
            .unwrap_or_else(|| (Self::Other, "nothing of a known hypervisor was found".to_owned()));
        Detected { hypervisor, because }
    }

    fn by_port(root: &Root) -> Option<(Self, String)> {
        has_guest_agent_port(root).then(|| (Self::Kvm, format!("it has the virtio port {GUEST_AGENT_PORT}")))
    }

    fn by_xen(root: &Root) -> Option<(Self, String)> {
        let kind = line(root, "/sys/hypervisor/type");
        (kind == "xen").then(|| (Self::Xen, "/sys/hypervisor/type says xen".to_owned()))
    }

    fn by_firmware(root: &Root) -> Option<(Self, String)> {
        let vendor = line(root, "/sys/class/dmi/id/sys_vendor");
        let product = line(root, "/sys/class/dmi/id/product_name");
        let hypervisor = match vendor.as_str() {
            "QEMU" | "Red Hat" | "Apache Software Foundation" => Self::Kvm,
            "Xen" => Self::Xen,
            "Microsoft Corporation" if product == "Virtual Machine" => Self::HyperV,
            _ if vendor.starts_with("VMware") => Self::Vmware,
            _ => return None,
        };
        Some((hypervisor, format!("the firmware says {vendor:?}, {product:?}")))
    }

    fn by_devices(root: &Root) -> Option<(Self, String)> {
        let devices = entries(&root.path("/sys/bus/virtio/devices"));
        (!devices.is_empty()).then(|| (Self::Kvm, "it has virtio devices".to_owned()))
    }
}

/// Whether the host has given a port for the QEMU guest agent.
pub fn has_guest_agent_port(root: &Root) -> bool {
    let ports = entries(&root.path("/sys/class/virtio-ports"));
    let mut names = ports
        .iter()
        .map(|port| line(root, &format!("/sys/class/virtio-ports/{port}/name")));
    names.any(|name| name == GUEST_AGENT_PORT)
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Empty when there is no such file.
fn line(root: &Root, path: &str) -> String {
    let bytes = files::read_limited(root.path(path), MAX_FILE)
        .ok()
        .flatten()
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(files: &[(&str, &str)]) -> Hypervisor {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for (path, contents) in files {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = files::replace(path, contents, 0o644).unwrap();
        }
        Hypervisor::detect(&root).hypervisor
    }

    #[test]
    fn each_hypervisor_is_known_by_what_its_machines_show() {
        const VENDOR: &str = "/sys/class/dmi/id/sys_vendor";
        const PRODUCT: &str = "/sys/class/dmi/id/product_name";
        assert_eq!(detect(&[]), Hypervisor::Other);
        assert_eq!(detect(&[(VENDOR, "QEMU\n")]), Hypervisor::Kvm);
        assert_eq!(detect(&[(VENDOR, "Xen\n")]), Hypervisor::Xen);
        assert_eq!(
            detect(&[("/sys/hypervisor/type", "xen\n"), (VENDOR, "QEMU\n")]),
            Hypervisor::Xen
        );
        assert_eq!(detect(&[(VENDOR, "VMware, Inc.\n")]), Hypervisor::Vmware);
        let microsoft = (VENDOR, "Microsoft Corporation\n");
        assert_eq!(detect(&[microsoft, (PRODUCT, "Virtual Machine\n")]), Hypervisor::HyperV);
        assert_eq!(detect(&[microsoft, (PRODUCT, "Surface\n")]), Hypervisor::Other);
        assert_eq!(detect(&[("/sys/bus/virtio/devices/virtio0", "")]), Hypervisor::Kvm);
    }

    #[test]
    fn the_guest_agents_port_makes_it_kvm_whatever_the_firmware_says() {
        let port = ("/sys/class/virtio-ports/vport1p1/name", "org.qemu.guest_agent.0\n");
        assert_eq!(
            detect(&[port, ("/sys/class/dmi/id/sys_vendor", "VMware, Inc.\n")]),
            Hypervisor::Kvm
        );
        let other = ("/sys/class/virtio-ports/vport1p1/name", "org.sysvm.agent.0\n");
        assert_eq!(detect(&[other]), Hypervisor::Other);
    }
}
