//! A partition table (GPT) for a disk that has become larger: pure, from the old table's bytes to the bytes to write.
//!
//! UEFI Specification §5.3. The table has its first copy in the first sectors and its second copy in the last ones. Only one
//! partition may grow: the last on the disk.

/// Bytes. A disk with another size of sector is left alone.
pub const SECTOR: u64 = 512;
/// Bytes at the start of a disk that [`Growth::of`] reads: protective MBR, header, entries.
pub const HEAD: usize = 34 * 512;
/// Bytes at the start of the disk that are replaced together, after the second copy is safe: all that changes in the first
/// copy is in it. Disks with sectors of 4 KiB, page caches and disk image formats keep or lose it as a whole.
pub const PAGE: usize = 4096;
/// Sectors of the second copy: entries, then header.
const BACKUP_SECTORS: u64 = 33;
/// Partitions begin and end where the blocks of every storage do.
const ALIGNMENT: u64 = 2048;

const HEADER_AT: usize = 512;
const ENTRIES_AT: usize = 1024;
const ENTRIES: usize = 128;
const ENTRY_SIZE: usize = 128;
/// Entries that are in the page.
const ENTRIES_IN_PAGE: usize = (PAGE - ENTRIES_AT) / ENTRY_SIZE;

/// What to write so that a partition has all of a larger disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The second copy.
    pub backup: Vec<u8>,
    /// Where it goes, in bytes: at the end of the disk.
    pub backup_at: u64,
    /// The first bytes of the disk; to be written last.
    pub page: Vec<u8>,
    /// The partition's new length, in sectors.
    pub sectors: u64,
}

/// Why a disk is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    /// No GPT, or not one that the image's builder makes.
    #[error("its partition table is not one that this image came with ({0})")]
    Foreign(&'static str),
    /// Something has gone wrong with it.
    #[error("the {0} of its partition table is damaged")]
    Damaged(&'static str),
    /// Another partition is behind it.
    #[error("partition {0} is not the last one on the disk")]
    NotLast(usize),
}

impl Growth {
    /// What makes partition `number` (from 1) as large as a disk of `disk_sectors` allows; `None` when it is already.
    pub fn of(head: &[u8], disk_sectors: u64, number: usize) -> Result<Option<Self>, BadTable> {
        let table = Table::read(head)?;
        let index = number.saturating_sub(1);
        let (first, last) = table.numbered(number)?;
        let is_behind = |other: usize| table.partition(other).is_some_and(|(begins, _)| begins > first);
        if (0..ENTRIES).any(is_behind) {
            return Err(BadTable::NotLast(number));
        }
        let usable_end = disk_sectors.saturating_sub(BACKUP_SECTORS);
        let new_end = usable_end - usable_end % ALIGNMENT;
        if new_end <= last + 1 {
            return Ok(None);
        }
        Ok(Some(table.grown(index, new_end - 1, disk_sectors)))
    }
}

/// How many sectors partition `number` (from 1) has.
pub fn sectors(head: &[u8], number: usize) -> Result<u64, BadTable> {
    let (first, last) = Table::read(head)?.numbered(number)?;
    Ok(last + 1 - first)
}

/// A table whose checksums are right.
struct Table<'a> {
    head: &'a [u8; HEAD],
}

impl<'a> Table<'a> {
    fn read(head: &'a [u8]) -> Result<Self, BadTable> {
        let head: &[u8; HEAD] = head.try_into().map_err(|_| BadTable::Foreign("it is too short"))?;
        let header = &head[HEADER_AT..HEADER_AT + 92];
        if &header[..8] != b"EFI PART" {
            return Err(BadTable::Foreign("no GPT"));
        }
        let is_as_usual = u32_at(header, 12) == 92
            && u64_at(header, 24) == 1
            && u64_at(header, 72) == 2
            && u32_at(header, 80) == 128
            && u32_at(header, 84) == 128;
        if !is_as_usual {
            return Err(BadTable::Foreign("its header has another shape"));
        }
        if u32_at(header, 16) != header_sum(header) {
            return Err(BadTable::Damaged("header"));
        }
        if u32_at(header, 88) != crc32fast::hash(&head[ENTRIES_AT..]) {
            return Err(BadTable::Damaged("list of partitions"));
        }
        Ok(Self { head })
    }

