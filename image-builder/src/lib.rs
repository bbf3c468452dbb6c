//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`apt`] | which packages there are today |
//! | [`cache`] | packages on this machine's disk |
//! | [`control`] | how Debian describes a package |
//! | [`deb`] | one package, read |
//! | [`disk`] | the whole disk in one sparse raw file |
//! | [`esp`] | the EFI system partition |
//! | [`ext4`] | the root file system |
//! | [`fetch`] | packages into that cache |
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`gpt`] | the partition table |
//! | [`grub`] | the boot loader |
//! | [`ids`] | UUIDs and serial numbers, made from what is built |
//! | [`initrd`] | the initial RAM file system |
//! | [`lock`] | exactly which packages |
//! | [`mirror`] | from where |
//! | [`modules`] | the kernel and its modules |
//! | [`progress`] | how far a long step is |
//! | [`recipe`] | what a person decides about the image |
//! | [`tools`] | the programs that make an image, from packages, too |
//! | [`tree`] | a root file system in memory |

pub mod apt;
pub mod cache;
pub mod control;
pub mod deb;
pub mod disk;
pub mod esp;
pub mod ext4;
pub mod fetch;
pub mod formats;
pub mod gpt;
pub mod grub;
pub mod ids;
pub mod initrd;
pub mod lock;
pub mod mirror;
pub mod modules;
pub mod progress;
pub mod recipe;
pub mod tools;
pub mod tree;
