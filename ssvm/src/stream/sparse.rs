use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::fstatvfs;

use super::StreamError;

/// Bytes of one write, which also starts at a multiple of it. More is not faster: the kernel sends to network file
/// systems from its cache, as much at once as they take.
const WRITE: usize = 256 << 10;

/// Bytes after which [`SparseFile::looked_at`] looks: all that formats have at their start, except large tables.
const START: u64 = 1 << 20;

/// Zeros are left out in blocks of this many bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Written bytes after which we wait for the disk: what a power cut or a slow store can hold back.
const MAX_DIRTY: u64 = 32 << 20;

/// Writes a file from its start to its end, leaving out zeros.
///
/// The kernel never holds more than 32 MiB that are not on disk, nor keeps the rest in its cache: an image is not
/// read again soon, and other programs want that memory.
pub struct SparseFile {
    file: File,
    /// Where `buffer` begins in the file.
    at: u64,
    buffer: Vec<u8>,
    /// Bytes that were not left out.
    written: u64,
    dirty: u64,
    synced_to: u64,
    look: Option<Look>,
    keep_free: u64,
}

/// Judges a file whose first bytes are there, so many.
type Look = Box<dyn FnOnce(&File, u64) -> Result<(), StreamError> + Send>;

impl SparseFile {
    /// Goes on at the byte `at`. Whatever the file has behind it is cut off: what is left out must read as zeros.
    pub fn resume(file: File, at: u64) -> io::Result<Self> {
        file.set_len(at)?;
        Ok(Self {
            file,
            at,
            buffer: Vec::new(),
            written: 0,
            dirty: 0,
            synced_to: at,
            look: None,
            keep_free: 0,
        })
    }

    /// Has `look` see the file once, when its first MiB is there; never if it ends before that. An error of `look` ends
    /// the writing.
    #[must_use]
    pub fn looked_at(mut self, look: impl FnOnce(&File, u64) -> Result<(), StreamError> + Send + 'static) -> Self {
        self.look = Some(Box::new(look));
        self
    }

    /// Calls the store full when less than so many bytes are free on it, whoever takes them; looked at after each 32 MiB.
    #[must_use]
    pub fn keeping_free(mut self, bytes: u64) -> Self {
        self.keep_free = bytes;
        self
    }

    /// Bytes taken so far, counted from the start of the file.
    pub fn position(&self) -> u64 {
        self.at.saturating_add(length(&self.buffer))
    }

