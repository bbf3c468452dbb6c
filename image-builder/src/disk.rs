//! The whole disk: boot code, partition table, EFI system partition and root file system in one sparse raw file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use bytes::Bytes;
use platform::files::BESIDE;
use tempfile::NamedTempFile;

use crate::esp;
use crate::ext4::{Ext4, Ext4Error};
use crate::gpt::{self, BadGpt, Gpt, Partition, RESERVED_END, SECTOR};
use crate::grub::{self, CORE_SECTOR, CORE_SECTORS, Grub, GrubError};
use crate::ids::Ids;
use crate::initrd;
use crate::modules::Kernel;
use crate::tools::Tools;
use crate::tree::Tree;

/// Where partitions begin: what any storage below is aligned to.
const MIB: u64 = 1024 * 1024;
/// Bytes that are looked at together: a part of them that is all zeros becomes a hole.
const BLOCK: usize = 4096;

/// What a disk is made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The root file system's files.
    pub tree: &'a Tree,
    /// The kernel that starts it.
    pub kernel: &'a Kernel,
    /// The program that the kernel runs first.
    pub stage1: &'a [u8],
    /// What the kernel is told.
    pub kernel_command_line: &'a str,
    /// The digest of everything that decides the bytes: ids are made from it.
    pub build: &'a [u8; 32],
    /// The time of every file, in seconds since 1970.
    pub epoch: u64,
    /// The size of the whole disk, in MiB; even, for VHD's blocks.
    pub size_mib: u64,
}

