//! What a disk image is, and whether it is safe to keep (ssvm.md §3.5, §3.9, §8.2).
//!
//! A qcow2, VMDK, VHD or VHDX can name other files, which the host that opens it would read: such an image, registered by
//! a user, shows him the host's files. So every image is judged before it gets its name: on its final bytes, through the
//! descriptor that is renamed afterwards, and by our own reading of its headers. Bytes that are two formats at once
//! are refused. Judging reads headers only: an image of many GiB takes milliseconds.

mod iso;
/// OVA archives: what is in them, and unpacking.
pub mod ova;
/// OVF descriptors.
pub mod ovf;
mod qcow2;
mod signature;
mod start;
mod vhd;
mod vhdx;
mod vmdk;
mod window;

use std::fs::File;
use std::io;

use protocol::transfer::ImageFormat;

use signature::Signature;
use window::Window;

pub use start::judge_start;

/// What an operator allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a guest may see.
    pub max_virtual_size: u64,
    /// Encrypted qcow2: a host cannot look into it, nor can we.
    pub allow_encrypted_qcow2: bool,
    /// LUKS containers as raw images.
    pub allow_luks: bool,
    /// qcow2 with extended L2 entries, which hypervisors before QEMU 5.2 cannot read.
    pub allow_extended_l2: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_virtual_size: 64 << 40, // 64 TiB: the most that a VMDK or a VHDX can have
            allow_encrypted_qcow2: false,
            allow_luks: false,
            allow_extended_l2: false,
        }
    }
}

/// An image that is what it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// As it was registered, and found.
    pub format: ImageFormat,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// What an operator should know, although it is no reason to refuse.
    pub warnings: Vec<&'static str>,
}

/// Why an image is not kept.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is something else than what it was registered as: what was found.
    #[error("found {0}")]
    Mismatch(String),
    /// It is a qcow2 that breaks a rule.
    #[error("not a valid QCOW2: {0}")]
    BadQcow2(String),
    /// It is of the right format and breaks a rule, or nothing can use this format.
    #[error("{0}")]
    Other(String),
    /// It could not be read: this says nothing about the image.
    #[error("cannot read the image")]
    Io(#[from] io::Error),
}

fn other<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Other(why.into()))
}

/// Judges the whole file as an image of the registered `format`.
pub fn judge(file: &File, format: ImageFormat, limits: &Limits) -> Result<Judged, Refusal> {
    judge_window(Window::of_file(file)?, format, limits)
}

fn judge_window(window: Window<'_>, format: ImageFormat, limits: &Limits) -> Result<Judged, Refusal> {
    if window.len() == 0 {
        return other("the file is empty; check what the URL gives");
    }
    let found = signature::all(&window)?;
    let Some(wanted) = Signature::of(format) else {
        return match format {
            ImageFormat::Raw => raw(&window, &found, limits),
            _ => Err(not_usable(format)),
        };
    };
    let is_iso = wanted == Signature::Iso && iso::is_hybrid_without_cd001(&window)?;
    if !is_iso && !found.contains(&wanted) {
        return Err(Refusal::Mismatch(signature::describe(&window, &found)?));
    }
    let name = if is_iso {
        "disk with a partition table"
    } else {
        wanted.name()
    };
    if let Some(refusal) = conflict(wanted, name, &found) {
        return Err(refusal);
    }
    let mut warnings = Vec::new();
    let virtual_size = match format {
        ImageFormat::Qcow2 => qcow2::judge(&window, limits, &mut warnings)?,
        ImageFormat::Vhd => vhd::judge(&window)?,
        ImageFormat::Vhdx => vhdx::judge(&window)?,
        ImageFormat::Vmdk => vmdk::judge(&window)?,
        ImageFormat::Ova => ova::Contents::read(&window)?.judge(&window, limits)?,
        ImageFormat::Tar => {
            ova::first_member(&window)?;
            window.len()
        }
        _ => window.len(),
    };
    let too_large = virtual_size > limits.max_virtual_size;
    if virtual_size == 0 || too_large {
        let limit = limits.max_virtual_size;
        let why = if too_large {
            format!("its virtual size is {virtual_size} bytes; at most {limit} are allowed")
        } else {
            "its virtual size is 0".to_owned()
        };
        return match format {
            ImageFormat::Qcow2 => Err(Refusal::BadQcow2(why)),
            _ => other(why),
        };
    }
    Ok(Judged {
        format,
        virtual_size,
        warnings,
    })
}

/// Bytes that are a second format, too.
fn conflict(wanted: Signature, name: &str, found: &[Signature]) -> Option<Refusal> {
    // In an archive, somebody else's file may lie where an ISO has its mark.
    let conflicts = |other: &&Signature| **other != wanted && !(wanted == Signature::Tar && **other == Signature::Iso);
    let second = found.iter().find(conflicts)?;
    Some(Refusal::Mismatch(format!("{name} that is also {}", second.name())))
}

fn not_usable(format: ImageFormat) -> Refusal {
    Refusal::Other(format!(
        "images of format {format:?} cannot be used; convert it to QCOW2 with `qemu-img convert`"
    ))
}

fn raw(window: &Window<'_>, found: &[Signature], limits: &Limits) -> Result<Judged, Refusal> {
    let is_foreign = |signature: &&Signature| !(**signature == Signature::Luks && limits.allow_luks);
    if found.iter().any(|signature| is_foreign(&signature)) || signature::is_web_page(window)? {
        return Err(Refusal::Mismatch(signature::describe(window, found)?));
    }
    let virtual_size = window.len();
    if virtual_size > limits.max_virtual_size {
        let limit = limits.max_virtual_size;
        return other(format!("it is {virtual_size} bytes long; at most {limit} are allowed"));
    }
    Ok(Judged {
        format: ImageFormat::Raw,
        virtual_size,
        warnings: Vec::new(),
    })
}
