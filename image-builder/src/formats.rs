//! Disk image formats: what each hypervisor wants, from one raw disk, and back.

use std::io;

/// A disk that can be read at any place.
pub trait Disk: Send + Sync {
    /// Bytes; a multiple of 512.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`. Unallocated parts are zeros.
    ///
    /// # Errors
    /// It lies beyond the end, the file cannot be read, or it is damaged there.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}
