//! What a host does with a VM over SSH and by what it uploads, against the real sshd, ssh and scp of this machine.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

#[path = "host/commands.rs"]
mod commands;
#[path = "host/gate.rs"]
mod gate;
#[path = "host/patch.rs"]
mod patch;
#[path = "host/sshd.rs"]
mod sshd;
