//! What a host and this VM tell each other over a virtio-serial port, before there is any network.

mod diagnostics;
pub mod message;
