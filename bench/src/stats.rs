//! What many samples say.

use std::fmt;
use std::time::Duration;

/// Of many durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Percentiles {
    /// By nearest rank: each is a sample that occurred. `None` without samples.
    pub(crate) fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let rank = |percent: usize| samples.get((samples.len() * percent).div_ceil(100).checked_sub(1)?);
        Some(Self {
            p50: *rank(50)?,
            p99: *rank(99)?,
            max: *rank(100)?,
        })
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let (p50, p99, max) = (ms(self.p50), ms(self.p99), ms(self.max));
        write!(f, "p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.1} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Option<[u128; 3]> {
        let found = Percentiles::of(millis.into_iter().map(Duration::from_millis).collect())?;
        Some([found.p50, found.p99, found.max].map(|duration| duration.as_millis()))
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        assert_eq!(of((1..=100).rev()), Some([50, 99, 100]));
        assert_eq!(of([3, 1, 2]), Some([2, 3, 3]));
        assert_eq!(of([7]), Some([7, 7, 7]));
        assert_eq!(of([]), None);
    }
}
