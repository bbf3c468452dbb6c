//! The boot loader: GRUB's own parts from its Debian packages, put together for a BIOS and for UEFI.
//!
//! This takes the place of `grub-install`, which needs root and mounted file systems (image-pipeline.md §9).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use platform::exec::{Cmd, ExecError};
use platform::files::{self, FileError};

use crate::gpt::SECTOR;
use crate::tools::{Tools, ToolsError};

/// Where the core image is: the first sector of its partition.
pub const CORE_SECTOR: u64 = 34;
/// Sectors up to the first MiB, where the next partition begins.
pub const CORE_SECTORS: u64 = 2048 - CORE_SECTOR;

/// What both need to find and start the kernel.
const MODULES: [&str; 11] = [
    "part_gpt",
    "fat",
    "normal",
    "linux",
    "configfile",
    "search",
    "search_fs_uuid",
    "echo",
    "test",
    "minicmd",
    "boot",
];
/// The code area of the boot sector: before the disk's signature.
const CODE_LENGTH: usize = 440;
/// In the boot sector: where the core image is, as the number of a sector (grub-core/boot/i386/pc/boot.S: kernel_sector).
const KERNEL_SECTOR: usize = 0x5C;
/// In the boot sector: which drive that is on; 0xFF is the one booted from (boot.S: boot_drive).
const BOOT_DRIVE: usize = 0x64;
/// In the core image's first sector: where the rest of it is (grub-core/boot/i386/pc/diskboot.S: blocklist_default_start).
const REST_SECTOR: usize = 500;

/// Boot code for both kinds of firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grub {
    /// The code of the disk's first sector, 440 bytes.
    pub boot_code: Vec<u8>,
    /// What it starts, at [`CORE_SECTOR`].
    pub core: Vec<u8>,
    /// `/EFI/BOOT/BOOTX64.EFI`.
    pub efi: Vec<u8>,
}

/// Why there is no boot code.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// GRUB's package is missing.
    #[error("cannot make the boot loader")]
    Tools(#[from] ToolsError),
    /// `grub-mkimage` said no.
    #[error("cannot make the boot loader")]
    Run(#[from] ExecError),
    /// A file of it cannot be written or read.
    #[error("cannot make the boot loader")]
    File(#[from] FileError),
    /// A file that it should have made.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// GRUB is not as we know it.
    #[error("GRUB's {0}")]
    Unexpected(String),
}

/// What GRUB does first: it finds the ESP by its serial number, and reads its menu there.
fn early_config(fat: u32) -> String {
    let (high, low) = (fat >> 16, fat & 0xFFFF);
    format!("search.fs_uuid {high:04X}-{low:04X} root\nset prefix=($root)/grub\nconfigfile ($root)/grub/grub.cfg\n")
}

/// `/grub/grub.cfg`: one entry, at once.
pub fn menu(kernel_command_line: &str) -> String {
    format!("set timeout=0\nlinux /vmlinuz {kernel_command_line}\ninitrd /initrd\nboot\n")
}

impl Grub {
    /// Makes both, for an ESP with this serial number. `work` is an empty directory for files in between.
    ///
    /// # Errors
    /// GRUB's packages are missing or are not as we know them, or a file cannot be written.
    pub fn make(tools: &Tools, fat: u32, work: &Path) -> Result<Self, GrubError> {
        let early = work.join("early.cfg");
        let _ = files::replace(&early, early_config(fat), 0o644)?;
        let image = |platform: &str, modules: &[&str]| -> Result<Vec<u8>, GrubError> {
            let output = work.join(platform);
            let cmd = tools
                .cmd("grub-mkimage")?
                .arg("-d")
                .arg(tools.path(&format!("usr/lib/grub/{platform}")));
            let cmd = cmd
                .args(["-O", platform, "-p", "/grub", "-c"])
                .arg(&early)
                .arg("-o")
                .arg(&output);
            run(&cmd.args(MODULES).args(modules))?;
            read(&output)
        };
        let mut core = image("i386-pc", &["biosdisk"])?;
        let efi = image("x86_64-efi", &["efi_gop", "all_video"])?;
        let boot = read(&tools.path("usr/lib/grub/i386-pc/boot.img"))?;

        let room = usize::try_from(CORE_SECTORS * SECTOR).unwrap_or(usize::MAX);
        if core.len() > room {
            return Err(GrubError::Unexpected(format!(
                "core image has {} bytes, more than {room}",
                core.len()
            )));
        }
        let short = |name: &str| GrubError::Unexpected(format!("{name} is too short"));
        let rest = core
            .get_mut(REST_SECTOR..REST_SECTOR + 8)
            .ok_or_else(|| short("core image"))?;
        rest.copy_from_slice(&(CORE_SECTOR + 1).to_le_bytes());
        let mut boot_code = boot.get(..CODE_LENGTH).ok_or_else(|| short("boot.img"))?.to_vec();
        boot_code[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&CORE_SECTOR.to_le_bytes());
        boot_code[BOOT_DRIVE] = 0xFF;
        Ok(Self { boot_code, core, efi })
    }
}

/// Runs a tool that prints nothing we need.
fn run(cmd: &Cmd) -> Result<(), ExecError> {
    cmd.pipe()?.finish()
}

fn read(path: &Path) -> Result<Vec<u8>, GrubError> {
    fs::read(path).map_err(|source| GrubError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_number_is_written_as_grub_reads_it() {
        let config = early_config(0x0BAD_0042);
        assert!(config.starts_with("search.fs_uuid 0BAD-0042 root\n"), "{config}");
    }

    #[test]
    fn the_menu_starts_the_kernel_at_once() {
        assert_eq!(
            menu("root=LABEL=root rw"),
            "set timeout=0\nlinux /vmlinuz root=LABEL=root rw\ninitrd /initrd\nboot\n"
        );
    }
}
