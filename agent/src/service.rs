//! What an agent does for its management server, and what it may ask of it.

use std::future::Future;
use std::time::Duration;

use protocol::answer::Answer;
use protocol::command::Command;
use tokio::sync::{mpsc, oneshot};

/// How long an agent waits for the answer to its own request: as the Java console proxy (agent-protocol.md §6).
pub const ASK_LIMIT: Duration = Duration::from_secs(10);

/// A program behind an agent link: secondary storage or console proxy.
///
/// The agent itself handles what belongs to the link (ready, pings, server lists, certificates, shutdown); everything
/// else comes here. Calls run in parallel, at most as many as the agent has workers, and may take as long as they
/// need: neither a slow nor a panicking one disturbs the link. They go on while the link is lost.
pub trait Service: Send + Sync + 'static {
    /// Carries out one command. `None`: this kind of agent does not know it; the server is told so.
    ///
    /// The server casts successful answers to the class it expects (agent-protocol.md §5, §6), so the class matters.
    fn execute(&self, command: Command) -> impl Future<Output = Option<Answer>> + Send;

    /// The link is lost. A new one will follow, unless the program is ending.
    fn disconnected(&self) {}
}

/// Asks the management server; cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    pub(crate) questions: mpsc::Sender<Question>,
}

#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) command: Command,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// Why there is no answer. What was asked for must then be taken as denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// There is no registered link at present.
    #[error("the management server is not connected")]
    NotConnected,
    /// The server took too long.
    #[error("the management server did not answer within {ASK_LIMIT:?}")]
    TimedOut,
}

impl Server {
    /// Sends a request (agent-protocol.md §4.8) and waits for its answer, at most [`ASK_LIMIT`].
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(&self, command: Command) -> Result<Answer, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let question = Question { command, answer };
            self.questions
                .send(question)
                .await
                .map_err(|_| NoAnswer::NotConnected)?;
            answered.await.map_err(|_| NoAnswer::NotConnected)
        };
        tokio::time::timeout(ASK_LIMIT, asked)
            .await
            .unwrap_or(Err(NoAnswer::TimedOut))
    }
}
