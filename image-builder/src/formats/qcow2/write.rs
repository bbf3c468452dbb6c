//! Writing: data and its tables as the disk is read, the reference counts and the header at the end. Until the last
//! step the file is no qcow2.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use flate2::Compress;

use crate::formats::fields::{len, put, size};
use crate::formats::{Compression, Disk, chunks};

use super::{COMPRESSED, COMPRESSION_TYPE, COPIED, HAS_COMPRESSION_TYPE, MAGIC, WINDOW_BITS, deflate, offset_bits};

const CLUSTER_BITS: u32 = 16;
/// 64 KiB: QEMU's default.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries in an L2 table, and in the refcount table.
const ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of 16 bits in a refcount block.
const REFCOUNTS: u64 = CLUSTER / 2;
const HEADER_LEN_3: u32 = 112;

/// Chosen by measurement, see docs/decisions/0042-own-image-formats.md.
const ZSTD_LEVEL: i32 = 6;
const ZLIB_LEVEL: u32 = 6;

/// A cluster, ready for the file.
enum Packed {
    Plain(Vec<u8>),
    Compressed(Vec<u8>),
}

pub(in crate::formats) fn write(disk: &dyn Disk, compression: Compression, file: &File) -> io::Result<()> {
    let mut image = Writer::new(file, disk.size())?;
    let place = |number, packed| image.place(number, &packed);
    match compression {
        Compression::None => chunks::each(
            disk,
            CLUSTER,
            || Ok(|data: &[u8]| Ok(Packed::Plain(data.to_vec()))),
            place,
        ),
        Compression::Zlib => {
            let worker = || {
                let level = flate2::Compression::new(ZLIB_LEVEL);
                let mut zlib = Compress::new_with_window_bits(level, false, WINDOW_BITS);
                Ok(move |data: &[u8]| {
                    let packed = deflate(&mut zlib, data)?;
                    Ok(packed.map_or_else(|| Packed::Plain(data.to_vec()), Packed::Compressed))
                })
            };
            chunks::each(disk, CLUSTER, worker, place)
        }
        Compression::Zstd => {
            let worker = || {
                let mut zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                Ok(move |data: &[u8]| {
                    let packed = zstd.compress(data)?;
                    let is_smaller = packed.len() < data.len();
                    Ok(if is_smaller {
                        Packed::Compressed(packed)
                    } else {
                        Packed::Plain(data.to_vec())
                    })
                })
            };
            chunks::each(disk, CLUSTER, worker, place)
        }
    }?;
    image.finish(compression)
}

