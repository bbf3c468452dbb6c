//! The agent link over real sockets: our agent and our server, recorded sessions, and everything that goes wrong.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod faults;
mod link;
mod replay;
mod support;
