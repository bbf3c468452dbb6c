//! What a VM is given, and what it gives back.

use std::collections::HashSet;

use mgmt_stub::driver::Traffic::{self, Control, Management, Public, Storage};
use mgmt_stub::driver::in_process::Options;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::store::instance::InstanceType::{ConsoleProxy, SecondaryStorageVm};

use crate::support::TestZone;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_has_an_address_in_each_of_its_networks_and_its_agent_says_the_same() {
    let zone = TestZone::start(Options::default(), &[]).await;
    let (ssvm, proxy) = (zone.up(SecondaryStorageVm).await, zone.up(ConsoleProxy).await);
    let nics = zone.store.nics(ssvm.id).await.unwrap();
    let traffic: Vec<Traffic> = nics.iter().map(|nic| nic.traffic).collect();
    assert_eq!(traffic, [Control, Management, Public, Storage]);
    assert_eq!(zone.store.nics(proxy.id).await.unwrap().len(), 3);

    let host = zone.store.host_named(&ssvm.name).await.unwrap().unwrap();
    for (nic, told) in nics[1..].iter().zip([&host.private, &host.public, &host.storage]) {
        let address = nic.address.unwrap();
        assert_eq!(told.ip, Some(address.addr().into()), "{nic:?}");
        assert_eq!(told.netmask, Some(address.netmask().to_string()), "{nic:?}");
        assert_eq!(told.mac, nic.mac.map(|mac| mac.to_string()), "{nic:?}");
    }
    assert_eq!(zone.row(&ssvm).await.public_ip, host.public.ip);
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_back_all_but_the_public_address_and_destruction_that_one_too() {
    let zone = TestZone::start(Options::default(), &[]).await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    let public = zone.address(&ssvm, Public).await;
    zone.set("system.vm.auto.reserve.capacity", "false").await; // else the scan starts it again
    let stopped = zone.vms.stop(ssvm.id).await.unwrap();
    assert_eq!(stopped.state, InstanceState::Stopped);
    for traffic in [Control, Management, Storage] {
        assert_eq!(zone.address(&ssvm, traffic).await, None, "{traffic}");
    }
    assert_eq!(zone.address(&ssvm, Public).await, public);
    zone.vms.start(ssvm.id).await.unwrap();
    zone.up(SecondaryStorageVm).await;
    assert_eq!(zone.address(&ssvm, Public).await, public, "kept over stop and start");
    assert!(zone.address(&ssvm, Control).await.is_some());

    zone.vms.destroy(ssvm.id).await.unwrap();
    let left: HashSet<_> = zone
        .store
        .all_nics()
        .await
        .unwrap()
        .iter()
        .map(|nic| nic.instance)
        .collect();
    assert!(!left.contains(&ssvm.id), "{left:?}");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_left_is_given_back_by_the_next() {
    let zone = TestZone::start(Options::default(), &[]).await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    zone.set("system.vm.auto.reserve.capacity", "false").await;
    zone.set("systemvm.release.control.ip.on.stop", "false").await;
    zone.vms.stop(ssvm.id).await.unwrap();
    assert!(zone.address(&ssvm, Control).await.is_some(), "as the setting says");
    zone.set("systemvm.release.control.ip.on.stop", "true").await;
    let zone = zone.restart(|_| ()).await;
    crate::support::until("it is given back", async || {
        zone.address(&ssvm, Control).await.is_none().then_some(())
    })
    .await;
    zone.end().await;
}
