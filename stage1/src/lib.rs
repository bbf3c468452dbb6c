//! An image's initial RAM file system: what is in it, and the first program of it, which finds the root file system,
//! mounts it and hands over to systemd.
//!
//! | module | |
//! |---|---|
//! | [`cmdline`] | what the kernel command line wants |
//! | [`cpio`] | the archive that the kernel unpacks before it runs us |
//! | [`superblock`] | which file system a block device holds |
//! | [`table`] | kernel modules, what they need and which devices they are for: written by image-builder, read here |

pub mod cmdline;
pub mod cpio;
pub mod superblock;
pub mod table;