/// A disk that was made, and what it was made of in between.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its partition table.
    pub gpt: Gpt,
    /// The initial RAM file system.
    pub initrd: Bytes,
    /// The digest of the EFI system partition's contents.
    pub esp_sha256: [u8; 32],
    /// The digest of the tar that the root file system was made from.
    pub tar_sha256: [u8; 32],
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be written.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The disk's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root file system cannot be made.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// The boot loader cannot be made.
    #[error(transparent)]
    Grub(#[from] GrubError),
    /// The initrd cannot be made.
    #[error("cannot make the initrd")]
    Initrd(#[source] io::Error),
    /// The EFI system partition cannot be made.
    #[error("cannot make the EFI system partition")]
    Esp(#[source] io::Error),
    /// The disk is too small.
    #[error("a disk of {size_mib} MiB has no room for its partitions; set a larger and even size_mib in the recipe")]
    Size {
        /// MiB.
        size_mib: u64,
    },
    /// The table cannot be like this.
    #[error(transparent)]
    Gpt(#[from] BadGpt),
}

/// Makes the disk at `path`: whole, or not at all. Runs for seconds: call it where blocking is allowed.
///
/// # Errors
/// A part of it cannot be made, or the disk that it is written to is full. Nothing is left of it then.
pub fn write(parts: &Parts<'_>, tools: &Tools, path: &Path) -> Result<Made, DiskError> {
    let io_error = |operation: &'static str| {
        let path = path.to_owned();
        move |source| DiskError::Io {
            operation,
            path,
            source,
        }
    };
    let ids = Ids::of(parts.build);
    let gpt = layout(parts.size_mib, &ids)?;
    let [_, esp, root] = gpt.partitions.as_slice() else {
        return Err(DiskError::Size {
            size_mib: parts.size_mib,
        });
    };
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let permissions = fs::Permissions::from_mode(0o644);
    let beside = tempfile::Builder::new()
        .prefix(BESIDE)
        .permissions(permissions)
        .tempfile_in(directory);
    let beside = beside.map_err(io_error("make a file beside"))?;
    let work = tempfile::Builder::new()
        .prefix(BESIDE)
        .tempdir_in(directory)
        .map_err(io_error("make a directory beside"))?;
    beside
        .as_file()
        .set_len(gpt.sectors * SECTOR)
        .map_err(io_error("write"))?;

    let ext4 = Ext4 {
        offset: root.offset(),
        size: root.size(),
        uuid: ids.file_system,
        hash_seed: ids.hash_seed,
        epoch: parts.epoch,
    };
    let (tar_sha256, boot) = thread::scope(|scope| {
        let boot = scope.spawn(|| boot_parts(parts, &ids, tools, work.path()));
        let tar_sha256 = ext4.make(parts.tree, tools, beside.path());
        (tar_sha256, boot.join())
    });
    let tar_sha256 = tar_sha256?;
    let Boot {
        grub,
        initrd,
        esp: contents,
    } = boot.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;

    let mut start = gpt.start()?;
    start[..grub.boot_code.len()].copy_from_slice(&grub.boot_code);
    let end = gpt.end()?;
    for (offset, bytes) in [
        (0, start.as_slice()),
        (CORE_SECTOR * SECTOR, &grub.core),
        (esp.offset(), &contents),
        ((gpt.sectors - RESERVED_END) * SECTOR, &end),
    ] {
        write_sparse(beside.as_file(), bytes, offset).map_err(io_error("write"))?;
    }
    persist(beside, path, directory).map_err(io_error("write"))?;
    let esp_sha256 = sha256(&contents);
    Ok(Made {
        gpt,
        initrd,
        esp_sha256,
        tar_sha256,
    })
}

/// What is made while the root file system is.
struct Boot {
    grub: Grub,
    initrd: Bytes,
    esp: Vec<u8>,
}

fn boot_parts(parts: &Parts<'_>, ids: &Ids, tools: &Tools, work: &Path) -> Result<Boot, DiskError> {
    let grub = Grub::make(tools, ids.fat, work)?;
    let initrd = initrd::make(parts.kernel, parts.stage1).map_err(DiskError::Initrd)?;
    let menu = grub::menu(parts.kernel_command_line);
    let files: [(&str, &[u8]); 4] = [
        ("vmlinuz", &parts.kernel.vmlinuz),
        ("initrd", &initrd),
        ("grub/grub.cfg", menu.as_bytes()),
        ("EFI/BOOT/BOOTX64.EFI", &grub.efi),
    ];
    let esp = esp::make(ids.fat, &files).map_err(DiskError::Esp)?;
    Ok(Boot { grub, initrd, esp })
}

/// Where everything is on a disk of this size (image-pipeline.md §9). The root file system is last, to be grown.
fn layout(size_mib: u64, ids: &Ids) -> Result<Gpt, DiskError> {
    let too_small = DiskError::Size { size_mib };
    let size = size_mib.checked_mul(MIB).filter(|_| size_mib.is_multiple_of(2));
    // The last MiB has the backup of the partition table.
    let root_at = MIB + esp::SIZE;
    let Some((size, root_size)) = size.and_then(|size| Some((size, size.checked_sub(root_at + MIB)?))) else {
        return Err(too_small);
    };
    if root_size == 0 {
        return Err(too_small);
    }
    let partition = |name: &str, kind, id, first, sectors| Partition {
        kind,
        id,
        first,
        last: first + sectors - 1,
        name: name.to_owned(),
    };
    let gpt = Gpt {
        id: ids.disk,
        sectors: size / SECTOR,
        partitions: vec![
            partition("bios", gpt::BIOS_BOOT, ids.bios_boot, CORE_SECTOR, CORE_SECTORS),
            partition("esp", gpt::ESP, ids.esp, MIB / SECTOR, esp::SIZE / SECTOR),
            partition("root", gpt::LINUX_ROOT, ids.root, root_at / SECTOR, root_size / SECTOR),
        ],
    };
    gpt.check()?;
    Ok(gpt)
}

/// Writes what is not zeros into a file that has only zeros there.
fn write_sparse(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut at = offset;
    for block in bytes.chunks(BLOCK) {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at)?;
        }
        at += u64::try_from(block.len()).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Gives the file its name when it is on the disk.
fn persist(beside: NamedTempFile, path: &Path, directory: &Path) -> io::Result<()> {
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