    fn numbered(&self, number: usize) -> Result<(u64, u64), BadTable> {
        let index = number.checked_sub(1).filter(|index| *index < ENTRIES_IN_PAGE);
        let found = index.and_then(|index| self.partition(index));
        let (first, last) = found.ok_or(BadTable::Foreign("it has no such partition"))?;
        // So much that nothing here can overflow.
        if last < first || last > u64::MAX >> 10 {
            return Err(BadTable::Foreign("a partition ends where it cannot"));
        }
        Ok((first, last))
    }

    fn partition(&self, index: usize) -> Option<(u64, u64)> {
        let entry = &self.head[ENTRIES_AT + index * ENTRY_SIZE..][..ENTRY_SIZE];
        let is_used = entry[..16].iter().any(|byte| *byte != 0);
        is_used.then(|| (u64_at(entry, 32), u64_at(entry, 40)))
    }

    fn grown(&self, index: usize, last: u64, disk_sectors: u64) -> Growth {
        let mut head = *self.head;
        let entry = ENTRIES_AT + index * ENTRY_SIZE;
        let first = u64_at(&head, entry + 32);
        put(&mut head, entry + 40, &last.to_le_bytes());
        let entries_sum = crc32fast::hash(&head[ENTRIES_AT..]);

        let end = disk_sectors - 1;
        put(&mut head, HEADER_AT + 32, &end.to_le_bytes()); // where the other copy's header is
        put(
            &mut head,
            HEADER_AT + 48,
            &(disk_sectors - BACKUP_SECTORS - 1).to_le_bytes(),
        ); // last usable sector
        put(&mut head, HEADER_AT + 88, &entries_sum.to_le_bytes());
        // The protective MBR's only partition covers the disk, or as much of it as its field can say.
        let covered = u32::try_from(end).unwrap_or(u32::MAX);
        put(&mut head, 446 + 12, &covered.to_le_bytes());

        let mut other = [0; 512];
        other[..92].copy_from_slice(&head[HEADER_AT..HEADER_AT + 92]);
        put(&mut other, 24, &end.to_le_bytes()); // itself
        put(&mut other, 32, &1_u64.to_le_bytes()); // the other
        put(&mut other, 72, &(disk_sectors - BACKUP_SECTORS).to_le_bytes());
        let sum = header_sum(&other[..92]);
        put(&mut other, 16, &sum.to_le_bytes());

        let sum = header_sum(&head[HEADER_AT..HEADER_AT + 92]);
        put(&mut head, HEADER_AT + 16, &sum.to_le_bytes());
        Growth {
            backup: [&head[ENTRIES_AT..], &other].concat(),
            backup_at: (disk_sectors - BACKUP_SECTORS) * SECTOR,
            page: head[..PAGE].to_vec(),
            sectors: last + 1 - first,
        }
    }
}

