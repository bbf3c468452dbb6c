//! A disk somebody watches: how far it has been read, and a way to stop.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Disk;

/// Passes everything on, and remembers how far readers came. All writers go from the disk's start to its end, so this
/// is their progress.
pub struct Watched<'a> {
    disk: &'a dyn Disk,
    position: AtomicU64,
    is_stopped: AtomicBool,
}

impl<'a> Watched<'a> {
    /// Watches `disk`.
    pub fn new(disk: &'a dyn Disk) -> Self {
        Self {
            disk,
            position: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// Bytes of the disk that are behind the readers.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Lets every further read fail: whoever writes from this disk ends soon, with an error.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    fn reached(&self, position: u64) -> io::Result<()> {
        self.position.fetch_max(position, Ordering::Relaxed);
        if self.is_stopped.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped before it was done"));
        }
        Ok(())
    }
}

impl Disk for Watched<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.reached(offset)?;
        self.disk.read_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let found = self.disk.next_data(offset)?;
        self.reached(found.as_ref().map_or(self.size(), |range| range.start))?;
        Ok(found)
    }
}
