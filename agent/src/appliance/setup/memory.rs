//! Kernel settings that depend on how much memory there is (§5.3). What depends on the boot arguments is in the plan, and
//! what does not depend on anything in the image's `sysctl.d`.

use std::collections::BTreeMap;

use protocol::boot::VmType;

const MIB: u64 = 1 << 20;
/// About what the kernel takes for a tracked connection, in bytes; the limit of `sysctl.d` counts like this, too.
const CONNECTION: u64 = 320;
/// The image's own limit, for VMs that do not route.
const LEAST_CONNECTIONS: u64 = 65_536;
/// Stock's limit for all.
const MOST_CONNECTIONS: u64 = 1_000_000;
/// Below this, stock gives the caches of names back sooner.
const LITTLE: u64 = 400 * MIB;

/// Kernel settings by their path below `/proc/sys`.
pub fn settings(vm_type: VmType, memory: u64) -> BTreeMap<&'static str, String> {
    let mut settings = BTreeMap::new();
    if matches!(vm_type, VmType::Router | VmType::VpcRouter) {
        // At most a tenth of the memory, when all are in use.
        let connections = (memory / 10 / CONNECTION).clamp(LEAST_CONNECTIONS, MOST_CONNECTIONS);
        settings.insert("net/netfilter/nf_conntrack_max", connections.to_string());
        // Chains of four.
        settings.insert("net/netfilter/nf_conntrack_buckets", (connections / 4).to_string());
    }
    if memory < LITTLE {
        settings.insert("vm/vfs_cache_pressure", "200".to_owned());
    }
    settings
}

/// Bytes of memory, from `/proc/meminfo`.
pub fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_tracks_as_many_connections_as_its_memory_allows() {
        let most = |memory| settings(VmType::Router, memory)["net/netfilter/nf_conntrack_max"].clone();
        assert_eq!(most(128 * MIB), "65536");
        assert_eq!(most(512 * MIB), "167772");
        assert_eq!(most(64 * 1024 * MIB), "1000000");
        let small = settings(VmType::VpcRouter, 512 * MIB);
        assert_eq!(small["net/netfilter/nf_conntrack_buckets"], "41943");
        assert!(settings(VmType::SecondaryStorage, 512 * MIB).is_empty());
        assert_eq!(
            settings(VmType::ConsoleProxy, 256 * MIB)["vm/vfs_cache_pressure"],
            "200"
        );
    }

    #[test]
    fn memory_is_read_from_what_the_kernel_says() {
        let meminfo = "MemTotal:         493012 kB\nMemFree:          117392 kB\n";
        assert_eq!(total(meminfo), Some(493_012 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }
}
