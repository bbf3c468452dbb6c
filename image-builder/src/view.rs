//! Looks into any image of ours without mounting anything: partitions, boot files, root file system.
//!
//! Images are somebody else's bytes: every size in them is checked, and a damaged one is an error that says where.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use crate::formats::{self, Disk, Format, OpenError};
use crate::gpt::{self, BadGpt, Gpt};
use crate::tree::{Tree, TreeError};

mod esp;
mod ext4;
mod part;

pub use ext4::Ext4Error;
pub use part::Part;

/// Bytes in all files together; our images have 0.25 GB.
pub(crate) const MAX_CONTENTS: u64 = 2 << 30;
/// Files, directories and links; our images have 7000.
pub(crate) const MAX_ENTRIES: usize = 1 << 20;

/// An image, read.
#[derive(Debug)]
pub struct View {
    /// What kind of file it is.
    pub kind: Kind,
    /// Bytes of the image's file.
    pub file_size: u64,
    /// What is around the root file system; a `root.tar` has nothing there.
    pub disk: Option<DiskView>,
    /// The root file system.
    pub tree: Tree,
}

/// What kind of file an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole disk.
    Disk(Format),
    /// The root file system alone, as `build` makes it before there is a disk.
    Ext4,
    /// The root file system as an archive.
    Tar,
}

/// A disk around a root file system.
#[derive(Debug)]
pub struct DiskView {
    /// Bytes that a guest sees.
    pub size: u64,
    /// The partition table.
    pub gpt: Gpt,
    /// The files that firmware and boot loader read, by path.
    pub esp: BTreeMap<String, Bytes>,
    /// The label of the root file system.
    pub root_label: String,
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Its file cannot.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk in it has no partition table.
    #[error("cannot read the partitions of {path}")]
    Gpt {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: BadGpt,
    },
    /// There is no such partition.
    #[error("the disk in {path} has no {what} partition; is it a system VM image of this project?")]
    NoPartition {
        /// The image.
        path: PathBuf,
        /// `root` or `EFI system`.
        what: &'static str,
    },
    /// The EFI system partition is damaged.
    #[error("cannot read the EFI system partition of {path}")]
    Esp {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root file system is damaged.
    #[error("cannot read the root file system of {path}")]
    Root {
        /// The image.
        path: PathBuf,
        /// Why.
        source: Ext4Error,
    },
    /// The archive is damaged.
    #[error("cannot read {path}")]
    Tar {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: TreeError,
    },
}

impl View {
    /// Reads an image of any format, or a `root.tar` or `root.ext4`. What it is, its bytes say, not its name.
    ///
    /// # Errors
    /// It is none of them, or it is damaged.
    pub fn open(path: &Path) -> Result<Self, ViewError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let file_size = path.metadata().map_err(io)?.len();
        if is_tar(path).map_err(io)? {
            return Ok(Self {
                kind: Kind::Tar,
                file_size,
                disk: None,
                tree: read_tar(path)?,
            });
        }
        let image = formats::open(path)?;
        let disk = image.disk.as_ref();
        let root_of = |source| ViewError::Root {
            path: path.to_owned(),
            source,
        };
        if ext4::is_one(disk).map_err(|error| root_of(error.into()))? {
            let (_, tree) = ext4::read(disk).map_err(root_of)?;
            return Ok(Self {
                kind: Kind::Ext4,
                file_size,
                disk: None,
                tree,
            });
        }
        let gpt = Gpt::read(disk).map_err(|source| ViewError::Gpt {
            path: path.to_owned(),
            source,
        })?;
        let esp = Self::esp(disk, &gpt, path)?;
        let (root_label, tree) = Self::root(disk, &gpt, path)?;
        let disk = DiskView {
            size: disk.size(),
            gpt,
            esp,
            root_label,
        };
        Ok(Self {
            kind: Kind::Disk(image.format),
            file_size,
            disk: Some(disk),
            tree,
        })
    }

    fn part<'a>(
        disk: &'a dyn Disk,
        gpt: &Gpt,
        kind: Uuid,
        what: &'static str,
        path: &Path,
    ) -> Result<Part<'a>, ViewError> {
        let partition = gpt.partitions.iter().find(|partition| partition.kind == kind);
        let partition = partition.ok_or_else(|| ViewError::NoPartition {
            path: path.to_owned(),
            what,
        })?;
        Ok(Part::new(disk, partition))
    }

    /// The files of the EFI system partition.
    pub(crate) fn esp(disk: &dyn Disk, gpt: &Gpt, path: &Path) -> Result<BTreeMap<String, Bytes>, ViewError> {
        let part = Self::part(disk, gpt, gpt::ESP, "EFI system", path)?;
        esp::read(&part).map_err(|source| ViewError::Esp {
            path: path.to_owned(),
            source,
        })
    }

    /// Label and contents of the root file system.
    pub(crate) fn root(disk: &dyn Disk, gpt: &Gpt, path: &Path) -> Result<(String, Tree), ViewError> {
        let part = Self::part(disk, gpt, gpt::LINUX_ROOT, "root", path)?;
        ext4::read(&part).map_err(|source| ViewError::Root {
            path: path.to_owned(),
            source,
        })
    }
}

/// An OVA is a tar, too: it begins with its description, and root trees begin with their root.
fn is_tar(path: &Path) -> io::Result<bool> {
    let mut block = [0; 512];
    let mut file = File::open(path)?;
    if file.metadata()?.len() < 1024 || !file.metadata()?.is_file() {
        return Ok(false);
    }
    file.read_exact(&mut block)?;
    let name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(&block[257..262] == b"ustar" && !name.to_ascii_lowercase().ends_with(b".ovf"))
}

fn read_tar(path: &Path) -> Result<Tree, ViewError> {
    let bad = |source| ViewError::Tar {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(|source| bad(source.into()))?;
    // One byte more than allowed, so that the archive ends early and the error says so.
    let tree = Tree::read_tar(BufReader::new(file.take(MAX_CONTENTS + 1))).map_err(bad)?;
    tree.check().map_err(bad)?;
    Ok(tree)
}
