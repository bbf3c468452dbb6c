//! The live path (§8): bytes from host to browser and back, each direction as fast as its receiver takes them. Nothing
//! is queued beyond one chunk in each direction; whoever waits holds no buffer.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::browser::{Browser, Incoming, Outgoing, Stream};
use crate::buffers::Buffers;
use crate::metrics::Metrics;
use crate::rfb::scan::Scanner;
use crate::session::End;
use crate::sessions::Activity;
use crate::ws::{self, Control, Payload};

/// Between pings (§8).
const PING: Duration = Duration::from_secs(25);

/// Without any frame from the browser, pongs included (§8).
const SILENCE: Duration = Duration::from_mins(1);

/// A write that took longer had to wait for its receiver.
const STALL: Duration = Duration::from_millis(5);

/// How long a frame on its way may take once the session is to end.
const FLUSH: Duration = Duration::from_secs(2);

/// How long a session may last. 0 is for ever.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Without input of a person.
    pub idle: Duration,
    /// In all.
    pub session: Duration,
}

/// What both directions and the clock know of each other.
struct Shared<'a> {
    state: Mutex<State>,
    /// Something is to be said to the browser.
    say: Notify,
    limits: Limits,
    activity: &'a Activity,
    metrics: &'a Metrics,
}

struct State {
    pong: Option<Payload>,
    is_ping_due: bool,
    is_ending: bool,
    /// A ping that was sent and not answered.
    pinged: Option<Instant>,
    heard: Instant,
    input: Instant,
    /// Directions in which we wait for somebody to take bytes: then silence means nothing.
    waits: u8,
}

impl Shared<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves bytes until somebody leaves, `stop` says so, or a limit is reached. Closes both ends.
pub async fn relay(
    browser: Browser,
    host: Box<dyn Stream>,
    buffers: &Buffers,
    limits: Limits,
    activity: &Activity,
    metrics: &Metrics,
    stop: impl Future<Output = End>,
) -> End {
    let now = Instant::now();
    let shared = Shared {
        state: Mutex::new(State {
            pong: None,
            is_ping_due: false,
            is_ending: false,
            pinged: None,
            heard: now,
            input: now,
            waits: 0,
        }),
        say: Notify::new(),
        limits,
        activity,
        metrics,
    };
    let mut browser = browser;
    let early = browser.take_early();
    let Browser {
        mut incoming,
        mut outgoing,
        ..
    } = browser;
    let (mut from_host, mut to_host) = split(host);
    let end = {
        let down = down(&mut from_host, &mut outgoing, buffers, &shared);
        let up = up(&mut incoming, &mut to_host, &early, &shared);
        tokio::pin!(down);
        let end = tokio::select! {
            end = &mut down => Err(end),
            end = up => Ok(end),
            end = keep_time(&shared) => Ok(end),
            end = stop => Ok(end),
        };
        match end {
            Err(end) => end,
            Ok(end) => {
                // A frame on its way is finished: only behind a whole one can the end be told.
                shared.state().is_ending = true;
                shared.say.notify_one();
                let _ = timeout(FLUSH, down).await;
                end
            }
        }
    };
    outgoing.close(&end).await;
    end
}

/// From host to browser.
async fn down(
    host: &mut ReadHalf<Box<dyn Stream>>,
    browser: &mut Outgoing,
    buffers: &Buffers,
    shared: &Shared<'_>,
) -> End {
    loop {
        let read = tokio::select! {
            biased;
            () = shared.say.notified() => None,
            read = buffers.read(host) => Some(read),
        };
        let sent = match read {
            None => {
                if shared.state().is_ending {
                    return End::BrowserClosed; // whoever asked for it knows why
                }
                say(browser, shared).await
            }
            Some(Ok(mut chunk)) if !chunk.is_empty() => {
                let length = u64::try_from(chunk.len()).unwrap_or_default();
                shared.state().waits += 1;
                let started = Instant::now();
                let sent = browser.send_chunk(&mut chunk).await;
                let elapsed = started.elapsed();
                let mut state = shared.state();
                state.waits -= 1;
                if elapsed > STALL {
                    state.heard = Instant::now(); // it took bytes, so it is there
                    shared.metrics.stalled("down", elapsed);
                }
                drop(state);
                shared.activity.down.fetch_add(length, Ordering::Relaxed);
                shared.metrics.moved_down(length);
                sent
            }
            Some(Ok(_)) => return End::HostClosed,
            Some(Err(error)) => {
                debug!(%error, "The connection to the host broke");
                return End::HostClosed;
            }
        };
        if let Err(end) = sent {
            return end;
        }
    }
}

