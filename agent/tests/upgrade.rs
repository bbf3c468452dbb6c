//! Upgrades on a real disk: bundles that are good, bad and hostile, and power cuts at every step.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

#[path = "upgrade/bundles.rs"]
mod bundles;
#[path = "upgrade/changes.rs"]
mod changes;
#[path = "upgrade/maker.rs"]
mod maker;
