//! Dynamic VHD, for XenServer and Hyper-V (Microsoft's Virtual Hard Disk Image Format Specification 1.0;
//! image-pipeline.md §10.1).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::fields::{be32, be64, len, put, size};
use super::source::{Recent, Source, by_cluster, check_range};
use super::{Bad, Disk, MADE, SECTOR, check_size, chunks, damaged, invalid, refused};

const COOKIE: [u8; 8] = *b"conectix";
const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
const FOOTER: usize = 512;
const HEADER: usize = 1024;
const VERSION: u32 = 0x0001_0000;
/// Where the block allocation table lies: behind the copy of the footer and the header.
const TABLE: u64 = 1536;
/// 2 MiB: the only size that all readers know.
const BLOCK: u64 = 0x0020_0000;
/// A bit per sector of a block, in whole sectors.
const BITMAP: u64 = BLOCK / SECTOR / 8;
const UNALLOCATED: u32 = u32::MAX;
/// 2000-01-01, where VHD's time begins.
const TIME_BEGINS: u64 = 946_684_800;
/// What the most that 32 bits of sectors leave room for, as Hyper-V has it: 2040 GiB.
const MAX_VHD: u64 = 2040 << 30;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

pub(super) fn write(disk: &dyn Disk, file: &File) -> io::Result<()> {
    if disk.size() > MAX_VHD {
        let gib = MAX_VHD >> 30;
        return Err(io::Error::other(format!(
            "a VHD holds at most {gib} GiB; use another format"
        )));
    }
    let blocks = disk.size().div_ceil(BLOCK);
    let mut table = vec![UNALLOCATED; size(blocks.next_multiple_of(SECTOR / 4))?];
    let mut end = TABLE + len(&table) * 4;
    let mut contents = Sha256::new();

    let digest = || Ok(|block: &[u8]| Ok((block.to_vec(), Sha256::digest(block))));
    chunks::each(disk, BLOCK, digest, |number, (block, digest)| {
        contents.update(number.to_be_bytes());
        contents.update(digest);
        table[size(number)?] = u32::try_from(end / SECTOR).map_err(io::Error::other)?;
        file.write_all_at(&[0xff; 512], end)?; // all sectors of the block are in use
        file.write_all_at(&block, end + BITMAP)?;
        end += BITMAP + BLOCK;
        Ok(())
    })?;

    let footer = footer(disk.size(), &contents.finalize());
    let table: Vec<u8> = table.iter().flat_map(|sector| sector.to_be_bytes()).collect();
    file.write_all_at(&table, TABLE)?;
    file.write_all_at(&header(blocks)?, 512)?;
    file.write_all_at(&footer, end)?;
    file.write_all_at(&footer, 0)
}

fn footer(disk_size: u64, id: &[u8]) -> [u8; FOOTER] {
    let (cylinders, heads, sectors) = geometry(disk_size);
    let mut footer = [0; FOOTER];
    put(&mut footer, 0, &COOKIE);
    put(&mut footer, 8, &2_u32.to_be_bytes()); // a bit that is always set
    put(&mut footer, 12, &VERSION.to_be_bytes());
    put(&mut footer, 16, &512_u64.to_be_bytes()); // the header
    put(&mut footer, 24, &(MADE - TIME_BEGINS).to_be_bytes()[4..]);
    put(&mut footer, 28, b"tap\0"); // XenServer's: readers believe the size below, not the geometry
    put(&mut footer, 32, &0x0001_0003_u32.to_be_bytes());
    put(&mut footer, 36, b"Wi2k");
    put(&mut footer, 40, &disk_size.to_be_bytes());
    put(&mut footer, 48, &disk_size.to_be_bytes());
    put(&mut footer, 56, &cylinders.to_be_bytes());
    put(&mut footer, 58, &[heads, sectors]);
    put(&mut footer, 60, &DYNAMIC.to_be_bytes());
    put(&mut footer, 68, &id[..16]); // other contents, another disk
    let sum = checksum(&footer, 64);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

fn header(blocks: u64) -> io::Result<[u8; HEADER]> {
    let blocks = u32::try_from(blocks).map_err(io::Error::other)?;
    let mut header = [0; HEADER];
    put(&mut header, 0, &HEADER_COOKIE);
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &TABLE.to_be_bytes());
    put(&mut header, 24, &VERSION.to_be_bytes());
    put(&mut header, 28, &blocks.to_be_bytes());
    put(&mut header, 32, &BLOCK.to_be_bytes()[4..]);
    let sum = checksum(&header, 36);
    put(&mut header, 36, &sum.to_be_bytes());
    Ok(header)
}

/// One's complement of the sum of all bytes but the checksum's.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let counted = bytes[..at].iter().chain(&bytes[at + 4..]);
    !counted.map(|byte| u32::from(*byte)).sum::<u32>()
}

/// Cylinders, heads and sectors per track, as the specification's appendix computes them.
fn geometry(disk_size: u64) -> (u16, u8, u8) {
    let total = (disk_size / SECTOR).min(65535 * 16 * 255);
    let (heads, sectors, tracks);
    if total >= 65535 * 16 * 63 {
        (heads, sectors, tracks) = (16, 255, total / 255);
    } else {
        let few = total / 17;
        let some = few.div_ceil(1024).max(4);
        if few < some * 1024 && some <= 16 {
            (heads, sectors, tracks) = (some, 17, few);
        } else if total / 31 < 16 * 1024 {
            (heads, sectors, tracks) = (16, 31, total / 31);
        } else {
            (heads, sectors, tracks) = (16, 63, total / 63);
        }
    }
    let byte = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    (
        u16::try_from(tracks / heads).unwrap_or(u16::MAX),
        byte(heads),
        byte(sectors),
    )
}