/// Sends pings and pongs.
async fn say(browser: &mut Outgoing, shared: &Shared<'_>) -> Result<(), End> {
    let (pong, is_ping_due) = {
        let mut state = shared.state();
        (state.pong.take(), std::mem::take(&mut state.is_ping_due))
    };
    if let Some(pong) = pong {
        browser.send(&ws::pong(&pong)).await?;
    }
    if is_ping_due {
        browser.send(&ws::ping(b"awake?\r\n")).await?;
        let mut state = shared.state();
        state.pinged = state.pinged.or(Some(Instant::now()));
    }
    Ok(())
}

/// From browser to host.
async fn up(browser: &mut Incoming, host: &mut WriteHalf<Box<dyn Stream>>, early: &[u8], shared: &Shared<'_>) -> End {
    let mut scanner = Scanner::default();
    if let Err(end) = forward(early, host, &mut scanner, shared).await {
        return end;
    }
    loop {
        let mut is_closed = false;
        let read = browser.read(|control| match control {
            Control::Close => is_closed = true,
            Control::Ping(payload) => {
                shared.state().pong = Some(payload); // only the latest needs an answer (RFC 6455 §5.5.3)
                shared.say.notify_one();
            }
            Control::Pong(_) => {
                if let Some(pinged) = shared.state().pinged.take() {
                    shared.metrics.ping_answered(pinged.elapsed());
                }
            }
        });
        let chunk = match read.await {
            Ok(chunk) => chunk,
            Err(end) => return end,
        };
        {
            let mut state = shared.state();
            state.heard = Instant::now();
        }
        if let Err(end) = forward(&chunk, host, &mut scanner, shared).await {
            return end;
        }
        if is_closed {
            return End::BrowserClosed;
        }
    }
}

async fn forward(
    bytes: &[u8],
    host: &mut WriteHalf<Box<dyn Stream>>,
    scanner: &mut Scanner,
    shared: &Shared<'_>,
) -> Result<(), End> {
    if bytes.is_empty() {
        return Ok(());
    }
    let was_opaque = scanner.is_opaque();
    let is_input = scanner
        .advance(bytes)
        .map_err(|error| End::Protocol(error.to_string()))?;
    if scanner.is_opaque() && !was_opaque {
        debug!("The browser sent a message of an unknown kind; from here on its bytes are not looked at");
    }
    {
        let mut state = shared.state();
        if is_input {
            state.input = Instant::now();
            shared.activity.input();
        }
        state.waits += 1;
    }
    let started = Instant::now();
    let written = async {
        host.write_all(bytes).await?;
        host.flush().await
    };
    let written: std::io::Result<()> = written.await;
    let elapsed = started.elapsed();
    let mut state = shared.state();
    state.waits -= 1;
    if elapsed > STALL {
        state.heard = Instant::now(); // we did not listen meanwhile
        shared.metrics.stalled("up", elapsed);
    }
    drop(state);
    let length = u64::try_from(bytes.len()).unwrap_or_default();
    shared.activity.up.fetch_add(length, Ordering::Relaxed);
    shared.metrics.moved_up(length);
    written.map_err(|error| {
        debug!(%error, "The connection to the host broke");
        End::HostClosed
    })
}

