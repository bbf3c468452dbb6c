//! A disk somebody watches: how far it has been read, and a way to stop.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Disk;

/// Passes everything on, tells how far readers came, and stops them. All writers go from the disk's start to its end, so
/// this is their progress, and they end soon after their disk can no longer be read.
pub struct Watched<'a, F> {
    disk: &'a dyn Disk,
    reached: F,
    stop: &'a AtomicBool,
}

impl<'a, F: Fn(u64) + Send + Sync> Watched<'a, F> {
    /// Watches `disk`: `reached` is called, by several threads, with the offset that is read next. Once `stop` is true,
    /// every read fails.
    pub fn new(disk: &'a dyn Disk, stop: &'a AtomicBool, reached: F) -> Self {
        Self { disk, reached, stop }
    }

    fn check(&self, offset: u64) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        (self.reached)(offset);
        Ok(())
    }
}

/// The error of work that was told to stop.
pub(crate) fn stopped() -> io::Error {
    io::Error::other("stopped before it was done")
}

impl<F: Fn(u64) + Send + Sync> Disk for Watched<'_, F> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset)?;
        self.disk.read_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }
}
