//! Blocking work that ends when nobody waits for it any more: ctrl-C drops what awaits it.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{JoinError, spawn_blocking};

/// Runs work on a thread of its own. When nobody waits any more, the flag that it got becomes true: it should end soon, and
/// leave nothing half done.
pub async fn until_dropped<T: Send + 'static>(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> T {
    struct StopOnDrop(Arc<AtomicBool>);
    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = StopOnDrop(Arc::default());
    let seen = Arc::clone(&stop.0);
    let done = spawn_blocking(move || work(&seen)).await;
    done.unwrap_or_else(|error: JoinError| resume_unwind(error.into_panic()))
}
