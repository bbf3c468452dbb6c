//! Digest, decompression and sparse writing in one pass (ssvm.md §3.8). These block: they are for threads of their own.

mod digest;
mod sparse;
mod unpack;
mod xz;
mod zip;

use std::io;

use nix::errno::Errno;
use platform::exec::ExecError;

use crate::image::Refusal;

pub use digest::Digest;
pub use sparse::SparseFile;
pub use unpack::{Compression, Unpack, UnpackLimits};

/// Why the bytes of a file are not all where they should be.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The store said no.
    #[error("cannot write to the store")]
    Store(#[source] io::Error),
    /// The store is full, or this user's share of it.
    #[error("no space left on the store; free some, or choose another store")]
    NoSpace,
    /// Where the bytes come from, or something else that has nothing to do with them.
    #[error("cannot read the source")]
    Source(#[source] io::Error),
    /// Compressed data that is not what it says.
    #[error("the {compression} data is damaged or incomplete: {why}; publish the file again")]
    Damaged {
        /// What it claims to be.
        compression: Compression,
        /// What the decoder found.
        why: String,
    },
    /// It has more in it than is allowed.
    #[error("the file unpacks to more than the {limit} bytes that are allowed")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// Nearly nothing unpacks to nearly everything.
    #[error(
        "the file unpacks to more than {limit} times its size, which no disk image does; it looks like a decompression bomb"
    )]
    Bomb {
        /// Output bytes per input byte.
        limit: u64,
    },
    /// A zip file that is not one image.
    #[error("the zip file cannot be used: {0}")]
    Zip(String),
    /// Its first bytes tell already that it is not what it should be.
    #[error("the image is refused")]
    Refused(#[from] Refusal),
    /// `xz` could not be run, or lost.
    #[error("cannot unpack xz data")]
    Xz(#[source] ExecError),
    /// Something around the stream failed.
    #[error("cannot go on")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StreamError {
    /// Something around the stream failed.
    pub fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(error))
    }

    /// The store is full: another file may still fit, and this one may fit later.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace)
    }

    /// The bytes themselves are wrong: fetching them again would not help.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::TooLarge { .. } | Self::Bomb { .. } | Self::Zip(_)
        )
    }

    pub(crate) fn store(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::NoSpace,
            _ => Self::Store(error),
        }
    }
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Source(error)
    }
}
