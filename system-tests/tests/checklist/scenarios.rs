//! The scenarios: which there are, and what each says something about.

use futures_util::future::LocalBoxFuture;

use crate::board::{Lane, Report};
use crate::checks::{Check, ITEMS};
use Check::{BadLine, Item, Ports};

mod bad;
mod cpvm;
mod disk;
mod hypervisors;
mod pure;
mod router;
mod ssvm;
mod types;

/// A VM, or a few, and what is done to them.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// All that it says something about.
    pub(crate) checks: &'static [Check],
    pub(crate) run: fn(Report, Lane) -> LocalBoxFuture<'static, anyhow::Result<()>>,
}

/// The longest first.
pub(crate) static SCENARIOS: [Scenario; 10] = [
    Scenario {
        name: "disk",
        checks: &[Item(3), Item(7), Item(8), Item(9), Item(10)],
        run: |report, lane| Box::pin(disk::run(report, lane)),
    },
    Scenario {
        name: "ssvm",
        checks: &[
            Item(1),
            Item(2),
            Item(4),
            Item(5),
            Item(7),
            Item(12),
            Item(13),
            Item(14),
            Item(15),
            Item(16),
            Item(17),
            Item(18),
            Item(19),
            Item(20),
            Item(21),
            Item(22),
            Item(23),
            Item(24),
            Item(26),
            Item(27),
            Item(29),
            Item(30),
            Item(31),
            Item(38),
            Item(39),
            Ports,
        ],
        run: |report, lane| Box::pin(ssvm::run(report, lane)),
    },
    Scenario {
        name: "cpvm",
        checks: &[Item(25), Item(26), Item(27), Item(28), Ports],
        run: |report, lane| Box::pin(cpvm::run(report, lane)),
    },
    Scenario {
        name: "router",
        checks: &[
            Item(11),
            Item(21),
            Item(26),
            Item(32),
            Item(33),
            Item(34),
            Item(36),
            Item(37),
            Ports,
        ],
        run: |report, lane| Box::pin(router::run(report, lane)),
    },
    Scenario {
        name: "bad",
        checks: &[BadLine],
        run: |report, lane| Box::pin(bad::run(report, lane)),
    },
    Scenario {
        name: "vpc",
        checks: &[Item(26), Item(35), Ports],
        run: |report, lane| Box::pin(types::vpc(report, lane)),
    },
    Scenario {
        name: "dhcp-server",
        checks: &[Item(7), Item(26), Item(36), Ports],
        run: |report, lane| Box::pin(types::dhcp_server(report, lane)),
    },
    Scenario {
        name: "load-balancer",
        checks: &[Item(26), Item(36), Ports],
        run: |report, lane| Box::pin(types::load_balancer(report, lane)),
    },
    Scenario {
        name: "hypervisors",
        checks: &[Item(40)],
        run: |report, lane| Box::pin(hypervisors::run(report, lane)),
    },
    Scenario {
        name: "pure",
        checks: &[Item(6), Item(41)],
        run: |report, lane| Box::pin(pure::run(report, lane)),
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
