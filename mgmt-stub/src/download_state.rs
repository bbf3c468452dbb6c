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
    /// It could not.
    Failed {
        /// Why.
        text: String,
        /// No other attempt will succeed either.
        is_final: bool,
    },
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
    let is_final = is_final(answer.error_string.as_deref().unwrap_or_default());
    let failed = |text| Heard::Failed { text, is_final };
    Some(match answer.download_status {
        Some(DownloadStatus::Downloaded) if answer.install_path.as_deref().is_none_or(str::is_empty) => {
            failed("the storage VM says that it is downloaded, but not where".into())
        }
        Some(DownloadStatus::Downloaded) => Heard::Done,
        // A checksum of an unknown kind is answered so (ssvm.md §3.1).
        Some(DownloadStatus::NotDownloaded) if is_final => failed(text()),
        Some(DownloadStatus::DownloadInProgress | DownloadStatus::NotDownloaded) => Heard::Progress,
        Some(DownloadStatus::Unknown) => Heard::Unknown,
        Some(DownloadStatus::DownloadError) => failed(text()),
        Some(other) => failed(format!("the storage VM answered {other:?}: {}", text())),
        None => failed(format!("the storage VM answered without a state: {}", text())),
    })
}

/// How agents say that no attempt will ever succeed: how the text begins, and what follows somewhere (ssvm.md §3.1,
/// §3.3 to §3.7, §8.2). Texts are all that answers have: CloudStack's own, which ours continue, and those only ours has.
const FINAL: &[(&str, &str)] = &[
    ("", " is corrupted on storage due to an invalid url"),
    ("Invalid Name", ""),
    ("invalid algorithm:", ""),
    ("URI is incorrect:", ""),
    ("Unable to download from URL:", ""),
    ("Scheme is not supported", ""),
    ("Unsupported scheme for url:", ""),
    ("Unsupported image data store:", ""),
    ("Illegal host specified in URL.", ""),
    ("IPv6 addresses are not supported", ""),
    ("port ", " is not allowed for downloads"),
    ("Failed to download ", " due to redirection, response code: "),
    ("Failed to receive length of download", ""),
    ("Download file size is too large", ""),
    ("the file at ", " is empty"),
    ("Failed to install: Template content is unsupported, or mismatch", ""),
    ("Failed to install: the file unpacks to more than ", ""),
    ("Failed to install: the ", " data is damaged or incomplete"),
    ("Failed to install: the zip file cannot be used", ""),
    (
        "Failed post download script: checksum ",
        " didn't match the given value",
    ),
    (
        "Failed post download script: The downloaded file is not a valid QCOW2.",
        "",
    ),
    (
        "Failed post download script: Unable to install due to invalid file format",
        "",
    ),
    ("Unable to install due to invalid file format", ""),
    // What our ssvm says of an image whose header breaks a rule.
    ("Failed post download script: it ", ""),
    ("Failed post download script: its ", ""),
    ("Failed post download script: in its ", ""),
];
/// RFC 9110 §15.5.9, RFC 8470 §5.2, RFC 6585 §4: the statuses from 400 to 499 after which a client may try again.
const PASSING: [u16; 3] = [408, 425, 429];