struct Writer<'a> {
    file: &'a File,
    size: u64,
    l1: Vec<u64>,
    /// Which L2 table is being filled, and its entries.
    l2: (usize, Vec<u64>),
    /// How many use each cluster of the file. Its length is where the file goes on.
    refcounts: Vec<u16>,
    /// Where the next compressed cluster goes: they lie side by side, over the borders of the file's clusters.
    packed_end: u64,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, disk_size: u64) -> io::Result<Self> {
        let tables = disk_size.div_ceil(CLUSTER * ENTRIES);
        Ok(Self {
            file,
            size: disk_size,
            l1: vec![0; size(tables)?],
            l2: (0, Vec::new()),
            refcounts: vec![1], // the header
            packed_end: 0,
        })
    }

    /// New clusters at the end of the file.
    fn allocate(&mut self, clusters: u64) -> io::Result<u64> {
        let offset = self.end();
        self.refcounts.resize(self.refcounts.len() + size(clusters)?, 1);
        Ok(offset)
    }

    fn end(&self) -> u64 {
        len(&self.refcounts) * CLUSTER
    }

    fn place(&mut self, number: u64, packed: &Packed) -> io::Result<()> {
        let entry = match packed {
            Packed::Plain(data) => {
                let offset = self.allocate(1)?;
                self.file.write_all_at(data, offset)?;
                offset | COPIED
            }
            Packed::Compressed(data) => self.place_compressed(data)?,
        };
        let table = size(number / ENTRIES)?;
        if self.l2.0 != table {
            self.finish_l2()?;
            self.l2.0 = table;
        }
        let entries = &mut self.l2.1;
        entries.resize(size(ENTRIES)?, 0);
        entries[size(number % ENTRIES)?] = entry;
        Ok(())
    }

    fn place_compressed(&mut self, data: &[u8]) -> io::Result<u64> {
        let border = self.packed_end.next_multiple_of(CLUSTER);
        if len(data) > border - self.packed_end && border != self.end() {
            self.packed_end = self.end(); // what follows there is taken
        }
        let offset = self.packed_end;
        self.file.write_all_at(data, offset)?;
        self.packed_end = offset + len(data);
        for cluster in offset / CLUSTER..self.packed_end.div_ceil(CLUSTER) {
            let cluster = size(cluster)?;
            if cluster == self.refcounts.len() {
                self.refcounts.push(0); // it grows over the end
            }
            self.refcounts[cluster] += 1;
        }
        let sectors = (self.packed_end - 1) / 512 - offset / 512;
        Ok(COMPRESSED | sectors << offset_bits(CLUSTER_BITS) | offset)
    }

    fn finish_l2(&mut self) -> io::Result<()> {
        let entries = std::mem::take(&mut self.l2.1);
        if !entries.is_empty() {
            let offset = self.allocate(1)?;
            self.file.write_all_at(&big_endian(&entries), offset)?;
            self.l1[self.l2.0] = offset | COPIED;
        }
        Ok(())
    }

    fn finish(mut self, compression: Compression) -> io::Result<()> {
        self.finish_l2()?;
        let l1_offset = self.allocate((len(&self.l1) * 8).div_ceil(CLUSTER))?;
        self.file.write_all_at(&big_endian(&self.l1), l1_offset)?;

        // The counts count the clusters that they themselves lie in.
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let needed = (len(&self.refcounts) + blocks + tables).div_ceil(REFCOUNTS);
            if (needed, needed.div_ceil(ENTRIES)) == (blocks, tables) {
                break;
            }
            (blocks, tables) = (needed, needed.div_ceil(ENTRIES));
        }
        let table_offset = self.allocate(tables)?;
        let blocks_offset = self.allocate(blocks)?;
        let table: Vec<u64> = (0..blocks).map(|block| blocks_offset + block * CLUSTER).collect();
        self.file.write_all_at(&big_endian(&table), table_offset)?;
        let counts: Vec<u8> = self.refcounts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.file.write_all_at(&counts, blocks_offset)?;
        self.file.set_len(self.end())?;

        let mut header = [0; 112];
        // What QEMU writes as compat=0.10: the oldest hosts read it. Only zstd needs what came later.
        let version: u32 = if compression == Compression::Zstd { 3 } else { 2 };
        put(&mut header, 0, &MAGIC);
        put(&mut header, 4, &version.to_be_bytes());
        put(&mut header, 20, &CLUSTER_BITS.to_be_bytes());
        put(&mut header, 24, &self.size.to_be_bytes());
        put(&mut header, 36, &to_u32(len(&self.l1))?.to_be_bytes());
        put(&mut header, 40, &l1_offset.to_be_bytes());
        put(&mut header, 48, &table_offset.to_be_bytes());
        put(&mut header, 56, &to_u32(tables)?.to_be_bytes());
        if version == 3 {
            put(&mut header, 72, &HAS_COMPRESSION_TYPE.to_be_bytes());
            put(&mut header, 96, &4_u32.to_be_bytes()); // refcounts have 2^4 bits
            put(&mut header, 100, &HEADER_LEN_3.to_be_bytes());
            put(&mut header, COMPRESSION_TYPE, &[1]); // zstd
        }
        self.file.write_all_at(&header, 0)
    }
}

fn to_u32(count: u64) -> io::Result<u32> {
    u32::try_from(count).map_err(|_| io::Error::other("the disk is too large for a qcow2"))
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
