//! The partition table: GPT with its protective MBR, written and read (UEFI Specification §5, image-pipeline.md §9).

use std::io;

use uuid::Uuid;

use crate::formats::Disk;

/// Bytes.
pub const SECTOR: u64 = 512;
/// Sectors before the first one that a partition may have: MBR, header, entries.
pub const RESERVED_START: u64 = 2 + ENTRY_SECTORS;
/// Sectors after the last one that a partition may have: entries, header.
pub const RESERVED_END: u64 = 1 + ENTRY_SECTORS;

/// What GRUB's core image is in on a machine with a BIOS.
pub const BIOS_BOOT: Uuid = Uuid::from_u128(0x2168_6148_6449_6E6F_744E_6565_6445_4649);
/// The EFI system partition.
pub const ESP: Uuid = Uuid::from_u128(0xC12A_7328_F81F_11D2_BA4B_00A0_C93E_C93B);
/// A root file system for x86-64 (UAPI Discoverable Partitions Specification).
pub const LINUX_ROOT: Uuid = Uuid::from_u128(0x4F68_BCE3_E8CD_4DB1_96E7_FBCA_F984_B709);

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_SIZE: usize = 92;
const ENTRY_SIZE: usize = 128;
const ENTRIES: usize = 128;
const ENTRY_SECTORS: u64 = 32;
const NAME_UNITS: usize = 36;
/// A table with more or larger entries than anyone writes is not worth the memory.
const MAX_TABLE_BYTES: usize = 1024 * 1024;

/// A disk's partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpt {
    /// Of the disk.
    pub id: Uuid,
    /// Of the disk.
    pub sectors: u64,
    /// In the table's order; empty entries are left out.
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Uuid,
    /// Unlike that of any other.
    pub id: Uuid,
    /// Its first sector.
    pub first: u64,
    /// Its last sector.
    pub last: u64,
    /// At most 36 UTF-16 units.
    pub name: String,
}

