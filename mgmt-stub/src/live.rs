//! What the page shows, as it changes: a stream of server-sent events (HTML Living Standard §9.2) for each open page.
//!
//! One task asks the same commands as any client, compares each topic with what it was, and shows the result to all
//! streams. It is level-triggered: after a change of the store it looks at what is, at most [`MIN_INTERVAL`] apart, and
//! while nobody watches it does nothing. A stream holds only how far it is: a slow page gets the latest state when it
//! can take it, and never a queue.
//!
//! | event | data |
//! |---|---|
//! | `state` | JSON: `now` (milliseconds since 1970) and each topic that changed, whole; the first one has all topics |
//! | `heartbeat` | JSON: `now`; each [`HEARTBEAT`] |
//!
//! What changes each two seconds and is looked at by few, has streams of its own: see [`Live::answer_vm`].

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{StatusCode, Uri};
use platform::http::{self, Response};
use platform::logging;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::api::Api;
use crate::api::error::Code;
use crate::api::session::{Caller, Proof};

mod vm;

/// Between two looks at the state: four a second are enough for people.
const MIN_INTERVAL: Duration = Duration::from_millis(250);
/// Looks without a change of the store: agents come and go, and times pass.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
/// Something is sent at least this often, so that both ends notice a dead connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Pages at the same time.
const MAX_STREAMS: usize = 64;

/// Name, command, its parameters, and the objects' name in its answer.
type Topic = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

/// What pages show. Of long lists the first page.
const TOPICS: [Topic; 10] = [
    ("zones", "listZones", &[], "zone"),
    ("hosts", "listHosts", &[], "host"),
    ("imagestores", "listImageStores", &[], "imagestore"),
    ("storagepools", "listStoragePools", &[], "storagepool"),
    ("systemvms", "listSystemVms", &[("details", "min")], "systemvm"),
    ("templates", "listTemplates", &[("templatefilter", "all")], "template"),
    ("isos", "listIsos", &[("isofilter", "all")], "iso"),
    (
        "virtualmachines",
        "listVirtualMachines",
        &[("listall", "true"), ("details", "min")],
        "virtualmachine",
    ),
    ("alerts", "listAlerts", &[("page", "1"), ("pagesize", "50")], "alert"),
    ("events", "listEvents", &[("page", "1"), ("pagesize", "100")], "event"),
];

/// All topics at one time.
#[derive(Clone, Debug, Default)]
struct State {
    /// Counts the states that differ.
    version: u64,
    /// In the order of [`TOPICS`]; `None`: its command has never answered.
    topics: [Option<Shown>; TOPICS.len()],
}

/// A topic as it is sent.
#[derive(Clone, Debug)]
struct Shown {
    /// A JSON array.
    json: Arc<str>,
    /// Of the state in which it changed.
    version: u64,
}

/// The streams of all pages.
pub struct Live {
    api: Api,
    /// `None` until somebody watches, and when nobody does any more.
    state: watch::Sender<Option<Arc<State>>>,
    /// Somebody has begun to watch.
    watched: Notify,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Live {
    /// Shows what `api` answers to administrators, until `stop`.
    pub fn new(api: Api, stop: CancellationToken) -> Self {
        Self {
            api,
            state: watch::Sender::new(None),
            watched: Notify::new(),
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
            stop,
        }
    }

    /// Looks at the state while somebody watches, until the stop.
    pub async fn run(&self) {
        self.stop.run_until_cancelled(self.look()).await;
    }

    async fn look(&self) {
        let mut changes = self.api.management().store.changes();
        loop {
            while self.state.receiver_count() == 0 {
                self.state.send_replace(None); // it grows old from here on
                self.watched.notified().await;
            }
            changes.mark_unchanged();
            let before = self.state.borrow().clone().unwrap_or_default();
            match self.observe(&before).await {
                Ok(Some(state)) => drop(self.state.send_replace(Some(Arc::new(state)))),
                Ok(None) => {}
                Err(error) => warn!(error = %logging::chain(&error), "Cannot tell pages what has changed"),
            }
            sleep(MIN_INTERVAL).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(MAX_INTERVAL) => {}
            }
        }
    }

