//! The states of an instance, and every way from one to another (management.md §2).

use std::fmt;
use std::str::FromStr;

use InstanceEvent::*;
use InstanceState::*;

/// apache/cloudstack api/…/com/cloud/vm/VirtualMachine.java, without the states of backups.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InstanceState {
    /// Being started.
    Starting,
    /// Powered on.
    Running,
    /// Being stopped.
    Stopping,
    /// Powered off; its row and addresses stay.
    Stopped,
    /// Deleted by its owner, recoverable.
    Destroyed,
    /// Being removed for good.
    Expunging,
    /// On its way to another host.
    Migrating,
    /// It could not be created.
    Error,
    /// Nothing is known.
    Unknown,
    /// Shut down from inside.
    Shutdown,
}

/// What happens to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the names are CloudStack's and say it")]
pub enum InstanceEvent {
    StartRequested,
    StopRequested,
    DestroyRequested,
    RecoveryRequested,
    MigrationRequested,
    StorageMigrationRequested,
    ExpungeOperation,
    OperationSucceeded,
    OperationFailed,
    OperationFailedToError,
    OperationRetry,
    AgentReportRunning,
    AgentReportStopped,
    AgentReportShutdowned,
    AgentReportMigrated,
    FollowAgentPowerOnReport,
    FollowAgentPowerOffReport,
}

/// The event means nothing in this state; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no transition from {state} by {event:?}")]
pub struct NoTransition {
    /// As it is.
    pub state: InstanceState,
    /// What was tried.
    pub event: InstanceEvent,
}

/// The text is no state.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a state of an instance; CloudStack knows Starting, Running, Stopping, Stopped, Destroyed, Expunging, Migrating, Error, Unknown and Shutdown"
)]
pub struct BadInstanceState(String);

impl InstanceState {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Starting, Running, Stopping, Stopped, Destroyed, Expunging, Migrating, Error, Unknown, Shutdown,
    ];

    /// Every transition there is.
    ///
    /// # Errors
    /// There is none.
    pub fn on(self, event: InstanceEvent) -> Result<Self, NoTransition> {
        Ok(match (self, event) {
            (Stopped, StartRequested) | (Starting, OperationRetry) => Starting,
            (Starting | Running | Migrating, OperationSucceeded)
            | (Stopping | Migrating, OperationFailed)
            | (Starting | Running | Stopping | Migrating, AgentReportRunning)
            | (Running, AgentReportMigrated)
            | (Starting | Stopping | Stopped | Running | Migrating, FollowAgentPowerOnReport) => Running,
            (Running | Stopping, StopRequested) => Stopping,
            (Stopped, StopRequested)
            | (Stopped | Starting, OperationFailed)
            | (Stopping, OperationSucceeded)
            | (
                Stopped | Starting | Running | Stopping | Migrating,
                AgentReportStopped | AgentReportShutdowned | FollowAgentPowerOffReport,
            )
            | (Destroyed, RecoveryRequested) => Stopped,
            (Running | Migrating, MigrationRequested) | (Stopped, StorageMigrationRequested) => Migrating,
            (Stopped, DestroyRequested) => Destroyed,
            (Stopped | Destroyed | Error | Expunging, ExpungeOperation)
            | (Error, DestroyRequested)
            | (Expunging, OperationFailed) => Expunging,
            (Stopped | Expunging, OperationFailedToError) => Error,
            (state, event) => return Err(NoTransition { state, event }),
        })
    }

    /// CloudStack's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Starting => "Starting",
            Running => "Running",
            Stopping => "Stopping",
            Stopped => "Stopped",
            Destroyed => "Destroyed",
            Expunging => "Expunging",
            Migrating => "Migrating",
            Error => "Error",
            Unknown => "Unknown",
            Shutdown => "Shutdown",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for InstanceState {
    type Err = BadInstanceState;

    fn from_str(text: &str) -> Result<Self, BadInstanceState> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| BadInstanceState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// management.md §2, written down a second time in its own order.
    const TABLE: &str = "
        Stopped: StartRequested>Starting StopRequested>Stopped DestroyRequested>Destroyed ExpungeOperation>Expunging StorageMigrationRequested>Migrating OperationFailed>Stopped OperationFailedToError>Error AgentReportStopped>Stopped AgentReportShutdowned>Stopped
        Starting: OperationSucceeded>Running OperationFailed>Stopped OperationRetry>Starting AgentReportRunning>Running AgentReportStopped>Stopped AgentReportShutdowned>Stopped
        Running: StopRequested>Stopping MigrationRequested>Migrating OperationSucceeded>Running AgentReportRunning>Running AgentReportMigrated>Running AgentReportStopped>Stopped AgentReportShutdowned>Stopped
        Stopping: OperationSucceeded>Stopped OperationFailed>Running StopRequested>Stopping AgentReportRunning>Running AgentReportStopped>Stopped AgentReportShutdowned>Stopped
        Migrating: MigrationRequested>Migrating OperationSucceeded>Running OperationFailed>Running AgentReportRunning>Running AgentReportStopped>Stopped AgentReportShutdowned>Stopped
        Destroyed: RecoveryRequested>Stopped ExpungeOperation>Expunging
        Expunging: OperationFailed>Expunging ExpungeOperation>Expunging OperationFailedToError>Error
        Error: DestroyRequested>Expunging ExpungeOperation>Expunging
        Starting: FollowAgentPowerOnReport>Running FollowAgentPowerOffReport>Stopped
        Stopping: FollowAgentPowerOnReport>Running FollowAgentPowerOffReport>Stopped
        Stopped: FollowAgentPowerOnReport>Running FollowAgentPowerOffReport>Stopped
        Running: FollowAgentPowerOnReport>Running FollowAgentPowerOffReport>Stopped
        Migrating: FollowAgentPowerOnReport>Running FollowAgentPowerOffReport>Stopped";

    const EVENTS: [InstanceEvent; 17] = [
        StartRequested,
        StopRequested,
        DestroyRequested,
        RecoveryRequested,
        MigrationRequested,
        StorageMigrationRequested,
        ExpungeOperation,
        OperationSucceeded,
        OperationFailed,
        OperationFailedToError,
        OperationRetry,
        AgentReportRunning,
        AgentReportStopped,
        AgentReportShutdowned,
        AgentReportMigrated,
        FollowAgentPowerOnReport,
        FollowAgentPowerOffReport,
    ];

    #[test]
    fn only_the_listed_transitions_succeed() {
        let mut listed = std::collections::HashMap::new();
        for line in TABLE.lines().filter(|line| !line.trim().is_empty()) {
            let (from, pairs) = line.trim().split_once(": ").unwrap();
            for pair in pairs.split(' ') {
                let (event, to) = pair.split_once('>').unwrap();
                listed.insert((from.to_owned(), event.to_owned()), to.to_owned());
            }
        }
        for state in InstanceState::ALL {
            for event in EVENTS {
                let expected = listed.remove(&(state.to_string(), format!("{event:?}")));
                let found = state.on(event).ok().map(|state| state.to_string());
                assert_eq!(found, expected, "{state} by {event:?}");
            }
        }
        assert_eq!(listed.len(), 0, "{listed:?}");
    }

    #[test]
    fn states_are_read_back() {
        for state in InstanceState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
