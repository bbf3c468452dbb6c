//! `checkrouter.sh`: which of two redundant routers this is (§8.2, router.md §4.14).

use platform::files;
use protocol::boot::{BootArgs, VmType};
use serde_json::Value;

use super::{Reply, nics, units};
use crate::appliance::root::{LINE, Root};

/// More than any hypervisor can hand over.
const MAX_LINE: u64 = 1 << 20;
const MAX_BAG: u64 = 1 << 20;
/// The guest networks that the management server has given this router.
const GUEST_NETWORKS: &str = "/etc/cloudstack/guestnetwork.json";

/// All that decides.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Facts {
    is_vpc: bool,
    has_guest_network: bool,
    is_keepalived_active: bool,
    /// On eth0: the router's own and, on the primary, the guests' gateway.
    guest_addresses: usize,
    /// The public NIC: eth2, or eth1 of a VPC router. keepalived takes it down on the backup.
    is_public_up: bool,
}

pub(super) fn answer(root: &Root) -> Reply {
    Reply::ok(format!("Status: {}\n", status(Facts::of(root))))
}

/// Whether keepalived runs and has made the other router the one that works.
pub(super) fn is_backup(root: &Root) -> bool {
    status(Facts::of(root)) == "BACKUP"
}

impl Facts {
    fn of(root: &Root) -> Self {
        let line = files::read_limited(root.path(LINE), MAX_LINE)
            .ok()
            .flatten()
            .unwrap_or_default();
        let vm_type = BootArgs::parse(line)
            .ok()
            .and_then(|args| args.get("type").map(str::to_owned));
        let is_vpc = vm_type.is_some_and(|found| found == VmType::VpcRouter.to_string());
        Self {
            is_vpc,
            has_guest_network: has_guest_network(root),
            is_keepalived_active: units::has_processes(root, "keepalived.service"),
            guest_addresses: nics::ipv4_count("eth0"),
            is_public_up: is_up(root, if is_vpc { "eth1" } else { "eth2" }),
        }
    }
}

/// Never `PRIMARY` while the public side is down: the management server would stop the other one.
fn status(facts: Facts) -> &'static str {
    let Facts {
        is_vpc,
        has_guest_network,
        is_keepalived_active,
        guest_addresses,
        is_public_up,
    } = facts;
    if is_vpc && !has_guest_network {
        return "UNKNOWN";
    }
    if !is_keepalived_active {
        return "FAULT";
    }
    let is_primary = is_public_up && (is_vpc || guest_addresses >= 2);
    if is_primary { "PRIMARY" } else { "BACKUP" }
}

/// Whether any device in the data bag has a network that was added.
fn has_guest_network(root: &Root) -> bool {
    let bag = files::read_limited(root.path(GUEST_NETWORKS), MAX_BAG).ok().flatten();
    let Some(Value::Object(devices)) = bag.and_then(|bag| serde_json::from_slice(&bag).ok()) else {
        return false;
    };
    let mut networks = devices
        .iter()
        .filter(|(device, _)| device.starts_with("eth"))
        .filter_map(|(_, networks)| networks.as_array())
        .flatten();
    networks.any(|network| network.get("add") == Some(&Value::Bool(true)))
}

fn is_up(root: &Root, nic: &str) -> bool {
    let state = files::read_limited(root.path(format!("/sys/class/net/{nic}/operstate")), 64);
    state.ok().flatten().is_some_and(|state| state.trim_ascii() == b"up")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: Facts = Facts {
        is_vpc: false,
        has_guest_network: true,
        is_keepalived_active: true,
        guest_addresses: 2,
        is_public_up: true,
    };

    #[test]
    fn the_state_follows_from_what_keepalived_has_done() {
        let vpc = Facts {
            is_vpc: true,
            guest_addresses: 1,
            ..PRIMARY
        };
        for (facts, wanted) in [
            (PRIMARY, "PRIMARY"),
            (
                Facts {
                    guest_addresses: 1,
                    ..PRIMARY
                },
                "BACKUP",
            ),
            (
                Facts {
                    is_public_up: false,
                    ..PRIMARY
                },
                "BACKUP",
            ),
            (
                Facts {
                    is_keepalived_active: false,
                    ..PRIMARY
                },
                "FAULT",
            ),
            (vpc, "PRIMARY"),
            (
                Facts {
                    is_public_up: false,
                    ..vpc
                },
                "BACKUP",
            ),
            (
                Facts {
                    is_keepalived_active: false,
                    ..vpc
                },
                "FAULT",
            ),
            (
                Facts {
                    has_guest_network: false,
                    is_keepalived_active: false,
                    ..vpc
                },
                "UNKNOWN",
            ),
        ] {
            assert_eq!(status(facts), wanted, "{facts:?}");
        }
    }

    #[test]
    fn a_vpc_router_without_networks_does_not_know() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let put = |path: &str, text: &str| {
            std::fs::create_dir_all(root.path(path).parent().unwrap()).unwrap();
            let _ = files::replace(root.path(path), text, 0o600).unwrap();
        };
        assert_eq!(answer(&root), Reply::ok("Status: FAULT\n"));
        put(LINE, "type=vpcrouter name=r-1-VM");
        assert_eq!(answer(&root), Reply::ok("Status: UNKNOWN\n"));
        put(GUEST_NETWORKS, r#"{"eth2":[{"add":false}],"id":"guestnetwork"}"#);
        assert_eq!(answer(&root), Reply::ok("Status: UNKNOWN\n"));
        put(GUEST_NETWORKS, r#"{"eth2":[{"add":true}],"id":"guestnetwork"}"#);
        assert_eq!(answer(&root), Reply::ok("Status: FAULT\n"));
        put(
            "/sys/fs/cgroup/system.slice/keepalived.service/cgroup.events",
            "populated 1\nfrozen 0\n",
        );
        assert_eq!(answer(&root), Reply::ok("Status: BACKUP\n"));
        put("/sys/class/net/eth1/operstate", "up\n");
        assert_eq!(answer(&root), Reply::ok("Status: PRIMARY\n"));
    }
}
