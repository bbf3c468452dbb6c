//! What agents ask of the rest of the management server.

use std::future::Future;
use std::pin::Pin;

use protocol::answer::Answer;
use protocol::console_proxy::{
    ConsoleAccessAuthenticationAnswer, ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand,
};
use tracing::{debug, info};

use crate::store::host::Host;

/// Decisions and news from agents.
pub trait Hooks: Send + Sync + 'static {
    /// May this viewer see this screen? Must answer within 10 s: the console proxy waits no longer.
    fn console_access(&self, question: ConsoleAccessAuthenticationCommand) -> BoxedAnswer<'_>;

    /// The sessions of a console proxy.
    fn console_load(&self, proxy: &Host, report: &ConsoleProxyLoadReportCommand);

    /// An agent has become Up.
    fn agent_up(&self, _host: &Host) {}
}

/// An answer to come.
pub type BoxedAnswer<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// A server that manages no instances: there is no console session it could know of.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoInstances;

impl Hooks for NoInstances {
    fn console_access(&self, question: ConsoleAccessAuthenticationCommand) -> BoxedAnswer<'_> {
        info!(
            session = question.session_uuid,
            vm = question.vm_id,
            "Console access denied: no such session"
        );
        Box::pin(std::future::ready(denied(question.is_reauthenticating)))
    }

    fn console_load(&self, proxy: &Host, report: &ConsoleProxyLoadReportCommand) {
        let size = report.load_info.as_ref().map_or(0, String::len);
        debug!(proxy = proxy.name, size, "Console proxy load report");
    }
}

/// No.
pub(crate) fn denied(is_reauthenticating: bool) -> Answer {
    Answer::new(ConsoleAccessAuthenticationAnswer {
        success: false,
        is_reauthenticating,
        ..ConsoleAccessAuthenticationAnswer::default()
    })
}
