//! Secondary storage: templates, ISOs and volumes from URLs into the stores of a zone (ssvm.md).

/// Checksums as CloudStack writes them.
pub mod checksum;
/// What a disk image is, and whether it is safe to keep.
pub mod image;
/// The directory a store is mounted at.
pub mod mount_uuid;
/// Paths that come from commands, URLs and archives.
pub mod path;
/// `template.properties` and `volume.properties`.
pub mod properties;
/// Digest, decompression and sparse writing in one pass.
pub mod stream;
