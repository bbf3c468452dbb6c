//! The HTTP API over real connections: TCP as clients use it, and the server's own socket.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod answers;
mod discovery;
mod fake_driver;
mod jobs;
mod live;
mod session;
mod signature;
mod support;
mod transport;
mod user_vms;
