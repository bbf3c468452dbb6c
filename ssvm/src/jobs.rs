//! All download jobs: who starts, finds, stops and forgets them (ssvm.md §3.6).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::answer::Answer;
use protocol::secondary_storage::{
    DownloadAnswer, DownloadCommand, DownloadProgressCommand, DownloadRequest, DownloadStatus,
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::engine::{Engine, Start};
use crate::job::{Job, State};
use crate::order::{Order, Unacceptable};

/// How long an answer waits for a quick end (§3.1) or a stop (§3.6).
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// Jobs known at once, finished ones included. Each is small, but a server that never purges must not fill the memory.
const MAX_JOBS: usize = 1000;

/// The registry. Its lock is held for look-ups only.
#[derive(Debug)]
pub struct Jobs {
    engine: Arc<Engine>,
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
}

impl Jobs {
    /// Takes up what an earlier life of this program left: finished jobs are known again, others go on.
    pub async fn resume(engine: Arc<Engine>) -> Self {
        let jobs = Self {
            engine: Arc::clone(&engine),
            jobs: Mutex::default(),
        };
        for entry in engine.journal_entries().await {
            let Ok(order) = Order::parse(&entry.command) else {
                engine.forget(&entry.job).await;
                continue;
            };
            if let Some(status) = entry.ended.clone() {
                jobs.insert(Arc::new(Job::with_status(entry.job, order, status)));
                continue;
            }
            let job = Arc::new(Job::new(entry.job.clone(), order));
            info!(job = job.id, url = %crate::source::Shown::new(&job.order.url), synced = entry.transfer.synced, "Download goes on after a restart");
            jobs.insert(Arc::clone(&job));
            engine.spawn(job, Start::Again(Box::new(entry)));
        }
        jobs
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
        match self.job_for(order).await {
            Ok(job) => {
                job.ended_within(ANSWER_WAIT).await;
                answer(&job, false)
            }
            Err(text) => refused(command, DownloadStatus::DownloadError, text, None),
        }
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
                if job.state().is_final() {
                    self.engine.spawn(Arc::clone(&job), Start::New);
                }
                answer(&job, true)
            }
            Some(DownloadRequest::Purge) => {
                job.stop();
                job.ended_within(ANSWER_WAIT).await;
                let answer = answer(&job, true);
                self.remove(&job).await;
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

    async fn job_for(&self, order: Order) -> Result<Arc<Job>, String> {
        let others: Vec<_> = self
            .all()
            .into_iter()
            .filter(|job| job.order.store.url == order.store.url && job.order.install_path == order.install_path)
            .collect();
        if let Some(same) = others
            .iter()
            .find(|job| !job.state().is_final() && job.order.is_same(&order))
        {
            info!(job = same.id, "Asked again for a download that is running");
            return Ok(Arc::clone(same));
        }
        for other in others {
            // One directory holds one image: what an earlier command wanted there is over.
            warn!(job = other.id, directory = %order.install_path, "A new download replaces an older one");
            other.stop();
            other.ended_within(ANSWER_WAIT).await;
            self.remove(&other).await;
        }
        let job = Arc::new(Job::new(Uuid::new_v4().to_string(), order));
        if !self.insert(Arc::clone(&job)) {
            return Err(format!(
                "too many downloads: {MAX_JOBS} are waiting or running on this secondary storage VM; try again later"
            ));
        }
        self.engine.spawn(Arc::clone(&job), Start::New);
        Ok(job)
    }

    /// Makes room among the finished ones if there is none.
    fn insert(&self, job: Arc<Job>) -> bool {
        let mut jobs = self.jobs.lock().expect("nothing panics while holding it");
        if jobs.len() >= MAX_JOBS {
            let finished = jobs.iter().find(|(_, job)| job.state().is_final());
            let Some(id) = finished.map(|(id, _)| id.clone()) else {
                return false;
            };
            jobs.remove(&id);
        }
        jobs.insert(job.id.clone(), job);
        true
    }

    async fn remove(&self, job: &Job) {
        self.jobs
            .lock()
            .expect("nothing panics while holding it")
            .remove(&job.id);
        self.engine.forget(&job.id).await;
    }

    fn find(&self, id: &str) -> Option<Arc<Job>> {
        let jobs = self.jobs.lock().expect("nothing panics while holding it");
        jobs.get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<Job>> {
        let jobs = self.jobs.lock().expect("nothing panics while holding it");
        jobs.values().cloned().collect()
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
