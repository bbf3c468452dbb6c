//! Carrying out commands beside the link: in parallel, bounded, and safe against panics.

use std::sync::Arc;

use protocol::answer::Answer;
use protocol::command::Command;
use protocol::header::Flags;
use protocol::packet::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument, debug, info_span, warn};

use crate::service::Service;

/// Requests that may wait for a worker. More are answered at once with a failure: a server that floods an agent must
/// not fill its memory.
const MAX_WAITING: usize = 1000;

/// KiB of requests that may wait, 256 MiB: a thousand long ones are too many as well.
const MAX_WAITING_KIB: usize = 256 << 10;

/// Commands in one request. A server sends one, seldom a few; their answers must fit into one message.
const MAX_COMMANDS: usize = 1000;

/// Carries out requests on the runtime of the service, never on the link's own thread.
pub(crate) struct Executor<S> {
    service: Arc<S>,
    workers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    waiting_kib: Arc<Semaphore>,
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
        let waiting_kib = Arc::new(Semaphore::new(MAX_WAITING_KIB));
        (
            Self {
                service,
                workers,
                waiting,
                waiting_kib,
                runtime,
                finished,
            },
            to_send,
        )
    }

    /// Requests that are waiting or being worked on.
    pub(crate) fn in_progress(&self) -> usize {
        MAX_WAITING - self.waiting.available_permits()
    }

    /// Tells the service that the link is lost: beside the link, as everything that the service does.
    pub(crate) fn disconnected(&self) {
        let service = Arc::clone(&self.service);
        self.runtime.spawn(async move { service.disconnected() });
    }

    /// Starts a request that came in a message of `size` bytes, or answers why not.
    pub(crate) fn start(&self, link: u64, request: Request, size: usize, repeats: bool) -> Option<Response> {
        if request.commands.len() > MAX_COMMANDS {
            let count = request.commands.len();
            warn!(
                sequence = request.header.sequence,
                count, MAX_COMMANDS, "Too many commands in a request"
            );
            let text = format!("{count} commands in one request are too many; {MAX_COMMANDS} are accepted");
            return Some(request.response(vec![Answer::failure(text)]));
        }
        let kib = u32::try_from(size / 1024 + 1).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        let (Ok(place), Ok(room)) = (place, Arc::clone(&self.waiting_kib).try_acquire_many_owned(kib)) else {
            let waiting = self.in_progress();
            warn!(
                sequence = request.header.sequence,
                waiting, "Too many requests are waiting, refusing one"
            );
            let busy = || Answer::failure(format!("the agent is busy: {waiting} requests are waiting"));
            let answers = request.commands.iter().map(|_| busy()).collect();
            return Some(request.response(answers));
        };
        let service = Arc::clone(&self.service);
        let workers = Arc::clone(&self.workers);
        let finished = self.finished.clone();
        self.runtime.spawn(async move {
            let _place = (place, room);
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
    span.in_scope(|| debug!(result = answer.result, elapsed = ?started.elapsed(), "Command executed"));
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
