//! The bytes of an image file, or of a part of it, and what was unpacked of them lately.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{fields, invalid};

/// A part of a file. Nothing outside of it can be read.
#[derive(Clone)]
pub(super) struct Source {
    file: Arc<File>,
    start: u64,
    len: u64,
}

impl Source {
    /// A whole file.
    pub(super) fn of(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            start: 0,
            len,
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A part of this; `None` when it is not inside.
    pub(super) fn part(&self, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self {
            file: Arc::clone(&self.file),
            start: self.start + start,
            len,
        })
    }

    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(fields::len(buffer));
        if end.is_none_or(|end| end > self.len) {
            return Err(invalid(format!(
                "it ends before byte {offset} and what should be there"
            )));
        }
        self.file.read_exact_at(buffer, self.start + offset)
    }

    /// The bytes from `offset` on, at most `max` of them and fewer at the end.
    pub(super) fn read_up_to(&self, max: u64, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; fields::size(max.min(self.len.saturating_sub(offset)))?];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// `count` bytes. The caller has compared `count` with a limit.
    pub(super) fn read(&self, count: u64, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; fields::size(count)?];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The next part, from `offset` on, that the file system has stored.
    pub(super) fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.len {
            return Ok(None);
        }
        let seek = |from: u64, whence| {
            let from = i64::try_from(self.start + from).map_err(io::Error::other)?;
            match lseek(&self.file, from, whence) {
                Ok(found) => Ok(Some(u64::try_from(found).map_err(io::Error::other)? - self.start)),
                Err(Errno::ENXIO) => Ok(None), // no data up to the end
                Err(errno) => Err(io::Error::from(errno)),
            }
        };
        let Some(start) = seek(offset, Whence::SeekData)?.filter(|start| *start < self.len) else {
            return Ok(None);
        };
        let end = seek(start, Whence::SeekHole)?.unwrap_or(self.len);
        Ok(Some(start..end.min(self.len)))
    }
}

/// How many pieces are remembered.
const REMEMBERED: usize = 16;

/// What was read or unpacked lately: readers of file systems ask for a few KiB at a time, and clusters are larger.
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<(u64, Arc<[u8]>)>>);

impl Recent {
    /// The piece known as `key`, loaded if it is not remembered.
    pub(super) fn get(&self, key: u64, load: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Arc<[u8]>> {
        if let Some(piece) = self.find(key) {
            return Ok(piece);
        }
        let piece: Arc<[u8]> = load()?.into(); // outside of the lock: other threads unpack meanwhile
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push_front((key, Arc::clone(&piece)));
        pieces.truncate(REMEMBERED);
        Ok(piece)
    }

    fn find(&self, key: u64) -> Option<Arc<[u8]>> {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = pieces.iter().position(|(known, _)| *known == key)?;
        let found = pieces.remove(at)?;
        let piece = Arc::clone(&found.1);
        pieces.push_front(found);
        Some(piece)
    }
}

/// Goes through `buffer` in the pieces that `unit`-sized clusters make of it: number of the cluster, offset in it, part
/// of the buffer.
pub(super) fn by_cluster(
    buffer: &mut [u8],
    offset: u64,
    unit: u64,
    mut read: impl FnMut(u64, usize, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut rest, mut at) = (buffer, offset);
    while !rest.is_empty() {
        let inside = fields::size(at % unit)?;
        let count = (fields::size(unit)? - inside).min(rest.len());
        let (part, after) = rest.split_at_mut(count);
        read(at / unit, inside, part)?;
        at += fields::len(part);
        rest = after;
    }
    Ok(())
}

/// That a read lies on the disk.
pub(super) fn check_range(buffer: &[u8], offset: u64, size: u64) -> io::Result<()> {
    match offset.checked_add(fields::len(buffer)) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("byte {offset} and what follows is beyond the disk's end at {size}"),
        )),
    }
}
