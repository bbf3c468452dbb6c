//! A download job as the server sees it: states and answers (ssvm.md §3.6).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use protocol::ovf::OVFInformationTO;
use protocol::secondary_storage::{DownloadAnswer, DownloadStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::order::Order;

/// What a job is doing.
///
/// ```text
/// Waiting --place--> Transferring --all bytes--> Installing --> Done
///    any of the three --> Failed | Aborted;   Aborted --RESTART--> Waiting
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// For its turn.
    Waiting,
    /// Bytes are coming.
    Transferring,
    /// All bytes are here; they are checked and put in place.
    Installing,
    /// The image is in the store.
    Done,
    /// For good.
    Failed,
    /// The server stopped it.
    Aborted,
}

impl State {
    /// Nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Aborted)
    }

    /// What the server is told.
    pub fn reported(self) -> DownloadStatus {
        match self {
            Self::Waiting | Self::Transferring | Self::Installing => DownloadStatus::DownloadInProgress,
            Self::Done => DownloadStatus::Downloaded,
            Self::Failed => DownloadStatus::DownloadError,
            Self::Aborted => DownloadStatus::NotDownloaded,
        }
    }
}

/// Everything an answer says, except what counts up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// For people: `errorString`.
    pub text: String,
    /// Absolute; `None` before there is one.
    pub temporary: Option<String>,
    /// Relative to the store: the directory, or at the end the file.
    pub install_path: String,
    /// Bytes the guest sees; 0 until known.
    pub virtual_size: u64,
    /// Bytes of the installed file; 0 until known.
    pub physical_size: u64,
    /// `{ALG}hex` of the bytes as they came.
    pub checksum: Option<String>,
    /// Of an OVA.
    #[serde(with = "crate::journal::ovf_as_sent")]
    pub ovf: Option<Box<OVFInformationTO>>,
}

/// A job. Who carries it out writes here; who answers the server reads here, and touches no store.
#[derive(Debug)]
pub struct Job {
    /// UUID.
    pub id: String,
    /// What was asked for.
    pub order: Order,
    status: watch::Sender<Status>,
    received: AtomicU64,
    /// 0: unknown.
    expected: AtomicU64,
    run: Mutex<Run>,
}

/// Who carries the job out, and whether anybody will ask for it again.
#[derive(Debug, Default)]
struct Run {
    stop: CancellationToken,
    is_over: bool,
    is_forgotten: bool,
}

impl Job {
    /// A job that waits for its turn.
    pub fn new(id: String, order: Order) -> Self {
        let status = Self::first_status(&order);
        Self::with(id, order, status, Run::default())
    }

    /// A job that ended in an earlier life of this program.
    pub fn with_status(id: String, order: Order, status: Status) -> Self {
        let run = Run {
            is_over: true,
            ..Run::default()
        };
        Self::with(id, order, status, run)
    }

    fn with(id: String, order: Order, status: Status, run: Run) -> Self {
        let received = status.physical_size;
        Self {
            id,
            order,
            status: watch::Sender::new(status),
            received: AtomicU64::new(received),
            expected: AtomicU64::new(received),
            run: Mutex::new(run),
        }
    }

    fn first_status(order: &Order) -> Status {
        Status {
            state: State::Waiting,
            text: "Waiting for other downloads to finish".into(),
            temporary: None,
            install_path: order.install_path.to_string(),
            virtual_size: 0,
            physical_size: 0,
            checksum: order.checksum.clone(),
            ovf: None,
        }
    }

    /// As it is now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// What it is doing now.
    pub fn state(&self) -> State {
        self.status.borrow().state
    }

