//! A zip archive with one plain file, read from start to end as it comes (APPNOTE.TXT 6.3).
//!
//! The `zip` crate's streaming reader refuses archives whose sizes follow the data, which is what Java, `zip -` and
//! many web servers make, and it compares nothing with the central directory; hence this.

use std::io::{self, BufRead, Read};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;

use super::unpack::{CopyError, Output, copy};
use super::{Compression, StreamError};

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const DESCRIPTOR: [u8; 4] = *b"PK\x07\x08";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const SIZES_FOLLOW: u16 = 1 << 3;

/// Directory entries before the file.
const MAX_DIRECTORIES: usize = 16;

/// Extra field with 64-bit sizes.
const ZIP64: u16 = 1;

/// A member, as its local or its central header says.
struct Header {
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    size: u64,
    is_64: bool,
    name: Vec<u8>,
}

/// What a member turned out to be.
struct Found {
    crc: u32,
    compressed: u64,
    size: u64,
}

enum Stop {
    Read(io::Error),
    Refused(String),
    Output(StreamError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<CopyError> for Stop {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Decoder(error) => Self::Read(error),
            CopyError::Output(error) => Self::Output(error),
        }
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refused(why.into()))
}

pub(super) fn unpack(input: &mut impl BufRead, mut output: Output) -> Result<Output, StreamError> {
    match archive(input, &mut output) {
        Ok(()) => Ok(output),
        Err(Stop::Output(error)) => Err(error),
        Err(Stop::Refused(why)) => Err(StreamError::Zip(why)),
        Err(Stop::Read(error)) => Err(StreamError::Damaged {
            compression: Compression::Zip,
            why: error.to_string(),
        }),
    }
}

fn archive(input: &mut impl BufRead, output: &mut Output) -> Result<(), Stop> {
    let mut found = None;
    let mut directories = 0;
    loop {
        match bytes(input)? {
            LOCAL => {}
            CENTRAL => break,
            END => return refused("it is empty"),
            _ => return refused("its parts do not follow one another as they should"),
        }
        let header = Header::local(input)?;
        if header.flags & ENCRYPTED != 0 {
            return refused("it is encrypted; publish it without a password");
        }
        if header.is_directory() {
            directories += 1;
            if directories > MAX_DIRECTORIES {
                return refused("it has too many directories");
            }
        } else if found.is_some() {
            return refused("it has more than one file in it; publish an archive with the image alone");
        } else {
            found = Some(member(input, &header, output)?);
        }
    }
    let Some(found) = found else {
        return refused("there is no file in it");
    };
    central(input, &found)?;
    // What follows is the end record and a comment. Read it: whoever sends it waits for us.
    io::copy(input, &mut io::sink())?;
    Ok(())
}

/// Unpacks the member that `header` stands before, and what follows it.
fn member(input: &mut impl BufRead, header: &Header, output: &mut Output) -> Result<Found, Stop> {
    let is_size_known = header.flags & SIZES_FOLLOW == 0;
    if is_size_known {
        output.announced(header.size).map_err(Stop::Output)?;
    }
    let start = output.position();
    let mut crc = Crc::new();
    let compressed = match header.method {
        STORED if is_size_known => {
            let mut data = input.take(header.compressed);
            copy(&mut data, output, &mut |bytes| crc.update(bytes))?;
            header.compressed - data.limit()
        }
        STORED => return refused("its file is stored without saying how long it is; make it with compression"),
        DEFLATED => {
            let mut data = DeflateDecoder::new(&mut *input);
            copy(&mut data, output, &mut |bytes| crc.update(bytes))?;
            data.total_in()
        }
        method => {
            return refused(format!(
                "its file is compressed by method {method}; only store (0) and deflate (8) are known"
            ));
        }
    };
    let found = Found {
        crc: crc.sum(),
        compressed,
        size: output.position() - start,
    };
    if is_size_known {
        found.compare(header.crc, header.compressed, header.size)?;
    } else {
        found.compare_with_descriptor(input, header.is_64)?;
    }
    Ok(found)
}

