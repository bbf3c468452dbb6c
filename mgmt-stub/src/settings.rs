//! How the agent side of the server behaves. Names in the comments are CloudStack's settings, defaults are theirs.

use std::time::Duration;

use crate::client_auth::{Expired, Strictness};

/// Settings of the agent link. Tests shorten times; the server takes the defaults or its command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `ping.interval`: seconds between pings, told to each agent.
    pub ping_interval: Duration,
    /// `ping.timeout`: intervals of silence after which a link is given up.
    pub ping_timeout: f64,
    /// `agent.ssl.handshake.timeout`.
    pub handshake_limit: Duration,
    /// From the end of the handshake to the startup command; upstream has no limit, so a silent peer stays for ever.
    pub startup_limit: Duration,
    /// `ready.command.wait`: for ReadyCommand; as for all commands the server waits twice as long as it says.
    pub ready_wait: Duration,
    /// For commands that say nothing themselves: twice CloudStack's `wait`, as the stock server waits.
    pub default_wait: Duration,
    /// Links at the same time. More are closed at once, before TLS.
    pub max_links: usize,
    /// Of these, links of peers that have not said yet who they are: strangers cannot take the places of agents.
    pub max_strangers: usize,
    /// `host`: the addresses of the management servers, as agents should use them. Empty: agents keep what they have.
    pub hosts: Vec<String>,
    /// `indirect.agent.lb.algorithm`.
    pub lb_algorithm: String,
    /// `indirect.agent.lb.check.interval`.
    pub lb_check_interval: Duration,
    /// `ca.plugin.root.auth.strictness`.
    pub strictness: Strictness,
    /// `ca.plugin.root.allow.expired.cert`.
    pub expired: Expired,
    /// `secstorage.allowed.internal.sites`.
    pub allowed_internal_sites: Vec<String>,
    /// `alert.wait`: a host that is Disconnected for longer becomes Alert.
    pub alert_wait: Duration,
    /// `ca.framework.background.task.delay`: how often certificates are looked at.
    pub renewal_check: Duration,
    /// `ca.framework.cert.expiry.alert.period`: renewed when they end within this time.
    pub renewal_period: time::Duration,
    /// How often the times of the last pings are written to the store.
    pub ping_flush: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_mins(1),
            ping_timeout: 2.5,
            handshake_limit: Duration::from_secs(30),
            startup_limit: Duration::from_mins(1),
            ready_wait: Duration::from_mins(1),
            default_wait: Duration::from_hours(1),
            max_links: 20_000,
            max_strangers: 2_000,
            hosts: Vec::new(),
            lb_algorithm: "static".into(),
            lb_check_interval: Duration::ZERO,
            strictness: Strictness::Optional,
            expired: Expired::Accepted,
            allowed_internal_sites: Vec::new(),
            alert_wait: Duration::from_mins(30),
            renewal_check: Duration::from_hours(1),
            renewal_period: time::Duration::days(15),
            ping_flush: Duration::from_secs(10),
        }
    }
}
