use proptest::prelude::*;

use super::*;
use crate::instance_state::InstanceEvent;
use crate::store::id::{AccountId, PodId};
use crate::store::instance::{Instance, InstanceType, NewInstance};

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn wanted(traffic: Traffic, subnet: &str, ranges: &[&[(&str, &str)]]) -> WantedNic {
    let subnet: Ipv4Net = subnet.parse().unwrap();
    let range = |(first, last): &(&str, &str)| (ip(first), ip(last));
    WantedNic {
        traffic,
        subnet,
        gateway: Ipv4Addr::from(u32::from(subnet.network()) + 1),
        is_default: traffic == Traffic::Public,
        ranges: ranges.iter().map(|group| group.iter().map(range).collect()).collect(),
    }
}

fn three() -> Vec<WantedNic> {
    vec![
        wanted(
            Traffic::Control,
            "169.254.0.0/16",
            &[&[("169.254.0.2", "169.254.255.254")]],
        ),
        wanted(Traffic::Management, "192.0.2.0/24", &[&[("192.0.2.10", "192.0.2.99")]]),
        wanted(
            Traffic::Public,
            "203.0.113.0/24",
            &[&[("203.0.113.10", "203.0.113.99")]],
        ),
    ]
}

async fn starting(store: &Store) -> Instance {
    let new = NewInstance {
        kind: InstanceType::ConsoleProxy,
        name: None,
        display_name: None,
        suffix: "VM".into(),
        hypervisor: "KVM".into(),
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
    let vm = store.create_instance(new, None).await.unwrap();
    step(store, &vm, InstanceEvent::StartRequested).await
}

async fn step(store: &Store, vm: &Instance, event: InstanceEvent) -> Instance {
    store.instance_event(vm, event, "test").await.unwrap()
}

#[tokio::test]
async fn a_start_gets_an_address_in_each_network_and_a_stop_gives_back_what_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let vm = starting(&store).await;
    let nics = store.reserve_nics(vm.id, three()).await.unwrap();
    let traffic: Vec<_> = nics
        .iter()
        .map(|nic| (nic.device, nic.traffic, nic.is_default))
        .collect();
    let expected = [
        (0, Traffic::Control, false),
        (1, Traffic::Management, false),
        (2, Traffic::Public, true),
    ];
    assert_eq!(traffic, expected);
    let [control, management, public] = &nics[..] else {
        panic!("{nics:?}")
    };
    let [_, _, c, d] = control.address.unwrap().addr().octets();
    assert_eq!(
        control.mac.unwrap().to_string(),
        format!("0e:00:a9:fe:{c:02x}:{d:02x}"),
        "management.md §4"
    );
    assert_eq!(control.gateway, Some(ip("169.254.0.1")));
    assert!(
        management.mac.unwrap().to_string().starts_with("1e:01:"),
        "{management:?}"
    );
    assert_eq!(public.address.unwrap().prefix_len(), 24);
    assert!(nics.iter().all(|nic| nic.taken.is_some()), "{nics:?}");

    assert_eq!(
        store.reserve_nics(vm.id, three()).await.unwrap(),
        nics,
        "a second try keeps them"
    );
    let freed = &[Traffic::Control, Traffic::Management, Traffic::Storage];
    assert_eq!(
        store.release_addresses(vm.id, freed).await.unwrap(),
        0,
        "it is not Stopped"
    );
    let vm = step(&store, &vm, InstanceEvent::OperationFailed).await;
    assert_eq!(store.release_left_addresses(freed).await.unwrap(), 2);
    let left = store.nics(vm.id).await.unwrap();
    assert_eq!((left[0].mac, left[0].address, left[0].taken), (None, None, None));
    assert_eq!((left[1].mac, left[1].address), (management.mac, None));
    assert_eq!(&left[2], public, "a public address stays until the end");

    assert!(
        matches!(
            store.reserve_nics(vm.id, three()).await,
            Err(StoreError::NotStarting(_))
        ),
        "what does not start gets nothing"
    );
    store.remove_instance(vm.id).await.unwrap();
    assert_eq!(store.all_nics().await.unwrap(), []);
}