/// Sends pings, and ends a session whose browser is silent, whose user is away, or which has lasted long enough.
async fn keep_time(shared: &Shared<'_>) -> End {
    let started = Instant::now();
    let set = |limit: Duration| Some(limit).filter(|limit| !limit.is_zero());
    let mut next_ping = started + PING;
    loop {
        let now = Instant::now();
        let (silent, idle) = {
            let state = shared.state();
            // Nobody who was not asked is silent.
            let silent = state.pinged.filter(|_| state.waits == 0).map(|_| state.heard + SILENCE);
            (silent, set(shared.limits.idle).map(|idle| state.input + idle))
        };
        let over = set(shared.limits.session).map(|session| started + session);
        if silent.is_some_and(|at| at <= now) {
            debug!("The browser has been silent for too long");
            return End::BrowserLost;
        }
        if idle.is_some_and(|at| at <= now) || over.is_some_and(|at| at <= now) {
            return End::Idle;
        }
        if next_ping <= now {
            next_ping = now + PING;
            shared.state().is_ping_due = true;
            shared.say.notify_one();
        }
        let wake = [silent, idle, over].into_iter().flatten().fold(next_ping, Instant::min);
        sleep_until(wake).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    /// A relay between two pipes, and a clock that jumps to whatever comes next.
    struct Rig {
        browser: DuplexStream,
        host: DuplexStream,
        stop: Option<oneshot::Sender<End>>,
        relay: JoinHandle<End>,
    }

    fn rig(idle: Duration) -> Rig {
        let ((browser, near_browser), (host, near_host)) = (duplex(1 << 16), duplex(1 << 16));
        let (stop, stopped) = oneshot::channel();
        let relay = tokio::spawn(async move {
            let buffers = Buffers::default();
            let browser = Browser::new(Box::new(near_browser), &[], buffers.clone());
            let limits = Limits {
                idle,
                session: Duration::ZERO,
            };
            let (activity, metrics) = (Activity::default(), Metrics::new());
            let stop = async { stopped.await.unwrap() };
            relay(
                browser,
                Box::new(near_host),
                &buffers,
                limits,
                &activity,
                &metrics,
                stop,
            )
            .await
        });
        Rig {
            browser,
            host,
            stop: Some(stop),
            relay,
        }
    }

    const PING_FRAME: &[u8] = b"\x89\x08awake?\r\n";

    /// Masked with zeros.
    const PONG_FRAME: &[u8] = b"\x8a\x88\0\0\0\0awake?\r\n";

    async fn expect(stream: &mut DuplexStream, wanted: &[u8]) {
        let mut got = vec![0; wanted.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_screen_stays_for_hours_while_the_browser_answers_pings() {
        let mut rig = rig(Duration::ZERO);
        let started = Instant::now();
        while started.elapsed() < Duration::from_hours(3) {
            expect(&mut rig.browser, PING_FRAME).await;
            rig.browser.write_all(PONG_FRAME).await.unwrap();
        }
        rig.host.write_all(b"\x02").await.unwrap();
        expect(&mut rig.browser, b"\x82\x01\x02").await;
        rig.browser
            .write_all(&[0x82, 0x88, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0x61])
            .await
            .unwrap();
        expect(&mut rig.host, &[4, 1, 0, 0, 0, 0, 0, 0x61]).await;
        rig.stop.take().unwrap().send(End::TakenOver).unwrap();
        expect(&mut rig.browser, b"\x88\x0c\x0f\xa1taken over").await;
        assert!(matches!(rig.relay.await.unwrap(), End::TakenOver));
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_answers_no_ping_is_gone_after_a_minute() {
        let mut rig = rig(Duration::ZERO);
        let started = Instant::now();
        assert!(matches!((&mut rig.relay).await.unwrap(), End::BrowserLost));
        assert_eq!(started.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn pongs_are_no_input_and_idle_time_ends_the_session() {
        let mut rig = rig(Duration::from_mins(30));
        let started = Instant::now();
        let mut seen = Vec::new();
        loop {
            let mut frame = [0; 10];
            rig.browser.read_exact(&mut frame).await.unwrap();
            if frame != PING_FRAME {
                seen.extend(frame);
                break;
            }
            rig.browser.write_all(PONG_FRAME).await.unwrap();
        }
        rig.browser.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"\x88\x0e\x0f\xa2idle timeout");
        assert!(matches!(rig.relay.await.unwrap(), End::Idle));
        assert_eq!(started.elapsed().as_secs(), 30 * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_reads_nothing_for_minutes_is_waited_for_and_a_torn_frame_is_followed_by_nothing() {
        let mut rig = rig(Duration::ZERO);
        // More than the pipe and our one chunk hold: we wait for the browser.
        let offered = vec![7; 300_000];
        let writing = tokio::spawn(async move {
            let _ = rig.host.write_all(&offered).await;
            rig.host
        });
        tokio::time::sleep(Duration::from_mins(10)).await;
        assert!(
            !rig.relay.is_finished(),
            "the system's own limit decides about a browser that reads nothing"
        );
        rig.stop.take().unwrap().send(End::TakenOver).unwrap();
        assert!(matches!(rig.relay.await.unwrap(), End::TakenOver));
        let mut seen = Vec::new();
        rig.browser.read_to_end(&mut seen).await.unwrap();
        assert!(seen.ends_with(&[7; 100]), "nothing comes behind half a frame");
        drop(writing.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn pings_of_the_browser_are_answered_between_frames() {
        let mut rig = rig(Duration::ZERO);
        rig.browser.write_all(b"\x89\x83\0\0\0\0abc").await.unwrap();
        expect(&mut rig.browser, b"\x8a\x03abc").await;
    }
}