/// Of the header's 92 bytes, with the field of the sum itself as zero.
fn header_sum(header: &[u8]) -> u32 {
    let mut bytes = header.to_vec();
    put(&mut bytes, 16, &[0; 4]);
    crc32fast::hash(&bytes)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use platform::exec::Cmd;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A disk as the image's builder lays it out: BIOS boot, ESP, root up to the end.
    async fn disk(path: &Path, mib: u64) -> File {
        let script = "label: gpt\nfirst-lba: 34\n\
                      start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649\n\
                      start=2048, size=4096, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
                      start=6144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n";
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        file.set_len(mib * MIB).unwrap();
        Cmd::new("sfdisk")
            .args(["-q", "--no-reread"])
            .arg(path)
            .stdin(script)
            .run()
            .await
            .unwrap();
        file
    }

    fn head(file: &File) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        file.read_exact_at(&mut head, 0).unwrap();
        head
    }

    async fn judged(path: &Path) -> (String, serde_json::Value) {
        let said = Cmd::new("sfdisk").arg("--verify").arg(path).run().await.unwrap();
        let table = Cmd::new("sfdisk").arg("--json").arg(path).run().await.unwrap();
        (
            said.text() + &said.stderr,
            serde_json::from_slice(&table.stdout).unwrap(),
        )
    }

    #[tokio::test]
    async fn sfdisk_finds_nothing_wrong_with_a_grown_table_and_only_the_last_partition_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let file = disk(&path, 64).await;
        let (_, before) = judged(&path).await;
        assert_eq!(Growth::of(&head(&file), 64 * MIB / SECTOR, 3).unwrap(), None);

        file.set_len(200 * MIB).unwrap();
        let growth = Growth::of(&head(&file), 200 * MIB / SECTOR, 3).unwrap().unwrap();
        file.write_all_at(&growth.backup, growth.backup_at).unwrap();
        // Power may fail here: the first copy is as it was.
        assert_eq!(
            judged(&path).await.1["partitiontable"]["partitions"],
            before["partitiontable"]["partitions"]
        );
        file.write_all_at(&growth.page, 0).unwrap();

        let (said, after) = judged(&path).await;
        assert!(said.contains("No errors detected.\n"), "{said}");
        let (before, after) = (&before["partitiontable"], &after["partitiontable"]);
        assert_eq!(after["lastlba"], 200 * MIB / SECTOR - 34);
        assert_eq!(after["id"], before["id"]);
        for index in 0..2 {
            assert_eq!(after["partitions"][index], before["partitions"][index]);
        }
        let root = &after["partitions"][2];
        assert_eq!(
            (root["start"].as_u64(), root["size"].as_u64()),
            (Some(6144), Some(growth.sectors))
        );
        assert_eq!(growth.sectors, 199 * MIB / SECTOR - 6144);
        assert_eq!(root["uuid"], before["partitions"][2]["uuid"]);
        assert_eq!(sectors(&head(&file), 3).unwrap(), growth.sectors);
        // Once is enough.
        assert_eq!(Growth::of(&head(&file), 200 * MIB / SECTOR, 3).unwrap(), None);
    }

    #[tokio::test]
    async fn the_second_copy_alone_is_the_whole_table() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let file = disk(&path, 64).await;
        file.set_len(100 * MIB).unwrap();
        let growth = Growth::of(&head(&file), 100 * MIB / SECTOR, 3).unwrap().unwrap();
        file.write_all_at(&growth.backup, growth.backup_at).unwrap();
        file.write_all_at(&[0; 512], SECTOR).unwrap(); // the first copy was torn by a power cut
        let table = Cmd::new("sfdisk").arg("--json").arg(&path).run().await.unwrap();
        let table: serde_json::Value = serde_json::from_slice(&table.stdout).unwrap();
        assert_eq!(table["partitiontable"]["partitions"][2]["size"], growth.sectors);
    }

    #[tokio::test]
    async fn what_is_damaged_or_foreign_or_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = disk(&directory.path().join("disk"), 64).await;
        let (good, sectors) = (head(&file), 200 * MIB / SECTOR);
        assert_eq!(
            Growth::of(&good[..100], sectors, 3),
            Err(BadTable::Foreign("it is too short"))
        );
        assert_eq!(Growth::of(&vec![0; HEAD], sectors, 3), Err(BadTable::Foreign("no GPT")));
        assert_eq!(Growth::of(&good, sectors, 2), Err(BadTable::NotLast(2)));
        for missing in [0, 4, 25, usize::MAX] {
            assert_eq!(
                Growth::of(&good, sectors, missing),
                Err(BadTable::Foreign("it has no such partition"))
            );
        }
        for (at, what) in [
            (600, BadTable::Damaged("header")),
            (1100, BadTable::Damaged("list of partitions")),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let found = Growth::of(&bad, sectors, 3);
            assert!(
                found == Err(what.clone()) || matches!(found, Err(BadTable::Foreign(_))),
                "{at}: {found:?}"
            );
        }
        // A disk that shrank, or says it has no size at all, is no reason to do anything.
        assert_eq!(Growth::of(&good, 0, 3), Ok(None));
    }

    proptest! {
        #[test]
        fn noise_never_panics(mut noise in prop::collection::vec(any::<u8>(), HEAD), sectors: u64, number in 0_usize..200) {
            let _ = Growth::of(&noise, sectors, number);
            let _ = super::sectors(&noise, number);
            noise[HEADER_AT..HEADER_AT + 8].copy_from_slice(b"EFI PART");
            let _ = Growth::of(&noise, sectors, number);
        }
    }
}