    /// Changes the status; whoever waits is told.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// Bytes that have come, and how many there will be if that is known.
    pub fn set_progress(&self, received: u64, expected: Option<u64>) {
        self.received.store(received, Ordering::Relaxed);
        self.expected.store(expected.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// If it has ended, makes it ready for another run. Tells whether it is.
    pub fn reset(&self) -> bool {
        let mut run = self.run();
        let is_reset = self.status.send_if_modified(|status| {
            let is_final = status.state.is_final();
            if is_final {
                *status = Self::first_status(&self.order);
            }
            is_final
        });
        if is_reset {
            (run.stop, run.is_over) = (CancellationToken::new(), false);
            self.set_progress(0, None);
        }
        is_reset
    }

    /// Cancelled when the job shall stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.run().stop.clone()
    }

    /// Asks it to stop.
    pub fn stop(&self) {
        self.run().stop.cancel();
    }

    /// Nothing of its run goes on any more. Tells whether it was forgotten meanwhile.
    pub fn set_over(&self) -> bool {
        let mut run = self.run();
        run.is_over = true;
        run.is_forgotten
    }

    /// Nobody will ask for it again. Tells whether its run is over.
    pub fn set_forgotten(&self) -> bool {
        let mut run = self.run();
        run.is_forgotten = true;
        run.is_over
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().expect("nothing panics while holding it")
    }

    /// Waits until it has ended, at most `limit`.
    pub async fn ended_within(&self, limit: Duration) {
        let mut status = self.status.subscribe();
        let ended = status.wait_for(|status| status.state.is_final());
        let _ = tokio::time::timeout(limit, ended).await;
    }

    fn percent(&self) -> i64 {
        if self.state() == State::Done {
            return 100;
        }
        let expected = match self.expected.load(Ordering::Relaxed) {
            0 => self.order.max_bytes,
            expected => expected,
        };
        let percent = u128::from(self.received()) * 100 / u128::from(expected.max(1));
        i64::try_from(percent.min(100)).unwrap_or(100)
    }

    fn text(&self, status: &Status) -> String {
        let (received, expected) = (self.received(), self.expected.load(Ordering::Relaxed));
        match (status.state, expected) {
            (State::Transferring, _) if !status.text.is_empty() => status.text.clone(),
            (State::Transferring, 0) => format!("Downloaded {} (incomplete download)", human(received)),
            (State::Transferring, _) => {
                format!(
                    "Downloaded {} of {} (incomplete download)",
                    human(received),
                    human(expected)
                )
            }
            _ => status.text.clone(),
        }
    }

    /// The answer to a DownloadCommand or, with `counts_bytes`, to a DownloadProgressCommand.
    pub fn answer(&self, counts_bytes: bool) -> DownloadAnswer {
        let status = self.status();
        let text = self.text(&status);
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // The server keeps the sizes of the first answer that says DOWNLOADED.
        let physical = match status.state {
            State::Done => status.physical_size,
            _ if counts_bytes => self.received(),
            _ => 0,
        };
        DownloadAnswer {
            job_id: Some(self.id.clone()),
            download_pct: self.percent(),
            error_string: Some(text),
            download_status: Some(status.state.reported()),
            download_path: status.temporary,
            install_path: Some(status.install_path.trim_matches('/').to_owned()),
            template_size: size(status.virtual_size),
            template_physical_size: size(physical),
            check_sum: status.checksum,
            ovf_information_to: status.ovf,
        }
    }
}

/// Bytes for people.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = bytes.saturating_mul(10);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use protocol::secondary_storage::DownloadCommand;
    use protocol::transfer::{DataStoreTO, ImageFormat, NfsTO};

    use super::*;

    fn job() -> Job {
        let store = NfsTO {
            url: Some("nfs://192.168.10.5/export".into()),
            ..NfsTO::default()
        };
        let command = DownloadCommand {
            url: Some("http://203.0.113.9/a.qcow2".into()),
            name: Some("207-2-demo".into()),
            install_path: Some("template/tmpl/2/207/".into()),
            store: Some(DataStoreTO::Nfs(store)),
            resource_type: Some(protocol::secondary_storage::ResourceType::Template),
            format: Some(ImageFormat::Qcow2),
            max_download_size_in_bytes: Some(1000),
            ..DownloadCommand::default()
        };
        Job::new("j".into(), Order::parse(&command).unwrap())
    }

    #[test]
    fn percent_counts_against_the_limit_while_the_length_is_unknown() {
        let job = job();
        job.update(|status| {
            status.state = State::Transferring;
            status.text.clear();
        });
        job.set_progress(100, None);
        assert_eq!(job.answer(true).download_pct, 10);
        job.set_progress(100, Some(200));
        let answer = job.answer(true);
        assert_eq!(answer.download_pct, 50);
        assert_eq!(answer.template_physical_size, 100);
        assert_eq!(
            answer.error_string.as_deref(),
            Some("Downloaded 100 bytes of 200 bytes (incomplete download)")
        );
        assert_eq!(answer.install_path.as_deref(), Some("template/tmpl/2/207"));
        assert_eq!(job.answer(false).template_physical_size, 0);
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(human(1023), "1023 bytes");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(5 << 30), "5.0 GiB");
    }

    #[tokio::test]
    async fn who_waits_is_told_of_the_end_and_no_later_than_the_limit() {
        let job = job();
        job.ended_within(Duration::from_millis(20)).await;
        assert_eq!(job.state(), State::Waiting);
        job.update(|status| status.state = State::Failed);
        job.ended_within(Duration::from_secs(3)).await;
        assert_eq!(job.answer(true).download_status, Some(DownloadStatus::DownloadError));
        job.stop();
        assert!(job.stop_token().is_cancelled());
        assert!(job.reset());
        assert_eq!(job.state(), State::Waiting);
        assert!(!job.stop_token().is_cancelled() && !job.reset());
    }

    #[test]
    fn whoever_comes_last_takes_the_job_out_of_the_journal() {
        let purged_first = job();
        assert!(!purged_first.set_forgotten());
        assert!(purged_first.set_over());
        let over_first = job();
        assert!(!over_first.set_over());
        assert!(over_first.set_forgotten());
    }
}
