//! The system VM's end of the agent link (TCP 8250): connects to a management server and hands each command to a
//! [`Service`](service::Service). Facts: agent-protocol.md; § numbers refer to it.
//!
//! | module | |
//! |---|---|
//! | [`appliance`] | the VM itself: boot, set-up, checks |
//! | [`agent`] | keeps a link for as long as the program lives |
//! | [`config`] | what it must know to start |
//! | [`service`] | what a program does for its server, and what it may ask |
//! | [`hosts`] | which server next, and when |
//! | [`link`] | one connection |
//! | [`link_status`] | what the link is like, in a file for others |
//! | `session` | one link's life: startup, ready, pings |
//! | `execution` | commands beside the link |
//! | `renewal` | certificates over the link |
//! | [`registration`] | what is remembered across restarts |
//! | [`properties`] | the file `agent.properties` |
//! | [`keystore`] | certificate and key as PEM files |
//! | [`trust`] | which server is believed |

pub mod agent;
pub mod appliance;
pub mod config;
mod execution;
pub mod hosts;
pub mod keystore;
pub mod link;
pub mod link_status;
pub mod properties;
pub mod registration;
mod renewal;
pub mod service;
mod session;
pub mod trust;
