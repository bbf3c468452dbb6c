//! The proxy as browsers and hosts meet it: real sockets, a WebSocket client of another make, real QEMU.

mod access;
mod client;
mod ends;
mod fake_host;
mod fake_ms;
mod hosts;
mod program;
mod proxy;
mod qemu;
mod reports;
mod site;
mod token;
