//! All download jobs: who starts, finds, stops and forgets them (ssvm.md §3.6).

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use indexmap::IndexMap;
use protocol::answer::Answer;
use protocol::secondary_storage::{
    DownloadAnswer, DownloadCommand, DownloadProgressCommand, DownloadRequest, DownloadStatus,
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::engine::{Engine, Start};
use crate::job::{Job, State};
use crate::journal::Entry;
use crate::order::{Order, Unacceptable};
use crate::source::Shown;

/// How long an answer waits for a quick end (§3.1) or a stop (§3.6).
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// Jobs known at once, finished ones included. Each is small, but a server that never purges must not fill the memory.
const MAX_JOBS: usize = 1000;

/// The registry, the oldest first. Its lock is held for look-ups only.
#[derive(Debug)]
pub struct Jobs {
    engine: Arc<Engine>,
    jobs: Mutex<IndexMap<String, Arc<Job>>>,
}

impl Jobs {
    /// Takes up what an earlier life of this program left, by its journal: finished jobs are known again, others go on.
    pub async fn resume(engine: Arc<Engine>, entries: Vec<Entry>) -> Self {
        let jobs = Self {
            engine,
            jobs: Mutex::default(),
        };
        for entry in entries {
            jobs.take_up(entry).await;
        }
        jobs
    }

    async fn take_up(&self, entry: Entry) {
        let Ok(order) = Order::parse(&entry.command) else {
            self.engine.journal.remove(&entry.job).await;
            return;
        };
        let id = entry.job.clone();
        let Some(status) = entry.ended.clone() else {
            let job = Arc::new(Job::new(id.clone(), order));
            info!(job = id, url = %Shown::new(&job.order.url), synced = entry.transfer.synced, "Download goes on after a restart");
            self.lock().insert(id, Arc::clone(&job));
            self.engine.spawn(job, Start::Again(Box::new(entry)));
            return;
        };
        if entry.is_to_be_cleaned() {
            self.engine.spawn_clean_up(order.clone(), entry);
        }
        if status.state != State::Aborted {
            self.lock()
                .insert(id.clone(), Arc::new(Job::with_status(id, order, status)));
        }
    }

    /// DownloadCommand: a new job, or the one that does the same already.
    pub async fn download(&self, command: &DownloadCommand) -> Answer {
        let order = match Order::parse(command) {
            Ok(order) => order,
            Err(Unacceptable::Failed(text)) => return Answer::failure(text),
            Err(Unacceptable::Error(text)) => return refused(command, DownloadStatus::DownloadError, text, None),
            Err(Unacceptable::NotDownloaded(text)) => {
                return refused(command, DownloadStatus::NotDownloaded, text, None);
            }
        };
        let Some(job) = self.job_for(order).await else {
            let text = format!(
                "too many downloads: {MAX_JOBS} are waiting or running on this secondary storage VM; try again later"
            );
            return refused(command, DownloadStatus::DownloadError, text, None);
        };
        job.ended_within(ANSWER_WAIT).await;
        answer(&job, false)
    }

    /// DownloadProgressCommand. Nothing here waits for a store.
    pub async fn progress(&self, command: &DownloadProgressCommand) -> Answer {
        let id = command.job_id.clone().unwrap_or_default();
        let Some(job) = self.find(&id) else {
            if command.request == Some(DownloadRequest::GetOrRestart) {
                return self.download(&command.download).await;
            }
            // With the id that was asked for: a server ignores answers with another one, or with none.
            let text = "Cannot find job".to_owned();
            return refused(&command.download, DownloadStatus::Unknown, text, command.job_id.clone());
        };
        match command.request {
            None | Some(DownloadRequest::GetStatus | DownloadRequest::GetOrRestart) => answer(&job, true),
            Some(DownloadRequest::Abort) => {
                job.stop();
                job.ended_within(ANSWER_WAIT).await;
                answer(&job, true)
            }
            Some(DownloadRequest::Restart) => {
                job.stop();
                job.ended_within(ANSWER_WAIT).await;
                if job.reset() {
                    self.engine.spawn(Arc::clone(&job), Start::New);
                }
                answer(&job, true)
            }
            Some(DownloadRequest::Purge) => {
                job.stop();
                job.ended_within(ANSWER_WAIT).await;
                let answer = answer(&job, true);
                self.lock().shift_remove(&job.id);
                self.forget(&job).await;
                answer
            }
        }
    }

    /// Stops what is running in a directory of a store that is to be deleted, and waits for it a while.
    pub async fn stop_in(&self, store: &str, directory: &str) {
        for job in self.all() {
            if job.order.store.url == store
                && job.order.install_path.to_string() == directory
                && !job.state().is_final()
            {
                info!(
                    job = job.id,
                    directory, "Stopping a download whose directory is deleted"
                );
                job.stop();
                job.ended_within(ANSWER_WAIT).await;
            }
        }
    }

    /// Directories of a store in which a job is at work.
    pub fn busy_directories(&self, store: &str) -> Vec<String> {
        let busy = self.all().into_iter().filter(|job| !job.state().is_final());
        busy.filter(|job| job.order.store.url == store)
            .map(|job| job.order.install_path.to_string())
            .collect()
    }

    /// Jobs by state, for metrics.
    pub fn states(&self) -> Vec<State> {
        self.all().iter().map(|job| job.state()).collect()
    }

    /// The job for an order: one that is running already, or a new one; `None`: there are too many.
    async fn job_for(&self, order: Order) -> Option<Arc<Job>> {
        let (job, is_new, gone) = self.enter(order)?;
        if is_new {
            self.engine.spawn(Arc::clone(&job), Start::New);
        }
        for other in gone {
            self.forget(&other).await;
        }
        Some(job)
    }

    /// Finds or adds the job for an order; also gives those that have left for it. They are stopped: the new one waits
    /// until nothing of them is left in its directory.
    fn enter(&self, order: Order) -> Option<(Arc<Job>, bool, Vec<Arc<Job>>)> {
        let mut jobs = self.lock();
        let is_there =
            |job: &Arc<Job>| job.order.store.url == order.store.url && job.order.install_path == order.install_path;
        let others: Vec<_> = jobs.values().filter(|job| is_there(job)).cloned().collect();
        let is_same = |job: &&Arc<Job>| !job.state().is_final() && job.order.is_same(&order);
        if let Some(same) = others.iter().find(is_same) {
            info!(job = same.id, "Asked again for a download that is running");
            return Some((Arc::clone(same), false, Vec::new()));
        }
        let mut gone = others;
        for other in &gone {
            // One directory holds one image: what an earlier command wanted there is over.
            warn!(job = other.id, directory = %order.install_path, "A new download replaces an older one");
            other.stop();
            jobs.shift_remove(&other.id);
        }
        if jobs.len() >= MAX_JOBS {
            let (id, finished) = jobs.iter().find(|(_, job)| job.state().is_final())?;
            let (id, finished) = (id.clone(), Arc::clone(finished));
            jobs.shift_remove(&id);
            gone.push(finished);
        }
        let job = Arc::new(Job::new(Uuid::new_v4().to_string(), order));
        jobs.insert(job.id.clone(), Arc::clone(&job));
        Some((job, true, gone))
    }

    /// Out of the journal, too: at once, or when its run is over.
    async fn forget(&self, job: &Job) {
        if job.set_forgotten() {
            self.engine.journal.remove(&job.id).await;
        }
    }

    fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.lock().get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<Job>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, IndexMap<String, Arc<Job>>> {
        self.jobs.lock().expect("nothing panics while holding it")
    }
}

fn answer(job: &Job, counts_bytes: bool) -> Answer {
    wrap(job.answer(counts_bytes))
}

/// `result` is true also for a failed download; `details` repeats the text (agent-protocol.md §5.1).
fn wrap(answer: DownloadAnswer) -> Answer {
    let details = answer.error_string.clone().unwrap_or_default();
    Answer::new(answer).with_details(details)
}

fn refused(command: &DownloadCommand, status: DownloadStatus, text: String, job_id: Option<String>) -> Answer {
    info!(
        job = job_id,
        status = ?status,
        error = text,
        "A download is not started"
    );
    let install_path = command
        .install_path
        .as_ref()
        .map(|path| path.trim_matches('/').to_owned());
    wrap(DownloadAnswer {
        job_id,
        error_string: Some(text),
        download_status: Some(status),
        install_path,
        check_sum: command.checksum.clone(),
        ..DownloadAnswer::default()
    })
}