/// Whether an agent's text says that trying again is of no use. What is not known is tried again.
pub fn is_final(text: &str) -> bool {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("HTTP Server returned ") {
        let status = rest.split(' ').next().and_then(|code| code.parse::<u16>().ok());
        return status.is_some_and(|code| (400..500).contains(&code) && !PASSING.contains(&code));
    }
    let is = |(opening, more): &(&str, &str)| text.strip_prefix(opening).is_some_and(|rest| rest.contains(more));
    FINAL.iter().any(is)
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
    fn what_no_attempt_can_change_is_final_and_the_rest_is_not() {
        let of_java_agents = [
            " HTTP Server returned 404 (expected 200 OK) ",
            " HTTP Server returned 403 (expected 200 OK) ",
            "Failed to download http://203.0.113.9/img/a.qcow2 due to redirection, response code: 302",
            "Illegal host specified in URL.",
            "IPv6 addresses are not supported (2001:db8::1).",
            "Unsupported scheme for url: ftp://203.0.113.9/a",
            "Scheme is not supported ftp://203.0.113.9/a",
            "URI is incorrect: a b",
            " Failed to receive length of download ",
            "Download file size is too large",
            "Failed to install: Template content is unsupported, or mismatch between selected format and Template content. \
             Found  : ASCII text",
            "Failed post download script: The downloaded file is not a valid QCOW2. Ask the administrator to check the \
             logs for more details.",
            "Failed post download script: checksum \"{MD5}1\" didn't match the given value, \"{MD5}0\"",
            "Unable to install due to invalid file format",
            "invalid algorithm: {CRC32}352441c2",
            "TEMPLATE is corrupted on storage due to an invalid url , cannot download",
            "Invalid Name",
        ];
        let of_ours = [
            " HTTP Server returned 410 (expected 200 OK) (http://203.0.113.9/a: check the URL)",
            "port 22 is not allowed for downloads (http://203.0.113.9:22/a); the administrator allows [80, 443]",
            "the file at http://203.0.113.9/a is empty: its length is 0; check the URL",
            "Failed to install: the file unpacks to more than 100 times its size, which no disk image does; it looks like a \
             decompression bomb (http://203.0.113.9/a.gz)",
            "Failed to install: the gzip data is damaged or incomplete: corrupt deflate stream; publish the file again (…)",
            "Failed to install: the zip file cannot be used: it has two members (http://203.0.113.9/a.zip)",
            "Failed post download script: its VMDK version is 7; 1 to 3 are known (http://203.0.113.9/a.vmdk)",
            "Failed post download script: it has a member \"a\" twice (http://203.0.113.9/a.ova)",
        ];
        for text in of_java_agents.iter().chain(&of_ours) {
            assert!(is_final(text), "{text}");
        }
        let passing = [
            "",
            " HTTP Server returned 408 (expected 200 OK) ",
            " HTTP Server returned 425 (expected 200 OK) ",
            " HTTP Server returned 429 (expected 200 OK) ",
            " HTTP Server returned 500 (expected 200 OK) ",
            " HTTP Server returned 503 (expected 200 OK) (http://203.0.113.9/a: try again later)",
            " HTTP Server returned nothing",
            "HTTP Server does not support partial get",
            "Unable to resolve example.org.",
            "Connection reset",
            "Internal Error",
            "Failed to install: the store said: Input/output error (os error 5)",
            "Failed to install: cannot write to the store (http://203.0.113.9/HTTP Server returned 404)",
            "Failed post download script: No space left on device",
            "No space left on secondary storage nfs://192.0.2.5/a for http://203.0.113.9/a; delete what is not needed",
            "the source (http://203.0.113.9/a) sent nothing for 120s; try again when it is less busy",
            "the proxy 192.0.2.1:3128 does not lead to http://203.0.113.9/a: refused; check the setting secstorage.proxy",
            "Unable to mount nfs on /mnt due to timeout",
            DISCONNECTED,
            TIMEOUT,
        ];
        for text in passing {
            assert!(!is_final(text), "{text}");
        }
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
            Heard::Failed { .. }
        ));
        assert_eq!(hear(Some(DownloadStatus::DownloadInProgress), "", "p"), Heard::Progress);
        assert_eq!(hear(Some(DownloadStatus::NotDownloaded), "", "p"), Heard::Progress);
        assert_eq!(
            hear(Some(DownloadStatus::Unknown), "Cannot find job", ""),
            Heard::Unknown
        );
        let failed = |text: &str, is_final| {
            let text = text.to_owned();
            Heard::Failed { text, is_final }
        };
        let error = Some(DownloadStatus::DownloadError);
        assert_eq!(hear(error, "broken\n", ""), failed("broken", false));
        assert_eq!(hear(error, "Invalid Name", ""), failed("Invalid Name", true));
        let algorithm = "invalid algorithm: {CRC32}352441c2";
        assert_eq!(
            hear(Some(DownloadStatus::NotDownloaded), algorithm, ""),
            failed(algorithm, true)
        );
        assert!(matches!(hear(error, "", ""), Heard::Failed { text, .. } if text.contains("log")));
        assert!(matches!(hear(None, "?", ""), Heard::Failed { .. }));
        let other = answer(Some(DownloadStatus::Downloaded), "", "p");
        assert_eq!(heard(&other, Some("j2")), None, "another job's");
        assert_eq!(heard(&other, None), Some(Heard::Done), "the first answer names the job");
    }
}
