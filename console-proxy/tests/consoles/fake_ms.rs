//! A management server that says yes or no as a test wants, and remembers what it was asked and told.

use std::sync::{Arc, Mutex};

use agent::service::NoAnswer;
use console_proxy::auth::{Authorizer, Boxed, Refused};
use protocol::console_proxy::{ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand};
use serde_json::Value;

#[derive(Clone, Default)]
pub(crate) struct FakeMs(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    refuses: bool,
    is_away: bool,
    asked: Vec<ConsoleAccessAuthenticationCommand>,
    told: Vec<Value>,
}

impl FakeMs {
    pub(crate) fn refuse(&self) {
        self.0.lock().unwrap().refuses = true;
    }

    pub(crate) fn set_away(&self, is_away: bool) {
        self.0.lock().unwrap().is_away = is_away;
    }

    pub(crate) fn asked(&self) -> Vec<ConsoleAccessAuthenticationCommand> {
        self.0.lock().unwrap().asked.clone()
    }

    /// Reports that have arrived.
    pub(crate) fn told(&self) -> Vec<Value> {
        self.0.lock().unwrap().told.clone()
    }

    /// Sessions that were reported as ended, in order.
    pub(crate) fn removed(&self) -> Vec<String> {
        let removed = |report: Value| report["removedSessions"].as_array().cloned().unwrap_or_default();
        let all = self.told().into_iter().flat_map(removed);
        all.map(|uuid| uuid.as_str().unwrap().to_owned()).collect()
    }
}

impl Authorizer for FakeMs {
    fn authorize(&self, access: ConsoleAccessAuthenticationCommand) -> Boxed<'_, Result<(), Refused>> {
        Box::pin(async move {
            let mut state = self.0.lock().unwrap();
            if state.is_away {
                return Err(NoAnswer::NotConnected.into());
            }
            state.asked.push(access);
            if state.refuses { Err(Refused::ByServer) } else { Ok(()) }
        })
    }

    fn report(&self, report: ConsoleProxyLoadReportCommand) -> Boxed<'_, Result<(), NoAnswer>> {
        Box::pin(async move {
            let mut state = self.0.lock().unwrap();
            if state.is_away {
                return Err(NoAnswer::NotConnected);
            }
            assert_eq!(report.proxy_vm_id, 2);
            let text = report.load_info.unwrap();
            assert!(text.len() <= 60_000 && text.is_ascii());
            state.told.push(serde_json::from_str(&text).unwrap());
            Ok(())
        })
    }
}
