use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::future::pending;
use std::os::unix::fs::symlink;
use std::time::Duration;

use agent::appliance::root::Root;
use agent::appliance::upgrade::bundle::Bundle;
use agent::appliance::upgrade::change::{ChangeError, Machine, Patience, change};
use agent::appliance::upgrade::health::{Health, Unit};
use agent::appliance::upgrade::keys::TrustedKeys;
use agent::appliance::upgrade::store::{Attempt, Outcome, Pending, Side, Store, StoreError};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use platform::files::replace;
use proptest::prelude::*;

use crate::maker::{Fixture, fixture, programs};

const PATIENCE: Patience = Patience {
    limit: Duration::from_secs(30),
    settle: Duration::from_secs(5),
    interval: Duration::from_secs(1),
};

/// Plays systemd, which does not run here: says of itself what the test wants, one answer after the other, the last for ever.
struct FakeMachine {
    answers: RefCell<VecDeque<Health>>,
    /// What was started, each time.
    restarted: RefCell<Vec<Vec<String>>>,
    starts: bool,
    /// Calls until this one never comes back: there the upgrade is killed.
    calls_left: RefCell<Option<usize>>,
}

fn fake_machine(answers: impl IntoIterator<Item = Health>) -> FakeMachine {
    FakeMachine {
        answers: RefCell::new(answers.into_iter().collect()),
        restarted: RefCell::default(),
        starts: true,
        calls_left: RefCell::default(),
    }
}

impl FakeMachine {
    async fn call(&self) {
        let is_over = match &mut *self.calls_left.borrow_mut() {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if is_over {
            pending::<()>().await;
        }
    }
}

impl Machine for FakeMachine {
    async fn look(&self, _is_thorough: bool) -> anyhow::Result<Health> {
        self.call().await;
        let mut answers = self.answers.borrow_mut();
        let next = if answers.len() > 1 {
            answers.pop_front()
        } else {
            answers.front().cloned()
        };
        Ok(next.unwrap_or_default())
    }

    async fn restart(&self, units: &[String]) -> anyhow::Result<()> {
        self.call().await;
        self.restarted.borrow_mut().push(units.to_vec());
        Ok(())
    }

