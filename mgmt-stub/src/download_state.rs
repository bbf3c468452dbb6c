//! How far a template on an image store is, and what changes that (management.md §10.1).
//!
//! ```text
//! NOT_DOWNLOADED --InProgress--> DOWNLOAD_IN_PROGRESS --Done--> DOWNLOADED
//!        |  ^                        |     ^
//!   Failed  Retry               Failed     InProgress
//!        v  |                        v     |
//!       DOWNLOAD_ERROR <-------------+-----+          any but DOWNLOADED --Abort--> ABANDONED
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use DownloadEvent::*;
use DownloadState::*;
use protocol::secondary_storage::{DownloadAnswer, DownloadStatus};

/// Without an answer for this long the agent is asked at once (management.md §10.1).
pub const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Without an answer for this long the download has failed.
pub const GIVE_UP: Duration = Duration::from_secs(50);
/// Tries before a download is left to a person. CloudStack has one, and another at each reconnect of an SSVM.
pub const ATTEMPTS: u32 = 5;

/// CloudStack's texts.
pub const TIMEOUT: &str = "Timeout waiting for response from storage host";
/// The link to the SSVM is gone.
pub const DISCONNECTED: &str = "Storage agent or storage VM disconnected";

/// The state of a template on a store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DownloadState {
    /// Nothing was heard of it yet.
    NotDownloaded,
    /// It comes.
    InProgress,
    /// It is there, checked and installed.
    Downloaded,
    /// It does not come; the error says why.
    Error,
    /// Its owner does not want it any more.
    Abandoned,
}

/// What happens to a download.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DownloadEvent {
    /// An agent works on it.
    Progress,
    /// An agent has installed it, or it was found on the store.
    Done,
    /// An agent could not, was silent for too long, or is gone.
    Failed,
    /// It is asked for once more.
    Retry,
    /// Its owner does not want it any more.
    Abort,
    /// It was there, and is not any more.
    Lost,
}

/// The event means nothing in this state; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{event:?} cannot happen to a template that is {state}")]
pub struct NoTransition {
    /// As it is.
    pub state: DownloadState,
    /// What was tried.
    pub event: DownloadEvent,
}

/// The text is no state.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a state of a download; there are NOT_DOWNLOADED, DOWNLOAD_IN_PROGRESS, DOWNLOADED, DOWNLOAD_ERROR and ABANDONED"
)]
pub struct BadDownloadState(String);

impl DownloadState {
    /// All of them.
    pub const ALL: [Self; 5] = [NotDownloaded, InProgress, Downloaded, Error, Abandoned];

    /// Every transition there is.
    ///
    /// # Errors
    /// There is none.
    pub fn on(self, event: DownloadEvent) -> Result<Self, NoTransition> {
        Ok(match (self, event) {
            // Also from Error: a good answer that came late counts.
            (NotDownloaded | InProgress | Error, Progress) => InProgress,
            (NotDownloaded | InProgress | Error | Downloaded, Done) => Downloaded,
            (NotDownloaded | InProgress | Error, Failed) => Error,
            (NotDownloaded | Error, Retry) | (Downloaded | NotDownloaded, Lost) => NotDownloaded,
            (NotDownloaded | InProgress | Error | Abandoned, Abort) => Abandoned,
            (state, event) => return Err(NoTransition { state, event }),
        })
    }

    /// CloudStack's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            NotDownloaded => "NOT_DOWNLOADED",
            InProgress => "DOWNLOAD_IN_PROGRESS",
            Downloaded => "DOWNLOADED",
            Error => "DOWNLOAD_ERROR",
            Abandoned => "ABANDONED",
        }
    }
}

/// What an answer of an agent means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// It works on it.
    Progress,
    /// It is installed.
    Done,
    /// It could not, for this reason.
    Failed(String),
    /// It does not know this job: it is to be asked for from the start.
    Unknown,
}

/// Reads an answer of either download command. `job` is the one that was asked for: an answer about another job is
/// none (ssvm.md §3.6).
pub fn heard(answer: &DownloadAnswer, job: Option<&str>) -> Option<Heard> {
    if let (Some(asked), Some(answered)) = (job, answer.job_id.as_deref())
        && asked != answered
    {
        return None;
    }
    let text = || {
        let text = answer.error_string.as_deref().map(str::trim).unwrap_or_default();
        if text.is_empty() {
            "the storage VM gave no reason; its log has more".to_owned()
        } else {
            text.chars().filter(|c| !c.is_control()).take(2000).collect()
        }
    };
    Some(match answer.download_status {
        Some(DownloadStatus::Downloaded) if answer.install_path.as_deref().is_none_or(str::is_empty) => {
            Heard::Failed("the storage VM says that it is downloaded, but not where".into())
        }
        Some(DownloadStatus::Downloaded) => Heard::Done,
        Some(DownloadStatus::DownloadInProgress | DownloadStatus::NotDownloaded) => Heard::Progress,
        Some(DownloadStatus::Unknown) => Heard::Unknown,
        Some(DownloadStatus::DownloadError) => Heard::Failed(text()),
        Some(other) => Heard::Failed(format!("the storage VM answered {other:?}: {}", text())),
        None => Heard::Failed(format!("the storage VM answered without a state: {}", text())),
    })
}

