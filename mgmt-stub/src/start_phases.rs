//! How long each phase of VMs' starts takes, for Prometheus. Found by looking at how far they are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use time::OffsetDateTime;

use crate::driver::{Outcome, Progress};

/// Phases that have a series of their own. VMs name some of them, and are not trusted with our memory.
const MAX_PHASES: usize = 48;
/// Letters of a name.
const MAX_NAME: usize = 40;
/// Of the others.
const OTHER: &str = "other";

/// The phase's name.
type Labels = [(&'static str, String); 1];

/// Seconds of each phase.
pub struct StartPhases {
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of each VM: when the newest step ended that has been counted.
    counted: HashMap<String, OffsetDateTime>,
    names: BTreeSet<String>,
}

impl Default for StartPhases {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.05, 2.0, 13)); // 50 ms to 205 s
        Self {
            seconds: Family::new_with_constructor(histogram),
            state: Mutex::default(),
        }
    }
}

impl StartPhases {
    /// For the registry.
    pub fn seconds(&self) -> Family<Labels, Histogram, fn() -> Histogram> {
        self.seconds.clone()
    }

    /// Counts the steps that are done since the last look. A step took the time since the one before; the first one has
    /// no beginning, and is not counted.
    pub fn look(&self, vm: &str, progress: &Progress) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = state.counted.get(vm).copied();
        for pair in progress.steps.windows(2) {
            let [before, step] = pair else { continue };
            let is_new = counted.is_none_or(|counted| step.at > counted);
            if step.outcome != Outcome::Done || !is_new {
                continue;
            }
            state.counted.insert(vm.to_owned(), step.at);
            let phase = state.name(&step.name);
            let took = (step.at - before.at).max(time::Duration::ZERO).unsigned_abs();
            self.seconds
                .get_or_create(&[("phase", phase)])
                .observe(took.as_secs_f64());
        }
    }

    /// Forgets all VMs but these.
    pub fn keep(&self, names: &BTreeSet<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counted.retain(|vm, _| names.contains(vm));
    }
}

impl State {
    fn name(&mut self, given: &str) -> String {
        let is_plain = given.len() <= MAX_NAME
            && given
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b" -_./".contains(&byte));
        if !is_plain || (!self.names.contains(given) && self.names.len() >= MAX_PHASES) {
            return OTHER.to_owned();
        }
        self.names.insert(given.to_owned());
        given.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::driver::Step;

    fn step(name: &str, outcome: Outcome, second: i64) -> Step {
        Step {
            name: name.into(),
            outcome,
            at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second),
            detail: String::new(),
        }
    }

    fn text(phases: &StartPhases) -> String {
        let mut registry = Registry::default();
        registry.register("phase", "Phases", phases.seconds());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text.lines()
            .filter(|line| line.contains("_sum") || line.contains("_count"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn a_step_is_counted_once_with_the_time_since_the_one_before() {
        let phases = StartPhases::default();
        let mut progress = Progress {
            steps: vec![step("qemu", Outcome::Done, 1), step("ssh", Outcome::Running, 2)],
            problem: None,
        };
        phases.look("s-1-VM", &progress);
        progress.steps[1] = step("ssh", Outcome::Done, 9);
        for _ in 0..3 {
            phases.look("s-1-VM", &progress);
        }
        assert_eq!(
            text(&phases),
            "phase_sum{phase=\"ssh\"} 8.0\nphase_count{phase=\"ssh\"} 1\n"
        );
    }

    #[test]
    fn a_hostile_vm_makes_no_series_without_end() {
        let phases = StartPhases::default();
        let steps = (0..1000)
            .map(|number| step(&format!("step {number}"), Outcome::Done, number))
            .collect();
        phases.look("s-1-VM", &Progress { steps, problem: None });
        phases.look(
            "v-2-VM",
            &Progress {
                steps: vec![step("a", Outcome::Done, 1), step("\"} 1\nfake 7", Outcome::Done, 2)],
                problem: None,
            },
        );
        let text = text(&phases);
        assert_eq!(text.lines().count(), 2 * (MAX_PHASES + 1), "{text}");
        assert!(text.contains("phase_count{phase=\"other\"} 952\n"), "{text}");
    }
}
