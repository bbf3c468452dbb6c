//! Networks of VMs, with real bridges, rules and packets. The VMs are network namespaces whose NIC is plugged in where a tap
//! would be.

#![expect(clippy::unwrap_used, reason = "a test may fall over anywhere")]

mod net;
mod network;
mod nfs;
mod relay;
mod ssh;
mod uplink;
