//! One viewer, from the answered upgrade to the end: permission, the management server's word, the host, the relay.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use protocol::console_proxy::ConsoleAccessAuthenticationCommand;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::backend::{self, BackendError, Host};
use crate::browser::{Browser, Stream};
use crate::buffers::Buffers;
use crate::proxy::Proxy;
use crate::relay::relay;
use crate::rfb::facade;
use crate::rfb::handshake::{self, HandshakeError, ServerInit};
use crate::sessions::{Place, Viewer};
use crate::token::{Target, Token};
use crate::ws::BadFrame;

/// Both handshakes together, the way to the host included (§7.2).
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// For sent bytes that a browser does not acknowledge, and for how long it may not read at all. Longer than towards
/// hosts: a browser that reads nothing for a minute (a laptop's lid) keeps its session (§19, 16).
const UNACKNOWLEDGED: Duration = Duration::from_secs(65);

/// Longest name of a desktop that is passed on, in bytes.
const MAX_NAME: usize = 1024;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// As it should be.
    #[error("the browser closed the console")]
    BrowserClosed,
    /// Without a word: closed, broken, or silent for a minute.
    #[error("the browser is gone")]
    BrowserLost,
    /// This program ends.
    #[error("the proxy is shutting down")]
    ShuttingDown,
    /// Which check failed is only for our log.
    #[error("not authorised")]
    NotAuthorised,
    /// Another viewer of the same VM.
    #[error("another viewer took over")]
    TakenOver,
    /// Nobody has typed for a long time, or the session lasted as long as sessions may.
    #[error("the session's time is over")]
    Idle,
    /// VM stopped or migrated.
    #[error("the host closed the console")]
    HostClosed,
    /// Connection, TLS or RFB.
    #[error("the host cannot be used")]
    HostUnreachable(#[source] BackendError),
    /// The VM has another password by now.
    #[error("the host refused the password")]
    HostRefusedPassword,
    /// The handshakes took too long.
    #[error("the console was not open within {HANDSHAKE_LIMIT:?}")]
    TooSlow,
    /// Too many viewers here.
    #[error("there are as many sessions as console.max_sessions allows")]
    SessionLimit,
    /// Malformed RFB from the browser.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// Malformed WebSocket frames.
    #[error(transparent)]
    BadFrame(BadFrame),
    /// A frame that is too long.
    #[error(transparent)]
    TooBig(BadFrame),
}

impl End {
    /// Close code and reason for the browser (§6). `None`: nobody listens.
    pub fn code(&self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::BrowserClosed => (1000, "bye"),
            Self::BrowserLost => return None,
            Self::ShuttingDown => (1001, "proxy shutting down"),
            Self::NotAuthorised => (1008, "not authorised"),
            Self::TakenOver => (4001, "taken over"),
            Self::Idle => (4002, "idle timeout"),
            Self::HostClosed => (4003, "console closed by host"),
            Self::HostUnreachable(_) | Self::TooSlow => (4004, "cannot reach host"),
            Self::HostRefusedPassword => (4005, "host refused password"),
            Self::SessionLimit => (4006, "session limit"),
            Self::Protocol(_) => (4007, "protocol error"),
            Self::BadFrame(_) => (1002, "malformed frame"),
            Self::TooBig(_) => (1009, "frame too long"),
        })
    }

    /// Name for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BrowserClosed => "browser_closed",
            Self::BrowserLost => "browser_lost",
            Self::ShuttingDown => "shutting_down",
            Self::NotAuthorised => "not_authorised",
            Self::TakenOver => "taken_over",
            Self::Idle => "idle",
            Self::HostClosed => "host_closed",
            Self::HostUnreachable(_) | Self::TooSlow => "host_unreachable",
            Self::HostRefusedPassword => "host_refused_password",
            Self::SessionLimit => "session_limit",
            Self::Protocol(_) | Self::BadFrame(_) | Self::TooBig(_) => "protocol_error",
        }
    }
}

/// What the checks before the upgrade have found.
pub struct Admitted {
    /// Opened.
    pub token: Token,
    /// The way to the screen.
    pub target: Target,
    /// Address of the viewer.
    pub client: IpAddr,
}

