use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A part of a file that is an image: the whole, a member of an archive, or what has arrived so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window<'a> {
    file: &'a File,
    start: u64,
    len: u64,
    is_whole: bool,
}

/// At once, at most: nothing we parse needs more.
const MAX_READ: usize = 4 << 20;

impl<'a> Window<'a> {
    pub(crate) fn of_file(file: &'a File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            start: 0,
            len,
            is_whole: true,
        })
    }

    /// The first `len` bytes of a file that is still growing.
    pub(crate) fn of_start(file: &'a File, len: u64) -> Self {
        Self {
            file,
            start: 0,
            len,
            is_whole: false,
        }
    }

    /// Whether the image ends where this does.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// A part of this part; cut at its end.
    pub(crate) fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self {
            file: self.file,
            start: self.start + start,
            len: len.min(self.len - start),
            is_whole: self.is_whole,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Up to `length` bytes from `at` on: less at the end.
    pub(crate) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(MAX_READ);
        let mut bytes = vec![0; length.min(left).min(MAX_READ)];
        let mut filled = 0;
        while filled < bytes.len() {
            let from = self
                .start
                .saturating_add(at)
                .saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
            match self.file.read_at(&mut bytes[filled..], from) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The last bytes, up to `length`.
    pub(crate) fn tail(&self, length: usize) -> io::Result<Vec<u8>> {
        let length_64 = u64::try_from(length).unwrap_or(u64::MAX);
        self.read(self.len.saturating_sub(length_64), length)
    }
}

/// Numbers at fixed places. What is not there reads as 0: a header that was cut off fails by its values.
pub(crate) trait Fields {
    fn array<const N: usize>(&self, at: usize) -> [u8; N];

    fn be_u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }
    fn be_u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }
    fn le_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    fn le_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    fn le_u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

impl Fields for [u8] {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }
}
