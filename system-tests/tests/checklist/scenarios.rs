//! The scenarios: which there are, and what each says something about.

use futures_util::future::LocalBoxFuture;

use crate::board::{Lane, Report};
use crate::checks::{Check, ITEMS};
use Check::Item;

mod disk;
mod ssvm;

/// A VM, or a few, and what is done to them.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// All that it says something about.
    pub(crate) checks: &'static [Check],
    pub(crate) run: fn(Report, Lane) -> LocalBoxFuture<'static, anyhow::Result<()>>,
}

/// The longest first.
pub(crate) static SCENARIOS: [Scenario; 2] = [
    Scenario {
        name: "disk",
        checks: &[Item(3), Item(7), Item(8), Item(9), Item(10)],
        run: |report, lane| Box::pin(disk::run(report, lane)),
    },
    Scenario {
        name: "ssvm",
        checks: &[Item(1), Item(2), Item(4), Item(5), Item(7), Item(12), Item(13)],
        run: |report, lane| Box::pin(ssvm::run(report, lane)),
    },
];

/// Those that say something about one of these checks.
pub(crate) fn needed_for(checks: &[Check]) -> Vec<&'static Scenario> {
    let is_needed = |scenario: &&Scenario| scenario.checks.iter().any(|check| checks.contains(check));
    SCENARIOS.iter().filter(is_needed).collect()
}

/// # Errors
/// An item has no scenario, or a name without its number.
pub(crate) fn cover_everything() -> Result<(), String> {
    for (number, name) in (1_u8..).zip(ITEMS) {
        if !name.starts_with(&format!("item_{number:02}_")) {
            return Err(format!("{name} is item {number}"));
        }
    }
    let lonely: Vec<_> = Check::all()
        .filter(|check| needed_for(&[*check]).is_empty())
        .map(Check::name)
        .collect();
    if lonely.is_empty() {
        return Ok(());
    }
    Err(format!("no scenario says anything about {}", lonely.join(", ")))
}
