//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`disk`] | the whole disk in one sparse raw file |
//! | [`esp`] | the EFI system partition |
//! | [`ext4`] | the root file system |
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`gpt`] | the partition table |
//! | [`grub`] | the boot loader |
//! | [`ids`] | UUIDs and serial numbers, made from what is built |
//! | [`initrd`] | the initial RAM file system |
//! | [`lock`] | exactly which packages |
//! | [`modules`] | the kernel and its modules |
//! | [`recipe`] | what a person decides about the image |
//! | [`tools`] | the programs that make an image |
//! | [`tree`] | a root file system in memory |

pub mod disk;
pub mod esp;
pub mod ext4;
pub mod formats;
pub mod gpt;
pub mod grub;
pub mod ids;
pub mod initrd;
pub mod lock;
pub mod modules;
pub mod recipe;
pub mod tools;
pub mod tree;
