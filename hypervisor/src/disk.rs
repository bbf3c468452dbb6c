//! Image files: what they are, and overlays on them.
//!
//! An image may come from anybody. Its header is read by `qemu-img`, within limits, and one that names another file is
//! refused: its VM would be shown that file of this host.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::exec::{Cmd, ExecError};
use serde::Deserialize;

use crate::machine::Format;

/// Processor seconds for reading a header: a hostile one can be made to take hours.
const CPU_SECONDS: &str = "--cpu=30";
/// Bytes of memory for it.
const MEMORY: &str = "--as=1073741824";
const TIME_LIMIT: Duration = Duration::from_mins(2);
/// Bytes that a guest may see: 64 TiB. More is a typing error, or meant to fill something.
const MAX_SIZE: u64 = 64 << 40;

/// What is in an image file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// How.
    pub format: Format,
    /// Bytes that a guest sees.
    pub virtual_size: u64,
    /// Bytes of this host's disk.
    pub actual_size: u64,
}

/// Why a file is no disk for a VM.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be read.
    #[error("cannot read the image {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What `qemu-img` said.
        source: ExecError,
    },
    /// `qemu-img` of another world.
    #[error("cannot understand what qemu-img says of {}", .path.display())]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// We start VMs from qcow2 and raw.
    #[error("{} is a {format} image; convert it to qcow2", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: String,
    },
    /// It names another file.
    #[error("the image {} takes data from another file, {}; images must be whole", .path.display(), .other.display())]
    NotWhole {
        /// The file.
        path: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// A key would be needed.
    #[error("the image {} is encrypted, which is not supported", .path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// Not a disk.
    #[error("the image {} says that it has {size} bytes; at most {MAX_SIZE} are allowed, and at least one", .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its own words.
        size: u64,
    },
    /// `qemu-img`.
    #[error("cannot make the disk {}", .path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// What `qemu-img` said.
        source: ExecError,
    },
    /// A disk is not made smaller: a file system would be cut.
    #[error("a disk of {wanted} bytes cannot hold the image {}, which has {size}", .image.display())]
    TooSmall {
        /// The image.
        image: PathBuf,
        /// Its bytes.
        size: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// A file.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// `qemu-img info --output=json`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    actual_size: u64,
    backing_filename: Option<PathBuf>,
    full_backing_filename: Option<PathBuf>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<PathBuf>,
}

/// Looks what is in a file that anybody may have made: only whole images of a format that we start VMs from pass.
pub async fn inspect(path: &Path) -> Result<Image, DiskError> {
    let info = info(path).await?;
    let data_file = info.format_specific.and_then(|specific| specific.data.data_file);
    if let Some(other) = info.backing_filename.or(data_file) {
        let path = path.to_owned();
        return Err(DiskError::NotWhole { path, other });
    }
    judge(path, &info.format, info.encrypted, info.virtual_size, info.actual_size)
}

/// Looks at a disk that [`overlay`] has made; which image it is on.
pub async fn inspect_overlay(path: &Path) -> Result<(Image, Option<PathBuf>), DiskError> {
    let info = info(path).await?;
    if let Some(other) = info.format_specific.and_then(|specific| specific.data.data_file) {
        let path = path.to_owned();
        return Err(DiskError::NotWhole { path, other });
    }
    let image = judge(path, &info.format, info.encrypted, info.virtual_size, info.actual_size)?;
    Ok((image, info.full_backing_filename.or(info.backing_filename)))
}

/// Makes a VM's own disk: empty, over an image that must stay as it is. It has the image's size, or `size` bytes, if that
/// is more. A disk that is there already is replaced: whole or not at all.
pub async fn overlay(image: &Path, disk: &Path, size: Option<u64>) -> Result<(), DiskError> {
    let base = fs::canonicalize(image).map_err(failed("find", image))?;
    let Image {
        format, virtual_size, ..
    } = inspect(&base).await?;
    if let Some(wanted) = size.filter(|wanted| *wanted < virtual_size) {
        return Err(DiskError::TooSmall {
            image: base,
            size: virtual_size,
            wanted,
        });
    }
    let mut beside = disk.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    Cmd::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format.name(), "-b"])
        .arg(&base)
        .arg("--")
        .arg(&beside)
        .args(size.map(|size| size.to_string()))
        .run()
        .await
        .map_err(|source| DiskError::Make {
            path: disk.to_owned(),
            source,
        })?;
    File::open(&beside)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", &beside))?;
    fs::rename(&beside, disk).map_err(failed("replace", disk))?;
    let directory = disk.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync the directory", directory))
}

async fn info(path: &Path) -> Result<Info, DiskError> {
    // Its own error would name the limits, not the file.
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(failed("use", path)(ErrorKind::InvalidInput.into())),
        Err(error) => return Err(failed("find", path)(error)),
    }
    let told = Cmd::new("prlimit")
        .args([
            CPU_SECONDS,
            MEMORY,
            "--",
            "qemu-img",
            "info",
            "--force-share",
            "--output=json",
            "--",
        ])
        .arg(path)
        .time_limit(TIME_LIMIT)
        .run()
        .await
        .map_err(|source| DiskError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
    serde_json::from_slice(&told.stdout).map_err(|source| DiskError::Nonsense {
        path: path.to_owned(),
        source,
    })
}

fn judge(path: &Path, format: &str, encrypted: bool, virtual_size: u64, actual_size: u64) -> Result<Image, DiskError> {
    let path = || path.to_owned();
    let format = match format {
        "raw" => Format::Raw,
        "qcow2" => Format::Qcow2,
        other => {
            let format = other.to_owned();
            return Err(DiskError::Format { path: path(), format });
        }
    };
    if encrypted {
        return Err(DiskError::Encrypted { path: path() });
    }
    if !(1..=MAX_SIZE).contains(&virtual_size) {
        return Err(DiskError::Size {
            path: path(),
            size: virtual_size,
        });
    }
    Ok(Image {
        format,
        virtual_size,
        actual_size,
    })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
