//! The system VM that a program of ours runs in: from the boot arguments to a machine that serves. Facts: appliance.md;
//! § numbers below this module refer to it.
//!
//! | module | |
//! |---|---|
//! | [`root`] | where the files of a system VM are, also when a test puts them elsewhere |
//! | [`gate`] | what a host's SSH command becomes |
//! | [`patch`] | what hosts upload to patch the VM, and its version |
//! | [`remote`] | what hosts run by name under `/opt/cloud/bin` |
//! | [`progress`] | how far the boot is, for whoever asks why a VM is not up |

pub mod gate;
pub mod patch;
pub mod progress;
pub mod remote;
pub mod root;
