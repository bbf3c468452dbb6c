//! The proxy as browsers and hosts meet it: real sockets, a WebSocket client of another make, real QEMU.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod access;
mod client;
mod ends;
mod fake_host;
mod fake_ms;
mod fake_server;
mod hosts;
mod program;
mod proxy;
mod qemu;
mod reports;
mod site;
mod token;
