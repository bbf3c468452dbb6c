//! A part of a disk, as a disk.

use std::io::{self, ErrorKind};

use crate::formats::Disk;
use crate::gpt::Partition;

/// The bytes of one partition.
pub struct Part<'a> {
    disk: &'a dyn Disk,
    start: u64,
    size: u64,
}

impl<'a> Part<'a> {
    /// A partition of this disk.
    pub fn new(disk: &'a dyn Disk, partition: &Partition) -> Self {
        Self {
            disk,
            start: partition.offset(),
            size: partition.size(),
        }
    }
}

impl Disk for Part<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it ends beyond its partition"));
        }
        self.disk.read_at(buffer, self.start + offset)
    }
}
