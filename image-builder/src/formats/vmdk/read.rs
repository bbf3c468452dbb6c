//! Reading: one sparse extent with its descriptor inside, as VMware and QEMU write it, compressed or not.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress};

use crate::formats::fields::{le16, le32, le64, len, size};
use crate::formats::source::{Recent, Source, by_cluster, check_range};
use crate::formats::{Bad, Disk, SECTOR, check_size, damaged, invalid, refused};

use super::{DEFLATE, ENTRIES, HAS_LINE_ENDS, HAS_ZERO_GRAINS, IN_FOOTER, IS_COMPRESSED, LINE_ENDS, MAGIC};

/// The format allows any; 64 KiB is what everybody has.
const MAX_GRAIN: u64 = 1 << 20;
/// Sectors. 20 is what everybody has.
const MAX_DESCRIPTOR: u64 = 128;

/// An opened VMDK.
pub(in crate::formats) struct Vmdk {
    source: Source,
    size: u64,
    grain: u64,
    is_compressed: bool,
    has_zero_grains: bool,
    /// The sector of each grain table; 0: all its grains are empty.
    directory: Vec<u32>,
    tables: Recent,
    grains: Recent,
}

impl Vmdk {
    pub(in crate::formats) fn open(source: Source) -> Result<Self, Bad> {
        let mut header = source.read(SECTOR, 0)?;
        if le64(&header, 56) == IN_FOOTER {
            // The footer is in front of the last sector, which marks the end.
            let at = source.len().saturating_sub(2 * SECTOR);
            header = source.read(SECTOR, at)?;
            if header[..4] != MAGIC || le64(&header, 56) == IN_FOOTER {
                return damaged("it has no footer at its end; was it transferred completely?");
            }
        }
        let (version, flags) = (le32(&header, 4), le32(&header, 8));
        if !(1..=3).contains(&version) {
            return refused(format!(
                "it is a VMDK of version {version}; convert it first (qemu-img convert -O qcow2)"
            ));
        }
        if flags & HAS_LINE_ENDS != 0 && header[73..77] != LINE_ENDS {
            return damaged("it was transferred as text");
        }
        let is_compressed = flags & IS_COMPRESSED != 0;
        if is_compressed && le16(&header, 77) != DEFLATE {
            return damaged("its grains are compressed in a way that does not exist");
        }
        let grain_sectors = le64(&header, 20);
        let grain = grain_sectors.saturating_mul(SECTOR);
        if !grain_sectors.is_power_of_two() || !(4096..=MAX_GRAIN).contains(&grain) {
            return damaged(format!("its grains have {grain_sectors} sectors"));
        }
        if le32(&header, 44) != ENTRIES {
            return damaged(format!(
                "its grain tables have {} entries instead of {ENTRIES}",
                le32(&header, 44)
            ));
        }
        let disk_size = le64(&header, 12).saturating_mul(SECTOR);
        if let Err(why) = check_size(disk_size) {
            return damaged(why);
        }
        check_descriptor(&source, le64(&header, 28), le64(&header, 36))?;

        let tables = disk_size.div_ceil(grain * u64::from(ENTRIES));
        let directory = source.read_up_to(tables * 4, le64(&header, 56).saturating_mul(SECTOR))?;
        if len(&directory) < tables * 4 {
            return damaged("it ends within its grain directory");
        }
        Ok(Self {
            source,
            size: disk_size,
            grain,
            is_compressed,
            has_zero_grains: flags & HAS_ZERO_GRAINS != 0,
            directory: directory.chunks_exact(4).map(|entry| le32(entry, 0)).collect(),
            tables: Recent::default(),
            grains: Recent::default(),
        })
    }

    fn table(&self, number: u64) -> io::Result<Option<Arc<[u8]>>> {
        let sector = u64::from(self.directory[size(number)?]);
        if sector == 0 {
            return Ok(None);
        }
        let load = || self.source.read(u64::from(ENTRIES) * 4, sector * SECTOR);
        self.tables.get(sector, load).map(Some)
    }

    /// The sector of a grain.
    fn find(&self, table: &[u8], grain: u64) -> io::Result<Option<u64>> {
        Ok(match le32(table, size(grain % u64::from(ENTRIES))? * 4) {
            0 => None,
            1 if self.has_zero_grains => None,
            sector => Some(u64::from(sector)),
        })
    }

