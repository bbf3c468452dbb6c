//! The system VM that a program of ours runs in: from the boot arguments to a machine that serves. Facts: appliance.md;
//! § numbers below this module refer to it.
//!
//! | module | |
//! |---|---|
//! | [`root`] | where the files of a system VM are, also when a test puts them elsewhere |
//! | [`addresses`] | which addresses this machine has now |
//! | [`check`] | is this VM well, and if not, what is to be done |
//! | [`guest_channel`] | what a host and a VM tell each other before there is any network |
//! | [`screen`] | what a person at the console sees |
//! | [`progress`] | how far the boot is, for whoever asks why a VM is not up |

pub mod addresses;
pub mod check;
pub mod guest_channel;
pub mod progress;
pub mod root;
pub mod screen;
