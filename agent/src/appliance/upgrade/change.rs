//! From one set of programs to another: remember, switch, restart, watch, and confirm or go back.

use std::future::Future;
use std::time::Duration;

use platform::logging::chain;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::health::{Health, Verdict, judge, worse};
use super::store::{Attempt, Outcome, Pending, Side, Store, StoreError};

/// The VM whose programs are exchanged.
pub trait Machine {
    /// How it is now; with `is_thorough` also by its own checks, which take some seconds.
    fn look(&self, is_thorough: bool) -> impl Future<Output = anyhow::Result<Health>>;

    /// Starts these services again. Returns before they run.
    fn restart(&self, units: &[String]) -> impl Future<Output = anyhow::Result<()>>;

    /// Whether the programs of a side start on this machine at all.
    fn try_programs(&self, side: &Side) -> impl Future<Output = anyhow::Result<()>>;
}

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For all to be well again. A link takes up to a minute where the server is busy.
    pub limit: Duration,
    /// So long it must stay well.
    pub settle: Duration,
    /// Between two looks.
    pub interval: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            limit: Duration::from_mins(3),
            settle: Duration::from_secs(10),
            interval: Duration::from_secs(1),
        }
    }
}

/// Why a change was not made, or not ended.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Before anything was changed.
    #[error("nothing was changed")]
    Unchanged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// After the programs were exchanged back.
    #[error("the old programs are in place again, but their services could not be restarted; restart the VM")]
    NotRestarted(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Takes the programs of `to` into use if the VM is as well with them as with those it has, and else goes back. Whichever it
/// was is in the answer. `interrupted` ends the attempt, too.
///
/// # Errors
/// The disk or systemd fails. What a restart of the VM then finds is one side or the other.
pub async fn change(
    store: &Store,
    machine: &impl Machine,
    to: &Side,
    patience: Patience,
    interrupted: impl Future<Output = ()>,
    tell: impl Fn(&str),
) -> Result<Attempt, ChangeError> {
    let unchanged = |error: anyhow::Error| ChangeError::Unchanged(error.into());
    let pending = Pending {
        from: store.current()?,
        to: to.clone(),
    };
    tell("Trying whether the new programs start here");
    machine.try_programs(to).await.map_err(unchanged)?;
    tell("Looking how well the VM is");
    let before = machine.look(true).await.map_err(unchanged)?;
    let units: Vec<String> = before.units.keys().cloned().collect();

    store.begin(&pending)?;
    info!(?pending, ?units, "Exchanging the programs");
    if let Err(error) = store.switch(to) {
        store.end(&pending, Outcome::RolledBack, &chain(&error).to_string())?;
        return Err(error.into());
    }
    tell(&format!("Restarting {}", listed(&units)));
    let verdict = if let Err(error) = machine.restart(&units).await {
        Err(format!("{error:#}"))
    } else {
        tokio::select! {
            verdict = watch(machine, &before, patience, &tell) => verdict,
            () = interrupted => Err("somebody stopped the upgrade".to_owned()),
        }
    };
    if let Err(why) = verdict {
        warn!(why, "Going back to the old programs");
        tell(&format!("Going back: {why}"));
        store.switch(&pending.from)?;
        let attempt = store.end(&pending, Outcome::RolledBack, &why)?;
        machine
            .restart(&units)
            .await
            .map_err(|error| ChangeError::NotRestarted(error.into()))?;
        return Ok(attempt);
    }
    let attempt = store.end(&pending, Outcome::Confirmed, "")?;
    info!("The new programs stay");
    if let Err(error) = store.prune() {
        warn!(error = chain(&error).to_string(), "Cannot remove old programs");
    }
    Ok(attempt)
}

/// Waits until the VM is well and stays so; or says why not.
async fn watch(
    machine: &impl Machine,
    before: &Health,
    patience: Patience,
    tell: &impl Fn(&str),
) -> Result<(), String> {
    let deadline = Instant::now() + patience.limit;
    let mut well_since: Option<(Instant, Health)> = None;
    let mut told = String::new();
    loop {
        sleep(patience.interval).await;
        let seen = machine.look(false).await;
        let verdict = match &seen {
            Ok(seen) => judge(before, seen),
            Err(error) => Verdict::NotYet(format!("{error:#}")),
        };
        match (verdict, seen) {
            (Verdict::Well, Ok(seen)) => match &well_since {
                // One that falls over and comes again has another process.
                Some((since, first)) if first.units == seen.units => {
                    if since.elapsed() >= patience.settle {
                        break;
                    }
                }
                _ => {
                    tell("All is well; watching whether it stays so");
                    well_since = Some((Instant::now(), seen));
                }
            },
            (Verdict::Broken(why), _) => return Err(why),
            (Verdict::NotYet(why), _) => {
                well_since = None;
                if Instant::now() >= deadline {
                    return Err(format!("{why}, after {:?}", patience.limit));
                }
                if told != why {
                    tell(&format!("Waiting: {why}"));
                    told = why;
                }
            }
            (Verdict::Well, Err(_)) => {}
        }
        // Also one that falls over again and again.
        if Instant::now() >= deadline + patience.settle {
            return Err(format!("it does not stay well, after {:?}", patience.limit));
        }
    }
    tell("Asking the checks of the VM");
    let thorough = machine.look(true).await.map_err(|error| format!("{error:#}"))?;
    match worse(before, &thorough) {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

fn listed(units: &[String]) -> String {
    match units {
        [] => "no service: none runs".to_owned(),
        units => units.join(", "),
    }
}
