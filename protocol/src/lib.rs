//! What travels between a management server and its system VMs: boot arguments, agent frames, commands and answers.
//!
//! No I/O and no runtime: everything takes bytes and gives values, and is run by tests, by fuzzers and by either end.
//! The source of all facts is the specification page named in each module; § numbers refer to it.
//!
//! From the outside in:
//!
//! | module | |
//! |---|---|
//! | [`boot`] | the boot arguments: one line of `key=value` |
//! | [`chunk`], [`channel`] | messages over TLS over the chunk framing of port 8250 |
//! | [`header`], [`message`] | the 40-byte header; compression |
//! | [`packet`] | requests and responses |
//! | [`command`], [`answer`] | all classes that SSVM and CPVM speak |
//! | [`session`], [`certificate`], [`secondary_storage`], [`console_proxy`] | their members |
//! | [`transfer`], [`ovf`] | what commands speak of: stores, templates, volumes, snapshots |
//! | [`gson`] | JSON as Gson reads and writes it |
//! | [`secret`] | values that must not be shown |
#![warn(missing_docs)]

pub mod answer;
pub mod boot;
pub mod certificate;
pub mod channel;
pub mod chunk;
mod class;
pub mod command;
pub mod console_proxy;
pub mod gson;
pub mod header;
pub mod message;
pub mod ovf;
pub mod packet;
pub mod secondary_storage;
pub mod secret;
pub mod session;
pub mod transfer;

pub use class::{BadBody, Class};
