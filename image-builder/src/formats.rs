//! Disk image formats: what each hypervisor wants, from one raw disk, and back.
//!
//! Writers take any [`Disk`] and a file, and give the same bytes whatever the machine, the time and the number of
//! threads. Readers give a [`Disk`] and believe nothing that the file says before it is checked.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

mod chunks;
mod fields;
mod ova;
mod ovf;
mod qcow2;
mod raw;
mod source;
mod vhd;
mod vmdk;
mod watched;

use source::Source;

pub use raw::Raw;
pub use watched::Watched;
pub(crate) use watched::stopped;

/// The largest disk that we read or write, in bytes: 64 TiB, the most that any of the formats can hold.
pub const MAX_SIZE: u64 = 64 << 40;

/// Bytes in a sector. Sizes of disks are multiples of it.
pub const SECTOR: u64 = 512;

/// 2025-01-01: the time in all formats that have one. XenServer refuses a VHD from its future, and what does not change
/// says nothing about when an image was made.
const MADE: u64 = 1_735_689_600;

/// A disk that can be read at any place.
pub trait Disk: Send + Sync {
    /// Bytes; a multiple of 512.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`. Unallocated parts are zeros.
    ///
    /// # Errors
    /// It lies beyond the end, the file cannot be read, or it is damaged there.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The first range at or after `offset` that may hold something else than zeros; `None` when there are only zeros
    /// up to the end. What lies between ranges is never read, so large holes cost nothing.
    ///
    /// # Errors
    /// The file cannot be read, or it is damaged.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then(|| offset..self.size()))
    }
}

/// A format of disk images.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk, with holes
    Raw,
    /// QEMU and KVM
    Qcow2,
    /// XenServer and Hyper-V: dynamic VHD
    Vhd,
    /// VMware: a streamOptimized disk alone
    Vmdk,
    /// VMware: the disk with its description, in an archive
    Ova,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vhd, Self::Vmdk, Self::Ova];

    /// The ending of file names: `qcow2`.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vmdk => "vmdk",
            Self::Ova => "ova",
        }
    }

    /// The format that a file's name stands for.
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "img" => Some(Self::Raw),
            "vpc" => Some(Self::Vhd),
            _ => Self::ALL.into_iter().find(|format| format.extension() == extension),
        }
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

/// How a qcow2's clusters are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum)]
pub enum Compression {
    /// The smallest, and quick to unpack; needs QEMU 5.1 (2020) or later
    Zstd,
    /// Any QEMU reads it, slower
    Zlib,
    /// Any QEMU reads it, without unpacking
    None,
}

/// Writes `disk` in this format into the new, empty `file`.
///
/// # Errors
/// The disk cannot be read, the file cannot be written, or the format cannot hold a disk of this size.
pub fn write(disk: &dyn Disk, format: Format, compression: Compression, file: &File) -> io::Result<()> {
    check_size(disk.size()).map_err(io::Error::other)?;
    match format {
        Format::Raw => raw::write(disk, file),
        Format::Qcow2 => qcow2::write(disk, compression, file),
        Format::Vhd => vhd::write(disk, file),
        Format::Vmdk => vmdk::write(disk, "disk.vmdk", io::BufWriter::with_capacity(1 << 20, file)).map(|_| ()),
        Format::Ova => ova::write(disk, file),
    }
}

/// An image that was opened.
pub struct Image {
    /// As found in its bytes; its name does not matter.
    pub format: Format,
    /// What a guest would see.
    pub disk: Box<dyn Disk>,
}

/// Why a file cannot be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system said no.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It breaks a rule of its format.
    #[error("{path} is a damaged {format} image: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What its first bytes say that it is.
        format: Format,
        /// The rule.
        why: String,
    },
    /// It is something that we do not read.
    #[error("{path} cannot be used: {why}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it is, and what would help.
        why: String,
    },
}

/// Why bytes are not an image that we use.
#[derive(Debug)]
enum Bad {
    Io(io::Error),
    Damaged(String),
    Refused(String),
}

impl Bad {
    fn of(self, path: &Path, format: Format) -> OpenError {
        let path = path.to_owned();
        match self {
            Self::Io(source) => OpenError::Io { path, source },
            Self::Damaged(why) => OpenError::Damaged { path, format, why },
            Self::Refused(why) => OpenError::Refused { path, why },
        }
    }
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::Damaged(why.into()))
}

fn refused<T>(why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::Refused(why.into()))
}

