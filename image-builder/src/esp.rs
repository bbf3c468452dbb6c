//! The EFI system partition: a FAT16 file system with the kernel, the initrd and the boot loader's files (Microsoft's
//! "FAT: General Overview of On-Disk Format").
//!
//! Kernel and initrd are only here, for both kinds of firmware, so that GRUB needs to know one file system. It is written
//! here because `mkfs.fat` and mtools write random numbers or the present time, and the crate `fatfs` writes directories
//! that `fsck.fat` finds fault with.

use std::collections::BTreeMap;
use std::io;

/// Bytes. Room for a second kernel beside the first.
pub const SIZE: u64 = 48 * 1024 * 1024;

const SECTOR_BYTES: usize = 512;
const SECTORS: usize = 48 * 1024 * 2;
/// Sectors. This makes 24,519 clusters, which is FAT16 by definition (4,085 to 65,524).
const CLUSTER: usize = 4;
const CLUSTER_BYTES: usize = CLUSTER * SECTOR_BYTES;
/// Sectors of each of the two FATs: 2 bytes for each cluster.
const FAT: usize = 96;
const ROOT_ENTRIES: usize = 512;
const ENTRY: usize = 32;
const ROOT_AT: usize = (1 + 2 * FAT) * SECTOR_BYTES;
const DATA_AT: usize = ROOT_AT + ROOT_ENTRIES * ENTRY;
const CLUSTERS: usize = (SECTORS * SECTOR_BYTES - DATA_AT) / CLUSTER_BYTES;

const LABEL: &[u8; 11] = b"ESP        ";
/// FAT keeps times of no time zone, and neither firmware nor GRUB looks at them: this one, 2025-01-01, is always the same.
const DATE: u16 = ((2025 - 1980) << 9) | (1 << 5) | 1;

const IS_LABEL: u8 = 0x08;
const IS_FOLDER: u8 = 0x10;
const IS_FILE: u8 = 0x20;
/// Readers show the part of a name before the dot in lower case, and the part after it.
const LOWER: [u8; 2] = [0x08, 0x10];

enum Node<'a> {
    Folder(BTreeMap<&'a str, Node<'a>>),
    File(&'a [u8]),
}

/// Makes the file system, with `files` by their paths (`EFI/BOOT/BOOTX64.EFI`) and this serial number. A name has at most
/// 8 letters, and 3 more after a dot; each part is in one case.
///
/// # Errors
/// They do not fit.
pub fn make(serial: u32, files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let mut root = BTreeMap::new();
    for (path, contents) in files {
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut here = &mut root;
        for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
            match here.entry(folder).or_insert_with(|| Node::Folder(BTreeMap::new())) {
                Node::Folder(inside) => here = inside,
                Node::File(_) => return Err(io::Error::other(format!("/{path} is inside of a file"))),
            }
        }
        here.insert(name, Node::File(contents));
    }

    let mut volume = Volume {
        bytes: vec![0; SECTORS * SECTOR_BYTES],
        free: 2,
    };
    volume.bytes[..SECTOR_BYTES].copy_from_slice(&boot_sector(serial));
    volume.link(0, 0xFFF8)?; // the media's kind
    volume.link(1, 0xFFFF)?; // shut down properly, no errors
    let mut entries = vec![entry(LABEL, IS_LABEL, 0, 0, 0)];
    entries.extend(volume.write(&root, "", 0)?);
    if entries.len() > ROOT_ENTRIES {
        return Err(does_not_fit("/"));
    }
    volume.put(ROOT_AT, &entries.concat());
    Ok(volume.bytes)
}

struct Volume {
    bytes: Vec<u8>,
    /// The first cluster that is free, and all after it are.
    free: u16,
}

impl Volume {
    /// Writes what is in a folder, and gives the folder's entries. `own` is the folder's cluster, 0 for the root.
    fn write(&mut self, nodes: &BTreeMap<&str, Node<'_>>, above: &str, own: u16) -> io::Result<Vec<[u8; ENTRY]>> {
        let mut entries = Vec::new();
        for (name, node) in nodes {
            let path = format!("{above}/{name}");
            let (short, case) = short_name(name).ok_or_else(|| {
                io::Error::other(format!(
                    "{path} cannot be in the EFI system partition: write names like GRUB.CFG"
                ))
            })?;
            entries.push(match node {
                Node::File(contents) => {
                    let first = self.take(contents.len(), &path)?;
                    self.put(place(first), contents);
                    let length = u32::try_from(contents.len()).map_err(|_| does_not_fit(&path))?;
                    entry(&short, IS_FILE, case, first, length)
                }
                Node::Folder(inside) => {
                    let first = self.take((2 + inside.len()) * ENTRY, &path)?;
                    let dots = [(b".          ", first), (b"..         ", own)];
                    let mut list: Vec<_> = dots.map(|(name, at)| entry(name, IS_FOLDER, 0, at, 0)).into();
                    list.extend(self.write(inside, &path, first)?);
                    self.put(place(first), &list.concat());
                    entry(&short, IS_FOLDER, case, first, 0)
                }
            });
        }
        Ok(entries)
    }

    /// Takes as many clusters in a row as are needed, and gives the first; 0 when none is.
    fn take(&mut self, bytes: usize, path: &str) -> io::Result<u16> {
        let count = u16::try_from(bytes.div_ceil(CLUSTER_BYTES)).map_err(|_| does_not_fit(path))?;
        if count == 0 {
            return Ok(0);
        }
        let first = self.free;
        let end = first.checked_add(count).filter(|end| usize::from(*end) <= CLUSTERS + 2);
        let end = end.ok_or_else(|| does_not_fit(path))?;
        for cluster in first..end - 1 {
            self.link(cluster, cluster + 1)?;
        }
        self.link(end - 1, 0xFFFF)?;
        self.free = end;
        Ok(first)
    }

