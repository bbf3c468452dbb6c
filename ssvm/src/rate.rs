//! Bandwidth limits: a token bucket whose rate may change while it is used.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How long a bucket may have saved up.
const BURST: Duration = Duration::from_millis(250);

/// A limit of bytes per second, shared by all who hold it.
#[derive(Debug)]
pub struct Rate {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    bytes_per_second: Option<NonZeroU64>,
    /// When everything that was taken so far may have passed.
    paid_until: Instant,
}

impl Rate {
    /// `None`: no limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        let inner = Inner {
            bytes_per_second,
            paid_until: Instant::now(),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// Changes the limit, for what is taken from now on.
    pub fn set(&self, bytes_per_second: Option<NonZeroU64>) {
        let mut inner = self.inner.lock().expect("nothing panics while holding it");
        inner.bytes_per_second = bytes_per_second;
        inner.paid_until = Instant::now();
    }

    /// Takes `bytes`, and waits until they may have passed. Takers are served in turn.
    pub async fn take(&self, bytes: u64) {
        let until = {
            let mut inner = self.inner.lock().expect("nothing panics while holding it");
            let Some(rate) = inner.bytes_per_second else { return };
            let now = Instant::now();
            let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.get());
            inner.paid_until = inner.paid_until.max(now - BURST.min(cost)) + cost;
            inner.paid_until
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
    async fn bytes_pass_at_the_rate_that_was_set_and_no_faster() {
        let rate = Rate::new(NonZeroU64::new(1_000_000));
        let seconds = seconds_for(&rate, 60, 10_000).await;
        assert!(seconds >= 0.58, "{seconds}");
        rate.set(NonZeroU64::new(10_000_000));
        let seconds = seconds_for(&rate, 60, 100_000).await;
        assert!(seconds >= 0.58, "{seconds}");
        rate.set(None);
        assert!(seconds_for(&rate, 100, u64::MAX).await < 0.1);
    }

    #[tokio::test]
    async fn two_takers_share_one_rate() {
        let rate = Rate::new(NonZeroU64::new(1_000_000));
        let (one, two) = tokio::join!(seconds_for(&rate, 30, 10_000), seconds_for(&rate, 30, 10_000));
        assert!(one.max(two) > 0.58, "{one} {two}");
    }
}
