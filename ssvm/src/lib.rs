//! Secondary storage: templates, ISOs and volumes from URLs into the stores of a zone (ssvm.md).

/// Work that may hang has a thread of its own.
pub mod blocking;
/// Removing what the server does not want any more.
pub mod delete;
/// Carries out download jobs.
pub mod engine;
/// From a verified file to an image in its place.
pub mod install;
/// A download job: states and answers.
pub mod job;
/// All download jobs.
pub mod jobs;
/// What a restart must not forget.
pub mod journal;
/// What a store holds.
pub mod listing;
/// Numbers for operators.
pub mod metrics;
/// How a store is mounted.
pub mod mount;
/// What a DownloadCommand asks for.
pub mod order;
/// Bandwidth limits.
pub mod rate;
/// Which addresses a user's URL may lead to.
pub mod reach;
/// What an operator allows images to be.
pub mod rules;
/// What a management server may ask.
pub mod service;
/// The program's own settings.
pub mod settings;
/// Where the bytes of a download go.
pub mod sink;
/// Asking an http or https source.
pub mod source;
/// Stores as directories.
pub mod stores;
/// All bytes of a source, over as many connections as it takes.
mod transfer;

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
