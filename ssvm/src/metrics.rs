//! Numbers for operators in Prometheus' text format (ssvm.md §9 B6).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::future::join_all;
use hyper::StatusCode;
use platform::http::{Handler, Peer, Request, Response, answer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;

use crate::job::State;
use crate::jobs::Jobs;
use crate::stores::Stores;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is counted while it happens.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Bytes received from sources.
    pub received_bytes: Counter,
    /// Transfers taken up again after a broken connection.
    pub retries: Counter,
    /// Times a source was silent for too long.
    pub stalls: Counter,
    /// Downloads with a wrong checksum or content.
    pub verify_failures: Counter,
    /// Downloads that reached the store.
    pub finished: Counter,
    /// Downloads that failed.
    pub failed: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabel {
    store: String,
}

/// Serves `/metrics`.
pub struct Page {
    registry: Registry,
    jobs: Arc<Jobs>,
    stores: Arc<Stores>,
    by_state: Family<StateLabel, Gauge>,
    free: Family<StoreLabel, Gauge<u64, AtomicU64>>,
    writing: Mutex<()>,
}

impl Page {
    /// Of these.
    pub fn new(metrics: &Metrics, jobs: Arc<Jobs>, stores: Arc<Stores>) -> Self {
        let mut registry = Registry::with_prefix("ssvm");
        let counters = [
            (
                "retries",
                "Transfers taken up again after a broken connection",
                &metrics.retries,
            ),
            ("stalls", "Times a source was silent for too long", &metrics.stalls),
            (
                "verify_failures",
                "Downloads with a wrong checksum or content",
                &metrics.verify_failures,
            ),
            (
                "downloads_finished",
                "Downloads that reached the store",
                &metrics.finished,
            ),
            ("downloads_failed", "Downloads that failed", &metrics.failed),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let received = metrics.received_bytes.clone();
        registry.register_with_unit("received", "Bytes received from sources", Unit::Bytes, received);
        let by_state = Family::default();
        registry.register("jobs", "Download jobs known, by state", by_state.clone());
        let free = Family::default();
        registry.register_with_unit(
            "store_free",
            "Bytes that can still be written",
            Unit::Bytes,
            free.clone(),
        );
        Self {
            registry,
            jobs,
            stores,
            by_state,
            free,
            writing: Mutex::default(),
        }
    }

    async fn text(&self) -> Result<String, std::fmt::Error> {
        let states = self.jobs.states();
        let names = [
            (State::Waiting, "waiting"),
            (State::Transferring, "transferring"),
            (State::Installing, "installing"),
            (State::Done, "done"),
            (State::Failed, "failed"),
            (State::Aborted, "aborted"),
        ];
        for (state, name) in names {
            let count = states.iter().filter(|found| **found == state).count();
            let gauge = self.by_state.get_or_create(&StateLabel { state: name });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let stores = self.stores.opened().await;
        let spaces = join_all(stores.iter().map(|store| store.space())).await;
        let _one_at_a_time = self.writing.lock().await;
        self.free.clear(); // a store that does not answer has no number
        for (store, space) in stores.iter().zip(spaces) {
            if let Some(space) = space {
                let label = StoreLabel {
                    store: store.shown().to_owned(),
                };
                self.free.get_or_create(&label).set(space.available);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Handler for Page {
    async fn handle(&self, request: Request, _peer: Peer) -> Response {
        if request.uri().path() != "/metrics" {
            return answer(StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n");
        }
        match self.text().await {
            Ok(text) => answer(StatusCode::OK, TYPE, text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        }
    }
}