    async fn try_programs(&self, _side: &Side) -> anyhow::Result<()> {
        self.call().await;
        anyhow::ensure!(self.starts, "the new agent does not start on this machine");
        Ok(())
    }
}

fn seen(active: &str, pid: u32, link_is_ready: bool) -> Health {
    let unit = Unit {
        active: active.to_owned(),
        pid,
        restarts: 0,
    };
    Health {
        units: BTreeMap::from([("cs-ssvm.service".to_owned(), unit)]),
        link_is_ready,
        errors: None,
    }
}

async fn run(fixture: &Fixture, machine: &FakeMachine, to: &Side) -> Result<Attempt, ChangeError> {
    change(&fixture.store, machine, to, PATIENCE, pending(), |_| {}).await
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_well_again_keeps_the_new_programs_and_can_go_back() {
    let fixture = fixture();
    let new = fixture.add("new");
    let machine = fake_machine([
        seen("active", 1, true),
        seen("activating", 0, false),
        seen("active", 2, true),
    ]);
    let attempt = run(&fixture, &machine, &new).await.unwrap();
    assert_eq!((attempt.outcome, attempt.why.as_str()), (Outcome::Confirmed, ""));
    assert_eq!(*machine.restarted.borrow(), [["cs-ssvm.service"]]);
    assert_eq!(fixture.runs(), "new");
    assert_eq!(fixture.store.recover().unwrap(), None, "a restart changes nothing");

    let back = fixture.store.state().unwrap().previous.unwrap();
    assert_eq!(back, Side::Image);
    let machine = fake_machine([seen("active", 2, true), seen("active", 3, true)]);
    run(&fixture, &machine, &back).await.unwrap();
    assert_eq!(fixture.runs(), "of the image");
    assert_eq!(fixture.store.state().unwrap().previous, Some(new));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_become_well_is_taken_back_and_the_reason_is_kept() {
    let cases = [
        (vec![seen("failed", 0, false)], "cs-ssvm.service does not run"),
        (
            vec![seen("activating", 0, false)],
            "cs-ssvm.service is activating, after 30s",
        ),
        (
            vec![seen("active", 2, false)],
            "the management server does not use this VM again, after 30s",
        ),
    ];
    for (after, reason) in cases {
        let fixture = fixture();
        let new = fixture.add("new");
        let machine = fake_machine([vec![seen("active", 1, true)], after].concat());
        let attempt = run(&fixture, &machine, &new).await.unwrap();
        assert_eq!((attempt.outcome, attempt.why.as_str()), (Outcome::RolledBack, reason));
        assert_eq!(machine.restarted.borrow().len(), 2, "the old ones run again");
        assert_eq!(fixture.runs(), "of the image");
        assert_eq!(fixture.store.state().unwrap().last, Some(attempt));
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_falls_over_again_and_again_is_not_well() {
    let fixture = fixture();
    let new = fixture.add("new");
    let falling = (2..100).map(|pid| seen("active", pid, true));
    let machine = fake_machine([seen("active", 1, true)].into_iter().chain(falling));
    let attempt = run(&fixture, &machine, &new).await.unwrap();
    assert_eq!(attempt.why, "it does not stay well, after 30s");
    assert_eq!(fixture.runs(), "of the image");
}

#[tokio::test(start_paused = true)]
async fn a_new_error_of_the_checks_is_a_reason_to_go_back() {
    let fixture = fixture();
    let new = fixture.add("new");
    let with = |pid, error: &str| Health {
        errors: Some([error.to_owned()].into()),
        ..seen("active", pid, true)
    };
    let machine = fake_machine([with(1, "dns"), with(2, "storage")]);
    let attempt = run(&fixture, &machine, &new).await.unwrap();
    assert_eq!(attempt.why, "`agent check` finds new errors: storage");
}

#[tokio::test(start_paused = true)]
async fn programs_that_do_not_start_are_never_used() {
    let fixture = fixture();
    let new = fixture.add("new");
    let machine = FakeMachine {
        starts: false,
        ..fake_machine([])
    };
    let error = run(&fixture, &machine, &new).await.unwrap_err();
    assert_eq!(
        platform::logging::chain(&error).to_string(),
        "nothing was changed: the new agent does not start on this machine"
    );
    assert_eq!(
        fixture.store.state().unwrap(),
        agent::appliance::upgrade::store::State::default()
    );
    assert_eq!(fixture.runs(), "of the image");
}

#[tokio::test(start_paused = true)]
async fn somebody_who_stops_it_has_the_old_programs() {
    let fixture = fixture();
    let new = fixture.add("new");
    let machine = fake_machine([seen("active", 1, true), seen("activating", 0, true)]);
    let stop = tokio::time::sleep(Duration::from_secs(3));
    let attempt = change(&fixture.store, &machine, &new, PATIENCE, stop, |_| {})
        .await
        .unwrap();
    assert_eq!(attempt.why, "somebody stopped the upgrade");
    assert_eq!(fixture.runs(), "of the image");
}

/// The upgrade is killed while it waits for the machine, each time a call later, and the machine starts anew.
#[tokio::test(start_paused = true)]
async fn whenever_it_is_killed_a_restart_finds_one_set_of_programs_whole() {
    let mut ended = Vec::new();
    for calls in 0..40 {
        let fixture = fixture();
        let new = fixture.add("new");
        let machine = FakeMachine {
            calls_left: RefCell::new(Some(calls)),
            ..fake_machine([seen("active", 1, true), seen("active", 2, true)])
        };
        let killed = tokio::time::timeout(Duration::from_mins(10), run(&fixture, &machine, &new))
            .await
            .is_err();
        let taken_back = fixture.store.recover().unwrap();
        let runs = fixture.runs();
        assert_eq!(runs, if killed { "of the image" } else { "new" }, "after {calls} calls");
        // Before anything was begun there is nothing to take back.
        assert_eq!(taken_back.is_some(), killed && calls >= 2, "after {calls} calls");
        assert_eq!(fixture.store.recover().unwrap(), None);
        ended.push(!killed);
    }
    assert!(ended.contains(&true) && ended.contains(&false));
}

/// Between two steps on the disk.
#[test]
fn wherever_the_power_goes_away_a_restart_finds_one_set_of_programs_whole() {
    type Step = fn(&Store, &Pending);
    let steps: [Step; 4] = [
        |store, pending| store.begin(pending).unwrap(),
        |store, _| {
            symlink(
                "anywhere",
                store
                    .directory(&Side::Image)
                    .join("../../../../var/lib/sysvm/.new-current"),
            )
            .unwrap();
        },
        |store, pending| store.switch(&pending.to).unwrap(),
        |store, pending| drop(store.end(pending, Outcome::Confirmed, "").unwrap()),
    ];
    for done in 0..=steps.len() {
        let fixture = fixture();
        let pending = Pending {
            from: Side::Image,
            to: fixture.add("new"),
        };
        for step in &steps[..done] {
            step(&fixture.store, &pending);
        }
        let taken_back = fixture.store.recover().unwrap();
        assert_eq!(
            taken_back.is_some(),
            (1..steps.len()).contains(&done),
            "after {done} steps"
        );
        assert_eq!(fixture.runs(), if done == steps.len() { "new" } else { "of the image" });
        // And the next upgrade goes as if nothing had been.
        let next = fixture.add("next");
        fixture.store.switch(&next).unwrap();
        assert_eq!(fixture.runs(), "next");
    }
}

#[test]
fn what_is_damaged_does_not_run() {
    let fixture = fixture();
    let confirm = |to: &Side| {
        let from = fixture.store.current().unwrap();
        let pending = Pending { from, to: to.clone() };
        fixture.store.begin(&pending).unwrap();
        fixture.store.switch(to).unwrap();
        fixture.store.end(&pending, Outcome::Confirmed, "").unwrap();
    };
    let first = fixture.add("first");
    confirm(&first);
    let second = fixture.add("second");
    confirm(&second);
    let link = fixture.root.path("/var/lib/sysvm/current");

    let _ = replace(fixture.store.directory(&second).join("ssvm"), "", 0o755).unwrap();
    fixture.store.recover().unwrap().unwrap();
    assert_eq!(fixture.runs(), "first");
    assert_eq!(
        fixture.store.state().unwrap().previous,
        None,
        "it runs, it is not what ran before"
    );
    fs::remove_dir_all(fixture.store.directory(&first)).unwrap();
    fixture.store.recover().unwrap().unwrap();
    assert_eq!(fixture.runs(), "of the image");
    for target in ["/etc", "bundles/../../../../etc", "bundles/none"] {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        fixture.store.recover().unwrap().unwrap();
        assert_eq!(fixture.runs(), "of the image", "{target}");
    }
    fs::remove_file(&link).unwrap();
    fixture.store.recover().unwrap().unwrap();
    assert_eq!(fixture.runs(), "of the image");
}

#[test]
fn only_what_runs_and_what_ran_before_stays_on_the_disk() {
    let fixture = fixture();
    for marker in ["one", "two", "three"] {
        let to = fixture.add(marker);
        let from = fixture.store.current().unwrap();
        let pending = Pending { from, to };
        fixture.store.begin(&pending).unwrap();
        assert!(matches!(fixture.store.begin(&pending), Err(StoreError::Pending)));
        fixture.store.switch(&pending.to).unwrap();
        fixture.store.end(&pending, Outcome::Confirmed, "").unwrap();
        fixture.store.prune().unwrap();
    }
    let bundles = fixture.root.path("/var/lib/sysvm/bundles");
    fs::create_dir(bundles.join(".new-left")).unwrap();
    fixture.store.prune().unwrap();
    assert_eq!(fs::read_dir(bundles).unwrap().count(), 2);
    assert_eq!(fixture.runs(), "three");
}

/// A disk of 1 MiB, seen by this thread only.
#[test]
fn a_full_disk_changes_nothing() {
    let small = |fixture: &Fixture| {
        let nothing: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        let disk = fixture.dir.path().join("disk");
        fs::create_dir(&disk).unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        disk
    };
    let fixture = fixture();
    let large = vec![7; 4_000_000];
    let mut contents = programs("new");
    contents.insert("ssvm", large);
    let path = fixture.write(fixture.bundle(&contents));
    let disk = small(&fixture);
    let open = || Bundle::open(&path, &TrustedKeys::read(&fixture.root).unwrap()).unwrap();

    let error = open().unpack(&disk.join("unpacked")).unwrap_err();
    assert!(
        platform::logging::chain(&error)
            .to_string()
            .contains("No space left on device"),
        "{error}"
    );
    fs::remove_dir_all(disk.join("unpacked")).unwrap();

    // It is not even tried where little would be left.
    let root = Root::new(&disk);
    fs::create_dir_all(root.path("/var/lib/sysvm")).unwrap();
    let store = Store::new(root);
    let error = store.add(&mut open()).unwrap_err().to_string();
    assert_eq!(
        error,
        "the bundle needs 3 MiB of the disk and 300 MiB must stay free, but 1 MiB are; make room in /var"
    );
    umount2(&disk, MntFlags::MNT_DETACH).unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Begin(u8),
    Switch,
    End(bool),
    Recover,
    Prune,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u8..3).prop_map(Event::Begin),
        Just(Event::Switch),
        any::<bool>().prop_map(Event::End),
        Just(Event::Recover),
        Just(Event::Prune),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// As `change` calls them, with a power cut (which only `Recover` follows) anywhere.
    #[test]
    fn in_any_order_one_whole_set_of_programs_runs(events in proptest::collection::vec(event(), 0..24)) {
        let fixture = fixture();
        let mut pending: Option<Pending> = None;
        for event in events {
            match (event, pending.clone()) {
                (Event::Begin(which), None) => {
                    let to = fixture.add(["one", "two", "three"][usize::from(which)]);
                    let from = fixture.store.current().unwrap();
                    let begun = Pending { from, to };
                    fixture.store.begin(&begun).unwrap();
                    pending = Some(begun);
                }
                (Event::Switch, Some(pending)) => fixture.store.switch(&pending.to).unwrap(),
                (Event::End(true), Some(ended)) => {
                    fixture.store.switch(&ended.to).unwrap();
                    fixture.store.end(&ended, Outcome::Confirmed, "").unwrap();
                    pending = None;
                }
                (Event::End(false), Some(ended)) => {
                    fixture.store.switch(&ended.from).unwrap();
                    fixture.store.end(&ended, Outcome::RolledBack, "why").unwrap();
                    pending = None;
                }
                (Event::Recover, was) => {
                    let recovered = fixture.store.recover().unwrap();
                    prop_assert_eq!(recovered.is_some(), was.is_some());
                    pending = None;
                }
                (Event::Prune, _) => fixture.store.prune().unwrap(),
                _ => {}
            }
            let current = fixture.store.current().unwrap();
            prop_assert!(fixture.store.is_whole(&current));
            let runs = fixture.runs();
            prop_assert!(!runs.is_empty());
        }
    }
}
