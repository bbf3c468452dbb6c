//! The system VM that a program of ours runs in: from the boot arguments to a machine that serves. Facts: appliance.md;
//! § numbers below this module refer to it.
//!
//! | module | |
//! |---|---|
//! | [`root`] | where the files of a system VM are, also when a test puts them elsewhere |
//! | [`progress`] | how far the boot is, for whoever asks why a VM is not up |
//! | [`hypervisor`] | which machine it is |
//! | [`plan`] | all that the boot arguments make of a machine, decided before anything is done |

pub mod hypervisor;
pub mod plan;
pub mod progress;
pub mod root;
