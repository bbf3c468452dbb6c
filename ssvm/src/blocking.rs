//! Work that may hang: on a store whose server is away, a system call returns when it likes.
//!
//! Each piece gets a thread of its own. tokio's pool for blocking work is shared by the whole program: a hanging store
//! would fill it, and a runtime cannot end while it is used.

use std::future::Future;
use std::thread;

use tokio::sync::oneshot;

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
