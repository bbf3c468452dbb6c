//! What the management server believes of a host, and what changes its mind.
//!
//! ```text
//! Creating --AgentConnected--> Connecting --Ready--> Up --ShutdownRequested--> Disconnected --Remove--> Removed
//!                                  ^                  |--AgentDisconnected---> Alert ----------Remove--> Removed
//!                                  +--AgentConnected--+--HostDown------------> Down -----------Remove--> Removed
//! ```

use std::fmt;
use std::str::FromStr;

use HostEvent::*;
use HostStatus::*;

/// apache/cloudstack api/…/host/Status.java; a connected SSVM or CPVM agent is a host, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostStatus {
    /// The row is new; its agent was not accepted yet.
    Creating,
    /// The agent is linked and is being set up.
    Connecting,
    /// Ready was answered: the host takes work.
    Up,
    /// The host was found to be dead.
    Down,
    /// The link ended in an orderly way, or our side ended it.
    Disconnected,
    /// The link ended for no known reason: a person may want to look.
    Alert,
    /// Deleted; the row stays for its history.
    Removed,
    Error,
    /// Moving from one management server to another.
    Rebalancing,
}

/// What happened to a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostEvent {
    /// A Startup command with this host's guid was accepted.
    AgentConnected,
    /// The agent answered ReadyCommand.
    Ready,
    Ping,
    /// A hypervisor host is behind on ping and was investigated.
    PingTimeout,
    /// An SSVM or CPVM is behind on ping: there is no investigation (management.md §13.2).
    SystemVmPingTimeout,
    /// The link closed without a word.
    AgentDisconnected,
    /// The agent sent ShutdownCommand, or an operator or a certificate renewal asked for a reconnect.
    ShutdownRequested,
    HostDown,
    /// This management server stops, or has just started and so has no links.
    ManagementServerDown,
    /// Disconnected for longer than `alert.wait`.
    WaitedTooLong,
    Remove,
}

/// The event means nothing in this status; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{event:?} cannot happen to a host that is {status}")]
pub struct Rejected {
    pub status: HostStatus,
    pub event: HostEvent,
}

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a host status; CloudStack knows Creating, Connecting, Up, Down, Disconnected, Alert, Removed, Error and Rebalancing"
)]
pub struct BadHostStatus(String);

impl HostStatus {
    pub const ALL: [Self; 9] = [
        Creating,
        Connecting,
        Up,
        Down,
        Disconnected,
        Alert,
        Removed,
        Error,
        Rebalancing,
    ];

    /// Every transition there is: management.md §13.3, and where marked agent-protocol.md §4.6.
    pub fn on(self, event: HostEvent) -> Result<Self, Rejected> {
        Ok(match (self, event) {
            // All but Removed: agent-protocol.md §4.6 adds Connecting, for an agent that lost its link during set-up.
            (Creating | Connecting | Up | Down | Disconnected | Alert | Error | Rebalancing, AgentConnected) => {
                Connecting
            }

            (Connecting, Ready) | (Up | Disconnected | Alert, Ping) => Up,

            (Connecting | Up | Disconnected, PingTimeout)
            | (Connecting | Up, AgentDisconnected)
            | (Disconnected, WaitedTooLong) => Alert,

            // SystemVmPingTimeout: agent-protocol.md §4.6, "ping time-out: status Disconnected, link closed".
            (Connecting | Up | Alert | Down, ShutdownRequested)
            | (Connecting | Up, ManagementServerDown | SystemVmPingTimeout) => Disconnected,

            (Connecting | Up | Disconnected | Alert, HostDown) => Down,
            (Up | Disconnected | Alert | Down, Remove) => Removed,

            // Hearing it again, or late, is fine (apache/cloudstack api/…/host/Status.java): set-up may outlast a ping
            // interval, and a link that ends in an orderly way closes after it said so.
            (Connecting, Ping)
            | (Disconnected, ShutdownRequested | ManagementServerDown | AgentDisconnected)
            | (Alert, ManagementServerDown | AgentDisconnected)
            | (Down, ManagementServerDown | AgentDisconnected | PingTimeout | HostDown) => self,

            (status, event) => return Err(Rejected { status, event }),
        })
    }

    /// Commands are sent to hosts that are Connecting or Up (agent-protocol.md §4.6).
    pub fn takes_commands(self) -> bool {
        matches!(self, Connecting | Up)
    }

    /// CloudStack's spelling, in its API and in our database.
    pub fn as_str(self) -> &'static str {
        match self {
            Creating => "Creating",
            Connecting => "Connecting",
            Up => "Up",
            Down => "Down",
            Disconnected => "Disconnected",
            Alert => "Alert",
            Removed => "Removed",
            Error => "Error",
            Rebalancing => "Rebalancing",
        }
    }
}

impl fmt::Display for HostStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for HostStatus {
    type Err = BadHostStatus;

    fn from_str(text: &str) -> Result<Self, BadHostStatus> {
        let known = Self::ALL.into_iter().find(|status| status.as_str() == text);
        known.ok_or_else(|| BadHostStatus(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [HostEvent; 11] = [
        AgentConnected,
        Ready,
        Ping,
        PingTimeout,
        SystemVmPingTimeout,
        AgentDisconnected,
        ShutdownRequested,
        HostDown,
        ManagementServerDown,
        WaitedTooLong,
        Remove,
    ];

    /// Rows are statuses, columns the events above; `.` is a rejection. Written out a second time, by hand, on purpose.
    const TABLE: &str = "
                     Connected Ready Ping PingT SysPingT AgentDisc Shutdown HostDown MgmtDown Waited Remove
        Creating     Connecting .    .    .     .        .         .        .        .        .      .
        Connecting   Connecting Up   Connecting Alert Disconnected Alert Disconnected Down Disconnected . .
        Up           Connecting .    Up   Alert Disconnected Alert Disconnected Down Disconnected . Removed
        Down         Connecting .    .    Down  .        Down      Disconnected Down Down     .      Removed
        Disconnected Connecting .    Up   Alert .        Disconnected Disconnected Down Disconnected Alert Removed
        Alert        Connecting .    Up   .     .        Alert     Disconnected Down Alert    .      Removed
        Removed      .          .    .    .     .        .         .        .        .        .      .
        Error        Connecting .    .    .     .        .         .        .        .        .      .
        Rebalancing  Connecting .    .    .     .        .         .        .        .        .      .";

    #[test]
    fn every_status_answers_every_event_as_the_table_says() {
        let rows: Vec<Vec<&str>> = TABLE
            .lines()
            .skip(2)
            .map(|row| row.split_whitespace().collect())
            .collect();
        assert_eq!(rows.len(), HostStatus::ALL.len());
        for (status, row) in HostStatus::ALL.into_iter().zip(rows) {
            assert_eq!((status.as_str(), row.len()), (row[0], 1 + EVENTS.len()));
            for (event, wanted) in EVENTS.into_iter().zip(&row[1..]) {
                let found = status.on(event).map_or(".", HostStatus::as_str);
                assert_eq!(found, *wanted, "{status} --{event:?}-->");
            }
        }
    }

    #[test]
    fn statuses_are_read_as_they_are_written() {
        for status in HostStatus::ALL {
            assert_eq!(status.to_string().parse(), Ok(status));
        }
        assert_eq!("up".parse::<HostStatus>(), Err(BadHostStatus("up".to_owned())));
    }

    #[test]
    fn a_rejection_names_both_sides() {
        let rejected = Removed.on(Ping).unwrap_err();
        assert_eq!(rejected.to_string(), "Ping cannot happen to a host that is Removed");
    }
}
