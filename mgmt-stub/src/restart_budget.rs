//! How often a VM that does not stay up is started again.

use std::collections::VecDeque;
use std::time::Duration;

use time::OffsetDateTime;

/// Restarts of a system VM that ended by itself: at most [`RestartBudget::COUNT`] within [`RestartBudget::WINDOW`]
/// (management.md §14), each a little later than the one before.
#[derive(Clone, Default, Debug)]
pub struct RestartBudget {
    restarts: VecDeque<OffsetDateTime>,
}

impl RestartBudget {
    /// Restarts.
    pub const COUNT: usize = 5;
    /// Within this time.
    pub const WINDOW: Duration = Duration::from_mins(10);
    /// The first restart comes at once, the second this much after its end, the third twice as much.
    const FIRST_WAIT: Duration = Duration::from_secs(1);

    /// When one that ended now may be started again. Does not count it yet.
    pub fn next(&mut self, now: OffsetDateTime) -> Restart {
        while self.restarts.front().is_some_and(|first| now - *first > Self::WINDOW) {
            self.restarts.pop_front();
        }
        match self.restarts.len() {
            0 => Restart::At(now),
            count @ 1..Self::COUNT => {
                let doublings = u32::try_from(count - 1).unwrap_or_default();
                Restart::At(now + Self::FIRST_WAIT.saturating_mul(2_u32.saturating_pow(doublings)))
            }
            _ => Restart::UsedUp(self.restarts.front().copied().unwrap_or(now) + Self::WINDOW),
        }
    }

    /// Restarts that are left.
    pub fn left(&self, now: OffsetDateTime) -> usize {
        let recent = self.restarts.iter().filter(|restart| now - **restart <= Self::WINDOW);
        Self::COUNT.saturating_sub(recent.count())
    }

    /// It was started again.
    pub fn count(&mut self, now: OffsetDateTime) {
        self.restarts.push_back(now);
        while self.restarts.len() > Self::COUNT {
            self.restarts.pop_front();
        }
    }
}

/// When a system VM may be started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restart {
    /// Then.
    At(OffsetDateTime),
    /// A person should look; we try again then.
    UsedUp(OffsetDateTime),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_restarts_in_ten_minutes_each_later_then_a_person() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let mut budget = RestartBudget::default();
        let mut now = start;
        for wait in [0, 1, 2, 4, 8] {
            assert_eq!(budget.next(now), Restart::At(now + Duration::from_secs(wait)));
            now += Duration::from_secs(wait);
            budget.count(now);
        }
        assert_eq!(budget.next(now), Restart::UsedUp(start + RestartBudget::WINDOW));
        let later = start + RestartBudget::WINDOW + Duration::from_mins(1);
        assert_eq!(budget.next(later), Restart::At(later), "all five are long ago");
    }
}
