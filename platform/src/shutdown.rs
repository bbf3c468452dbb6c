//! Being asked to stop: SIGTERM from systemd, SIGINT from a person.

use tokio::signal::unix::{SignalKind, signal as listen};
use tracing::info;

/// Completes at the first SIGTERM or SIGINT that arrives after this call (not after the first poll). Neither signal ends
/// the process by itself from then on: the program finishes what is open and returns from `main`. Who wants a second
/// signal to cut that short calls this again and waits for both.
///
/// Must be called on a tokio runtime.
pub fn signal() -> impl Future<Output = ()> + Send {
    let listen = |kind| listen(kind).expect("SIGTERM and SIGINT may be handled, and the runtime handles signals");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    async move {
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal, "Asked to stop");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn either_signal_completes_it_even_when_it_came_before_the_first_poll() {
        for asked in [Signal::SIGTERM, Signal::SIGINT] {
            let stopped = signal();
            raise(asked).unwrap();
            timeout(Duration::from_secs(10), stopped).await.unwrap();
        }
        timeout(Duration::from_millis(20), signal())
            .await
            .expect_err("old signals are over");
    }
}
