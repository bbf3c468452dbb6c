//! Bandwidth limits: a token bucket.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How long a bucket may have saved up.
const BURST: Duration = Duration::from_millis(250);

/// A limit of bytes per second, shared by all who hold it.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: Option<NonZeroU64>,
    /// When everything that was taken so far may have passed.
    paid_until: Mutex<Instant>,
}

impl Rate {
    /// `None`: no limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            bytes_per_second,
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// Takes `bytes`, and waits until they may have passed. Takers are served in turn.
    pub async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.get());
        let until = {
            let mut paid_until = self.paid_until.lock().expect("nothing panics while holding it");
            *paid_until = (*paid_until).max(Instant::now() - BURST.min(cost)) + cost;
            *paid_until
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds_for(rate: &Rate, takes: u32, bytes: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..takes {
            rate.take(bytes).await;
        }
        start.elapsed().as_secs_f64()
    }

    #[tokio::test]
    async fn bytes_pass_at_the_rate_and_no_faster() {
        let rate = Rate::new(NonZeroU64::new(1_000_000));
        let seconds = seconds_for(&rate, 60, 10_000).await;
        assert!(seconds >= 0.58, "{seconds}");
        assert!(seconds_for(&Rate::new(None), 100, u64::MAX).await < 0.1);
    }

    #[tokio::test]
    async fn two_takers_share_one_rate() {
        let rate = Rate::new(NonZeroU64::new(1_000_000));
        let (one, two) = tokio::join!(seconds_for(&rate, 30, 10_000), seconds_for(&rate, 30, 10_000));
        assert!(one.max(two) > 0.58, "{one} {two}");
    }
}
