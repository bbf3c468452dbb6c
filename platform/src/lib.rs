//! This machine: what every program of ours needs from the system it runs on. Knows nothing of `CloudStack`.

#![warn(missing_docs)]

pub mod bundle;
/// One TLS crypto provider for the whole program.
pub mod crypto;
pub mod duplex;
/// Running other programs: plain data, a time limit, full error text, no shell.
pub mod exec;
/// The two ways a program of ours fails, as exit codes that systemd understands.
pub mod exit;
/// Replacing files whole and reading them with a limit.
pub mod files;
pub mod http;
/// Log lines on standard error, for people, the journal or programs.
pub mod logging;
pub mod notify;
/// Being asked to stop.
pub mod shutdown;
pub mod watch;
