use std::io;

use protocol::transfer::ImageFormat;

use super::window::Window;
use crate::stream::Compression;

/// A mark of a format. The last group can be used by no hypervisor that we serve, but QEMU would open them if it
/// were left to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    Qcow2,
    Vhd,
    Vhdx,
    Vmdk,
    Tar,
    Iso,
    Luks,
    VmdkText,
    Cowd,
    Qed,
    Vdi,
    Parallels,
    Cow,
    Bochs,
    Cloop,
    Dmg,
}

use Signature::*;

/// Marks at fixed places.
const MARKS: [(Signature, u64, &[u8]); 20] = [
    (Qcow2, 0, b"QFI\xfb"),
    (Vhd, 0, b"conectix"),
    (Vhdx, 0, b"vhdxfile"),
    (Vmdk, 0, b"KDMV"),
    (Cowd, 0, b"COWD"),
    (Qed, 0, b"QED\0"),
    (Luks, 0, b"LUKS\xba\xbe"),
    (Parallels, 0, b"WithoutFreeSpace"),
    (Parallels, 0, b"WithouFreSpacExt"),
    (Cow, 0, b"OOOM"),
    (Bochs, 0, b"Bochs Virtual HD Image"),
    (Cloop, 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    (Vdi, 64, b"\x7f\x10\xda\xbe"),
    (Tar, 257, b"ustar"),
    (Iso, 32769, b"CD001"),
    (Iso, 34817, b"CD001"),
    (Iso, 36865, b"CD001"),
    // UDF without ISO 9660.
    (Iso, 32769, b"BEA01"),
    (Iso, 32769, b"NSR02"),
    (Iso, 32769, b"NSR03"),
];

/// Marks in the last 512 bytes.
const TAIL_MARKS: [(Signature, &[u8]); 2] = [(Vhd, b"conectix"), (Dmg, b"koly")];

impl Signature {
    pub(super) fn of(format: ImageFormat) -> Option<Self> {
        match format {
            ImageFormat::Qcow2 => Some(Qcow2),
            ImageFormat::Vhd => Some(Vhd),
            ImageFormat::Vhdx => Some(Vhdx),
            ImageFormat::Vmdk => Some(Vmdk),
            ImageFormat::Ova | ImageFormat::Tar => Some(Tar),
            ImageFormat::Iso => Some(Iso),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Qcow2 => "a QCOW2 disk image",
            Vhd => "a VHD disk image",
            Vhdx => "a VHDX disk image",
            Vmdk => "a sparse VMDK disk image",
            Tar => "a TAR or OVA archive",
            Iso => "an ISO 9660 or UDF image",
            Luks => "a LUKS encrypted volume",
            VmdkText => "a VMDK text descriptor without the data it describes",
            Cowd => "an old VMware COW disk",
            Qed => "a QED disk image",
            Vdi => "a VirtualBox VDI disk image",
            Parallels => "a Parallels disk image",
            Cow => "a User-Mode Linux COW image",
            Bochs => "a Bochs disk image",
            Cloop => "a compressed loop image",
            Dmg => "an Apple DMG disk image",
        }
    }
}

/// Every mark that is there.
pub(super) fn all(window: &Window<'_>) -> io::Result<Vec<Signature>> {
    let start = window.read(0, 512)?;
    let volumes = window.read(32768, 4102)?;
    let mut found = Vec::new();
    for (signature, at, mark) in MARKS {
        let (bytes, base) = if at < 32768 { (&start, 0) } else { (&volumes, 32768) };
        let at = usize::try_from(at - base).unwrap_or(usize::MAX);
        if bytes.get(at..).is_some_and(|rest| rest.starts_with(mark)) && !found.contains(&signature) {
            found.push(signature);
        }
    }
    if is_vmdk_text(&start) {
        found.push(VmdkText);
    }
    // At least 512 bytes: else it is the start, which was looked at.
    if window.is_whole() && window.len() > 512 {
        let tail = window.tail(512)?;
        for (signature, mark) in TAIL_MARKS {
            if tail.starts_with(mark) && !found.contains(&signature) {
                found.push(signature);
            }
        }
    }
    Ok(found)
}

/// As QEMU looks for it: comments and blank lines, then `version=`.
fn is_vmdk_text(start: &[u8]) -> bool {
    let text = String::from_utf8_lossy(start);
    text.starts_with("# Disk DescriptorFile")
        || text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .is_some_and(|line| ["version=1", "version=2", "version=3"].contains(&line))
}

pub(super) fn is_web_page(window: &Window<'_>) -> io::Result<bool> {
    let start = window.read(0, 512)?;
    let text = String::from_utf8_lossy(&start)
        .trim_start_matches('\u{feff}')
        .trim_start()
        .to_ascii_lowercase();
    Ok(["<!doctype html", "<html", "<head", "<?xml", "<!--"]
        .iter()
        .any(|mark| text.starts_with(mark)))
}

/// For the sentence "Found  : …".
pub(super) fn describe(window: &Window<'_>, found: &[Signature]) -> io::Result<String> {
    if !found.is_empty() {
        let names: Vec<_> = found.iter().map(|signature| signature.name()).collect();
        return Ok(names.join(" that is also "));
    }
    let start = window.read(0, 512)?;
    if is_web_page(window)? {
        return Ok("a web page (HTML or XML), not an image; give the address of the file itself".to_owned());
    }
    if let Some(compression) = Compression::detect(&start) {
        return Ok(format!(
            "{compression} compressed data; end the file's name in its compression, such as .gz"
        ));
    }
    if start.get(510..512) == Some(&[0x55, 0xaa]) {
        return Ok("a raw disk with a boot sector".to_owned());
    }
    if start
        .iter()
        .all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'))
    {
        return Ok("text, not an image; check what the URL gives".to_owned());
    }
    Ok("data of no known image format (raw?)".to_owned())
}
