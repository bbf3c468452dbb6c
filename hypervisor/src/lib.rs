//! This machine as a hypervisor's host: VMs under QEMU, their networks and their NFS server, for whoever keeps them.
//!
//! It knows nothing of CloudStack's model: names, networks and disks come from the caller, and nothing is remembered but
//! what is in the files and the kernel. Everything outlives the caller and is found again by the next one.

pub mod network;
pub mod nfs;
pub mod relay;
pub mod ssh;