    /// Says in both FATs what comes after a cluster.
    fn link(&mut self, cluster: u16, next: u16) -> io::Result<()> {
        for fat in [1, 1 + FAT] {
            let at = fat * SECTOR_BYTES + 2 * usize::from(cluster);
            let link = self.bytes.get_mut(at..at + 2).ok_or(io::ErrorKind::InvalidInput)?;
            link.copy_from_slice(&next.to_le_bytes());
        }
        Ok(())
    }

    fn put(&mut self, at: usize, contents: &[u8]) {
        self.bytes[at..at + contents.len()].copy_from_slice(contents);
    }
}

fn does_not_fit(path: &str) -> io::Error {
    io::Error::other(format!(
        "{path} does not fit into the EFI system partition of {SIZE} bytes"
    ))
}

/// Where a cluster begins. Nothing is ever put where cluster 0 would be: it stands for no contents.
fn place(cluster: u16) -> usize {
    DATA_AT + usize::from(cluster).saturating_sub(2) * CLUSTER_BYTES
}

/// The name as a directory has it, and in which case it is to be shown.
fn short_name(name: &str) -> Option<([u8; 11], u8)> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let (mut short, mut case) = ([b' '; 11], 0);
    for (part, room, lower) in [(base, 0..8, LOWER[0]), (extension, 8..11, LOWER[1])] {
        let is_upper = !part.bytes().any(|byte| byte.is_ascii_lowercase());
        let is_lower = !part.bytes().any(|byte| byte.is_ascii_uppercase());
        let is_plain = part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !is_plain || part.len() > room.len() || !(is_upper || is_lower) {
            return None;
        }
        if !is_upper {
            case |= lower;
        }
        let upper = part.to_ascii_uppercase();
        short[room.start..room.start + part.len()].copy_from_slice(upper.as_bytes());
    }
    (!base.is_empty()).then_some((short, case))
}

fn entry(name: &[u8; 11], kind: u8, case: u8, first: u16, length: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(name);
    entry[11..13].copy_from_slice(&[kind, case]);
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes()); // made, read, changed
    }
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..].copy_from_slice(&length.to_le_bytes());
    entry
}

fn boot_sector(serial: u32) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xEB, 0x3C, 0x90]);
    put(3, b"SYSVM   ");
    put(11, &[0, 2]); // bytes of a sector
    put(13, &[4]); // sectors of a cluster
    put(14, &[1, 0]); // sectors before the FATs
    put(16, &[2]); // FATs
    put(17, &[0, 2]); // entries of the root directory
    put(21, &[0xF8]); // a hard disk
    put(22, &[96, 0]); // sectors of a FAT
    put(24, &[63, 0, 255, 0]); // sectors of a track, heads
    put(28, &2048_u32.to_le_bytes()); // sectors before this partition
    put(32, &98_304_u32.to_le_bytes()); // sectors
    put(36, &[0x80, 0, 0x29]); // the first disk; what follows is there
    put(39, &serial.to_le_bytes());
    put(43, LABEL);
    put(54, b"FAT16   ");
    put(510, &[0x55, 0xAA]);
    sector
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use fatfs::{FileSystem, FsOptions};

    use super::*;
    use crate::gpt::SECTOR;

    #[test]
    fn the_numbers_of_the_layout_fit_together() {
        assert_eq!(u64::try_from(SECTORS).unwrap() * SECTOR, SIZE);
        assert_eq!(CLUSTERS, 24_519);
        assert_eq!(((CLUSTERS + 2) * 2).div_ceil(SECTOR_BYTES), FAT);
        assert_eq!((FAT, SECTORS, ROOT_ENTRIES), (96, 98_304, 512));
    }

    #[test]
    fn names_of_8_and_3_letters_in_one_case_are_taken() {
        assert_eq!(short_name("vmlinuz"), Some((*b"VMLINUZ    ", 0x08)));
        assert_eq!(short_name("grub.cfg"), Some((*b"GRUB    CFG", 0x18)));
        assert_eq!(short_name("BOOTX64.EFI"), Some((*b"BOOTX64 EFI", 0)));
        for name in ["", ".cfg", "Grub", "a.b.c", "vmlinuz-6.12", "ninelette", "a.conf", "ä"] {
            assert_eq!(short_name(name), None, "{name}");
        }
    }

    #[test]
    fn files_are_read_back_and_the_bytes_are_always_the_same() {
        let kernel = vec![7; 5_000_000];
        let files: [(&str, &[u8]); 3] = [
            ("vmlinuz", &kernel),
            ("grub/grub.cfg", b"boot\n"),
            ("EFI/BOOT/BOOTX64.EFI", b"MZ"),
        ];
        let mut bytes = make(0x1234_5678, &files).unwrap();
        assert!(make(0x1234_5678, &files).unwrap() == bytes);

        let volume = FileSystem::new(Cursor::new(&mut bytes), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_id(), 0x1234_5678);
        for (path, wanted) in files {
            let mut contents = Vec::new();
            let mut file = volume.root_dir().open_file(path).unwrap();
            file.read_to_end(&mut contents).unwrap();
            assert!(contents == wanted, "{path}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let kernel = vec![7; usize::try_from(SIZE).unwrap()];
        let error = make(1, &[("vmlinuz", &kernel)]).unwrap_err().to_string();
        assert!(
            error.starts_with("/vmlinuz does not fit into the EFI system partition of 50331648 bytes"),
            "{error}"
        );
    }
}
