//! Who follows a VM while it is on: its end, what it tells of itself, and whether QEMU answers.

use std::sync::Arc;
use std::time::Duration;

use hypervisor::guest_channel::{GuestChannel, Message, News, Request};
use hypervisor::vm::Vm;
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use super::{Inner, Qemu, SharedFacts};

/// Between two looks whether QEMU answers.
const LOOK: Duration = Duration::from_secs(5);
/// Between two checks that a VM without a link is asked for: one takes it some seconds of processor time.
const CHECK: Duration = Duration::from_mins(1);

impl Qemu {
    /// Until the VM ends, or there is no driver any more.
    pub(super) fn follow(&self, name: String, vm: Vm, facts: SharedFacts) {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let following = inner.following.clone();
            let ended = async {
                tokio::select! {
                    ended = vm.ended() => ended,
                    // The second has no end.
                    ((), ()) = async { tokio::join!(listen(vm.guest_channel(), &facts), inner.ask(&name, &vm)) } => {
                        vm.ended().await
                    }
                }
            };
            if let Some(ended) = following.run_until_cancelled(ended).await {
                inner.ended(&name, &vm, ended.to_string()).await;
            }
        });
    }
}

impl Inner {
    /// Asks QEMU for a sign of life, for ever.
    async fn ask(&self, name: &str, vm: &Vm) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let responds = vm.responds().await;
            let mut known = self.known();
            if let Some(known) = known.get_mut(name) {
                known.silent_since = match (responds, known.silent_since) {
                    (true, _) => None,
                    (false, None) => Some(OffsetDateTime::now_utc()),
                    (false, since) => since,
                };
            }
        }
    }
}

/// Takes in what the VM tells, for ever.
async fn listen(mut channel: GuestChannel, facts: &SharedFacts) {
    let mut checked: Option<Instant> = None;
    let mut id = 0;
    loop {
        if let News::Message(message) = channel.next().await {
            fold(message, facts, OffsetDateTime::now_utc());
        }
        let is_due = checked.is_none_or(|at| at.elapsed() >= CHECK);
        if is_due && facts.lock().wants_check() {
            checked = Some(Instant::now());
            id += 1;
            if let Err(error) = channel.send(Request::RunCheck { id }) {
                debug!(%error, "A VM cannot be asked for a check");
            }
        }
    }
}

fn fold(message: Message, facts: &SharedFacts, now: OffsetDateTime) {
    let mut facts = facts.lock();
    match message {
        Message::BootProgress(progress) => facts.boot(progress, now),
        Message::AgentState(link) => facts.link(link),
        Message::Heartbeat(heartbeat) => facts.uptime(Duration::from_millis(heartbeat.uptime_ms), now),
        Message::CheckResult { report, .. } => facts.check(report),
        _ => {}
    }
}
