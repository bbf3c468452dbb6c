//! What every driver does, as one check for all of them: it is run on the real thing, by the tests of each driver.
//!
//! ```text
//! let mut subject = …;                       // implements Subject for one driver
//! conformance::check(&mut subject).await?;   // takes some starts, one after the other
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Driver, DriverError, Power, VmSpec};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A driver, with what a check must be able to do behind its back.
pub trait Subject: Send {
    /// The driver.
    fn driver(&self) -> Arc<dyn Driver>;

    /// A VM that it can start, of this name.
    fn spec(&self, name: &str) -> VmSpec;

    /// The VM ends, and nobody has told the driver.
    fn kill<'a>(&'a mut self, name: &'a str) -> Later<'a>;

    /// The driver goes, its VMs stay, and another one is there, as after a restart of the server. `meanwhile` ends
    /// between the two.
    fn reopen<'a>(&'a mut self, meanwhile: Option<&'a str>) -> Later<'a>;

    /// For a start, or for an end to be noticed.
    fn limit(&self) -> Duration;
}

/// Something that takes a while.
pub type Later<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A driver that is not as the others are.
#[derive(Debug, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Broken {
    /// What was tried.
    case: &'static str,
    /// What came of it.
    what: String,
}

/// Tries everything that a driver is there for.
///
/// # Errors
/// The first thing that is not as it shall be. VMs may be left.
pub async fn check(subject: &mut dyn Subject) -> Result<(), Broken> {
    bad_names(subject).await?;
    unknown(subject).await?;
    start_and_stop(subject).await?;
    ends_by_itself(subject).await?;
    reboot(subject).await?;
    found_again(subject).await?;
    destroy(subject).await
}

const ONE: &str = "s-901-VM";
const OTHER: &str = "v-902-VM";

async fn bad_names(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "a name that is none";
    for name in ["", "..", "a/b", "a\0b", "s-1-VM\n", "-x", &"x".repeat(65)] {
        let started = subject.driver().start(&subject.spec(name)).await;
        expect(case, matches!(started, Err(DriverError::Name(_))), || {
            format!("start of {name:?} answered {started:?}")
        })?;
        let destroyed = subject.driver().destroy(name).await;
        expect(case, matches!(destroyed, Err(DriverError::Name(_))), || {
            format!("destroy of {name:?} answered {destroyed:?}")
        })?;
    }
    Ok(())
}

async fn unknown(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "a VM that was never started";
    is_off(subject, case, ONE)?;
    let driver = subject.driver();
    done(case, "stop", driver.stop(ONE).await)?;
    done(case, "destroy", driver.destroy(ONE).await)?;
    expect(case, driver.last_words(ONE).is_none(), || "it has last words".into())?;
    expect(case, !driver.names().contains(&ONE.to_owned()), || {
        "it has a name".into()
    })
}

async fn start_and_stop(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "start and stop";
    let driver = subject.driver();
    let changes = driver.changes();
    start(subject, case, ONE).await?;
    expect(case, driver.names().contains(&ONE.to_owned()), || {
        "it has no name".into()
    })?;
    start(subject, "start of one that is on", ONE).await?;
    start(subject, case, OTHER).await?;
    done(case, "stop", driver.stop(ONE).await)?;
    is_off(subject, case, ONE)?;
    is_on(subject, "stop of another one", OTHER)?;
    done("stop of one that is off", "stop", driver.stop(ONE).await)?;
    expect(case, !changes.has_changed().unwrap_or(true), || {
        "what was asked for was told as a change".into()
    })?;
    start(subject, "start of one that was stopped", ONE).await?;
    done(case, "stop", driver.stop(OTHER).await)
}

async fn ends_by_itself(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "a VM that ends by itself";
    let mut changes = subject.driver().changes();
    changes.mark_unchanged();
    subject.kill(ONE).await;
    off_within_limit(subject, case, ONE).await?;
    expect(case, changes.has_changed().unwrap_or(false), || {
        "no change was told".into()
    })?;
    start(subject, "start of one that has ended", ONE).await
}

async fn reboot(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "reboot";
    let spec = subject.spec(ONE);
    done(case, "reboot", subject.driver().reboot(&spec).await)?;
    is_on(subject, case, ONE)
}

async fn found_again(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "a VM that another driver has started";
    subject.reopen(None).await;
    is_on(subject, case, ONE)?;
    let names = subject.driver().names();
    expect(case, names.contains(&ONE.to_owned()), || {
        format!("it is not in {names:?}")
    })?;
    is_off(subject, "a VM that another driver has stopped", OTHER)?;
    start(subject, "start of one that was found running", ONE).await?;
    let mut changes = subject.driver().changes();
    changes.mark_unchanged();
    subject.kill(ONE).await;
    off_within_limit(subject, case, ONE).await?;
    expect(case, changes.has_changed().unwrap_or(false), || {
        "no change was told".into()
    })?;

    start(subject, case, ONE).await?;
    subject.reopen(Some(ONE)).await;
    off_within_limit(subject, "a VM that ended while there was no driver", ONE).await?;
    start(subject, "start of one that ended while there was no driver", ONE).await
}

async fn destroy(subject: &mut dyn Subject) -> Result<(), Broken> {
    let case = "destroy";
    let driver = subject.driver();
    for name in [ONE, OTHER] {
        done(case, "destroy", driver.destroy(name).await)?;
        is_off(subject, case, name)?;
    }
    done("destroy of one that is gone", "destroy", driver.destroy(ONE).await)?;
    let names = driver.names();
    expect(case, names.is_empty(), || format!("{names:?} are left"))
}

async fn start(subject: &mut dyn Subject, case: &'static str, name: &str) -> Result<(), Broken> {
    let (spec, limit) = (subject.spec(name), subject.limit());
    let driver = subject.driver();
    match tokio::time::timeout(limit, driver.start(&spec)).await {
        Ok(started) => done(case, "start", started)?,
        Err(_) => expect(case, false, || format!("start of {name} was not over within {limit:?}"))?,
    }
    is_on(subject, case, name)
}

fn is_on(subject: &dyn Subject, case: &'static str, name: &str) -> Result<(), Broken> {
    let power = subject.driver().power(name);
    expect(case, power == Power::On, || format!("{name} is {power:?}"))
}

fn is_off(subject: &dyn Subject, case: &'static str, name: &str) -> Result<(), Broken> {
    let power = subject.driver().power(name);
    let is_told = matches!(&power, Power::Off(why) if !why.trim().is_empty());
    expect(case, is_told, || {
        format!("{name} is {power:?}; off, with a reason, is expected")
    })
}

async fn off_within_limit(subject: &dyn Subject, case: &'static str, name: &str) -> Result<(), Broken> {
    let deadline = Instant::now() + subject.limit();
    while is_off(subject, case, name).is_err() && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    is_off(subject, case, name)
}

fn done(case: &'static str, what: &str, outcome: Result<(), DriverError>) -> Result<(), Broken> {
    outcome.or_else(|error| {
        let error = platform::logging::chain(&error).to_string();
        expect(case, false, || format!("{what}: {error}"))
    })
}

fn expect(case: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        Err(Broken { case, what: what() })
    }
}
