//! Reading: versions 2 and 3, of any cluster size, with zlib or zstd. Nothing that names another file.

use std::io;
use std::ops::Range;

use crate::formats::fields::{be32, be64, size};
use crate::formats::source::{Recent, Source, by_cluster, check_range};
use crate::formats::{Bad, Disk, check_size, damaged, invalid, refused};

use super::{COMPRESSED, COMPRESSION_TYPE, HAS_COMPRESSION_TYPE, OFFSET, inflate, offset_bits, unzstd};

/// As QEMU has it.
const MAX_L1_BYTES: u64 = 32 << 20;
const IS_DIRTY: u64 = 1 << 0;
const IS_CORRUPT: u64 = 1 << 1;
const HAS_DATA_FILE: u64 = 1 << 2;
const HAS_SUBCLUSTERS: u64 = 1 << 4;
/// This cluster reads as zeros, from version 3 on.
const IS_ZERO: u64 = 1;

/// An opened qcow2.
pub(in crate::formats) struct Qcow2 {
    source: Source,
    size: u64,
    version: u32,
    cluster_bits: u32,
    is_zstd: bool,
    l1: Vec<u64>,
    l2s: Recent,
    clusters: Recent,
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    At(u64),
    Compressed { offset: u64, len: u64 },
}

impl Qcow2 {
    pub(in crate::formats) fn open(source: Source) -> Result<Self, Bad> {
        let header = source.read(72, 0)?;
        let version = be32(&header, 4);
        if !matches!(version, 2 | 3) {
            return refused(format!(
                "it is a qcow2 of version {version}; convert it to version 3 first"
            ));
        }
        if be64(&header, 8) != 0 || be32(&header, 16) != 0 {
            return refused("it is an overlay of another image; flatten it first (qemu-img convert -O qcow2)");
        }
        if be32(&header, 32) != 0 {
            return refused("it is encrypted");
        }
        let mut is_zstd = false;
        if version == 3 {
            is_zstd = Self::check_features(&source)?;
        }
        let cluster_bits = be32(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            return damaged(format!(
                "its clusters have 2^{cluster_bits} bytes; 2^9 to 2^21 are possible"
            ));
        }
        let disk_size = be64(&header, 24);
        if let Err(why) = check_size(disk_size) {
            return damaged(why);
        }
        let entries = disk_size.div_ceil(1 << (2 * cluster_bits - 3));
        let (present, offset) = (u64::from(be32(&header, 36)), be64(&header, 40));
        if entries * 8 > MAX_L1_BYTES {
            return damaged(format!("a disk of {disk_size} bytes needs larger clusters"));
        }
        if present < entries {
            return damaged(format!("its L1 table has {present} entries, its size needs {entries}"));
        }
        let bytes = source.read(entries * 8, offset)?;
        let l1 = bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        Ok(Self {
            source,
            size: disk_size,
            version,
            cluster_bits,
            is_zstd,
            l1,
            l2s: Recent::default(),
            clusters: Recent::default(),
        })
    }

    /// Whether clusters are compressed with zstd, if there is nothing in it that we do not know.
    fn check_features(source: &Source) -> Result<bool, Bad> {
        let header = source.read(104, 0)?;
        let features = be64(&header, 72);
        if features & IS_CORRUPT != 0 {
            return damaged("QEMU has marked it as corrupt; repair it first (qemu-img check -r all)");
        }
        if features & HAS_DATA_FILE != 0 {
            return refused("its data is in another file; convert it first (qemu-img convert -O qcow2)");
        }
        if features & HAS_SUBCLUSTERS != 0 {
            return refused("it has extended L2 entries; convert it first (qemu-img convert -O qcow2)");
        }
        // A dirty image has wrong reference counts; we do not need them.
        let unknown = features & !(IS_DIRTY | HAS_COMPRESSION_TYPE);
        if unknown != 0 {
            return refused(format!("it has features that are not known here ({unknown:#x})"));
        }
        if features & HAS_COMPRESSION_TYPE == 0 {
            return Ok(false);
        }
        match source.read(1, 104)?.first() {
            Some(1) if size(u64::from(be32(&header, 100)))? > COMPRESSION_TYPE => Ok(true),
            Some(kind) => refused(format!(
                "its clusters are compressed in a way that is not known here ({kind})"
            )),
            None => damaged("its header ends too early"),
        }
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// The L2 table number `table` of the disk; `None` when the whole part of the disk is empty.
    fn l2(&self, table: u64) -> io::Result<Option<std::sync::Arc<[u8]>>> {
        let entry = self.l1.get(size(table)?).copied().unwrap_or(0);
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(self.cluster_size()) {
            return Err(invalid(format!("the entry {table} of its L1 table is broken")));
        }
        self.l2s
            .get(offset, || self.source.read(self.cluster_size(), offset))
            .map(Some)
    }

    fn place(&self, entry: u64, cluster: u64) -> io::Result<Place> {
        if entry & COMPRESSED != 0 {
            let bits = offset_bits(self.cluster_bits);
            let offset = entry & ((1 << bits) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
            let len = sectors * 512 - offset % 512;
            return Ok(Place::Compressed { offset, len });
        }
        let offset = entry & OFFSET;
        if self.version >= 3 && entry & IS_ZERO != 0 || offset == 0 {
            return Ok(Place::Nowhere);
        }
        if !offset.is_multiple_of(self.cluster_size()) {
            return Err(invalid(format!("the entry of its cluster {cluster} is broken")));
        }
        Ok(Place::At(offset))
    }

    fn find(&self, cluster: u64) -> io::Result<Place> {
        let Some(table) = self.l2(cluster / self.l2_entries())? else {
            return Ok(Place::Nowhere);
        };
        let entry = be64(&table, size(cluster % self.l2_entries())? * 8);
        self.place(entry, cluster)
    }

    fn unpack(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let packed = self.source.read_up_to(len, offset)?;
        let cluster_size = size(self.cluster_size())?;
        if self.is_zstd {
            unzstd(&packed, cluster_size)
        } else {
            inflate(&packed, cluster_size)
        }
    }
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(buffer, offset, self.size)?;
        by_cluster(buffer, offset, self.cluster_size(), |cluster, inside, part| {
            match self.find(cluster)? {
                Place::Nowhere => part.fill(0),
                Place::At(at) => self
                    .source
                    .read_exact_at(part, at + u64::try_from(inside).map_err(io::Error::other)?)?,
                Place::Compressed { offset, len } => {
                    let data = self.clusters.get(offset, || self.unpack(offset, len))?;
                    part.copy_from_slice(&data[inside..inside + part.len()]);
                }
            }
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let (first, end) = (offset / self.cluster_size(), self.size.div_ceil(self.cluster_size()));
        let mut cluster = first;
        while cluster < end && offset < self.size {
            let number = cluster / self.l2_entries();
            let table_end = end.min((number + 1) * self.l2_entries());
            let Some(table) = self.l2(number)? else {
                cluster = table_end;
                continue;
            };
            let is_data = |cluster: u64| -> io::Result<bool> {
                let entry = be64(&table, size(cluster % self.l2_entries())? * 8);
                Ok(self.place(entry, cluster)? != Place::Nowhere)
            };
            while cluster < table_end && !is_data(cluster)? {
                cluster += 1;
            }
            if cluster < table_end {
                let start = cluster;
                while cluster < table_end && is_data(cluster)? {
                    cluster += 1;
                }
                let range = start * self.cluster_size()..cluster * self.cluster_size();
                return Ok(Some(range.start.max(offset)..range.end.min(self.size)));
            }
        }
        Ok(None)
    }
}
