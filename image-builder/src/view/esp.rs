//! Reads the files of the EFI system partition.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use fatfs::{Dir, FileSystem, FsOptions};

use crate::formats::Disk;

/// Bytes; ours has 48 MiB, and an upgrade would need twice as much.
const MAX_SIZE: u64 = 512 << 20;
/// Ours has nine.
const MAX_FILES: usize = 4096;
const MAX_DEPTH: usize = 16;
/// Directories whose clusters are a ring never end: after reading this many times the partition, we stop.
const MAX_READS: u64 = 4;

/// All files of the FAT file system on `disk`, by path: `EFI/BOOT/BOOTX64.EFI`.
///
/// # Errors
/// It is none, or it is damaged.
pub(super) fn read(disk: &dyn Disk) -> io::Result<BTreeMap<String, Bytes>> {
    let size = disk.size();
    if size > MAX_SIZE {
        return Err(damaged(format!(
            "it has {size} bytes, more than the {MAX_SIZE} that are allowed"
        )));
    }
    check(disk)?;
    let volume = Volume {
        disk,
        position: 0,
        left: size.saturating_mul(MAX_READS),
    };
    let file_system = FileSystem::new(volume, FsOptions::new())?;
    let mut files = BTreeMap::new();
    let mut total = 0;
    walk(&file_system.root_dir(), "", size, &mut total, &mut files)?;
    Ok(files)
}

/// What `fatfs` takes for granted.
fn check(disk: &dyn Disk) -> io::Result<()> {
    let mut sector = [0; 512];
    disk.read_at(&mut sector, 0)?;
    let bytes_per_sector = u16::from_le_bytes([sector[11], sector[12]]);
    let total = match u16::from_le_bytes([sector[19], sector[20]]) {
        0 => u32::from_le_bytes([sector[32], sector[33], sector[34], sector[35]]),
        total => u32::from(total),
    };
    let is_fat = sector[510..] == [0x55, 0xAA] && bytes_per_sector == 512 && sector[13].is_power_of_two();
    if !is_fat {
        return Err(damaged(
            "there is no FAT file system with sectors of 512 bytes".to_owned(),
        ));
    }
    if u64::from(total) * 512 > disk.size() {
        return Err(damaged(format!("it has {total} sectors, more than its partition")));
    }
    Ok(())
}

fn walk(
    directory: &Dir<'_, Volume<'_>>,
    path: &str,
    size: u64,
    total: &mut u64,
    files: &mut BTreeMap<String, Bytes>,
) -> io::Result<()> {
    if path.split('/').count() > MAX_DEPTH {
        return Err(damaged(format!("{path} is too deep")));
    }
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.as_str(), "." | "..") {
            continue;
        }
        let below = if path.is_empty() {
            name
        } else {
            format!("{path}/{name}")
        };
        if entry.is_dir() {
            walk(&entry.to_dir(), &below, size, total, files)?;
            continue;
        }
        *total += entry.len();
        if *total > size {
            return Err(damaged(format!(
                "{below} and the files before it are larger than the partition"
            )));
        }
        let mut contents = Vec::new();
        entry.to_file().read_to_end(&mut contents)?;
        if u64::try_from(contents.len()) != Ok(entry.len()) {
            return Err(damaged(format!("{below} ends early")));
        }
        if files.len() >= MAX_FILES {
            return Err(damaged(format!("it has more than {MAX_FILES} files")));
        }
        files.insert(below, contents.into());
    }
    Ok(())
}

/// A disk as the file that `fatfs` wants. Read only.
struct Volume<'a> {
    disk: &'a dyn Disk,
    position: u64,
    left: u64,
}

impl Read for Volume<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.disk.size().saturating_sub(self.position);
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let step = u64::try_from(length).unwrap_or(u64::MAX);
        self.left = self
            .left
            .checked_sub(step)
            .ok_or_else(|| damaged("its directories or files are a ring".to_owned()))?;
        self.disk.read_at(&mut buffer[..length], self.position)?;
        self.position += step;
        Ok(length)
    }
}

impl Write for Volume<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Volume<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.disk.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| damaged("it names a place before its beginning".to_owned()))?;
        Ok(self.position)
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
