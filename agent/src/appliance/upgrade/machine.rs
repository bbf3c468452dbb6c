//! The VM itself, by systemd, by what our programs publish, and by its own checks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use platform::exec::Cmd;

use super::PROGRAMS;
use super::change::Machine;
use super::health::{Health, Unit};
use super::store::{Side, Store};
use crate::appliance::check::{self, Finding, Outcome};
use crate::appliance::root::Root;
use crate::link_status::{self, State};

/// For a program to say its version. Under emulation the first start of one takes a second.
const TRY_LIMIT: Duration = Duration::from_secs(20);
/// A VM that runs systemd.
#[derive(Debug)]
pub struct Systemd {
    root: Root,
    store: Store,
}

impl Systemd {
    /// This one.
    pub fn new(root: Root, store: Store) -> Self {
        Self { root, store }
    }

    fn link_is_ready(&self) -> bool {
        let link = link_status::read(&self.root.path(link_status::FILE));
        link.is_ok_and(|link| link.is_some_and(|link| link.state == State::Ready))
    }

    /// The checks that find an error. Of this program, not of the new one: before and after the same things are looked at.
    async fn errors(&self) -> BTreeSet<String> {
        let report = check::run(&self.root).await;
        let errors = report
            .findings
            .into_iter()
            .filter(|found| found.outcome == Outcome::Error);
        let named = |found: Finding| match found.about {
            Some(about) => format!("{} ({about})", found.check),
            None => found.check,
        };
        errors.map(named).collect()
    }
}

impl Machine for Systemd {
    async fn look(&self, is_thorough: bool) -> anyhow::Result<Health> {
        let show = Cmd::new("systemctl").args([
            "show",
            "--property=Id,ActiveState,MainPID,NRestarts,ExecStart",
            "--",
            "cs-*.service",
        ]);
        Ok(Health {
            units: ours(&show.run().await?.text()),
            link_is_ready: self.link_is_ready(),
            errors: if is_thorough { Some(self.errors().await) } else { None },
        })
    }

    async fn restart(&self, units: &[String]) -> anyhow::Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        // One that has failed too often may start again.
        let names = |verb| Cmd::new("systemctl").args([verb, "--"]).args(units);
        names("reset-failed").run().await.ok(); // of one that is not loaded, there is nothing to reset
        Cmd::new("systemctl")
            .args(["restart", "--no-block", "--"])
            .args(units)
            .run()
            .await
            .context("restarting the services")?;
        Ok(())
    }

    async fn try_programs(&self, side: &Side) -> anyhow::Result<()> {
        let directory = self.store.directory(side);
        let programs = self.store.programs(side)?;
        if let Some(missing) = self.store.programs(&Side::Image)?.difference(&programs).next() {
            bail!("the bundle has no {missing}, which this image has; make one with all programs");
        }
        for name in programs {
            Cmd::new(directory.join(&name))
                .arg("--version")
                .time_limit(TRY_LIMIT)
                .run()
                .await
                .with_context(|| format!("the new {name} does not start on this machine"))?;
        }
        Ok(())
    }
}

/// The services that run programs of ours, out of what `systemctl show` prints: blocks of `KEY=VALUE`, between empty lines.
fn ours(shown: &str) -> BTreeMap<String, Unit> {
    let mut units = BTreeMap::new();
    for block in shown.split("\n\n") {
        let value = |key: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .unwrap_or_default()
        };
        let number = |key: &str| value(key).parse().unwrap_or(0);
        let active = value("ActiveState").to_owned();
        let is_ours = value("ExecStart").contains(&format!("path={PROGRAMS}/"));
        // One that is not to run has no process, and one that has done its work neither.
        let runs = number("MainPID") != 0 || active == "activating" || active == "failed";
        if is_ours && runs {
            let unit = Unit {
                active,
                pid: number("MainPID"),
                restarts: number("NRestarts"),
            };
            units.insert(value("Id").to_owned(), unit);
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_run_programs_of_ours_are_found_among_others() {
        // As systemd 257 prints it.
        let shown = "\
MainPID=411
NRestarts=1
ExecStart={ path=/usr/lib/sysvm/current/ssvm ; argv[]=/usr/lib/sysvm/current/ssvm ; ignore_errors=no ; start_time=[n/a] ; \
stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
Id=cs-ssvm.service
ActiveState=active

MainPID=0
NRestarts=0
ExecStart={ path=/usr/lib/sysvm/current/agent ; argv[]=/usr/lib/sysvm/current/agent setup ; ignore_errors=no }
Id=cs-setup.service
ActiveState=active

MainPID=300
NRestarts=0
ExecStart={ path=/usr/lib/sysvm/bin/agent ; argv[]=/usr/lib/sysvm/bin/agent boot ; ignore_errors=no }
Id=cs-preinit.service
ActiveState=active

MainPID=0
NRestarts=9
ExecStart={ path=/usr/lib/sysvm/current/agent ; argv[]=/usr/lib/sysvm/current/agent patch-watch ; ignore_errors=no }
Id=cs-patchd.service
ActiveState=activating
";
        let unit = |active: &str, pid, restarts| Unit {
            active: active.to_owned(),
            pid,
            restarts,
        };
        assert_eq!(
            ours(shown),
            BTreeMap::from([
                ("cs-patchd.service".to_owned(), unit("activating", 0, 9)),
                ("cs-ssvm.service".to_owned(), unit("active", 411, 1)),
            ])
        );
        assert_eq!(ours(""), BTreeMap::new());
    }
}
