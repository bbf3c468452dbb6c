//! Numbers in headers. Offsets are constants of a format and lie inside of the header that was read.

use std::io;

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(take(bytes, at))
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Puts a field into a header.
pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// A length in memory as one in a file.
pub(super) fn len<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).expect("memory is smaller than 2^64")
}

/// A length in a file as one in memory.
pub(super) fn size(length: u64) -> io::Result<usize> {
    usize::try_from(length).map_err(|_| io::Error::other("more than this machine can address"))
}
