//! The root file system takes the whole disk when the disk is larger than the image (item 10).
//!
//! A power cut at any moment leaves a disk that boots, and the next boot goes on: the table's second copy is safe before the
//! first is changed, the first changes in one page, and the kernel's own resizing of ext4 is journalled.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use platform::exec::{Cmd, ExecError};

use super::gpt::{self, BadTable, Growth, HEAD, SECTOR};
use crate::appliance::root::Root;

/// Less is not worth it: alignment and block groups never fit to the last byte.
const WORTH_IT: u64 = 16 << 20;
/// A file system of terabytes on slow storage.
const RESIZE_LIMIT: Duration = Duration::from_mins(10);
/// Where ext4 has its superblock, and what of it says how large the file system is (Linux, fs/ext4/ext4.h).
const SUPERBLOCK_AT: u64 = 1024;

/// Why the root file system keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    /// Something about disks cannot be read or written.
    #[error("cannot {operation} {path}")]
    Io {
        /// As a verb.
        operation: &'static str,
        /// The file or the device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It says nothing that makes sense.
    #[error("{path} says {found:?}, which is no {wanted}")]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// Its contents.
        found: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// The disk's partitions are not ours to change.
    #[error("{disk} stays as it is")]
    Table {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: BadTable,
    },
    /// `partx` or `resize2fs` said no.
    #[error("the partition or its file system cannot be resized")]
    Tool(#[from] ExecError),
}

/// The partition with the root file system, and its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// Such as `/dev/vda`.
    pub disk: PathBuf,
    /// Such as `/dev/vda3`.
    pub partition: PathBuf,
    /// From 1.
    pub number: usize,
    /// Of the disk; 512 bytes each, as the kernel always counts.
    pub disk_sectors: u64,
    /// Its first.
    pub first_sector: u64,
    /// Of the partition.
    pub sectors: u64,
    /// Bytes that the disk reads and writes at once.
    pub block_size: u64,
}

impl RootDisk {
    /// Finds it. `None`: the root file system is not on a partition (a test's directory, a container).
    pub fn find(root: &Root) -> Result<Option<Self>, GrowthError> {
        let mounts = read(root, "/proc/self/mountinfo")?;
        let Some(number) = root_device(&mounts) else {
            return Ok(None);
        };
        let link = root.path(format!("/sys/dev/block/{number}"));
        let partition = match fs::canonicalize(&link) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None), // overlay, NFS: no block device
            Err(source) => return Err(io_error("look at", link)(source)),
        };
        if !partition.join("partition").exists() {
            return Ok(None);
        }
        let disk = partition.parent().unwrap_or(&partition);
        let device = |path: &std::path::Path| root.path("/dev").join(path.file_name().unwrap_or_default());
        Ok(Some(Self {
            number: number_in(partition.join("partition"))?,
            disk_sectors: number_in(disk.join("size"))?,
            first_sector: number_in(partition.join("start"))?,
            sectors: number_in(partition.join("size"))?,
            block_size: number_in(disk.join("queue/logical_block_size"))?,
            disk: device(disk),
            partition: device(&partition),
        }))
    }

    /// Whether it looks as if there were something to do: cheap, and with no right but to read.
    pub fn may_grow(&self, root: &Root) -> bool {
        let unused = self
            .disk_sectors
            .saturating_sub(self.first_sector.saturating_add(self.sectors))
            .saturating_mul(SECTOR);
        // Of what a file system has, inode tables and the journal are some percent.
        let is_small = statvfs(&root.path("/")).is_ok_and(|found| {
            let bytes = found.blocks().saturating_mul(found.fragment_size());
            bytes < self.sectors.saturating_mul(SECTOR) / 10 * 9
        });
        unused >= 2 * WORTH_IT || is_small
    }

    /// Grows the partition, then the file system, as far as either has to. Answers the file system's size in bytes when it
    /// has changed.
    pub async fn grow(&self) -> Result<Option<u64>, GrowthError> {
        let sectors = self.grow_table()?;
        if sectors != self.sectors {
            // The kernel is told of the one partition that has changed; it would not read a table that is in use.
            let number = self.number.to_string();
            Cmd::new("partx")
                .args(["--update", "--nr", &number])
                .arg(&self.disk)
                .run()
                .await?;
        }
        let size = sectors.saturating_mul(SECTOR);
        let before = self.file_system_size()?;
        if size < before.saturating_add(WORTH_IT) {
            return Ok(None);
        }
        Cmd::new("resize2fs")
            .arg(&self.partition)
            .time_limit(RESIZE_LIMIT)
            .run()
            .await?;
        self.file_system_size().map(Some)
    }

    /// Writes the larger table, unless it says already that the partition has all there is; answers the partition's length
    /// in sectors.
    fn grow_table(&self) -> Result<u64, GrowthError> {
        let failed = |operation| io_error(operation, self.disk.clone());
        let table = |source| GrowthError::Table {
            disk: self.disk.clone(),
            source,
        };
        if self.block_size != SECTOR {
            return Err(table(BadTable::Foreign("the disk has sectors of another size")));
        }
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.disk)
            .map_err(failed("open"))?;
        let mut head = vec![0; HEAD];
        disk.read_exact_at(&mut head, 0)
            .map_err(failed("read the partition table of"))?;
        let now = gpt::sectors(&head, self.number).map_err(table)?;
        let Some(growth) = Growth::of(&head, self.disk_sectors, self.number).map_err(table)? else {
            return Ok(now);
        };
        if growth.sectors.saturating_sub(now).saturating_mul(SECTOR) < WORTH_IT {
            return Ok(now);
        }
        for (bytes, at) in [(&growth.backup, growth.backup_at), (&growth.page, 0)] {
            disk.write_all_at(bytes, at)
                .map_err(failed("write the partition table of"))?;
            disk.sync_all().map_err(failed("write the partition table of"))?;
        }
        Ok(growth.sectors)
    }

    fn file_system_size(&self) -> Result<u64, GrowthError> {
        let failed = |operation| io_error(operation, self.partition.clone());
        let mut superblock = [0; 1024];
        let device = File::open(&self.partition).map_err(failed("open"))?;
        device
            .read_exact_at(&mut superblock, SUPERBLOCK_AT)
            .map_err(failed("read the superblock of"))?;
        ext4_size(&superblock).ok_or_else(|| failed("find ext4 on")(io::Error::other("the superblock is not ext4's")))
    }
}

