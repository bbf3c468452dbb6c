//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`output`] | large files, whole or not at all |
//! | [`publish`] | what a CloudStack server expects |
//! | [`lock`] | exactly which packages |
//! | [`tree`] | a root file system in memory |

pub mod formats;
pub mod lock;
pub mod output;
pub mod publish;
pub mod tree;