/// Why there is no partition table, or none can be made.
#[derive(Debug, thiserror::Error)]
pub enum BadGpt {
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Read(#[from] io::Error),
    /// The header is not one.
    #[error("the disk has no GPT partition table")]
    None,
    /// A checksum is wrong.
    #[error("the {0} of the partition table is damaged: its checksum is wrong")]
    Damaged(&'static str),
    /// A number in it cannot be true.
    #[error("the partition table says that {0}")]
    Impossible(String),
}

impl Partition {
    /// Where it begins, in bytes.
    pub fn offset(&self) -> u64 {
        self.first * SECTOR
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        (self.last + 1 - self.first) * SECTOR
    }

    fn encode(&self, entry: &mut [u8]) {
        entry[..16].copy_from_slice(&self.kind.to_bytes_le());
        entry[16..32].copy_from_slice(&self.id.to_bytes_le());
        entry[32..40].copy_from_slice(&self.first.to_le_bytes());
        entry[40..48].copy_from_slice(&self.last.to_le_bytes());
        for (unit, at) in self
            .name
            .encode_utf16()
            .take(NAME_UNITS)
            .zip(entry[56..].chunks_exact_mut(2))
        {
            at.copy_from_slice(&unit.to_le_bytes());
        }
    }

    fn decode(entry: &[u8]) -> Option<Self> {
        let kind = uuid_at(entry, 0)?;
        let units = entry
            .get(56..56 + 2 * NAME_UNITS)?
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        Some(Self {
            kind,
            id: uuid_at(entry, 16)?,
            first: u64_at(entry, 32)?,
            last: u64_at(entry, 40)?,
            name: String::from_utf16_lossy(&name),
        })
        .filter(|partition| !partition.kind.is_nil())
    }
}

impl Gpt {
    /// Whether the partitions are in order, inside of the disk and do not overlap.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), BadGpt> {
        let impossible = |text: String| Err(BadGpt::Impossible(text));
        if self.sectors <= RESERVED_START + RESERVED_END {
            return impossible(format!(
                "the disk has {} sectors, which is too small for it",
                self.sectors
            ));
        }
        if self.partitions.len() > ENTRIES {
            return impossible(format!(
                "there are {} partitions, more than {ENTRIES}",
                self.partitions.len()
            ));
        }
        let mut sorted: Vec<&Partition> = self.partitions.iter().collect();
        sorted.sort_by_key(|partition| partition.first);
        let mut free = RESERVED_START;
        for Partition { name, first, last, .. } in sorted {
            if *first < free || last < first || *last >= self.sectors - RESERVED_END {
                return impossible(format!(
                    "partition {name:?} is at sectors {first} to {last}, where it cannot be"
                ));
            }
            free = last + 1;
        }
        Ok(())
    }

    /// What comes before the first partition: the MBR without boot code, the header and the entries.
    ///
    /// # Errors
    /// The partitions cannot be like this.
    pub fn start(&self) -> Result<Vec<u8>, BadGpt> {
        self.check()?;
        let entries = self.entries();
        Ok([self.protective_mbr().as_slice(), &self.header(&entries, 1), &entries].concat())
    }

    /// What comes at the end of the disk: the entries and the backup header, [`RESERVED_END`] sectors.
    ///
    /// # Errors
    /// The partitions cannot be like this.
    pub fn end(&self) -> Result<Vec<u8>, BadGpt> {
        self.check()?;
        let entries = self.entries();
        Ok([entries.as_slice(), &self.header(&entries, self.sectors - 1)].concat())
    }

    /// Tells tools that know nothing of GPT that the disk is in use.
    fn protective_mbr(&self) -> [u8; 512] {
        let mut mbr = [0; 512];
        let entry = &mut mbr[446..462];
        entry[1..4].copy_from_slice(&[0, 2, 0]); // the head and sector of the second sector
        entry[4] = 0xEE;
        entry[5..8].fill(0xFF);
        entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
        entry[12..16].copy_from_slice(&u32::try_from(self.sectors - 1).unwrap_or(u32::MAX).to_le_bytes());
        mbr[510..].copy_from_slice(&[0x55, 0xAA]);
        mbr
    }

    fn entries(&self) -> Vec<u8> {
        let mut entries = vec![0; ENTRIES * ENTRY_SIZE];
        for (partition, entry) in self.partitions.iter().zip(entries.chunks_exact_mut(ENTRY_SIZE)) {
            partition.encode(entry);
        }
        entries
    }

    /// The header that stands in sector `here`.
    fn header(&self, entries: &[u8], here: u64) -> [u8; 512] {
        let last = self.sectors - 1;
        let (other, entries_at) = if here == 1 {
            (last, 2)
        } else {
            (1, here - ENTRY_SECTORS)
        };
        let mut fields = Vec::with_capacity(HEADER_SIZE);
        fields.extend(SIGNATURE);
        fields.extend(0x0001_0000_u32.to_le_bytes()); // revision 1.0
        fields.extend(92_u32.to_le_bytes()); // its own length
        fields.extend([0; 4]); // its checksum, which counts as 0
        fields.extend([0; 4]);
        for sector in [here, other, RESERVED_START, last - RESERVED_END] {
            fields.extend(sector.to_le_bytes());
        }
        fields.extend(self.id.to_bytes_le());
        fields.extend(entries_at.to_le_bytes());
        fields.extend(128_u32.to_le_bytes()); // how many entries
        fields.extend(128_u32.to_le_bytes()); // of how many bytes
        fields.extend(crc32fast::hash(entries).to_le_bytes());
        let checksum = crc32fast::hash(&fields);
        fields[16..20].copy_from_slice(&checksum.to_le_bytes());
        let mut sector = [0; 512];
        sector[..HEADER_SIZE].copy_from_slice(&fields);
        sector
    }

    /// Reads the table at the start of a disk.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn read(disk: &dyn Disk) -> Result<Self, BadGpt> {
        let mut header = [0; 512];
        disk.read_at(&mut header, SECTOR)?;
        let number = |at| {
            u32_at(&header, at)
                .and_then(|number| usize::try_from(number).ok())
                .ok_or(BadGpt::None)
        };
        if header[..8] != *SIGNATURE {
            return Err(BadGpt::None);
        }
        let length = number(12)?;
        if !(HEADER_SIZE..=header.len()).contains(&length) {
            return Err(BadGpt::Impossible(format!("its header has {length} bytes")));
        }
        let mut summed = header;
        summed[16..20].fill(0);
        if Some(crc32fast::hash(&summed[..length])) != u32_at(&header, 16) {
            return Err(BadGpt::Damaged("header"));
        }
        let (count, size) = (number(80)?, number(84)?);
        let bytes = count
            .checked_mul(size)
            .filter(|bytes| *bytes <= MAX_TABLE_BYTES && size >= ENTRY_SIZE);
        let bytes = bytes.ok_or_else(|| BadGpt::Impossible(format!("it has {count} entries of {size} bytes")))?;
        let mut entries = vec![0; bytes];
        let entries_at = u64_at(&header, 72)
            .and_then(|sector| sector.checked_mul(SECTOR))
            .ok_or(BadGpt::None)?;
        disk.read_at(&mut entries, entries_at)?;
        if Some(crc32fast::hash(&entries)) != u32_at(&header, 88) {
            return Err(BadGpt::Damaged("list of partitions"));
        }
        let gpt = Self {
            id: uuid_at(&header, 56).ok_or(BadGpt::None)?,
            sectors: disk.size() / SECTOR,
            partitions: entries.chunks_exact(size).filter_map(Partition::decode).collect(),
        };
        gpt.check()?;
        Ok(gpt)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// GUIDs are stored with their first three numbers in little-endian order.
fn uuid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    Some(Uuid::from_bytes_le(bytes.get(at..at + 16)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
