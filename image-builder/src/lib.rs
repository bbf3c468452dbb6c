//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`apt`] | which packages there are today |
//! | [`cache`] | packages on this machine's disk |
//! | [`control`] | how Debian describes a package |
//! | [`deb`] | one package, read |
//! | [`fetch`] | packages into that cache |
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`lock`] | exactly which packages |
//! | [`mirror`] | from where |
//! | [`progress`] | how far a long step is |
//! | [`recipe`] | what a person decides about the image |
//! | [`rootfs`] | the root file system of packages, recipe and programs |
//! | [`tools`] | the programs that make an image, from packages, too |
//! | [`tree`] | a root file system in memory |

pub mod apt;
pub mod cache;
pub mod control;
pub mod deb;
pub mod fetch;
pub mod formats;
pub mod lock;
pub mod mirror;
pub mod progress;
pub mod recipe;
pub mod rootfs;
pub mod tools;
pub mod tree;