/// An opened VHD, dynamic or fixed.
pub(super) struct Vhd {
    source: Source,
    size: u64,
    blocks: Blocks,
}

enum Blocks {
    /// The disk's bytes are the file's.
    Fixed,
    Dynamic {
        block_size: u64,
        /// The sector of each block's bitmap.
        table: Vec<u32>,
        bitmaps: Recent,
    },
}

impl Vhd {
    /// Whether the bytes say that it is one. A fixed VHD says so at its end only.
    pub(super) fn is(source: &Source) -> io::Result<bool> {
        let is_at = |offset| -> io::Result<bool> {
            let mut cookie = [0; 8];
            source.read_exact_at(&mut cookie, offset)?;
            Ok(cookie == COOKIE)
        };
        Ok(source.len() >= SECTOR && (is_at(0)? || is_at(source.len() - SECTOR)?))
    }

    pub(super) fn open(source: Source) -> Result<Self, Bad> {
        let at = source.len().saturating_sub(SECTOR);
        let footer = source.read(SECTOR, at)?;
        if footer[..8] != COOKIE {
            return damaged("it has no footer at its end; was it transferred completely?");
        }
        if be32(&footer, 64) != checksum(&footer, 64) {
            return damaged("its footer's checksum is wrong");
        }
        let disk_size = be64(&footer, 48);
        if let Err(why) = check_size(disk_size) {
            return damaged(why);
        }
        let blocks = match be32(&footer, 60) {
            FIXED if disk_size <= at => Blocks::Fixed,
            FIXED => return damaged(format!("it is shorter than its disk of {disk_size} bytes")),
            DYNAMIC => Blocks::dynamic(&source, disk_size, be64(&footer, 16))?,
            DIFFERENCING => return refused("it is an overlay of another VHD; merge it first"),
            kind => return damaged(format!("its type is {kind}; 2 (fixed) and 3 (dynamic) are known")),
        };
        Ok(Self {
            source,
            size: disk_size,
            blocks,
        })
    }
}

impl Blocks {
    fn dynamic(source: &Source, disk_size: u64, at: u64) -> Result<Self, Bad> {
        let header = source.read(1024, at)?;
        if header[..8] != HEADER_COOKIE {
            return damaged("it has no dynamic disk header");
        }
        if be32(&header, 36) != checksum(&header, 36) {
            return damaged("its dynamic disk header's checksum is wrong");
        }
        let block_size = u64::from(be32(&header, 32));
        if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
            return damaged(format!("its blocks of {block_size} bytes are not possible"));
        }
        let (blocks, present) = (disk_size.div_ceil(block_size), u64::from(be32(&header, 28)));
        if disk_size > MAX_VHD || present < blocks {
            return damaged(format!("its {present} blocks do not hold a disk of {disk_size} bytes"));
        }
        // A missing table is found before memory is taken for it.
        let table = source.read_up_to(blocks * 4, be64(&header, 16))?;
        if len(&table) < blocks * 4 {
            return damaged("it ends within its block allocation table");
        }
        Ok(Self::Dynamic {
            block_size,
            table: table.chunks_exact(4).map(|entry| be32(entry, 0)).collect(),
            bitmaps: Recent::default(),
        })
    }
}

impl Disk for Vhd {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(buffer, offset, self.size)?;
        let Blocks::Dynamic {
            block_size,
            table,
            bitmaps,
        } = &self.blocks
        else {
            return self.source.read_exact_at(buffer, offset);
        };
        let bitmap_size = (block_size / SECTOR / 8).next_multiple_of(SECTOR);
        by_cluster(buffer, offset, *block_size, |block, inside, part| {
            let sector = table[size(block)?];
            if sector == UNALLOCATED {
                part.fill(0);
                return Ok(());
            }
            let at = u64::from(sector) * SECTOR;
            let bitmap = bitmaps.get(at, || self.source.read(bitmap_size, at))?;
            let data = at + bitmap_size + u64::try_from(inside).map_err(invalid_offset)?;
            self.source.read_exact_at(part, data)?;
            clear_unused(part, inside, &bitmap);
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.size {
            return Ok(None);
        }
        let Blocks::Dynamic { block_size, table, .. } = &self.blocks else {
            let found = self.source.next_data(offset)?;
            return Ok(found.and_then(|range| (range.start < self.size).then(|| range.start..range.end.min(self.size))));
        };
        let first = size(offset / block_size)?;
        let is_used = |sector: &u32| *sector != UNALLOCATED;
        let Some(start) = table[first..].iter().position(is_used).map(|found| first + found) else {
            return Ok(None);
        };
        let count = table[start..].iter().take_while(|sector| is_used(sector)).count();
        let start = len(&table[..start]);
        let end = (start + len(&table[..count])) * block_size;
        Ok(Some((start * block_size).max(offset)..end.min(self.size)))
    }
}

/// Sectors whose bit is not set read as zeros, whatever is stored for them.
fn clear_unused(part: &mut [u8], inside: usize, bitmap: &[u8]) {
    if bitmap.iter().all(|byte| *byte == 0xff) {
        return;
    }
    let mut at = inside;
    let mut rest = part;
    while !rest.is_empty() {
        let sector = at / 512;
        let count = (512 - at % 512).min(rest.len());
        let (bytes, after) = rest.split_at_mut(count);
        if bitmap[sector / 8] & (0x80 >> (sector % 8)) == 0 {
            bytes.fill(0);
        }
        at += count;
        rest = after;
    }
}

fn invalid_offset(_: std::num::TryFromIntError) -> io::Error {
    invalid("an offset is too large")
}
