//! Many VMs at once: 2,000 come Up, half of them die, all return. On a computer that is busy with other tests the
//! figures say little; the bounds are for a debug build on one of those.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use mgmt_stub::driver::in_process::Options;
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::store::id::{AccountId, PodId, ZoneId};
use mgmt_stub::store::instance::{InstanceType, NewInstance};
use mgmt_stub::system_vms::{AddressRange, Networks};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{TestZone, patiently};

/// Console proxies; an operator starts them all.
const COUNT: usize = 2_000;
/// For all to come Up, and for all to return: a debug build needs a part of it.
const LIMIT: Duration = Duration::from_mins(4);

/// A /20 for each network has room for all.
fn networks() -> Networks {
    let mut networks = Networks::of_zone("172.16.0.0/12".parse().unwrap()).unwrap();
    for (network, subnet) in [
        (&mut networks.management, "172.16.0.0/20"),
        (&mut networks.public, "172.17.0.0/20"),
    ] {
        network.subnet = subnet.parse().unwrap();
        let base = u32::from(network.subnet.network());
        network.gateway = (base + 1).into();
        network.ranges = vec![AddressRange {
            first: (base + 10).into(),
            last: (base + 4000).into(),
            is_for_system_vms: true,
        }];
    }
    networks
}

/// Both ends of each connection are in this process.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let needed = u64::try_from(2 * COUNT + 100).unwrap();
    assert!(
        hard >= needed,
        "{needed} file descriptors are needed, {hard} are allowed; raise `ulimit -Hn`"
    );
}

/// KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn up(zone: &TestZone) -> usize {
    let running = zone.store.instances().await.unwrap();
    let running = running.iter().filter(|vm| vm.state == InstanceState::Running).count();
    let hosts = zone.store.hosts().await.unwrap();
    let up = hosts.iter().filter(|host| host.status == HostStatus::Up).count();
    running.min(up)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_vms_come_up_and_half_of_them_return_after_they_have_died_at_once() {
    raise_descriptor_limit();
    let settings = [
        ("consoleproxy.management.state", "Manual"),
        ("system.vm.auto.reserve.capacity", "false"),
    ];
    let zone = TestZone::start_in(Options::default(), &settings, networks(), Duration::from_secs(20)).await;
    let before = memory();
    let began = Instant::now();
    let numbers = stream::iter(0..COUNT).map(|_| async {
        let new = NewInstance {
            kind: InstanceType::ConsoleProxy,
            name: None,
            display_name: None,
            suffix: "VM".into(),
            hypervisor: "Simulator".into(),
            state: InstanceState::Stopped,
            reason: "new".into(),
            zone: ZoneId(1),
            pod: Some(PodId(1)),
            account: AccountId(1),
            role: None,
            os_type: None,
            public_ip: None,
            vnc: None,
        };
        let vm = zone.store.create_instance(new, None).await.unwrap();
        zone.vms.start(vm.id).await.unwrap();
    });
    numbers.buffer_unordered(128).collect::<Vec<()>>().await;
    patiently("all are Up", LIMIT, async || (up(&zone).await == COUNT).then_some(())).await;
    let came = began.elapsed();
    let with_all = memory();

    let all = zone.store.instances().await.unwrap();
    let addresses = zone.store.all_nics().await.unwrap();
    assert_eq!(addresses.len(), 3 * COUNT);
    let victims: Vec<_> = all.iter().step_by(2).collect();
    let began = Instant::now();
    for vm in &victims {
        assert!(zone.driver.kill(&vm.name, "the power went"));
    }
    patiently("all are Up again", LIMIT, async || {
        let is_over = up(&zone).await == COUNT;
        let first = zone.row(victims[0]).await;
        (is_over && first.update_count > victims[0].update_count).then_some(())
    })
    .await;
    let returned = began.elapsed();
    for vm in &all {
        let now = zone.row(vm).await;
        let is_victim = victims.iter().any(|victim| victim.id == vm.id);
        assert_eq!(
            now.update_count > vm.update_count,
            is_victim,
            "{}: {}",
            vm.name,
            now.reason
        );
    }
    let each = (with_all.saturating_sub(before)) / u64::try_from(COUNT).unwrap();
    println!(
        "{COUNT} VMs Up in {came:.1?}; {} died and returned in {returned:.1?}; {each} KiB for each VM, both ends",
        victims.len()
    );
    assert!(each < 400, "{each} KiB for each VM");
    zone.end().await;
}
