//! Reads the partition table (UEFI specification §5.3).

use std::io;

use uuid::Uuid;

use crate::formats::Disk;

/// The type of the partition that firmware starts from.
pub const ESP: Uuid = Uuid::from_u128(0xC12A_7328_F81F_11D2_BA4B_00A0_C93E_C93B);
/// The type of the root file system on x86-64.
pub const ROOT: Uuid = Uuid::from_u128(0x4F68_BCE3_E8CD_4DB1_96E7_FBCA_F984_B709);
/// The type of the partition that has GRUB's core for BIOS.
pub const BIOS_BOOT: Uuid = Uuid::from_u128(0x2168_6148_6449_6E6F_744E_6565_6445_4649);
const SECTOR: u64 = 512;
/// Bytes of a header that have a meaning, and that its checksum is over.
const HEADER: usize = 92;
const ENTRY: usize = 128;
const ENTRIES: usize = 128;

/// A disk's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpt {
    /// The disk's own id.
    pub disk: Uuid,
    /// In the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// From 1.
    pub number: u32,
    /// What it is for.
    pub kind: Uuid,
    /// Its own id.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Where it starts, in bytes.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
}

/// Why a partition table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// There is none.
    #[error("there is no GPT")]
    None,
    /// It contradicts itself.
    #[error("its {which} GPT is damaged: {what}")]
    Damaged {
        /// `first` or `backup`.
        which: &'static str,
        /// How.
        what: &'static str,
    },
    /// Both are good, but not the same.
    #[error("its two GPTs are not the same")]
    Differ,
    /// The disk cannot be read.
    #[error("it cannot be read")]
    Disk(#[from] io::Error),
}

/// Reads both tables of a disk.
///
/// # Errors
/// There is none, one is damaged, or they differ.
pub fn read(disk: &dyn Disk) -> Result<Gpt, GptError> {
    let sectors = disk.size() / SECTOR;
    if sectors < 128 {
        return Err(GptError::None);
    }
    let first = read_at(disk, 1, "first")?;
    let backup = read_at(disk, sectors - 1, "backup")?;
    if first == backup {
        Ok(first)
    } else {
        Err(GptError::Differ)
    }
}

fn read_at(disk: &dyn Disk, sector: u64, which: &'static str) -> Result<Gpt, GptError> {
    let bad = |what| GptError::Damaged { which, what };
    let sectors = disk.size() / SECTOR;
    let mut header = [0; 512];
    disk.read_at(&mut header, sector * SECTOR)?;
    if &header[..8] != b"EFI PART" {
        return Err(if sector == 1 {
            GptError::None
        } else {
            bad("its header is missing")
        });
    }
    let stored = u32_at(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header[..HEADER]) != stored {
        return Err(bad("its header's checksum is wrong"));
    }
    let (first_usable, last_usable, table) = (u64_at(&header, 40), u64_at(&header, 48), u64_at(&header, 72));
    let is_ours = u32_at(&header, 80) == 128 && u32_at(&header, 84) == 128;
    if !is_ours || first_usable > last_usable || last_usable >= sectors || table == 0 || table > sectors - 33 {
        return Err(bad("its header makes no sense"));
    }
    let mut entries = vec![0; ENTRIES * ENTRY];
    disk.read_at(&mut entries, table * SECTOR)?;
    if crc32fast::hash(&entries) != u32_at(&header, 88) {
        return Err(bad("the checksum of its entries is wrong"));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(ENTRY)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        if first < first_usable || last > last_usable || first > last {
            return Err(bad("a partition is outside of the disk"));
        }
        let name = entry[56..]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let name: Vec<_> = name.take_while(|unit| *unit != 0).collect();
        partitions.push(Partition {
            number,
            kind: uuid_at(entry, 0),
            id: uuid_at(entry, 16),
            name: String::from_utf16_lossy(&name),
            start: first * SECTOR,
            size: (last - first + 1) * SECTOR,
        });
    }
    Ok(Gpt {
        disk: uuid_at(&header, 56),
        partitions,
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice is that long")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes_le(array(bytes, at))
}
