//! Whether a VM is as well as it was before its programs were exchanged. Pure: what was seen comes from [`super::machine`].

use std::collections::{BTreeMap, BTreeSet};

/// So often a service may start by itself before it counts as broken.
const MAX_RESTARTS: u32 = 2;

/// What was seen of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The services that run our programs, by unit.
    pub units: BTreeMap<String, Unit>,
    /// Whether the management server uses this VM.
    pub link_is_ready: bool,
    /// The checks that have found an error (`agent check`); `None` when they were not asked for.
    pub errors: Option<BTreeSet<String>>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// systemd's `ActiveState`.
    pub active: String,
    /// Its main process; 0 for none.
    pub pid: u32,
    /// How often systemd has started it again by itself.
    pub restarts: u32,
}

/// Of a VM after the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As well as before.
    Well,
    /// It may still come.
    NotYet(String),
    /// It will not.
    Broken(String),
}

impl Unit {
    fn is_active(&self) -> bool {
        self.active == "active"
    }
}

/// Compares what is seen with what was seen before. All services that were active must be so again, with another process.
pub fn judge(before: &Health, now: &Health) -> Verdict {
    let mut waiting = None;
    for (name, was) in before.units.iter().filter(|(_, was)| was.is_active()) {
        let Some(unit) = now.units.get(name) else {
            return Verdict::Broken(format!("{name} is gone"));
        };
        // Its count starts anew with its process.
        let restarts = if unit.restarts >= was.restarts {
            unit.restarts - was.restarts
        } else {
            unit.restarts
        };
        if unit.active == "failed" || restarts > MAX_RESTARTS {
            return Verdict::Broken(format!("{name} does not run"));
        }
        if !unit.is_active() {
            waiting = Some(format!("{name} is {}", unit.active));
        } else if unit.pid == was.pid || unit.pid == 0 {
            waiting = Some(format!("{name} has not started again"));
        }
    }
    if before.link_is_ready && !now.link_is_ready {
        waiting.get_or_insert_with(|| "the management server does not use this VM again".to_owned());
    }
    match waiting {
        Some(why) => Verdict::NotYet(why),
        None => Verdict::Well,
    }
}

/// The checks that find an error now and found none before.
pub fn worse(before: &Health, now: &Health) -> Option<String> {
    let (Some(before), Some(now)) = (&before.errors, &now.errors) else {
        return None;
    };
    let new: Vec<_> = now.difference(before).map(String::as_str).collect();
    (!new.is_empty()).then(|| format!("`agent check` finds new errors: {}", new.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(units: &[(&str, &str, u32, u32)], link_is_ready: bool) -> Health {
        let units = units.iter().map(|(name, active, pid, restarts)| {
            let unit = Unit {
                active: (*active).to_owned(),
                pid: *pid,
                restarts: *restarts,
            };
            ((*name).to_owned(), unit)
        });
        Health {
            units: units.collect(),
            link_is_ready,
            errors: None,
        }
    }

    #[test]
    fn what_ran_before_must_run_again_as_another_process() {
        let before = health(&[("cs-ssvm", "active", 10, 4), ("cs-patchd", "activating", 0, 9)], true);
        let not_yet = |why: &str| Verdict::NotYet(why.to_owned());
        let now = |unit, link| judge(&before, &health(&[unit], link));
        assert_eq!(
            now(("cs-ssvm", "active", 10, 4), true),
            not_yet("cs-ssvm has not started again")
        );
        assert_eq!(now(("cs-ssvm", "active", 11, 0), true), Verdict::Well);
        assert_eq!(
            now(("cs-ssvm", "activating", 11, 0), true),
            not_yet("cs-ssvm is activating")
        );
        assert_eq!(
            now(("cs-ssvm", "active", 11, 0), false),
            not_yet("the management server does not use this VM again")
        );
        let broken = |why: &str| Verdict::Broken(why.to_owned());
        assert_eq!(now(("cs-ssvm", "failed", 0, 0), true), broken("cs-ssvm does not run"));
        assert_eq!(
            now(("cs-ssvm", "activating", 0, 3), true),
            broken("cs-ssvm does not run")
        );
        assert_eq!(judge(&before, &health(&[], true)), broken("cs-ssvm is gone"));
    }

    #[test]
    fn what_was_wrong_before_need_not_be_right_now() {
        let before = health(&[("cs-ssvm", "activating", 0, 7)], false);
        assert_eq!(judge(&before, &health(&[], false)), Verdict::Well);
    }

    #[test]
    fn a_check_that_fails_newly_is_worse_and_an_old_failure_is_not() {
        let with = |errors: Option<&[&str]>| Health {
            errors: errors.map(|errors| errors.iter().map(|error| (*error).to_owned()).collect()),
            ..Health::default()
        };
        assert_eq!(worse(&with(Some(&["dns"])), &with(Some(&["dns"]))), None);
        assert_eq!(worse(&with(Some(&["dns"])), &with(Some(&[]))), None);
        assert_eq!(
            worse(&with(Some(&["dns"])), &with(Some(&["dns", "link"]))).unwrap(),
            "`agent check` finds new errors: link"
        );
        assert_eq!(worse(&with(None), &with(Some(&["dns"]))), None);
    }
}