/// The central directory, from behind its first signature.
fn central(input: &mut impl BufRead, found: &Found) -> Result<(), Stop> {
    let mut files = 0;
    for _ in 0..=MAX_DIRECTORIES {
        let header = Header::central(input)?;
        if !header.is_directory() {
            files += 1;
            found.compare(header.crc, header.compressed, header.size)?;
        }
        match bytes(input)? {
            CENTRAL => {}
            END | END_64 if files == 1 => return Ok(()),
            END | END_64 => return refused("its directory does not list its file exactly once"),
            _ => return refused("its directory is damaged"),
        }
    }
    refused("its directory lists more than it holds")
}

impl Found {
    fn compare(&self, crc: u32, compressed: u64, size: u64) -> Result<(), Stop> {
        if (self.crc, self.compressed, self.size) == (crc, compressed, size) {
            return Ok(());
        }
        refused(format!(
            "its file has {} bytes (CRC {:08x}) where {size} (CRC {crc:08x}) are announced; it is damaged",
            self.size, self.crc
        ))
    }

    fn compare_with_descriptor(&self, input: &mut impl BufRead, is_64: bool) -> Result<(), Stop> {
        // The signature is optional: without it, this is the CRC already.
        let first: [u8; 4] = bytes(input)?;
        let crc = if first == DESCRIPTOR { bytes(input)? } else { first };
        let (compressed, size) = if is_64 {
            (u64::from_le_bytes(bytes(input)?), u64::from_le_bytes(bytes(input)?))
        } else {
            (
                u64::from(u32::from_le_bytes(bytes(input)?)),
                u64::from(u32::from_le_bytes(bytes(input)?)),
            )
        };
        self.compare(u32::from_le_bytes(crc), compressed, size)
    }
}

impl Header {
    fn local(input: &mut impl BufRead) -> Result<Self, Stop> {
        let _version: [u8; 2] = bytes(input)?;
        Self::shared(input, 0)
    }

    fn central(input: &mut impl BufRead) -> Result<Self, Stop> {
        let _versions: [u8; 4] = bytes(input)?;
        Self::shared(input, 14)
    }

    /// From the flags on, where both headers are alike, but for what the central one has more: the length of a comment
    /// and 12 bytes of attributes.
    fn shared(input: &mut impl BufRead, more: u64) -> Result<Self, Stop> {
        let flags = u16::from_le_bytes(bytes(input)?);
        let method = u16::from_le_bytes(bytes(input)?);
        let _time: [u8; 4] = bytes(input)?;
        let crc = u32::from_le_bytes(bytes(input)?);
        let compressed = u32::from_le_bytes(bytes(input)?);
        let size = u32::from_le_bytes(bytes(input)?);
        let name_length = u16::from_le_bytes(bytes(input)?);
        let extra_length = u16::from_le_bytes(bytes(input)?);
        let comment_length = if more > 0 { u16::from_le_bytes(bytes(input)?) } else { 0 };
        skip(input, more.saturating_sub(2))?;
        let mut name = vec![0; usize::from(name_length)];
        input.read_exact(&mut name)?;
        let mut extra = vec![0; usize::from(extra_length)];
        input.read_exact(&mut extra)?;
        skip(input, u64::from(comment_length))?;
        let mut header = Self {
            flags,
            method,
            crc,
            compressed: u64::from(compressed),
            size: u64::from(size),
            is_64: false,
            name,
        };
        header.read_extra(&extra);
        Ok(header)
    }

    /// The 64-bit sizes are there for those that do not fit, in this order.
    fn read_extra(&mut self, mut extra: &[u8]) {
        while let [a, b, c, d, rest @ ..] = extra {
            let length = usize::from(u16::from_le_bytes([*c, *d])).min(rest.len());
            let (mut field, next) = rest.split_at(length);
            extra = next;
            if u16::from_le_bytes([*a, *b]) != ZIP64 {
                continue;
            }
            self.is_64 = true;
            for value in [&mut self.size, &mut self.compressed] {
                if *value == u64::from(u32::MAX)
                    && let Some((eight, rest)) = field.split_first_chunk()
                {
                    *value = u64::from_le_bytes(*eight);
                    field = rest;
                }
            }
        }
    }

    fn is_directory(&self) -> bool {
        self.name.ends_with(b"/") && self.size == 0 && self.compressed == 0 && self.flags & SIZES_FOLLOW == 0
    }
}

fn bytes<const N: usize>(input: &mut impl BufRead) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(input: &mut impl BufRead, length: u64) -> io::Result<()> {
    let skipped = io::copy(&mut input.take(length), &mut io::sink())?;
    if skipped < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