    fn unpack(&self, grain: u64, sector: u64) -> io::Result<Vec<u8>> {
        let mut marker = [0; 12];
        self.source.read_exact_at(&mut marker, sector * SECTOR)?;
        let (found, packed_len) = (le64(&marker, 0), u64::from(le32(&marker, 8)));
        if found.saturating_mul(SECTOR) != grain * self.grain {
            return Err(invalid(format!("where its grain {grain} should be is another")));
        }
        if packed_len > 2 * self.grain {
            return Err(invalid(format!("its grain {grain} is too long")));
        }
        let packed = self.source.read(packed_len, sector * SECTOR + 12)?;
        let mut data = Vec::with_capacity(size(self.grain)?);
        Decompress::new(true)
            .decompress_vec(&packed, &mut data, FlushDecompress::Finish)
            .map_err(|error| invalid(format!("its grain {grain} is broken: {error}")))?;
        // The last one may end with the disk.
        if len(&data) < self.grain.min(self.size - grain * self.grain) {
            return Err(invalid(format!("its grain {grain} is too short")));
        }
        data.resize(size(self.grain)?, 0);
        Ok(data)
    }
}

/// Nothing in it may name another file.
fn check_descriptor(source: &Source, sector: u64, sectors: u64) -> Result<(), Bad> {
    if sector == 0 || sectors == 0 {
        return refused("its description is in another file; convert it first (qemu-img convert -O qcow2)");
    }
    if sectors > MAX_DESCRIPTOR {
        return damaged(format!("its descriptor has {sectors} sectors"));
    }
    let bytes = source.read(sectors * SECTOR, sector.saturating_mul(SECTOR))?;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(text) else {
        return damaged("its descriptor is not UTF-8");
    };
    let value = |key: &str| {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let mut values = pairs.filter(|(found, _)| found.trim() == key);
        values.next().map(|(_, value)| value.trim().trim_matches('"'))
    };
    match value("createType") {
        Some("streamOptimized" | "monolithicSparse") => {}
        kind => {
            let kind = kind.unwrap_or("nothing");
            return refused(format!(
                "it is a VMDK of the type {kind}; convert it first (qemu-img convert -O qcow2)"
            ));
        }
    }
    if value("parentCID").is_some_and(|parent| !parent.eq_ignore_ascii_case("ffffffff")) {
        return refused("it is an overlay of another VMDK; flatten it first (qemu-img convert -O qcow2)");
    }
    let is_extent = |line: &&str| {
        ["RW ", "RDONLY ", "NOACCESS "]
            .iter()
            .any(|access| line.starts_with(access))
    };
    match text.lines().filter(is_extent).count() {
        1 => Ok(()),
        count => refused(format!(
            "its disk is in {count} files; convert it first (qemu-img convert -O qcow2)"
        )),
    }
}

impl Disk for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(buffer, offset, self.size)?;
        by_cluster(buffer, offset, self.grain, |grain, inside, part| {
            let table = self.table(grain / u64::from(ENTRIES))?;
            let sector = table.map_or(Ok(None), |table| self.find(&table, grain))?;
            match sector {
                None => part.fill(0),
                Some(sector) if self.is_compressed => {
                    let data = self.grains.get(grain, || self.unpack(grain, sector))?;
                    part.copy_from_slice(&data[inside..inside + part.len()]);
                }
                Some(sector) => {
                    let inside = u64::try_from(inside).map_err(io::Error::other)?;
                    self.source.read_exact_at(part, sector * SECTOR + inside)?;
                }
            }
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let per_table = u64::from(ENTRIES);
        let (mut grain, end) = (offset / self.grain, self.size.div_ceil(self.grain));
        while grain < end && offset < self.size {
            let table_end = end.min((grain / per_table + 1) * per_table);
            let Some(table) = self.table(grain / per_table)? else {
                grain = table_end;
                continue;
            };
            let mut range = None;
            while grain < table_end {
                match (self.find(&table, grain)?, &mut range) {
                    (Some(_), None) => range = Some(grain..grain + 1),
                    (Some(_), Some(range)) => range.end = grain + 1,
                    (None, None) => {}
                    (None, Some(_)) => break,
                }
                grain += 1;
            }
            if let Some(range) = range {
                let (start, range_end) = (range.start * self.grain, range.end * self.grain);
                return Ok(Some(start.max(offset)..range_end.min(self.size)));
            }
        }
        Ok(None)
    }
}
