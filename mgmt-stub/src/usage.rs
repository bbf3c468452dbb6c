//! What VMs use of this machine, over the last minutes: kept in memory, for who looks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::logging::chain;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::driver::{Driver, Usage};
use crate::instance_state::InstanceState;
use crate::start_phases::StartPhases;
use crate::store::Store;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(2);
/// Samples of a VM: five minutes.
const MAX_SAMPLES: usize = 150;

/// What a VM used between two looks, and in total.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// When.
    pub at: OffsetDateTime,
    /// Hundredths of a percent of one processor.
    pub cpu: u32,
    /// Bytes of this machine's memory.
    pub memory: u64,
    /// Bytes per second that came.
    pub received: u64,
    /// Bytes per second that went.
    pub sent: u64,
    /// As the driver said.
    pub total: Usage,
}

/// The samples of all VMs; cheap to clone.
#[derive(Clone)]
pub struct Usages {
    /// `None`: somebody else runs VMs.
    driver: Option<Arc<dyn Driver>>,
    rings: Arc<Mutex<HashMap<String, VecDeque<Sample>>>>,
    /// Counts the looks.
    looked: Arc<watch::Sender<u64>>,
    phases: Arc<StartPhases>,
}

impl Usages {
    /// Nothing is known yet.
    pub fn new(driver: Option<Arc<dyn Driver>>) -> Self {
        Self {
            driver,
            rings: Arc::default(),
            looked: Arc::new(watch::Sender::new(0)),
            phases: Arc::default(),
        }
    }

    /// Looks at those that run until `stop`.
    pub async fn run(&self, store: Store, stop: CancellationToken) {
        let Some(driver) = self.driver.clone() else { return };
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let instances = match store.instances().await {
                Ok(instances) => instances,
                Err(error) => {
                    warn!(error = %chain(&error), "Cannot look what VMs use");
                    continue;
                }
            };
            let is_on = |state| matches!(state, InstanceState::Starting | InstanceState::Running);
            let names: Vec<String> = instances
                .into_iter()
                .filter(|vm| is_on(vm.state))
                .map(|vm| vm.name)
                .collect();
            let (driver, usages) = (Arc::clone(&driver), self.clone());
            // Drivers read files of the kernel for this.
            let look = tokio::task::spawn_blocking(move || {
                for name in &names {
                    if let Some(progress) = driver.progress(name) {
                        usages.phases.look(name, &progress);
                    }
                }
                usages.phases.keep(&names.iter().cloned().collect());
                let found = names.into_iter().filter_map(|name| Some((driver.usage(&name)?, name)));
                usages.note(OffsetDateTime::now_utc(), found.collect());
            });
            if let Err(error) = look.await {
                warn!(%error, "Cannot look what VMs use");
            }
        }
    }

    fn note(&self, at: OffsetDateTime, found: Vec<(Usage, String)>) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *rings);
        for (usage, name) in found {
            let mut ring = before.remove(&name).unwrap_or_default();
            let sample = sample(ring.back(), at, usage);
            if ring.len() >= MAX_SAMPLES {
                ring.pop_front();
            }
            ring.push_back(sample);
            rings.insert(name, ring);
        }
        drop(rings); // those that are off have no ring any more
        self.looked.send_modify(|count| *count += 1);
    }

    /// How long phases of starts take.
    pub fn phases(&self) -> &StartPhases {
        &self.phases
    }

    /// Of all VMs that are on: the newest.
    pub fn all(&self) -> Vec<(String, Sample)> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings
            .iter()
            .filter_map(|(name, ring)| Some((name.clone(), *ring.back()?)))
            .collect()
    }

    /// Of a VM that is on: the newest.
    pub fn latest(&self, name: &str) -> Option<Sample> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.get(name)?.back().copied()
    }

    /// Of a VM: those after `after`, the oldest first.
    pub fn since(&self, name: &str, after: Option<OffsetDateTime>) -> Vec<Sample> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = rings.get(name).into_iter().flatten();
        ring.filter(|sample| after.is_none_or(|after| sample.at > after))
            .copied()
            .collect()
    }

    /// Changes with each look.
    pub fn looks(&self) -> watch::Receiver<u64> {
        self.looked.subscribe()
    }
}

/// Counters begin anew with each start: then the difference is what is there.
fn sample(before: Option<&Sample>, at: OffsetDateTime, total: Usage) -> Sample {
    let elapsed = before
        .map(|before| (at - before.at).unsigned_abs())
        .filter(|elapsed| !elapsed.is_zero());
    let last = before.map(|before| before.total).unwrap_or_default();
    let per = |now: u128, then: u128, unit: u128| {
        let Some(elapsed) = elapsed else { return 0 };
        let difference = now.checked_sub(then).unwrap_or(now);
        difference.saturating_mul(unit) / elapsed.as_micros().max(1)
    };
    let rate = |now: u64, then: u64| u64::try_from(per(now.into(), then.into(), 1_000_000)).unwrap_or(u64::MAX);
    Sample {
        at,
        cpu: u32::try_from(per(total.cpu.as_micros(), last.cpu.as_micros(), 10_000)).unwrap_or(u32::MAX),
        memory: total.memory,
        received: rate(total.received, last.received),
        sent: rate(total.sent, last.sent),
        total,
    }
}

/// Hundredths of a percent as CloudStack writes percents.
pub fn percent(hundredths: u32) -> String {
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu_ms: u64, received: u64) -> Usage {
        Usage {
            cpu: Duration::from_millis(cpu_ms),
            memory: 100,
            received,
            sent: 0,
        }
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds)
    }

    #[test]
    fn a_sample_is_the_difference_to_the_one_before_and_starts_anew_with_the_vm() {
        let first = sample(None, at(0), usage(500, 1000));
        assert_eq!((first.cpu, first.received, first.memory), (0, 0, 100));
        let second = sample(Some(&first), at(2), usage(1500, 5000));
        assert_eq!((second.cpu, second.received), (5000, 2000));
        assert_eq!(percent(second.cpu), "50.00%");
        let restarted = sample(Some(&second), at(4), usage(200, 100));
        assert_eq!((restarted.cpu, restarted.received), (1000, 50));
        let at_once = sample(Some(&restarted), at(4), usage(300, 100));
        assert_eq!(at_once.cpu, 0, "no time, no rate");
    }

    #[test]
    fn a_ring_holds_five_minutes_and_is_gone_with_its_vm() {
        let usages = Usages::new(None);
        for second in 0..400 {
            usages.note(at(second), vec![(usage(0, 0), "v-1-VM".into())]);
        }
        assert_eq!(usages.since("v-1-VM", None).len(), MAX_SAMPLES);
        let late: Vec<_> = usages
            .since("v-1-VM", Some(at(397)))
            .iter()
            .map(|sample| sample.at)
            .collect();
        assert_eq!(late, [at(398), at(399)]);
        usages.note(at(400), vec![(usage(0, 0), "v-2-VM".into())]);
        assert_eq!(usages.latest("v-1-VM"), None);
        assert_eq!(usages.since("v-2-VM", None).len(), 1);
    }
}
