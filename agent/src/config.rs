//! What an agent must know to start.

use std::path::PathBuf;
use std::time::Duration;

use protocol::boot::HostList;
use protocol::session::StartupCommand;

use crate::trust::TrustUnknown;

/// Which kind of system VM this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SSVM.
    SecondaryStorage,
    /// CPVM.
    ConsoleProxy {
        /// Port of the browser side.
        proxy_port: u16,
        /// Database id of the VM.
        proxy_vm_id: i64,
    },
}

/// An agent's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it is.
    pub kind: Kind,
    /// Management servers.
    pub hosts: HostList,
    /// Their port.
    pub port: u16,
    /// What the agent says of itself: zone, pod, guid, name, addresses. The members that change (`id`, `msHostList`,
    /// `connectionTransferred`) are filled in at each connection.
    pub startup: StartupCommand,
    /// Commands carried out at once.
    pub workers: usize,
    /// Directory of `agent.properties` and the PEM files.
    pub directory: PathBuf,
    /// What to think of a server as long as there is no key store.
    pub trust_unknown: TrustUnknown,
    /// Seconds between checks for the preferred server, if set here; it then wins over the server's wish.
    pub host_check_interval: Option<Duration>,
    /// Time limits.
    pub timing: Timing,
}

/// Time limits of the link (agent-protocol.md §1.1, §1.4, §4). Tests shorten them; programs use the default.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Wait after the first failed attempt; the Java agent's `backoff.seconds`.
    pub backoff: Duration,
    /// Longest wait between attempts.
    pub longest_backoff: Duration,
    /// For a TCP connection. The Java agent leaves it to the system, which takes minutes.
    pub connect: Duration,
    /// For the TLS handshake; `ssl.handshake.timeout`.
    pub handshake: Duration,
    /// For the StartupAnswer; doubled once it was not enough.
    pub startup: Duration,
    /// Intervals without a PingAnswer after which the link counts as dead.
    pub missed_pings: u32,
    /// Between the answer to MigrateAgentConnectionCommand and the move.
    pub migrate: Duration,
    /// For a look whether the preferred server listens.
    pub probe: Duration,
    /// For the last message before the end.
    pub farewell: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff: Duration::from_secs(5),
            longest_backoff: Duration::from_mins(1),
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(30),
            startup: Duration::from_mins(3),
            missed_pings: 3,
            migrate: Duration::from_secs(3),
            probe: Duration::from_secs(5),
            farewell: Duration::from_secs(1),
        }
    }
}
