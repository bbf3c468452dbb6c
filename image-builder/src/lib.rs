//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`cache`] | packages on this machine's disk |
//! | [`control`] | how Debian describes a package |
//! | [`deb`] | one package, read |
//! | [`diff`] | what is different between two images |
//! | [`facts`] | what a root file system says of itself |
//! | [`fetch`] | packages into that cache |
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`inspect`] | what is in an image |
//! | [`lock`] | exactly which packages |
//! | [`manifest`] | what an image was made of, and digests of what came out |
//! | [`mirror`] | from where |
//! | [`output`] | large files, whole or not at all |
//! | [`progress`] | how far a long step is |
//! | [`publish`] | what a CloudStack server expects |
//! | [`recipe`] | what a person decides about the image |
//! | [`sbom`] | which packages and crates, under which licences |
//! | [`sign`] | signatures in minisign's format |
//! | [`tools`] | the programs that make an image, from packages, too |
//! | [`tree`] | a root file system in memory |
//! | [`verify`] | are these the bytes that recipe and lock make? |
//! | [`view`] | reads an image of any format |

pub mod cache;
pub mod control;
pub mod deb;
pub mod diff;
pub mod facts;
pub mod fetch;
pub mod formats;
pub mod inspect;
pub mod lock;
pub mod manifest;
pub mod mirror;
pub mod output;
pub mod progress;
pub mod publish;
pub mod recipe;
pub mod sbom;
pub mod sign;
pub mod tools;
pub mod tree;
pub mod verify;
pub mod view;