/// Runs a session on a connection that is about to be upgraded.
pub async fn run(proxy: Arc<Proxy>, upgrade: OnUpgrade, admitted: Admitted) {
    let session = admitted.token.session_uuid.as_deref().unwrap_or_default();
    let vm = admitted.token.client_tag.as_deref().unwrap_or_default();
    let span = info_span!("session", session, vm, peer = %admitted.client);
    async {
        let started = Instant::now();
        let mut browser = match upgrade.await.map(|upgraded| browser(upgraded, &proxy.buffers)) {
            Ok(Ok(browser)) => browser,
            Ok(Err(error)) => return debug!(%error, "The browser left during the upgrade"),
            Err(error) => return debug!(%error, "The browser left during the upgrade"),
        };
        let place = match enter(&proxy, &admitted).await {
            Ok(place) => place,
            Err(end) => {
                log(&end);
                proxy.metrics.ended(admitted.target.kind(), &end);
                return browser.outgoing.close(&end).await;
            }
        };
        let activity = Arc::clone(&place.activity);
        let end = show(&proxy, browser, place, &admitted).await;
        let (down, up) = (
            activity.down.load(Ordering::Relaxed),
            activity.up.load(Ordering::Relaxed),
        );
        log(&end);
        info!(end = end.name(), down, up, elapsed = ?started.elapsed(), "Session ended");
        proxy.metrics.ended(admitted.target.kind(), &end);
    }
    .instrument(span)
    .await;
}

fn log(end: &End) {
    let error = platform::logging::chain(end).to_string();
    match end {
        End::HostUnreachable(_) | End::HostRefusedPassword | End::TooSlow | End::SessionLimit => {
            warn!(error, "Console not shown");
        }
        End::Protocol(_) | End::BadFrame(_) | End::TooBig(_) => warn!(error, "Browser turned away"),
        _ => debug!(end = error, "Session is ending"),
    }
}

fn browser(upgraded: Upgraded, buffers: &Buffers) -> std::io::Result<Browser> {
    let (stream, behind): (Box<dyn Stream>, _) = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(Parts { io, read_buf, .. }) => {
            let stream = io.into_inner();
            backend::prepare(&stream, UNACKNOWLEDGED)?;
            (Box::new(stream), read_buf)
        }
        Err(upgraded) => match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
            Ok(Parts { io, read_buf, .. }) => {
                let stream = io.into_inner();
                backend::prepare(stream.get_ref().0, UNACKNOWLEDGED)?;
                (Box::new(stream), read_buf)
            }
            Err(upgraded) => (Box::new(TokioIo::new(upgraded)), bytes::Bytes::new()),
        },
    };
    Ok(Browser::new(stream, &behind, buffers.clone()))
}

/// The checks after the upgrade (§6, steps 5 to 8), and a place in the table.
async fn enter(proxy: &Proxy, admitted: &Admitted) -> Result<Place, End> {
    if !proxy.sessions.has_room() {
        return Err(End::SessionLimit);
    }
    let Admitted { token, target, client } = admitted;
    let session_uuid = token.session_uuid.clone().unwrap_or_default();
    let is_permitted = proxy.sessions.take_permission(&session_uuid);
    // The management server computed the ticket of a VMware session in a way it would not recognise itself (§6).
    let is_server_asked = !matches!(target, Target::WebSocket(_));
    let is_left_to_server = proxy.settings.trust_ms_session_check && is_server_asked;
    if !is_permitted && !is_left_to_server {
        proxy.metrics.authorised("not_permitted");
        info!("Session refused: it is not permitted, or was used already");
        return Err(End::NotAuthorised);
    }
    if is_server_asked {
        let access = ConsoleAccessAuthenticationCommand {
            host: token.client_host_address.clone(),
            port: token.client_host_port.map(|port| port.to_string()),
            vm_id: token.client_tag.clone(),
            sid: token.client_host_password.clone(),
            ticket: token.ticket.clone(),
            session_uuid: Some(session_uuid.clone()),
            client_address: Some(client.to_string()),
            is_reauthenticating: false,
        };
        let started = Instant::now();
        // Once it is asked its answer is waited for: it has marked the session as used.
        let verdict = proxy.authorizer.authorize(access).await;
        proxy.metrics.asked(started.elapsed());
        if let Err(refused) = verdict {
            proxy.metrics.authorised("refused");
            info!(reason = %refused, "Session refused");
            return Err(End::NotAuthorised);
        }
    }
    proxy.metrics.authorised("granted");
    let host = token.client_host_address.clone().unwrap_or_default();
    let port = token.client_host_port.unwrap_or_default();
    let key = if token.session_requires_new_viewer || proxy.settings.is_shared() {
        session_uuid.clone()
    } else {
        token.client_tag.clone().unwrap_or_else(|| format!("{host}:{port}"))
    };
    let viewer = Viewer {
        key,
        host,
        port,
        tag: token.client_tag.clone().unwrap_or_default(),
        session_uuid,
    };
    proxy.sessions.open(viewer).map_err(|_| End::SessionLimit)
}

