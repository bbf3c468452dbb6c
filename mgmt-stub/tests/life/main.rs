//! The life of system VMs, whatever runs them: simulated VMs in the networks of a zone, with faults on demand.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod addresses;
mod faults;
mod scale;
mod support;