    /// What is now; `None`: nothing new.
    async fn observe(&self, before: &State) -> Result<Option<State>, crate::store::StoreError> {
        let identity = self.api.management().store.administrator().await?;
        let viewer = Caller {
            identity,
            proof: Proof::Socket,
        };
        let mut found = Vec::with_capacity(TOPICS.len());
        for (_, command, parameters, object) in TOPICS {
            found.push(match self.api.call_named(&viewer, command, parameters).await {
                Ok(mut answer) => {
                    let list = answer.get_mut(object).map_or(Value::Array(Vec::new()), Value::take);
                    Some(list.to_string())
                }
                Err(error) => {
                    debug!(%error, command, "A topic of the page keeps its last state");
                    None
                }
            });
        }
        Ok(before.with(found))
    }

    /// A stream, for a page whose session is an administrator's; otherwise a refusal.
    pub async fn answer(&self, uri: &Uri, headers: &HeaderMap<HeaderValue>) -> Response {
        let (session, place) = match self.admit(uri, headers).await {
            Ok(admitted) => admitted,
            Err(refusal) => return *refusal,
        };
        let page = Page {
            api: self.api.clone(),
            state: self.state.subscribe(),
            session,
            sent: 0,
            heartbeat: Instant::now() + HEARTBEAT,
            stop: self.stop.clone(),
            _place: place,
        };
        self.watched.notify_one();
        endless(stream::unfold(page, Page::next))
    }

    /// Likewise, of one VM: what it uses and prints.
    pub async fn answer_vm(&self, uri: &Uri, headers: &HeaderMap<HeaderValue>) -> Response {
        let (session, place) = match self.admit(uri, headers).await {
            Ok(admitted) => admitted,
            Err(refusal) => return *refusal,
        };
        match vm::Watch::open(self.api.clone(), uri, session, self.stop.clone(), place).await {
            Ok(watch) => endless(stream::unfold(watch, vm::Watch::next)),
            Err(error) => refusal(error.code.status(), &error.text),
        }
    }

    /// The session of who asks, if it is an administrator's, and a place among the streams.
    async fn admit(
        &self,
        uri: &Uri,
        headers: &HeaderMap<HeaderValue>,
    ) -> Result<(String, OwnedSemaphorePermit), Box<Response>> {
        let refuse = |status, text: &str| Box::new(refusal(status, text));
        let caller = self.api.caller_of(uri, headers).await;
        let caller = caller.map_err(|error| refuse(error.code.status(), &error.text))?;
        let Proof::Session(session) = caller.proof.clone() else {
            return Err(refuse(Code::NotAuthenticated.status(), "log in first"));
        };
        if !caller.is_admin() || caller.identity.user.password_change_required {
            let text = "only for administrators with a password of their own";
            return Err(refuse(StatusCode::FORBIDDEN, text));
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| {
            let text = format!("{MAX_STREAMS} pages are open already; close some of them");
            refuse(StatusCode::SERVICE_UNAVAILABLE, &text)
        })?;
        Ok((session, place))
    }
}

