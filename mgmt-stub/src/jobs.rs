//! Jobs: work that goes on after its caller has been answered (management.md §17.6).
//!
//! Jobs on the same resource run one after another, in the order in which they were asked for; the others run side by
//! side. A job that is pending when the server ends is failed at the next start.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, info, info_span, warn};
use uuid::Uuid;

use crate::api::error::{ApiError, Code};
use crate::store::event::{EventState, Level, NewEvent};
use crate::store::id::UserId;
use crate::store::job::Job;
use crate::store::{Store, StoreError};

/// Jobs that may be pending.
const MAX_PENDING: usize = 1000;
/// The text clients know.
const CANCELLED: &str = "job cancelled because of management server restart or shutdown";

/// What a job does; its outcome is `jobresult`.
pub type Work = Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send>>;

/// A job as its command wants it.
pub struct Wanted {
    /// Who asked.
    pub user: UserId,
    /// The command's name.
    pub command: &'static str,
    /// What it works on. Jobs with the same id queue up.
    pub instance: Option<(&'static str, Uuid)>,
    /// The event's type and what happens, for people, such as "destroying system VM s-1-VM".
    pub event: Option<(&'static str, String)>,
    /// What it does.
    pub work: Work,
}

/// Runs jobs; cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    store: Store,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Of each resource with jobs the last job, and what says that it is over.
    last: Arc<Mutex<HashMap<Uuid, (Uuid, CancellationToken)>>>,
}

impl Jobs {
    /// Fails the jobs of the server before this one.
    ///
    /// # Errors
    /// The store.
    pub async fn new(store: Store) -> Result<Self, StoreError> {
        let cancelled = ApiError::new(Code::Internal, CANCELLED);
        let count = store
            .cancel_pending_jobs(Code::Internal.number(), cancelled.as_result())
            .await?;
        if count > 0 {
            info!(count, "Jobs of the last run were cancelled");
        }
        Ok(Self {
            store,
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            last: Arc::default(),
        })
    }

    /// Starts a job as soon as those before it on the same resource are over.
    ///
    /// # Errors
    /// There are too many, or the store.
    pub async fn submit(&self, wanted: Wanted) -> Result<Job, ApiError> {
        if self.tracker.len() >= MAX_PENDING {
            let text = format!("there are {MAX_PENDING} jobs already; try again when some of them are over");
            return Err(ApiError::new(Code::Unavailable, text));
        }
        let job = self.store.add_job(wanted.user, wanted.command, wanted.instance).await?;
        let done = CancellationToken::new();
        let before = wanted.instance.and_then(|(_, resource)| {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.insert(resource, (job.uuid, done.clone())).map(|(_, done)| done)
        });
        let span = info_span!("job", id = %job.uuid, command = wanted.command);
        let (jobs, id) = (self.clone(), job.clone());
        let done = done.drop_guard(); // whatever happens: those behind must not wait for ever
        self.tracker.spawn(
            async move {
                let resource = wanted.instance.map(|(_, resource)| resource);
                let stop = jobs.stop.clone();
                // A job that is cut short here is failed at the next start.
                stop.run_until_cancelled(jobs.run(&id, wanted, before)).await;
                jobs.forget(resource, id.uuid);
                drop(done);
            }
            .instrument(span),
        );
        Ok(job)
    }

    async fn run(&self, job: &Job, wanted: Wanted, before: Option<CancellationToken>) {
        let event = |state, level, parent, what: &str| {
            wanted.event.as_ref().map(|(event_type, description)| NewEvent {
                event_type,
                level,
                state,
                description: format!("{what}{description}"),
                parent,
                user: wanted.user,
                resource: wanted.instance,
            })
        };
        let scheduled = self
            .record(event(EventState::Scheduled, Level::Info, None, "Scheduled: "))
            .await;
        if let Some(before) = before {
            before.cancelled().await;
        }
        let started = self
            .record(event(EventState::Started, Level::Info, scheduled, "Started: "))
            .await;
        let parent = scheduled.or(started);
        // A task of its own: a panic ends this job only, and is told.
        let work = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(wanted.work.in_current_span()));
        let outcome = work.await.unwrap_or_else(|panic| {
            error!(%panic, "Panic in a job");
            Err(ApiError::new(
                Code::Internal,
                "the server failed in this job; the reason is in its log",
            ))
        });
        let (level, what) = match &outcome {
            Ok(_) => (Level::Info, "Done: ".to_owned()),
            Err(error) => {
                warn!(%error, "Job failed");
                (Level::Error, format!("Failed ({error}): "))
            }
        };
        self.record(event(EventState::Completed, level, parent, &what)).await;
        let result = outcome.map_err(|error| (Code::Internal.number(), error.as_result()));
        if let Err(error) = self.store.finish_job(job.id, result).await {
            error!(error = %platform::logging::chain(&error), "Cannot record the end of a job");
        }
    }

    async fn record(&self, event: Option<NewEvent>) -> Option<crate::store::id::EventId> {
        match self.store.add_event(event?).await {
            Ok(id) => Some(id),
            Err(error) => {
                warn!(error = %platform::logging::chain(&error), "Cannot record an event");
                None
            }
        }
    }

    fn forget(&self, resource: Option<Uuid>, job: Uuid) {
        let Some(resource) = resource else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(&resource).is_some_and(|(newest, _)| *newest == job) {
            last.remove(&resource);
        }
    }

    /// How many are pending.
    pub fn pending(&self) -> usize {
        self.tracker.len()
    }

    /// Cuts short what runs.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl ApiError {
    /// `jobresult` of a job that failed so.
    pub(crate) fn as_result(&self) -> Value {
        json!({ "errorcode": Code::Internal.number(), "errortext": self.text })
    }
}
