//! How far a long step is: log lines every few seconds, and none for what is quickly done.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::info;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(3);
/// A step that is shorter is not mentioned.
const QUICK: Duration = Duration::from_secs(1);

/// One long step. Shared by the threads that work on it; says at its end how long it took.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    started: Instant,
    next_line: Mutex<Instant>,
}

/// Begins a step: `what` is a sentence such as `Downloading packages`, `total` its length in any unit (bytes, packages).
pub fn step(what: &'static str, total: u64) -> Progress {
    let started = Instant::now();
    Progress {
        what,
        total,
        done: AtomicU64::new(0),
        started,
        next_line: Mutex::new(started + QUICK),
    }
}

impl Progress {
    /// So much more is done.
    pub fn add(&self, amount: u64) {
        let done = self.done.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        self.line(done);
    }

    /// So much is done in all.
    pub fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.line(done);
    }

    fn line(&self, done: u64) {
        // Whoever finds it taken leaves the line to the other thread.
        let Ok(mut next_line) = self.next_line.try_lock() else {
            return;
        };
        if let Some(after) = self.due(*next_line, Instant::now()) {
            *next_line = after;
            info!(percent = percent(done, self.total), "{}", self.what);
        }
    }

    /// When the line after this one is due, if this one is.
    fn due(&self, next_line: Instant, now: Instant) -> Option<Instant> {
        let is_over = self.done.load(Ordering::Relaxed) >= self.total;
        (now >= next_line && !is_over).then(|| now + EVERY)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let done = self.done.load(Ordering::Relaxed);
        if elapsed >= QUICK && done >= self.total {
            info!(percent = 100, ?elapsed, "{}", self.what);
        }
    }
}

fn percent(done: u64, total: u64) -> u64 {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    u64::try_from(percent).map_or(100, |percent| percent.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_after_a_second_and_then_every_three() {
        let step = step("Testing", 100);
        let first = step.started + QUICK;
        assert_eq!(step.due(first, step.started + Duration::from_millis(999)), None);
        assert_eq!(step.due(first, first), Some(first + EVERY));
        step.add(60);
        step.add(40);
        assert_eq!(step.due(first, first), None, "the last line comes at the end");
    }

    #[test]
    fn percents_never_overflow() {
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(5, 3), 100);
    }
}
