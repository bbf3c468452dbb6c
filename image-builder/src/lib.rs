//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`lock`] | exactly which packages |
//! | [`recipe`] | what a person decides about the image |
//! | [`rootfs`] | the root file system of packages, recipe and programs |
//! | [`tree`] | a root file system in memory |

pub mod control;
pub mod deb;
pub mod formats;
pub mod lock;
pub mod recipe;
pub mod rootfs;
pub mod tree;
