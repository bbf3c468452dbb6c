//! A zone of processes: the server's parts as `serve` puts them together, the process driver, and programs that are real
//! agents (`examples/fake_vm.rs`).
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

mod by_hand;
mod consoles;
mod downloads;
mod support;
mod system_vms;
