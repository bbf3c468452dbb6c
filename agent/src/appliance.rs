//! The system VM that a program of ours runs in: from the boot arguments to a machine that serves. Facts: appliance.md;
//! § numbers below this module refer to it.
//!
//! | module | |
//! |---|---|
//! | [`hypervisor`] | which one this runs on |
//! | [`channel`] | where boot arguments come from |
//! | [`line`](mod@line) | which line of them counts |
//! | [`apply`] | makes a plan true |
//! | [`boot`] | all of that in its order, as long as the machine runs |
//! | [`root`] | where the files of a system VM are, also when a test puts them elsewhere |
//! | [`progress`] | how far the boot is, for whoever asks why a VM is not up |
//! | [`plan`] | all that the boot arguments make of a machine, decided before anything is done |
//! | [`setup`] | what comes after the network: disk, settings, services, user data |

pub mod apply;
pub mod boot;
pub mod channel;
mod cloud_log;
pub mod hypervisor;
pub mod line;
pub mod plan;
pub mod progress;
pub mod root;
pub mod setup;
