//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`control`] | the paragraphs in which Debian describes packages |
//! | [`diff`] | what is different between two images |
//! | [`facts`] | what a root file system says of itself |
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`inspect`] | what is in an image |
//! | [`lock`] | exactly which packages |
//! | [`manifest`] | what an image was made of, and digests of what came out |
//! | [`sbom`] | which packages and crates, under which licences |
//! | [`sign`] | signatures in minisign's format |
//! | [`tree`] | a root file system in memory |
//! | [`verify`] | are these the bytes that recipe and lock make? |
//! | [`view`] | reads an image of any format |

pub mod control;
pub mod diff;
pub mod facts;
pub mod formats;
pub mod inspect;
pub mod lock;
pub mod manifest;
pub mod sbom;
pub mod sign;
pub mod tree;
pub mod verify;
pub mod view;
