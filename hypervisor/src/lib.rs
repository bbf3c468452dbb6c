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
//! | [`network`] | bridges and taps in a network namespace of their own |
//! | [`nfs`] | an NFS server in such a namespace |
//! | [`ssh`] | into VMs |
//! | [`qmp`] | QEMU's monitor |
//! | [`guest_agent`] | the guest agent of QEMU |
//! | [`guest_channel`] | the host's end of the guest channel |
//! | [`network`] | a network namespace with bridges, taps, and rules that keep VMs apart |
//! | [`nfs`] | an NFS server in it |
//! | [`relay`] | ports of the host that lead into it, and name servers for VMs |
//! | [`ssh`] | commands and files for VMs |
//! | [`uplink`] | the way out of it |

pub mod accelerator;
pub mod disk;
pub mod guest_agent;
pub mod guest_channel;
pub mod machine;
pub mod network;
pub mod nfs;
pub mod qmp;
pub mod relay;
pub mod ssh;
pub mod uplink;
pub mod vm;

mod line;
mod plain;

/// Bytes of the path of a UNIX socket: unix(7), without the zero at its end.
const MAX_SOCKET_PATH: usize = 107;
