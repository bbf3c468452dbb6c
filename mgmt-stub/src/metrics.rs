//! Numbers for Prometheus, at `/metrics` on the server's own socket.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::api::error::Code;
use crate::management::Management;

/// Names of our own, never a caller's: there are as many series as commands and codes.
type Labels = [(&'static str, String); 2];

/// All of them.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    elapsed: Histogram,
    agents: Gauge,
    jobs: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("mgmt");
        let requests = Family::default();
        let elapsed = Histogram::new(exponential_buckets(0.000_1, 4.0, 9)); // 0.1 ms to 6.5 s
        let (agents, jobs) = (Gauge::default(), Gauge::default());
        registry.register(
            "api_requests",
            "Answers of the API, by command and code",
            requests.clone(),
        );
        registry.register_with_unit(
            "api_answer",
            "From a request's parameters to its answer",
            Unit::Seconds,
            elapsed.clone(),
        );
        registry.register(
            "agents_connected",
            "Links of agents that are registered",
            agents.clone(),
        );
        registry.register("jobs_pending", "Jobs that wait or run", jobs.clone());
        Self {
            registry,
            requests,
            elapsed,
            agents,
            jobs,
        }
    }
}

impl Metrics {
    /// One answer. `command` is a name of the table, or `unknown`.
    pub(crate) fn answered(&self, command: &'static str, refused: Option<Code>, elapsed: Duration) {
        let code = refused.map_or(200, Code::number).to_string();
        let labels = [("command", command.to_owned()), ("code", code)];
        self.requests.get_or_create(&labels).inc();
        self.elapsed.observe(elapsed.as_secs_f64());
    }

    /// In the text format of OpenMetrics.
    pub(crate) fn text(&self, management: &Management) -> String {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.agents.set(number(management.agents.count()));
        self.jobs.set(number(management.jobs.pending()));
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
