//! Work that may hang: on a store whose server is away, a system call returns when it likes.
//!
//! Each piece gets a thread of its own. tokio's pool for blocking work is shared by the whole program: a hanging store
//! would fill it, and a runtime cannot end while it is used.

use std::future::Future;
use std::thread;

use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// The thread of a piece of work could not be started, or panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("internal error: a worker thread ended without a result; the log says more")]
pub struct Lost;

/// Starts `work` now. The future gives its result; who drops it does not stop the work.
pub fn on_thread<T, W>(name: &'static str, work: W) -> impl Future<Output = Result<T, Lost>> + Send + 'static
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (done, result) = oneshot::channel();
    let span = tracing::Span::current();
    let started = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _entered = span.enter();
        let _ = done.send(work()); // nobody may be waiting any more
    });
    async move {
        if let Err(error) = started {
            tracing::error!(%error, "Cannot start a thread");
            return Err(Lost);
        }
        result.await.map_err(|_| Lost)
    }
}

/// Threads that belong together. Who waits for one of them may be dropped; who cleans up behind them waits for all.
#[derive(Debug, Clone, Default)]
pub struct Threads(TaskTracker);

impl Threads {
    /// [`on_thread`], as one of these.
    pub fn start<T, W>(&self, name: &'static str, work: W) -> impl Future<Output = Result<T, Lost>> + Send + 'static
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let token = self.0.token();
        on_thread(name, move || {
            let _token = token;
            work()
        })
    }

    /// Waits until all have ended. None may be started any more.
    pub async fn ended(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn threads_have_ended_when_the_last_has_although_nobody_waits_for_its_result() {
        let threads = Threads::default();
        let (go, wait) = channel::<()>();
        drop(threads.start("waits", move || wait.recv()));
        assert_eq!(threads.start("adds", || 1 + 1).await, Ok(2));
        timeout(Duration::from_millis(50), threads.ended()).await.unwrap_err();
        drop(go);
        timeout(Duration::from_secs(10), threads.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_a_lost_result() {
        assert_eq!(on_thread("panics", || panic!("as it should")).await, Err::<(), _>(Lost));
    }
}
