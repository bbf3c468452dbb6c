//! The bytes of the disk, in a file with holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::source::{Source, check_range};
use super::{Bad, Disk, check_size, chunks, damaged};

/// A raw image.
pub struct Raw(Source);

impl Raw {
    pub(super) fn new(source: Source) -> Result<Self, Bad> {
        match check_size(source.len()) {
            Ok(()) => Ok(Self(source)),
            Err(why) => damaged(why),
        }
    }

    /// The disk that `file` holds.
    ///
    /// # Errors
    /// Its size is none of a disk.
    pub fn of(file: File) -> io::Result<Self> {
        let source = Source::of(file)?;
        check_size(source.len()).map_err(io::Error::other)?;
        Ok(Self(source))
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(buffer, offset, self.size())?;
        self.0.read_exact_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

/// What is written or left a hole at a time; file systems store in units of this size.
const BLOCK: u64 = 4096;

pub(super) fn write(disk: &dyn Disk, file: &File) -> io::Result<()> {
    file.set_len(disk.size())?;
    let copy = || Ok(|block: &[u8]| Ok(block.to_vec()));
    let mut run: (u64, Vec<u8>) = (0, Vec::new());
    chunks::each(disk, BLOCK, copy, |number, block| {
        let offset = number * BLOCK;
        let (start, bytes) = &mut run;
        if *start + super::fields::len(bytes) != offset || bytes.len() >= 1 << 20 {
            file.write_all_at(bytes, *start)?;
            *start = offset;
            bytes.clear();
        }
        bytes.extend_from_slice(&block);
        Ok(())
    })?;
    file.write_all_at(&run.1, run.0)?;
    file.set_len(disk.size()) // the last block may reach beyond
}
