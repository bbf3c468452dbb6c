//! From a Debian release to the system VM image: qcow2, vhd, ova and raw, byte for byte the same each time.
//!
//! | module | |
//! |---|---|
//! | [`apt`] | which packages there are today |
//! | [`base`] | the part that is made of packages alone, cached |
//! | [`build`] | the pipeline |
//! | [`bundle`] | our programs alone, for VMs that run |
//! | [`cache`] | packages on this machine's disk |
//! | [`control`] | how Debian describes a package |
//! | [`deb`] | one package, read |
//! | [`diff`] | what is different between two images |
//! | [`disk`] | the whole disk in one sparse raw file |
//! | [`esp`] | the EFI system partition |
//! | [`ext4`] | the root file system |
//! | [`facts`] | what a root file system says of itself |
//! | [`fetch`] | packages into that cache |
//! | [`formats`] | raw, qcow2, vhd, vmdk and ova, written and read |
//! | [`gpt`] | the partition table |
//! | [`grub`] | the boot loader |
//! | [`ids`] | UUIDs and serial numbers, made from what is built |
//! | [`initrd`] | the initial RAM file system |
//! | [`inspect`] | what is in an image |
//! | [`lock`] | exactly which packages |
//! | [`manifest`] | what an image was made of, and digests of what came out |
//! | [`mirror`] | from where |
//! | [`modules`] | the kernel and its modules |
//! | [`output`] | large files, whole or not at all |
//! | [`progress`] | how far a long step is |
//! | [`publish`] | what a CloudStack server expects |
//! | [`recipe`] | what a person decides about the image |
//! | [`rootfs`] | the root file system of packages, recipe and programs |
//! | [`sbom`] | which packages and crates, under which licences |
//! | [`sign`] | signatures in minisign's format |
//! | [`stop`] | long work that ctrl-C ends |
//! | [`tools`] | the programs that make an image, from packages, too |
//! | [`tree`] | a root file system in memory |
//! | [`verify`] | are these the bytes that recipe and lock make? |
//! | [`view`] | reads an image of any format |

pub mod apt;
pub mod base;
pub mod build;
pub mod bundle;
pub mod cache;
pub mod control;
pub mod deb;
pub mod diff;
pub mod disk;
pub mod esp;
pub mod ext4;
pub mod facts;
pub mod fetch;
pub mod formats;
pub mod gpt;
pub mod grub;
pub mod ids;
pub mod initrd;
pub mod inspect;
pub mod lock;
pub mod manifest;
pub mod mirror;
pub mod modules;
pub mod output;
pub mod progress;
pub mod publish;
pub mod recipe;
pub mod rootfs;
pub mod sbom;
pub mod sign;
pub mod stop;
pub mod tools;
pub mod tree;
pub mod verify;
pub mod view;
