//! This machine as a hypervisor's host: VMs under QEMU, their networks and their NFS server, for whoever keeps them.
//!
//! It knows nothing of CloudStack's model: names, networks and disks come from the caller, and nothing is remembered but
//! what is in the files and the kernel. Everything outlives the caller and is found again by the next one.
//!
//! | module | |
//! |---|---|
//! | [`machine`] | what a VM is made of, and QEMU's command line for it |
//! | [`vm`] | a QEMU that runs on its own: start, adopt, stop, watch |
//! | [`accelerator`] | whether KVM works here |
//! | [`disk`] | image files: what they are, and overlays on them |
//! | [`qmp`] | QEMU's monitor |
//! | [`guest_agent`] | the guest agent of QEMU |
//! | [`guest_channel`] | the host's end of the guest channel |

pub mod accelerator;
pub mod disk;
pub mod guest_agent;
pub mod guest_channel;
pub mod machine;
pub mod qmp;
pub mod vm;

mod line;
mod plain;

/// Bytes of the path of a UNIX socket: unix(7), without the zero at its end.
const MAX_SOCKET_PATH: usize = 107;
