//! Asking the management server: may this viewer see this screen (§6), and telling it who is looking (§10).

use std::future::Future;
use std::pin::Pin;

use agent::service::{NoAnswer, Server};
use protocol::answer::AnswerBody;
use protocol::command::Command;
use protocol::console_proxy::{ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand};

/// A future behind a trait object.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why somebody may not see a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The management server said so.
    #[error("the management server refuses it")]
    ByServer,
    /// Nobody was there to ask. That is a refusal, too.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

/// Who decides about sessions.
pub trait Authorizer: Send + Sync + 'static {
    /// Asks once; never again for the same session (§6, step 8).
    fn authorize(&self, access: ConsoleAccessAuthenticationCommand) -> Boxed<'_, Result<(), Refused>>;

    /// Delivers a report, and waits until it has arrived.
    fn report(&self, report: ConsoleProxyLoadReportCommand) -> Boxed<'_, Result<(), NoAnswer>>;
}

/// The management server behind the agent's link.
impl Authorizer for Server {
    fn authorize(&self, access: ConsoleAccessAuthenticationCommand) -> Boxed<'_, Result<(), Refused>> {
        Box::pin(async move {
            let answer = self.ask(Command::new(access)).await?;
            match answer.body {
                // `result` only says that the command was understood (§2.3).
                AnswerBody::ConsoleAccessAuthentication(answer) if answer.success => Ok(()),
                _ => Err(Refused::ByServer),
            }
        })
    }

    fn report(&self, report: ConsoleProxyLoadReportCommand) -> Boxed<'_, Result<(), NoAnswer>> {
        Box::pin(async move { self.ask(Command::new(report)).await.map(drop) })
    }
}
