//! The stream of one VM, for who looks at it: what it uses and the end of what it prints.
//!
//! | event | data |
//! |---|---|
//! | `vm` | JSON: `now`, `samples` that are new (the first message has those of the last five minutes), and `log` if it changed |
//! | `heartbeat` | JSON: `now` |
//!
//! A sample is an array: milliseconds since 1970, hundredths of a percent of one processor, bytes of memory, bytes per
//! second received and sent.

use std::io;

use bytes::Bytes;
use hyper::Uri;
use hyper::body::Frame;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{HEARTBEAT, now};
use crate::api::error::ApiError;
use crate::api::{Api, form, value_of};
use crate::store::instance::Instance;
use crate::usage::Sample;

/// One who looks.
pub(super) struct Watch {
    api: Api,
    vm: Instance,
    /// Hash of the session's id.
    session: String,
    looks: watch::Receiver<u64>,
    /// Of the newest sample that was sent.
    seen: Option<OffsetDateTime>,
    log: Option<String>,
    is_first: bool,
    heartbeat: Instant,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Of the VM that the parameter `id` names.
    pub(super) async fn open(
        api: Api,
        uri: &Uri,
        session: String,
        stop: CancellationToken,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, ApiError> {
        let mut pairs = Vec::new();
        form::parse(uri.query().unwrap_or_default().as_bytes(), &mut pairs)?;
        let text = value_of(&pairs, "id").unwrap_or_default();
        let uuid: Uuid = text
            .parse()
            .map_err(|_| ApiError::no_such("id", text.chars().take(64).collect::<String>()))?;
        let found = api.management().store.instance_by_uuid(uuid).await?;
        let vm = found
            .filter(|vm| vm.removed.is_none())
            .ok_or_else(|| ApiError::no_such_id("id", uuid))?;
        Ok(Self {
            looks: api.management().zone.usages.looks(),
            api,
            vm,
            session,
            seen: None,
            log: None,
            is_first: true,
            heartbeat: Instant::now() + HEARTBEAT,
            stop,
            _place: place,
        })
    }

    /// The next message; none: the session, the VM or the server ends.
    pub(super) async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        let stop = self.stop.clone();
        let message = stop.run_until_cancelled(self.message()).await??;
        self.heartbeat = Instant::now() + HEARTBEAT;
        Some((Ok(Frame::data(message.into())), self))
    }

    async fn message(&mut self) -> Option<String> {
        loop {
            self.looks.borrow_and_update();
            if let Some(news) = self.news().await {
                self.check().await?;
                return Some(format!("event: vm\ndata: {news}\n\n"));
            }
            tokio::select! {
                looked = self.looks.changed() => looked.ok()?,
                () = sleep_until(self.heartbeat) => {
                    self.check().await?;
                    return Some(format!("event: heartbeat\ndata: {{\"now\":{}}}\n\n", now()));
                }
            }
        }
    }

    /// What is new since the last message.
    async fn news(&mut self) -> Option<Value> {
        let zone = &self.api.management().zone;
        let samples = zone.usages.since(&self.vm.name, self.seen);
        let driver = zone.driver();
        let name = self.vm.name.clone();
        // Drivers read a file for this.
        let log = tokio::task::spawn_blocking(move || driver?.last_words(&name))
            .await
            .ok()
            .flatten();
        let has_log = log.is_some() && log != self.log;
        if samples.is_empty() && !has_log && !self.is_first {
            return None;
        }
        self.is_first = false;
        self.seen = samples.last().map(|sample| sample.at).or(self.seen);
        let mut news = json!({ "now": millis(OffsetDateTime::now_utc()) });
        news["samples"] = samples.iter().map(row).collect();
        if has_log {
            news["log"] = json!(log);
            self.log = log;
        }
        Some(news)
    }

    /// A session that has ended is shown nothing new, and of a VM that is gone there is nothing new.
    async fn check(&self) -> Option<()> {
        if !self.api.is_session_open(&self.session).await {
            return None;
        }
        let vm = self.api.management().store.instance(self.vm.id).await.ok()??;
        vm.removed.is_none().then_some(())
    }
}

fn row(sample: &Sample) -> Value {
    json!([
        millis(sample.at),
        sample.cpu,
        sample.memory,
        sample.received,
        sample.sent
    ])
}

fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