/// An answer that goes on until one side has enough.
fn endless(messages: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> Response {
    let mut response = hyper::Response::new(StreamBody::new(messages).boxed_unsync());
    let fields = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    response
        .headers_mut()
        .extend(fields.map(|(name, value)| (Some(name), value)));
    response
}

impl State {
    /// The state after this one; `None` if it is the same. What was not `found` stays as it was.
    fn with(&self, found: Vec<Option<String>>) -> Option<Self> {
        let version = self.version + 1;
        let mut next = Self {
            version,
            topics: self.topics.clone(),
        };
        for (topic, found) in next.topics.iter_mut().zip(found) {
            let Some(json) = found else { continue };
            if topic.as_ref().is_none_or(|topic| *topic.json != *json) {
                *topic = Some(Shown {
                    json: json.into(),
                    version,
                });
            }
        }
        let is_new = next.topics.iter().flatten().any(|topic| topic.version == version);
        (is_new || self.version == 0).then_some(next)
    }

    /// What is new to a page that has seen everything up to the version `seen`.
    fn message(&self, seen: u64, now: i128) -> String {
        let mut message = format!("event: state\ndata: {{\"now\":{now}");
        for ((name, ..), topic) in TOPICS.iter().zip(&self.topics) {
            if let Some(topic) = topic
                && topic.version > seen
            {
                let _ = write!(message, ",\"{name}\":{}", topic.json); // a String takes all; JSON has no line feeds
            }
        }
        message + "}\n\n"
    }
}

/// One stream.
struct Page {
    api: Api,
    state: watch::Receiver<Option<Arc<State>>>,
    /// Hash of the session's id.
    session: String,
    /// Version of the state that was sent.
    sent: u64,
    heartbeat: Instant,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Page {
    /// The next message, asked for when the one before is on its way; none: the session or the server ends.
    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        let stop = self.stop.clone();
        let message = stop.run_until_cancelled(self.message()).await??;
        self.heartbeat = Instant::now() + HEARTBEAT;
        Some((Ok(Frame::data(message.into())), self))
    }

    async fn message(&mut self) -> Option<String> {
        loop {
            let latest = self.state.borrow_and_update().clone();
            if let Some(state) = latest.filter(|state| state.version != self.sent) {
                self.check_session().await?;
                // After a pause of all pages versions begin again.
                let seen = if state.version > self.sent { self.sent } else { 0 };
                self.sent = state.version;
                return Some(state.message(seen, now()));
            }
            tokio::select! {
                changed = self.state.changed() => changed.ok()?,
                () = sleep_until(self.heartbeat) => {
                    self.check_session().await?;
                    return Some(format!("event: heartbeat\ndata: {{\"now\":{}}}\n\n", now()));
                }
            }
        }
    }

    /// Before each message: a session that has ended is shown nothing new.
    async fn check_session(&self) -> Option<()> {
        self.api.is_session_open(&self.session).await.then_some(())
    }
}

/// Milliseconds since 1970-01-01 UTC.
fn now() -> i128 {
    OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000
}

fn refusal(status: StatusCode, text: &str) -> Response {
    http::answer(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(zones: &str, hosts: Option<&str>) -> Vec<Option<String>> {
        let mut found = vec![Some(zones.to_owned()), hosts.map(str::to_owned)];
        found.resize(TOPICS.len(), Some("[]".to_owned()));
        found
    }

    #[test]
    fn only_topics_that_a_page_has_not_seen_are_sent() {
        let first = State::default().with(found("[1]", Some("[2]"))).unwrap();
        assert_eq!(first.version, 1);
        assert!(
            first
                .message(0, 7)
                .starts_with("event: state\ndata: {\"now\":7,\"zones\":[1],\"hosts\":[2],\"imagestores\":[]")
        );

        let second = first.with(found("[1]", Some("[3]"))).unwrap();
        assert_eq!(
            second.message(1, 8),
            "event: state\ndata: {\"now\":8,\"hosts\":[3]}\n\n"
        );
        let third = second.with(found("[4]", Some("[3]"))).unwrap();
        let late = "event: state\ndata: {\"now\":9,\"zones\":[4],\"hosts\":[3]}\n\n";
        assert_eq!(third.message(1, 9), late, "a slow page gets the latest state of both");
    }

    #[test]
    fn the_same_state_is_no_news_and_a_topic_that_cannot_be_had_keeps_its_last_state() {
        let first = State::default().with(found("[1]", Some("[2]"))).unwrap();
        assert!(first.with(found("[1]", Some("[2]"))).is_none());
        assert!(first.with(found("[1]", None)).is_none());
        assert!(
            State::default().with(vec![None; TOPICS.len()]).is_some(),
            "a page learns that the server is there"
        );
    }

    #[test]
    fn every_message_is_json_on_one_line() {
        let state = State::default().with(found("[{\"name\":\"a\\nb\"}]", None)).unwrap();
        let message = state.message(0, 1);
        let data = message
            .strip_prefix("event: state\ndata: ")
            .unwrap()
            .strip_suffix("\n\n")
            .unwrap();
        assert!(!data.contains('\n'));
        let value: Value = serde_json::from_str(data).unwrap();
        assert_eq!(value["zones"][0]["name"], "a\nb");
    }
}