/// An error of reading where the image, not the machine, is to blame.
fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Opens an image of any of our formats, as its bytes say and not its name.
///
/// # Errors
/// It cannot be read, is damaged, or is something else.
pub fn open(path: &Path) -> Result<Image, OpenError> {
    let (source, format) = find(path)?;
    let disk = open_as(source, format).map_err(|bad| bad.of(path, format))?;
    Ok(Image { format, disk })
}

/// Compares an OVA's files with the digests in its manifest. Other formats have none, and pass.
///
/// # Errors
/// It cannot be read, or is not what was packed.
pub fn check_manifest(path: &Path) -> Result<(), OpenError> {
    let (source, format) = find(path)?;
    match format {
        Format::Ova => ova::check_manifest(&source).map_err(|bad| bad.of(path, format)),
        _ => Ok(()),
    }
}

fn find(path: &Path) -> Result<(Source, Format), OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(OpenError::Refused {
            path: path.to_owned(),
            why: "it is not a regular file".to_owned(),
        });
    }
    let source = Source::of(file).map_err(io)?;
    let format = detect(&source).map_err(|bad| bad.of(path, Format::Raw))?;
    Ok((source, format))
}

fn open_as(source: Source, format: Format) -> Result<Box<dyn Disk>, Bad> {
    Ok(match format {
        Format::Raw => Box::new(Raw::new(source)?),
        Format::Qcow2 => Box::new(qcow2::Qcow2::open(source)?),
        Format::Vhd => Box::new(vhd::Vhd::open(source)?),
        Format::Vmdk => Box::new(vmdk::Vmdk::open(source)?),
        Format::Ova => Box::new(ova::open(&source)?),
    })
}

/// What has these bytes and is no disk image, or none of ours: the name, and what would help.
const OTHERS: [(u64, &[u8], &str); 9] = [
    (0, b"BZh", "it is compressed with bzip2; unpack it first (bunzip2)"),
    (0, b"\x1f\x8b", "it is compressed with gzip; unpack it first (gunzip)"),
    (0, b"\xfd7zXZ\0", "it is compressed with xz; unpack it first (unxz)"),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "it is compressed with zstd; unpack it first (unzstd)",
    ),
    (0, b"PK\x03\x04", "it is a zip archive; unpack it first (unzip)"),
    (
        0,
        b"vhdxfile",
        "it is a VHDX; convert it first (qemu-img convert -O qcow2)",
    ),
    (
        0,
        b"# Disk DescriptorFile",
        "it only describes a VMDK whose data is in another file; convert that first (qemu-img convert -O qcow2)",
    ),
    (
        0,
        b"COWD",
        "it is a VMDK of ESX 2; convert it first (qemu-img convert -O qcow2)",
    ),
    (
        0x40,
        b"\x7f\x10\xda\xbe",
        "it is a VDI; convert it first (qemu-img convert -O qcow2)",
    ),
];

fn detect(source: &Source) -> Result<Format, Bad> {
    if source.len() == 0 {
        return refused("it is empty");
    }
    let starts = |offset: u64, wanted: &[u8]| -> io::Result<bool> {
        let mut found = vec![0; wanted.len()];
        let fits = offset.saturating_add(fields::len(wanted)) <= source.len();
        Ok(fits && source.read_exact_at(&mut found, offset).map(|()| found == wanted)?)
    };
    for (offset, bytes, why) in OTHERS {
        if starts(offset, bytes)? {
            return refused(why);
        }
    }
    if starts(0, b"QFI\xfb")? {
        return Ok(Format::Qcow2);
    }
    if starts(0, b"KDMV")? {
        return Ok(Format::Vmdk);
    }
    if ova::is(source)? {
        return Ok(Format::Ova);
    }
    if starts(257, b"ustar")? {
        return refused("it is an archive; an OVA begins with its descriptor (.ovf)");
    }
    if vhd::Vhd::is(source)? {
        return Ok(Format::Vhd);
    }
    Ok(Format::Raw)
}

fn check_size(size: u64) -> Result<(), String> {
    if size == 0 {
        Err("the disk has no bytes".to_owned())
    } else if !size.is_multiple_of(SECTOR) {
        Err(format!("its size of {size} bytes is not a multiple of {SECTOR}"))
    } else if size > MAX_SIZE {
        Err(format!(
            "its size of {size} bytes is above the {MAX_SIZE} that we handle"
        ))
    } else {
        Ok(())
    }
}
