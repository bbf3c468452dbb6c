//! What `agent` does, a module for each command (or for two that are one matter).

pub(crate) mod boot;
pub(crate) mod check;
pub(crate) mod cmdline;
pub(crate) mod diagnostics;
pub(crate) mod guest_channel;
pub(crate) mod keystore;
pub(crate) mod patch_watch;
pub(crate) mod run;
pub(crate) mod setup;
pub(crate) mod ssh_gate;
pub(crate) mod status;
pub(crate) mod upgrade;
