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
const SILENCE: Duration = Duration::from_secs(60);

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
    /// We wait for the browser, or for the host, to take bytes: then silence means nothing.
    waits_for_browser: bool,
    waits_for_host: bool,
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
            waits_for_browser: false,
            waits_for_host: false,
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
                shared.state().waits_for_browser = true;
                let started = Instant::now();
                let sent = browser.send_chunk(&mut chunk).await;
                let elapsed = started.elapsed();
                let mut state = shared.state();
                state.waits_for_browser = false;
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
        state.waits_for_host = true;
    }
    let started = Instant::now();
    let written = async {
        host.write_all(bytes).await?;
        host.flush().await
    };
    let written: std::io::Result<()> = written.await;
    let elapsed = started.elapsed();
    let mut state = shared.state();
    state.waits_for_host = false;
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
            let is_waiting = state.waits_for_browser || state.waits_for_host;
            // Nobody who was not asked is silent.
            let silent = state.pinged.filter(|_| !is_waiting).map(|_| state.heard + SILENCE);
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
