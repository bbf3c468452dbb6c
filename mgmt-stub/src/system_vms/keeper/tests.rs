use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::agents::Agents;
use crate::ca::Ca;
use crate::configuration::{self, Configuration};
use crate::driver::in_process::{InProcess, Options};
use crate::instance_state::InstanceState::Stopped;
use crate::scanner::Role;
use crate::store::Store;
use crate::store::id::{PodId, ZoneId};
use crate::system_vms::{Networks, Place};

/// A zone without a server for agents: none is ever Up.
struct Zone {
    vms: SystemVms,
    configuration: Configuration,
    driver: InProcess,
    _directory: TempDir,
}

async fn zone() -> Zone {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let configuration = Configuration::load(store.clone()).await.unwrap();
    let driver = InProcess::new(Options::default());
    let place = Place {
        zone: ZoneId(1),
        pod: PodId(1),
        servers: vec!["127.0.0.1".into()],
        port: 9, // nobody
        console: "127.0.0.1:6080".parse().unwrap(),
        authorized_key: None,
        networks: Some(Networks::of_zone("172.31.0.0/16".parse().unwrap()).unwrap()),
    };
    let ca = Ca::open_or_create(directory.path().join("ca")).unwrap();
    let agents = Agents::new(store.clone());
    let shared = Arc::new(driver.clone());
    Zone {
        vms: SystemVms::new(store, agents, configuration.clone(), ca, shared, place),
        configuration,
        driver,
        _directory: directory,
    }
}

impl Zone {
    async fn running(&self) -> Instance {
        let vm = self.vms.create(InstanceType::ConsoleProxy, Role::None).await.unwrap();
        self.vms.start(vm.id).await.unwrap()
    }

    /// It has died, and the row knows.
    async fn stopped(&self) -> Instance {
        let vm = self.running().await;
        assert!(self.driver.kill(&vm.name, "the power went"));
        let ended = self.vms.follow_one(vm, None).await.unwrap();
        assert_eq!((ended.why.as_str(), ended.vm.state), ("the power went", Stopped));
        ended.vm
    }

    async fn now(&self, vm: &Instance) -> Instance {
        self.vms.inner.store.instance(vm.id).await.unwrap().unwrap()
    }
}

async fn replace(zone: &Zone, vm: &Instance) -> Instance {
    let replaced = zone.vms.replace(vm.id, vm.update_count, "the power went").await;
    assert!(replaced.is_ok());
    zone.now(vm).await
}

#[tokio::test]
async fn one_that_does_not_get_well_goes_and_the_scan_is_there_for_a_new_one() {
    let zone = zone().await;
    let vm = zone.stopped().await;
    assert!(replace(&zone, &vm).await.removed.is_some());
    let hung = zone.running().await;
    assert!(zone.driver.hang(&hung.name));
    assert!(replace(&zone, &hung).await.removed.is_some(), "also one that is on");
}

#[tokio::test]
async fn where_nothing_scans_it_is_started_once_more() {
    let zone = zone().await;
    let setting = configuration::find("consoleproxy.management.state").unwrap();
    zone.configuration.set(setting, "Manual").await.unwrap();
    let vm = zone.stopped().await;
    let again = replace(&zone, &vm).await;
    assert_eq!((again.state, again.removed), (Running, None));
    assert_eq!(again.reason, "the power went; being started again");
}

#[tokio::test]
async fn what_was_planned_for_a_vm_is_void_once_somebody_has_done_something_with_it() {
    let zone = zone().await;
    let vm = zone.stopped().await;
    let by_hand = zone.vms.stop(vm.id).await.unwrap();
    assert_eq!(
        (by_hand.state, by_hand.reason.as_str()),
        (Stopped, "stopped by an operator")
    );
    assert_eq!(replace(&zone, &vm).await, by_hand);
    assert!(zone.vms.start_seen(vm.id, vm.update_count, Some("why")).await.is_ok());
    assert_eq!(zone.now(&vm).await, by_hand);
}

#[tokio::test]
async fn the_sixth_restart_within_ten_minutes_is_a_new_vm() {
    let zone = zone().await;
    let vm = zone.stopped().await;
    let mut keeper = Keeper::new(zone.vms.clone());
    let now = OffsetDateTime::now_utc();
    for _ in 0..RestartBudget::COUNT {
        let (plan, _) = keeper.again(&vm, What::StartAgain, "the power went");
        assert_eq!((plan.what, plan.seen), (What::StartAgain, vm.update_count));
        keeper.budgets.entry(vm.id).or_default().count(now);
    }
    let (plan, reason) = keeper.again(&vm, What::StartAgain, "the power went");
    assert_eq!((plan.what, plan.at), (What::Replace, now + RestartBudget::WINDOW));
    let told = format!(
        "{} was started again 5 times within 10 minutes and did not stay of use",
        vm.name
    );
    assert!(reason.starts_with(&told), "{reason}");
    assert!(
        reason.ends_with("with a new VM in its place. the power went"),
        "{reason}"
    );
}