/// Connects, shakes hands with both, and relays.
async fn show(proxy: &Proxy, mut browser: Browser, mut place: Place, admitted: &Admitted) -> End {
    info!(
        id = place.id(),
        host = admitted.token.client_host_address,
        port = admitted.token.client_host_port,
        "Session granted"
    );
    let open = tokio::select! {
        open = open(proxy, &mut browser, admitted) => open,
        end = place.stopped() => Err(end),
    };
    let host = match open {
        Ok(host) => host,
        Err(end) => {
            browser.outgoing.close(&end).await;
            return end;
        }
    };
    let activity = Arc::clone(&place.activity);
    let limits = proxy.settings.limits();
    let _counted = proxy.metrics.live(admitted.target.kind());
    relay(
        browser,
        host,
        &proxy.buffers,
        limits,
        &activity,
        &proxy.metrics,
        place.stopped(),
    )
    .await
}

/// Both handshakes.
async fn open(proxy: &Proxy, browser: &mut Browser, admitted: &Admitted) -> Result<Box<dyn Stream>, End> {
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let nothing = protocol::secret::Secret::default();
    let password = admitted.token.client_host_password.as_ref().unwrap_or(&nothing);
    let started = Instant::now();
    let connecting = backend::open(&admitted.target, password, &proxy.policy);
    let connecting = timeout_at(deadline, connecting);
    tokio::pin!(connecting);
    let mut connected = None;
    let greeted = {
        let greeting = timeout_at(deadline, facade::greet(browser));
        tokio::pin!(greeting);
        // The browser is greeted while the host is on its way.
        loop {
            tokio::select! {
                greeted = &mut greeting => break greeted.unwrap_or(Err(End::TooSlow))?,
                found = &mut connecting, if connected.is_none() => connected = Some(found),
            }
        }
    };
    let connected = if let Some(connected) = connected {
        connected
    } else {
        tokio::select! {
            connected = &mut connecting => connected,
            end = browser.until_gone() => return Err(end),
        }
    };
    let shaking = async {
        let Host { mut stream, is_tls } = match connected {
            Ok(Ok(host)) => host,
            Ok(Err(error)) => {
                let end = end_of(error);
                let _ = facade::refuse(browser, greeted, end.code().map_or("", |(_, reason)| reason)).await;
                return Err(end);
            }
            Err(_) => return Err(End::TooSlow),
        };
        proxy.metrics.connected(admitted.target.kind(), started.elapsed());
        let shared = facade::admit(browser, greeted).await?;
        let begin = handshake::begin(&mut stream, shared).await;
        let init: ServerInit = begin.map_err(|error| end_of(error.into()))?;
        let name = desktop_name(
            admitted.token.client_display_name.as_deref().unwrap_or_default(),
            is_tls,
        );
        facade::begin(browser, &init, &name).await?;
        let (width, height) = init.size();
        debug!(width, height, is_tls, "Console is open");
        Ok(stream)
    };
    let shaken = timeout_at(deadline, shaking).await.unwrap_or(Err(End::TooSlow));
    proxy.metrics.shaken(started.elapsed());
    shaken
}

fn end_of(error: BackendError) -> End {
    match error {
        BackendError::Handshake(HandshakeError::WrongPassword(reason)) => {
            debug!(reason, "The host refused the password");
            End::HostRefusedPassword
        }
        error => End::HostUnreachable(error),
    }
}

/// The page looks for `(TLS backend)` and shows a mark (§7.7).
fn desktop_name(display_name: &str, is_tls: bool) -> String {
    let mut end = display_name.len().min(MAX_NAME);
    while !display_name.is_char_boundary(end) {
        end -= 1;
    }
    let mark = if is_tls { "(TLS backend)" } else { "" };
    format!("{} {mark}", &display_name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_desktop_is_named_after_the_vm_and_says_whether_the_way_is_encrypted() {
        assert_eq!(desktop_name("web-01", false), "web-01 ");
        assert_eq!(desktop_name("web-01", true), "web-01 (TLS backend)");
        assert_eq!(desktop_name(&"ü".repeat(600), false).len(), MAX_NAME + 1);
    }
}
