//! Carrying out commands beside the link: in parallel, bounded, and safe against panics.

use std::sync::Arc;

use protocol::answer::Answer;
use protocol::command::Command;
use protocol::header::Flags;
use protocol::packet::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument, info, info_span, warn};

use crate::service::Service;

/// Requests that may wait for a worker. More are answered at once with a failure: a server that floods an agent must
/// not fill its memory.
const MAX_WAITING: usize = 1000;

/// Carries out requests on the runtime of the service, never on the link's own thread.
pub(crate) struct Executor<S> {
    service: Arc<S>,
    workers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    runtime: Handle,
    finished: mpsc::Sender<Finished>,
}

/// A response to be sent.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The link on which the request came.
    pub(crate) link: u64,
    pub(crate) response: Response,
    /// Not the last one for its request: a repeated (cron) command.
    pub(crate) repeats: bool,
}

impl<S: Service> Executor<S> {
    pub(crate) fn new(service: Arc<S>, workers: usize, runtime: Handle) -> (Self, mpsc::Receiver<Finished>) {
        let (finished, to_send) = mpsc::channel(workers.max(1));
        let workers = Arc::new(Semaphore::new(workers.max(1)));
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        (
            Self {
                service,
                workers,
                waiting,
                runtime,
                finished,
            },
            to_send,
        )
    }

    pub(crate) fn service(&self) -> &S {
        &self.service
    }

    /// Starts a request, or answers that there are too many.
    pub(crate) fn start(&self, link: u64, request: Request, repeats: bool) -> Option<Response> {
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            warn!(
                sequence = request.header.sequence,
                MAX_WAITING, "Too many requests are waiting, refusing one"
            );
            let busy = || Answer::failure(format!("the agent is busy: {MAX_WAITING} requests are waiting"));
            let answers = request.commands.iter().map(|_| busy()).collect();
            return Some(request.response(answers));
        };
        let service = Arc::clone(&self.service);
        let workers = Arc::clone(&self.workers);
        let finished = self.finished.clone();
        self.runtime.spawn(async move {
            let _place = place;
            // The semaphore is never closed.
            let Ok(_worker) = workers.acquire().await else { return };
            let response = respond(&service, request).await;
            // An answer waits here while the link is lost: the worker stays taken, so memory is bounded.
            let _ = finished
                .send(Finished {
                    link,
                    response,
                    repeats,
                })
                .await;
        });
        None
    }
}

async fn respond<S: Service>(service: &Arc<S>, request: Request) -> Response {
    let stop_on_error = request.header.flags.contains(Flags::STOP_ON_ERROR);
    let mut answers = Vec::with_capacity(request.commands.len());
    let mut stopped = false;
    for command in &request.commands {
        let answer = if stopped {
            Answer::stopped()
        } else {
            execute(service, command.clone()).await
        };
        stopped |= stop_on_error && !answer.result;
        answers.push(answer);
    }
    request.response(answers)
}

/// Carries out one command in a task of its own, so that a panic ends nothing else.
async fn execute<S: Service>(service: &Arc<S>, command: Command) -> Answer {
    let name = command.body.class().name;
    let span = info_span!("command", name, logid = command.base.log_id());
    let unsupported = Answer::unsupported(&command);
    let service = Arc::clone(service);
    let task = tokio::spawn(async move { service.execute(command).await }.instrument(span.clone()));
    let started = std::time::Instant::now();
    let answer = match task.await {
        Ok(answer) => answer.unwrap_or(unsupported),
        Err(error) => {
            let text = panic_text(error);
            span.in_scope(|| tracing::error!(error = text, "Command panicked"));
            Answer::failure(format!("internal error while executing {name}: {text}"))
        }
    };
    span.in_scope(|| info!(result = answer.result, elapsed = ?started.elapsed(), "Command executed"));
    answer
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast_ref::<&str>().map_or("panic", |text| text).to_owned(),
        },
        Err(_) => "the agent is ending".to_owned(),
    }
}