/// How long to wait for the next answer, after so much silence; `None`: no longer.
pub fn patience(silent: Duration) -> Option<Duration> {
    let rest = |limit: Duration| limit.checked_sub(silent).filter(|rest| !rest.is_zero());
    rest(ASK_AGAIN).or_else(|| rest(GIVE_UP))
}

/// The wait before the next attempt after `failed` ones: doubles each time; `None`: no more.
pub fn back_off(first: Duration, failed: u32) -> Option<Duration> {
    let doublings = failed.checked_sub(1).filter(|_| failed < ATTEMPTS)?;
    Some(first.saturating_mul(2_u32.saturating_pow(doublings)))
}

impl fmt::Display for DownloadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DownloadState {
    type Err = BadDownloadState;

    fn from_str(text: &str) -> Result<Self, BadDownloadState> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| BadDownloadState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_transitions_succeed() {
        let listed = [
            (
                NotDownloaded,
                [
                    Some(InProgress),
                    Some(Downloaded),
                    Some(Error),
                    Some(NotDownloaded),
                    Some(Abandoned),
                    Some(NotDownloaded),
                ],
            ),
            (
                InProgress,
                [
                    Some(InProgress),
                    Some(Downloaded),
                    Some(Error),
                    None,
                    Some(Abandoned),
                    None,
                ],
            ),
            (
                Downloaded,
                [None, Some(Downloaded), None, None, None, Some(NotDownloaded)],
            ),
            (
                Error,
                [
                    Some(InProgress),
                    Some(Downloaded),
                    Some(Error),
                    Some(NotDownloaded),
                    Some(Abandoned),
                    None,
                ],
            ),
            (Abandoned, [None, None, None, None, Some(Abandoned), None]),
        ];
        for (state, after) in listed {
            for (event, expected) in [Progress, Done, Failed, Retry, Abort, Lost].into_iter().zip(after) {
                assert_eq!(state.on(event).ok(), expected, "{state} by {event:?}");
            }
        }
    }

    #[test]
    fn silence_is_asked_into_after_30_s_and_an_error_after_50() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(seconds(0)), Some(seconds(30)));
        assert_eq!(patience(seconds(29)), Some(seconds(1)));
        assert_eq!(patience(seconds(30)), Some(seconds(20)));
        assert_eq!(patience(seconds(49)), Some(seconds(1)));
        assert_eq!(patience(seconds(50)), None);
        assert_eq!(patience(seconds(500)), None);
    }

    #[test]
    fn five_attempts_each_later_than_the_one_before() {
        let waits: Vec<_> = (1..=6).map(|failed| back_off(Duration::from_secs(2), failed)).collect();
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!(waits, [seconds(2), seconds(4), seconds(8), seconds(16), None, None]);
        assert_eq!(back_off(Duration::MAX, 4), Some(Duration::MAX));
    }

    #[test]
    fn answers_are_understood() {
        let answer = |status, text: &str, path: &str| DownloadAnswer {
            job_id: Some("j1".into()),
            download_status: status,
            error_string: Some(text.into()),
            install_path: Some(path.into()),
            ..DownloadAnswer::default()
        };
        let hear = |status, text, path| heard(&answer(status, text, path), Some("j1")).unwrap();
        assert_eq!(
            hear(Some(DownloadStatus::Downloaded), "", "template/tmpl/2/3/a.qcow2"),
            Heard::Done
        );
        assert!(matches!(
            hear(Some(DownloadStatus::Downloaded), "", ""),
            Heard::Failed(_)
        ));
        assert_eq!(hear(Some(DownloadStatus::DownloadInProgress), "", "p"), Heard::Progress);
        assert_eq!(hear(Some(DownloadStatus::NotDownloaded), "", "p"), Heard::Progress);
        assert_eq!(
            hear(Some(DownloadStatus::Unknown), "Cannot find job", ""),
            Heard::Unknown
        );
        assert_eq!(
            hear(Some(DownloadStatus::DownloadError), "404\n", ""),
            Heard::Failed("404".into())
        );
        assert!(
            matches!(hear(Some(DownloadStatus::DownloadError), "", ""), Heard::Failed(text) if text.contains("log"))
        );
        assert!(matches!(hear(None, "?", ""), Heard::Failed(_)));
        let other = answer(Some(DownloadStatus::Downloaded), "", "p");
        assert_eq!(heard(&other, Some("j2")), None, "another job's");
        assert_eq!(heard(&other, None), Some(Heard::Done), "the first answer names the job");
    }
}
