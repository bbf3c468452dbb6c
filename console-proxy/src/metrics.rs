//! Numbers for Prometheus (§17).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use agent::service::NoAnswer;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::session::End;

type Labels = Vec<(&'static str, &'static str)>;
type Seconds = Counter<f64, AtomicU64>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// All of them.
pub struct Metrics {
    registry: Mutex<Registry>,
    live: Family<Labels, Gauge>,
    ended: Family<Labels, Counter>,
    authorised: Family<Labels, Counter>,
    asked: Histogram,
    connected: Histograms,
    shaken: Histogram,
    /// Kept at hand: these two move with every chunk.
    down: Counter,
    up: Counter,
    stalls: Family<Labels, Seconds>,
    ping: Histogram,
    reports: Family<Labels, Counter>,
    certificate_end: Gauge,
}

/// A session that counts as live until this is dropped.
pub struct Live(Gauge);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn from_milliseconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15)) // 1 ms to 16 s
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let bytes: Family<Labels, Counter> = Family::default();
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("console")),
            live: Family::default(),
            ended: Family::default(),
            authorised: Family::default(),
            asked: from_milliseconds(),
            connected: Histograms::new_with_constructor(from_milliseconds),
            shaken: from_milliseconds(),
            down: bytes.get_or_create_owned(&vec![("dir", "down")]),
            up: bytes.get_or_create_owned(&vec![("dir", "up")]),
            stalls: Family::default(),
            ping: from_milliseconds(),
            reports: Family::default(),
            certificate_end: Gauge::default(),
        };
        let mut registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("sessions", "Consoles that are open now", metrics.live.clone());
        registry.register(
            "sessions_ended",
            "Upgraded connections that have ended, by how",
            metrics.ended.clone(),
        );
        registry.register("auth", "Decisions about sessions", metrics.authorised.clone());
        let asked = "Time that the management server takes to decide";
        registry.register_with_unit("auth", asked, Unit::Seconds, metrics.asked.clone());
        let connected = "Time until a host lets us in";
        registry.register_with_unit("connect", connected, Unit::Seconds, metrics.connected.clone());
        let shaken = "Time until a console is open, or is not";
        registry.register_with_unit("handshake", shaken, Unit::Seconds, metrics.shaken.clone());
        registry.register("bytes", "Console bytes to browsers (down) and hosts (up)", bytes);
        let stalls = "Time spent waiting for a receiver";
        registry.register_with_unit("stall", stalls, Unit::Seconds, metrics.stalls.clone());
        let ping = "Time from a ping to its pong";
        registry.register_with_unit("ping_rtt", ping, Unit::Seconds, metrics.ping.clone());
        registry.register("report", "Reports to the management server", metrics.reports.clone());
        let end = "When the certificate for browsers ends, in seconds of the Unix epoch";
        registry.register("tls_cert_not_after", end, metrics.certificate_end.clone());
        drop(registry);
        metrics
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("a String takes everything");
        text
    }

    pub(crate) fn live(&self, backend: &'static str) -> Live {
        let gauge = self.live.get_or_create_owned(&vec![("backend", backend)]);
        gauge.inc();
        Live(gauge)
    }

    pub(crate) fn ended(&self, backend: &'static str, end: &End) {
        self.ended
            .get_or_create(&vec![("backend", backend), ("end", end.name())])
            .inc();
    }

    pub(crate) fn authorised(&self, result: &'static str) {
        self.authorised.get_or_create(&vec![("result", result)]).inc();
    }

    pub(crate) fn asked(&self, elapsed: Duration) {
        self.asked.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn connected(&self, backend: &'static str, elapsed: Duration) {
        self.connected
            .get_or_create(&vec![("backend", backend)])
            .observe(elapsed.as_secs_f64());
    }

    pub(crate) fn shaken(&self, elapsed: Duration) {
        self.shaken.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn moved_down(&self, bytes: u64) {
        self.down.inc_by(bytes);
    }

    pub(crate) fn moved_up(&self, bytes: u64) {
        self.up.inc_by(bytes);
    }

    pub(crate) fn stalled(&self, direction: &'static str, elapsed: Duration) {
        self.stalls
            .get_or_create(&vec![("dir", direction)])
            .inc_by(elapsed.as_secs_f64());
    }

    pub(crate) fn ping_answered(&self, elapsed: Duration) {
        self.ping.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn report(&self, delivered: Result<(), NoAnswer>) {
        let result = match delivered {
            Ok(()) => "delivered",
            Err(NoAnswer::NotConnected) => "not_connected",
            Err(NoAnswer::TimedOut) => "timed_out",
        };
        self.reports.get_or_create(&vec![("result", result)]).inc();
    }

    pub(crate) fn certificate(&self, not_after: i64) {
        self.certificate_end.set(not_after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted_under_the_documented_names() {
        let metrics = Metrics::new();
        let live = metrics.live("tcp");
        metrics.ended("tcp", &End::TakenOver);
        metrics.moved_down(7);
        metrics.stalled("up", Duration::from_millis(1500));
        metrics.report(Ok(()));
        let text = metrics.text();
        for line in [
            "console_sessions{backend=\"tcp\"} 1",
            "console_sessions_ended_total{backend=\"tcp\",end=\"taken_over\"} 1",
            "console_bytes_total{dir=\"down\"} 7",
            "console_bytes_total{dir=\"up\"} 0",
            "console_stall_seconds_total{dir=\"up\"} 1.5",
            "console_report_total{result=\"delivered\"} 1",
            "console_auth_seconds_count 0",
            "console_tls_cert_not_after 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        drop(live);
        assert!(metrics.text().contains("console_sessions{backend=\"tcp\"} 0\n"));
    }
}
