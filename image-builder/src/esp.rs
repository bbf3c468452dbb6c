//! The EFI system partition: a FAT file system with the kernel, the initrd and the boot loader's files.
//!
//! Kernel and initrd are only here, for both kinds of firmware, so that GRUB needs to know one file system.

use std::io::{self, Cursor, Write};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume};

use crate::gpt::SECTOR;

/// Bytes. Room for a second kernel beside the first.
pub const SIZE: u64 = 48 * 1024 * 1024;

/// 11 bytes, padded with spaces.
const LABEL: [u8; 11] = *b"ESP        ";
/// Sectors of 512 bytes give 24,576 clusters: FAT16, which UEFI reads as well as FAT32.
const CLUSTER: u32 = 2048;

/// FAT keeps times of no time zone, and neither firmware nor GRUB looks at them: this one is always the same.
#[derive(Debug)]
struct Always;

static ALWAYS: Always = Always;

impl TimeProvider for Always {
    fn get_current_date(&self) -> Date {
        Date {
            year: 2025,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time {
            hour: 0,
            min: 0,
            sec: 0,
            millis: 0,
        };
        DateTime {
            date: self.get_current_date(),
            time,
        }
    }
}

/// Makes the file system, with `files` by their paths (`EFI/BOOT/BOOTX64.EFI`) and this serial number.
///
/// # Errors
/// They do not fit.
pub fn make(fat: u32, files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(SIZE).map_err(io::Error::other)?];
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .bytes_per_cluster(CLUSTER)
        .total_sectors(u32::try_from(SIZE / SECTOR).map_err(io::Error::other)?)
        .volume_id(fat)
        .volume_label(LABEL);
    format_volume(Cursor::new(bytes.as_mut_slice()), options)?;
    let options = FsOptions::new().time_provider(&ALWAYS).update_accessed_date(false);
    let volume = FileSystem::new(Cursor::new(bytes.as_mut_slice()), options)?;
    for (path, contents) in files {
        let mut folder = volume.root_dir();
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_some() {
                folder = folder.create_dir(name)?;
            } else {
                let mut file = folder.create_file(name)?;
                file.write_all(contents).map_err(|error| {
                    let reason = format!("/{path} does not fit into the EFI system partition of {SIZE} bytes: {error}");
                    io::Error::new(error.kind(), reason)
                })?;
                file.flush()?;
            }
        }
    }
    volume.unmount()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

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
