//! VHDX (Microsoft [MS-VHDX]).

use super::window::{Fields, Window};
use super::{Refusal, other};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE: usize = 64 << 10;
const METADATA_TABLE: usize = 64 << 10;
const MAX_ENTRIES: usize = 2047;

/// Written as on disk: the first three groups are little endian.
const METADATA_REGION: [u8; 16] = [
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
];
const FILE_PARAMETERS: [u8; 16] = [
    0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
];
const VIRTUAL_DISK_SIZE: [u8; 16] = [
    0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8,
];
const PARENT_LOCATOR: [u8; 16] = [
    0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c,
];
const HAS_PARENT: u32 = 2;

const PARENT: &str = "it is a differencing VHDX, which needs its parent; merge it into one file";

/// Gives the virtual size.
pub(super) fn judge(window: &Window<'_>) -> Result<u64, Refusal> {
    let headers = [window.read(HEADERS[0], 4096)?, window.read(HEADERS[1], 4096)?];
    let current = headers
        .iter()
        .filter(|header| header.starts_with(b"head"))
        .max_by_key(|header| header.le_u64(8));
    let Some(current) = current else {
        return other("its VHDX header is missing; it is cut off or damaged");
    };
    // A log could still change everything that we are going to read.
    if current.array::<16>(48) != [0; 16] {
        return other("it was not closed cleanly; open and close it once with its hypervisor, or convert it");
    }
    let regions = [
        window.read(REGION_TABLES[0], REGION_TABLE)?,
        window.read(REGION_TABLES[1], REGION_TABLE)?,
    ];
    if !regions[0].starts_with(b"regi") || regions[0] != regions[1] {
        return other("its two region tables are missing or differ; it is damaged");
    }
    let Some((at, length)) = region(&regions[0])? else {
        return other("it has no metadata; it is damaged");
    };
    metadata(&window.part(at, length))
}

fn region(table: &[u8]) -> Result<Option<(u64, u64)>, Refusal> {
    let entries = usize::try_from(table.le_u32(8)).unwrap_or(usize::MAX);
    if entries > MAX_ENTRIES {
        return other("its region table makes no sense");
    }
    let found: Vec<_> = table[16..]
        .chunks_exact(32)
        .take(entries)
        .filter(|entry| entry.starts_with(&METADATA_REGION))
        .collect();
    match found.as_slice() {
        [] => Ok(None),
        [entry] => Ok(Some((entry.le_u64(16), u64::from(entry.le_u32(24))))),
        _ => other("it has two metadata regions"),
    }
}

fn metadata(region: &Window<'_>) -> Result<u64, Refusal> {
    let table = region.read(0, METADATA_TABLE)?;
    let entries = usize::from(table.le_u16(10));
    if !table.starts_with(b"metadata") || entries > MAX_ENTRIES || table.len() < 32 {
        return other("its metadata makes no sense; it is damaged");
    }
    let (mut size, mut parameters) = (None, None);
    for entry in table[32..].chunks_exact(32).take(entries) {
        let (at, length) = (u64::from(entry.le_u32(16)), entry.le_u32(20));
        let item = region.read(at, 8)?;
        if length < 8 || item.len() < 8 {
            continue;
        }
        match entry.array::<16>(0) {
            PARENT_LOCATOR => return other(PARENT),
            FILE_PARAMETERS if parameters.replace(item.le_u32(4)).is_some() => {
                return other("its metadata is ambiguous");
            }
            VIRTUAL_DISK_SIZE if size.replace(item.le_u64(0)).is_some() => return other("its metadata is ambiguous"),
            _ => {}
        }
    }
    match (size, parameters) {
        (_, Some(flags)) if flags & HAS_PARENT != 0 => other(PARENT),
        (Some(size), Some(_)) => Ok(size),
        _ => other("its metadata does not tell its size; it is damaged"),
    }
}
