//! Waiting for a condition, never for a while.

use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks until `look` has found what it wants; fails after `limit`, saying what it saw last.
///
/// # Panics
/// The limit is over.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let seen = match look().await {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        assert!(
            started.elapsed() < limit,
            "{what}: not within {limit:?}; last seen: {seen}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
}
