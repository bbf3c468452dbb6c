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
//! | [`gate`] | what a host's SSH command becomes |
//! | [`patch`] | what hosts upload to patch the VM, and its version |
//! | [`patchd`] | the daemon that takes it |
//! | [`remote`] | what hosts run by name under `/opt/cloud/bin` |
//! | [`addresses`] | which addresses this machine has now |
//! | [`check`] | is this VM well, and if not, what is to be done |
//! | [`diagnostics`] | all that helps to find a fault |
//! | [`guest_channel`] | what a host and a VM tell each other before there is any network |
//! | [`screen`] | what a person at the console sees |
//! | [`upgrade`] | new programs for a VM that runs |
//! | [`progress`] | how far the boot is, for whoever asks why a VM is not up |
//! | [`plan`] | all that the boot arguments make of a machine, decided before anything is done |
//! | [`setup`] | what comes after the network: disk, settings, services, user data |

pub mod addresses;
pub mod apply;
pub mod boot;
pub mod channel;
pub mod check;
mod cloud_log;
pub mod diagnostics;
pub mod gate;
pub mod guest_channel;
pub mod hypervisor;
pub mod line;
pub mod patch;
pub mod patchd;
pub mod plan;
pub mod progress;
pub mod remote;
pub mod root;
pub mod screen;
pub mod setup;
pub mod upgrade;
