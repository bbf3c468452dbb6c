//! The guest on a disk that boots by itself: one FAT partition with SYSLINUX, made without root.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use platform::files;

use super::{Guest, KERNEL_ARGUMENTS};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const DISK: u64 = 64 * MIB;
/// Where the partition begins: aligned for every disk there is.
const START: u64 = MIB;
/// A FAT16 partition addressed by sectors (LBA).
const PARTITION_TYPE: u8 = 0x0e;
const COPY_LIMIT: Duration = Duration::from_mins(2);

/// Makes `guest.disk` of its kernel and initramfs, with `packages`, which it was made of. `root` is where the boot tools
/// are unpacked.
pub(crate) async fn make(guest: &Guest, root: &Path, packages: &[PathBuf], work: &Path) -> anyhow::Result<()> {
    let raw = work.join("disk.raw");
    let mbr = fs::read(root.join("usr/lib/syslinux/mbr/mbr.bin")).context("reading the boot code of SYSLINUX")?;
    let mut disk = OpenOptions::new().write(true).create_new(true).open(&raw)?;
    disk.write_all(&boot_sector(&mbr)?)?;
    disk.set_len(DISK)?;
    drop(disk);

    let config = work.join("syslinux.cfg");
    let _ = files::replace(&config, syslinux_cfg(), 0o644)?;
    let tools = root.join("usr/bin");
    let partition = format!("{}@@{START}", raw.display());
    let run = async |program: &str, arguments: &[&str]| {
        let path = std::env::var("PATH").unwrap_or_default();
        Cmd::new(tools.join(program))
            .args(arguments)
            .env("PATH", format!("{}:{path}", tools.display())) // syslinux itself uses mtools
            .env("MTOOLS_SKIP_CHECK", "1")
            .env("SOURCE_DATE_EPOCH", "0")
            .time_limit(COPY_LIMIT)
            .run()
            .await
            .map(drop)
    };
    let sectors = ((DISK - START) / SECTOR).to_string();
    let hidden = (START / SECTOR).to_string();
    let format = [
        "-i", &partition, "-T", &sectors, "-h", "64", "-s", "32", "-H", &hidden, "-N", "5d3a0001", "-v", "SYSVM", "::",
    ];
    run("mformat", &format).await?;
    run(
        "syslinux",
        &["--install", "--offset", &START.to_string(), &raw.to_string_lossy()],
    )
    .await?;
    let copy = async |from: &Path, to: &str| run("mcopy", &["-i", &partition, &from.to_string_lossy(), to]).await;
    copy(&config, "::syslinux.cfg").await?;
    copy(&guest.kernel, "::vmlinuz").await?;
    copy(&guest.initramfs, "::initrd").await?;
    run("mmd", &["-i", &partition, "::packages"]).await?;
    for package in packages {
        copy(package, "::packages").await?;
    }
    Cmd::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&raw)
        .arg(&guest.disk)
        .time_limit(COPY_LIMIT)
        .run()
        .await?;
    Ok(())
}

fn syslinux_cfg() -> String {
    format!(
        "DEFAULT guest\nPROMPT 0\nTIMEOUT 0\nLABEL guest\n  KERNEL /vmlinuz\n  INITRD /initrd\n  APPEND {KERNEL_ARGUMENTS}\n"
    )
}

/// The first sector: boot code and one partition, marked to boot from.
fn boot_sector(code: &[u8]) -> anyhow::Result<Vec<u8>> {
    const TABLE: usize = 446;
    ensure!(
        code.len() <= 440,
        "the boot code has {} bytes, a boot sector has room for 440",
        code.len()
    );
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).map(u32::to_le_bytes);
    let mut sector = code.to_vec();
    sector.resize(TABLE, 0);
    // The fields of cylinders, heads and sectors say "look at the others".
    sector.extend([0x80, 0xfe, 0xff, 0xff, PARTITION_TYPE, 0xfe, 0xff, 0xff]);
    sector.extend(sectors(START)?);
    sector.extend(sectors(DISK - START)?);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_sector_has_one_partition_to_boot_from() {
        let sector = boot_sector(&[0xeb; 440]).unwrap();
        assert_eq!(sector.len(), 512);
        assert_eq!(sector[446], 0x80);
        assert_eq!(sector[454..462], [0, 8, 0, 0, 0, 0xf8, 1, 0]);
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert!(boot_sector(&[0; 441]).is_err());
    }
}