    /// Bytes that were really written: without zeros, and without what was there before [`SparseFile::resume`].
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let room = self.room();
            if self.buffer.is_empty() && bytes.len() >= room {
                let (now, later) = bytes.split_at(room);
                self.put(now)?;
                bytes = later;
                continue;
            }
            if self.buffer.capacity() == 0 {
                self.buffer.reserve_exact(WRITE);
            }
            let (now, later) = bytes.split_at(bytes.len().min(room - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == room {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Returns when everything taken so far is on disk.
    pub fn sync(&mut self) -> Result<(), StreamError> {
        self.flush()?;
        self.set_length()?;
        self.write_back()
    }

    /// Everything was taken: returns its length when all of it is on disk.
    pub fn finish(mut self) -> Result<u64, StreamError> {
        self.flush()?;
        self.set_length()?;
        self.file.sync_all().map_err(StreamError::store)?;
        self.forget();
        Ok(self.at)
    }

    /// Bytes from `at` to the next multiple of [`WRITE`].
    fn room(&self) -> usize {
        let write = u64::try_from(WRITE).unwrap_or(u64::MAX);
        usize::try_from(write - self.at % write).unwrap_or(WRITE)
    }

    /// Zeros at the end are no bytes of the file yet.
    fn set_length(&self) -> Result<(), StreamError> {
        self.file.set_len(self.at).map_err(StreamError::store)
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.put(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        result
    }

    /// Writes runs of blocks that are not zero, each run at once.
    fn put(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut run = 0..0;
        for block in bytes.chunks(ZEROS.len()) {
            let end = run.end + block.len();
            if block == &ZEROS[..block.len()] {
                self.put_run(&bytes[run.clone()], run.start)?;
                run = end..end;
            } else {
                run.end = end;
            }
        }
        self.put_run(&bytes[run.clone()], run.start)?;
        self.at += length(bytes);
        if self.at >= START
            && let Some(look) = self.look.take()
        {
            self.set_length()?;
            look(&self.file, self.at)?;
        }
        if self.dirty >= MAX_DIRTY {
            self.write_back()?;
        }
        Ok(())
    }

    fn put_run(&mut self, run: &[u8], start: usize) -> Result<(), StreamError> {
        if run.is_empty() {
            return Ok(());
        }
        let at = self.at.saturating_add(u64::try_from(start).unwrap_or(u64::MAX));
        self.file.write_all_at(run, at).map_err(StreamError::store)?;
        self.written += length(run);
        self.dirty += length(run);
        Ok(())
    }

    fn write_back(&mut self) -> Result<(), StreamError> {
        self.file.sync_data().map_err(StreamError::store)?;
        self.forget();
        self.dirty = 0;
        if self.keep_free > 0 {
            let space = fstatvfs(&self.file).map_err(|errno| StreamError::store(errno.into()))?;
            if space.blocks_available().saturating_mul(space.fragment_size()) < self.keep_free {
                return Err(StreamError::NoSpace);
            }
        }
        Ok(())
    }

    /// Lets the kernel drop the pages that are on disk. Only advice: a file system may refuse it.
    fn forget(&mut self) {
        if let (Ok(from), Ok(len)) = (i64::try_from(self.synced_to), i64::try_from(self.at - self.synced_to)) {
            let _ = posix_fadvise(&self.file, from, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        self.synced_to = self.at;
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    fn contents(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn zeros_take_no_room_and_count() {
        let file = tempfile::tempfile().unwrap();
        let mut sparse = SparseFile::resume(file.try_clone().unwrap(), 0).unwrap();
        sparse.write(b"start").unwrap();
        for _ in 0..256 {
            sparse.write(&vec![0; 1 << 20]).unwrap();
        }
        assert_eq!(sparse.written(), 64 << 10, "one block is not zero");
        assert_eq!(sparse.position(), (256 << 20) + 5);
        assert_eq!(sparse.finish().unwrap(), (256 << 20) + 5);
        let found = file.metadata().unwrap();
        assert_eq!(found.len(), (256 << 20) + 5);
        assert!(found.blocks() * 512 <= 128 << 10, "{} blocks", found.blocks());
    }

    #[test]
    fn what_was_behind_the_point_of_resumption_is_gone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; 300_000], 0).unwrap();
        let mut sparse = SparseFile::resume(file.try_clone().unwrap(), 100).unwrap();
        sparse.write(&vec![0; 200_000]).unwrap();
        assert_eq!(sparse.finish().unwrap(), 200_100);
        let found = contents(&file);
        assert!(found[..100].iter().all(|byte| *byte == 7) && found[100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_start_is_looked_at_once_and_can_end_the_writing() {
        let (told, seen) = std::sync::mpsc::channel();
        let sparse = || SparseFile::resume(tempfile::tempfile().unwrap(), 0).unwrap();
        let mut looked_at = sparse().looked_at(move |file, length| {
            told.send((file.metadata().unwrap().len(), length)).unwrap();
            Ok(())
        });
        for _ in 0..40 {
            looked_at.write(&vec![0; 100_000]).unwrap();
        }
        assert_eq!(
            seen.iter().collect::<Vec<_>>(),
            [(START, START)],
            "the zeros are there, too"
        );
        let mut refused = sparse().looked_at(|_, _| Err(StreamError::NoSpace));
        refused.write(&vec![1; (1 << 20) - 1]).unwrap();
        refused.write(&[1]).unwrap_err();
        let short = sparse().looked_at(|_, _| Err(StreamError::NoSpace));
        short.finish().unwrap();
    }

    #[test]
    fn what_shall_stay_free_stays_free() {
        let mut sparse = SparseFile::resume(tempfile::tempfile().unwrap(), 0)
            .unwrap()
            .keeping_free(u64::MAX);
        let error = (0..64).find_map(|_| sparse.write(&vec![1; 1 << 20]).err()).unwrap();
        assert!(error.is_no_space());
        assert_eq!(sparse.position(), MAX_DIRTY);
    }

    #[test]
    fn a_sync_makes_the_length_known() {
        let file = tempfile::tempfile().unwrap();
        let mut sparse = SparseFile::resume(file.try_clone().unwrap(), 0).unwrap();
        sparse.write(&[0; 1000]).unwrap();
        sparse.sync().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1000);
        sparse.write(b"x").unwrap();
        sparse.sync().unwrap();
        assert_eq!((contents(&file)[1000], sparse.written()), (b'x', 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_pieces_give_the_same_file(pieces in prop::collection::vec((0_usize..700_000, any::<bool>()), 0..12), start in 0_u64..200_000) {
            let file = tempfile::tempfile().unwrap();
            let mut sparse = SparseFile::resume(file.try_clone().unwrap(), start).unwrap();
            let mut wanted = vec![0; usize::try_from(start).unwrap()];
            for (size, is_data) in pieces {
                let mut piece = vec![0; size];
                if is_data && size > 0 {
                    piece[size / 2] = 1;
                }
                sparse.write(&piece).unwrap();
                wanted.extend(piece);
            }
            prop_assert_eq!(sparse.finish().unwrap(), length(&wanted));
            prop_assert!(contents(&file) == wanted);
        }
    }
}