#[tokio::test]
async fn starts_at_the_same_time_never_share_an_address_and_one_too_many_gets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    // .1 is the gateway, .7 the broadcast address: six are left.
    let small = || {
        vec![
            wanted(Traffic::Management, "192.0.2.0/24", &[&[("192.0.2.10", "192.0.2.99")]]),
            wanted(
                Traffic::Storage,
                "198.51.100.0/29",
                &[&[("198.51.100.0", "198.51.100.7")]],
            ),
        ]
    };
    let mut vms = Vec::new();
    for _ in 0..6 {
        vms.push(starting(&store).await);
    }
    let starts = vms.iter().map(|vm| store.reserve_nics(vm.id, small()));
    let outcomes = futures_util::future::join_all(starts).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{outcomes:?}");
    assert_eq!(
        refused[0].to_string(),
        "no address of 198.51.100.0/29 is free for storage traffic; destroy a VM, or give the zone more addresses"
    );
    let all = store.all_nics().await.unwrap();
    let addresses: HashSet<_> = all.iter().filter_map(|nic| nic.address).collect();
    let macs: HashSet<_> = all
        .iter()
        .filter_map(|nic| nic.mac.map(|mac| mac.to_string()))
        .collect();
    assert_eq!((all.len(), addresses.len(), macs.len()), (10, 10, 10), "all or nothing");
}

#[tokio::test]
async fn ranges_for_system_vms_come_first_and_a_network_that_has_moved_gives_new_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let public = |ranges: &[&[(&str, &str)]]| vec![wanted(Traffic::Public, "203.0.113.0/24", ranges)];
    let groups: &[&[(&str, &str)]] = &[&[("203.0.113.50", "203.0.113.50")], &[("203.0.113.60", "203.0.113.60")]];
    let (first, second) = (starting(&store).await, starting(&store).await);
    let address = async |vm: &Instance, wanted| store.reserve_nics(vm.id, wanted).await.unwrap()[0].address.unwrap();
    assert_eq!(address(&first, public(groups)).await.addr(), ip("203.0.113.50"));
    assert_eq!(address(&second, public(groups)).await.addr(), ip("203.0.113.60"));
    let moved = public(&[&[("203.0.113.70", "203.0.113.70")]]);
    assert_eq!(address(&first, moved).await.addr(), ip("203.0.113.70"));
}

proptest! {
    #[test]
    fn a_picked_address_is_free_and_in_a_range_and_there_is_one_as_long_as_any_is_free(
        bounds in prop::collection::vec((0..40_u32, 0..40_u32), 0..4),
        random in any::<u32>(),
        taken in prop::collection::hash_set(0..40_u32, 0..40),
    ) {
        let ranges: Vec<_> = bounds.iter().map(|(a, b)| (Ipv4Addr::from(*a), Ipv4Addr::from(*b))).collect();
        let is_free = |address: &Ipv4Addr| !taken.contains(&u32::from(*address));
        let free: HashSet<u32> = bounds.iter().flat_map(|(a, b)| *a..=*b).filter(|n| !taken.contains(n)).collect();
        match pick(&ranges, random, is_free) {
            Some(address) => prop_assert!(free.contains(&u32::from(address))),
            None => prop_assert!(free.is_empty()),
        }
    }
}

#[test]
fn any_free_address_may_be_picked() {
    let ranges = [(ip("192.0.2.1"), ip("192.0.2.3")), (ip("192.0.2.9"), ip("192.0.2.9"))];
    let picked: HashSet<_> = (0..8).filter_map(|random| pick(&ranges, random, |_| true)).collect();
    assert_eq!(picked.len(), 4);
}