/// Bytes, from a superblock.
fn ext4_size(superblock: &[u8; 1024]) -> Option<u64> {
    let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|offset| superblock[at + offset]));
    let is_ext = superblock[0x38..0x3A] == [0x53, 0xEF];
    let has_64_bit = u32_at(0x60) & 0x80 != 0; // INCOMPAT_64BIT
    let high = if has_64_bit { u64::from(u32_at(0x150)) << 32 } else { 0 };
    let blocks = high | u64::from(u32_at(0x4));
    let block = 1024_u64.checked_shl(u32_at(0x18)).filter(|size| *size <= 65536)?;
    blocks.checked_mul(block).filter(|_| is_ext)
}

/// `major:minor` of what is mounted at `/`: proc_pid_mountinfo(5). The last one counts, it covers the others.
fn root_device(mountinfo: &str) -> Option<&str> {
    let mut mounts = mountinfo.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        let (device, _, point) = (words.next()?, words.next()?, words.next()?);
        (point == "/").then_some(device)
    });
    mounts
        .next_back()
        .filter(|device| device.bytes().all(|byte| byte.is_ascii_digit() || byte == b':'))
}

fn read(root: &Root, path: &str) -> Result<String, GrowthError> {
    let path = root.path(path);
    fs::read_to_string(&path).map_err(io_error("read", path))
}

fn number_in<T: std::str::FromStr>(path: PathBuf) -> Result<T, GrowthError> {
    let text = fs::read_to_string(&path).map_err(io_error("read", path.clone()))?;
    text.trim().parse().map_err(|_| GrowthError::Nonsense {
        path,
        found: text,
        wanted: "number",
    })
}

fn io_error(operation: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> GrowthError {
    move |source| GrowthError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use platform::files;

    use super::*;

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = files::replace(path, text, 0o644).unwrap();
    }

    const MOUNTS: &str = "21 1 0:20 / /proc rw - proc proc rw\n22 1 254:3 / / rw,relatime - ext4 /dev/vda3 rw\n";

    #[test]
    fn the_root_partition_and_its_disk_are_found_in_sysfs() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let disk = root.path("/sys/devices/pci0/block/vda");
        for (name, value) in [("size", "16777216"), ("queue/logical_block_size", "512")] {
            put(&disk.join(name), value);
        }
        for (name, value) in [("partition", "3\n"), ("start", "2048\n"), ("size", "4096\n")] {
            put(&disk.join("vda3").join(name), value);
        }
        fs::create_dir_all(root.path("/sys/dev/block")).unwrap();
        symlink("../../devices/pci0/block/vda/vda3", root.path("/sys/dev/block/254:3")).unwrap();
        put(&root.path("/proc/self/mountinfo"), MOUNTS);
        let found = RootDisk::find(&root).unwrap().unwrap();
        assert_eq!(
            found,
            RootDisk {
                disk: root.path("/dev/vda"),
                partition: root.path("/dev/vda3"),
                number: 3,
                disk_sectors: 16_777_216,
                first_sector: 2048,
                sectors: 4096,
                block_size: 512,
            }
        );
        assert!(found.may_grow(&root));

        put(&disk.join("size"), "large");
        let error = RootDisk::find(&root).unwrap_err();
        assert!(
            error.to_string().ends_with("says \"large\", which is no number"),
            "{error}"
        );
    }

    #[test]
    fn without_a_partition_there_is_nothing_to_grow() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        put(
            &root.path("/proc/self/mountinfo"),
            "22 1 0:31 / / rw - overlay overlay rw\n",
        );
        assert_eq!(RootDisk::find(&root).unwrap(), None);
        put(
            &root.path("/proc/self/mountinfo"),
            "22 1 ../../etc / / rw - ext4 x rw\n",
        );
        assert_eq!(RootDisk::find(&root).unwrap(), None);
    }

    #[test]
    fn the_size_of_ext4_is_in_its_superblock() {
        let mut superblock = [0; 1024];
        assert_eq!(ext4_size(&superblock), None);
        superblock[0x38..0x3A].copy_from_slice(&[0x53, 0xEF]);
        superblock[0x4..0x8].copy_from_slice(&3_u32.to_le_bytes());
        superblock[0x18] = 2;
        assert_eq!(ext4_size(&superblock), Some(3 * 4096));
        superblock[0x150] = 1; // the upper half counts only with the feature
        assert_eq!(ext4_size(&superblock), Some(3 * 4096));
        superblock[0x60] = 0x80;
        assert_eq!(ext4_size(&superblock), Some(((1 << 32) + 3) * 4096));
        superblock[0x18] = 200;
        assert_eq!(ext4_size(&superblock), None);
    }
}
