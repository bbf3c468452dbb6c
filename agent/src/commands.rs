//! What `agent` does, a module for each command (or for two that are one matter).

pub(crate) mod boot;
pub(crate) mod cmdline;
pub(crate) mod keystore;
pub(crate) mod setup;
