//! The agent's end of the link over real sockets: recorded sessions, and everything that goes wrong.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod fake_server;
mod faults;
mod replay;
