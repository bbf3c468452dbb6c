use std::fmt::{self, Display, Formatter};
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;

use super::{SparseFile, StreamError, xz, zip};

/// Output before which the ratio is not looked at: small files compress as they like.
const RATIO_FREE: u64 = 64 << 20;

/// Bytes read, and bytes unpacked, at a time.
pub(super) const BLOCK: usize = 128 << 10;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952; several members one after the other are one file.
    Gzip,
    /// Several streams one after the other are one file.
    Bzip2,
    /// The `.xz` format.
    Xz,
    /// One plain file in a zip archive.
    Zip,
}

/// What may come out.
#[derive(Debug, Clone, Copy)]
pub struct UnpackLimits {
    /// Length of the unpacked file, in bytes.
    pub max_bytes: u64,
    /// Bytes written per byte read, after the first 64 MiB. Zeros left out as holes do not count.
    pub max_ratio: u64,
}

impl Compression {
    /// By the first bytes of the content.
    pub fn detect(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [b'P', b'K', 3, 4, ..] => Some(Self::Zip),
            _ => None,
        }
    }
}

impl Display for Compression {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zip => "zip",
        })
    }
}

/// Unpacks one level: what is compressed inside stays so.
#[derive(Debug, Clone, Copy)]
pub struct Unpack {
    compression: Compression,
    limits: UnpackLimits,
}

impl Unpack {
    /// With these limits.
    pub fn new(compression: Compression, limits: &UnpackLimits) -> Self {
        Self {
            compression,
            limits: *limits,
        }
    }

    /// Reads `from` to its end and writes what was in it to `to`; gives the length of the file. It reads as it writes:
    /// memory does not depend on either size.
    pub fn run(self, from: &mut impl Read, to: SparseFile) -> Result<u64, StreamError> {
        let Self { compression, limits } = self;
        let taken = Arc::new(AtomicU64::new(0));
        let mut input = Input {
            from,
            taken: Arc::clone(&taken),
            failure: None,
        };
        let output = Output { to, taken, limits };
        let unpacked = match compression {
            Compression::Gzip => {
                let buffered = BufReader::with_capacity(BLOCK, &mut input);
                decode(compression, &mut MultiGzDecoder::new(buffered), output)
            }
            Compression::Bzip2 => {
                let buffered = BufReader::with_capacity(BLOCK, &mut input);
                decode(compression, &mut MultiBzDecoder::new(buffered), output)
            }
            Compression::Zip => zip::unpack(&mut BufReader::with_capacity(BLOCK, &mut input), output),
            Compression::Xz => xz::unpack(&mut input, output),
        };
        input.or_failure(unpacked)?.finish()
    }
}

fn decode(compression: Compression, decoder: &mut impl Read, mut output: Output) -> Result<Output, StreamError> {
    copy(decoder, &mut output, &mut |_| {}).map_err(|error| error.of(compression))?;
    Ok(output)
}

/// What went wrong between a decoder and the file.
pub(super) enum CopyError {
    Decoder(io::Error),
    Output(StreamError),
}

impl CopyError {
    pub(super) fn of(self, compression: Compression) -> StreamError {
        match self {
            Self::Decoder(error) => StreamError::Damaged {
                compression,
                why: error.to_string(),
            },
            Self::Output(error) => error,
        }
    }
}

/// All that `decoder` gives; `look` sees it, too.
pub(super) fn copy(
    decoder: &mut impl Read,
    output: &mut Output,
    look: &mut impl FnMut(&[u8]),
) -> Result<(), CopyError> {
    let mut block = vec![0; BLOCK];
    loop {
        match decoder.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                look(&block[..read]);
                output.write(&block[..read]).map_err(CopyError::Output)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyError::Decoder(error)),
        }
    }
}

/// Counts what is read, and remembers why reading failed: a decoder's own error would hide it.
struct Input<'a, R> {
    from: &'a mut R,
    taken: Arc<AtomicU64>,
    failure: Option<io::Error>,
}

impl<R: Read> Input<'_, R> {
    /// A decoder whose source failed says that the data is incomplete; the truth is that we did not get it.
    fn or_failure<T>(self, result: Result<T, StreamError>) -> Result<T, StreamError> {
        match (result, self.failure) {
            (Err(StreamError::Damaged { .. } | StreamError::Zip(_)), Some(failure)) => {
                Err(StreamError::Source(failure))
            }
            (result, _) => result,
        }
    }
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.from.read(buffer) {
                Ok(read) => {
                    self.taken
                        .fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let told = io::Error::new(error.kind(), "the source failed");
                    self.failure = Some(error);
                    return Err(told);
                }
            }
        }
    }
}

/// A file that grows only as far as it may.
pub(super) struct Output {
    to: SparseFile,
    taken: Arc<AtomicU64>,
    limits: UnpackLimits,
}

impl Output {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let UnpackLimits { max_bytes, max_ratio } = self.limits;
        let after = self
            .to
            .position()
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if after > max_bytes {
            return Err(StreamError::TooLarge { limit: max_bytes });
        }
        self.to.write(bytes)?;
        let written = self.to.written();
        let taken = self.taken.load(Ordering::Relaxed).max(1);
        if written > RATIO_FREE && written / taken >= max_ratio {
            return Err(StreamError::Bomb { limit: max_ratio });
        }
        Ok(())
    }

    pub(super) fn position(&self) -> u64 {
        self.to.position()
    }

    /// The size that the compressed file announces: refused before anything is written.
    pub(super) fn announced(&self, size: u64) -> Result<(), StreamError> {
        let limit = self.limits.max_bytes;
        if size > limit {
            return Err(StreamError::TooLarge { limit });
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<u64, StreamError> {
        self.to.finish()
    }
}
