//! This machine as the hypervisor's host that keeps disks: carries out what a KVM host's agent would be sent
//! (agent-protocol.md §5.2; apache/cloudstack plugins/hypervisors/kvm/…/KVMStorageProcessor.java), inside this process.
//!
//! | command | does |
//! |---|---|
//! | CopyCommand, template on an image store → template on the pool | judges the image and makes a plain qcow2 of it |
//! | CopyCommand, template on the pool → volume on the pool | makes an overlay on it |
//! | DeleteCommand, template or volume on the pool | removes the file |
//!
//! It knows the pool's directory, and of image stores those that are directories of this machine. What is in them is
//! written by SSVMs, which are reached from everywhere: nothing there is believed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use platform::logging::chain;
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::secondary_storage::{CopyCmdAnswer, CopyCommand, DeleteCommand};
use protocol::transfer::{DataStoreTO, DataTO, ImageFormat, VolumeObjectTO};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};
use uuid::Uuid;

use qcow2::BadImage;

mod fetch;
mod qcow2;

/// Copies at the same time: they are limited by the disk.
const MAX_COPIES: usize = 2;
/// How names of unfinished files begin. A killed server leaves them, and the next one removes them.
const UNFINISHED: &str = ".part-";

/// Image stores that are directories of this machine, by their URLs.
pub type Mounts = BTreeMap<String, PathBuf>;

/// Keeps disks.
pub struct Host {
    pool: PathBuf,
    copies: Semaphore,
}

/// Why a command was not carried out. Nothing is left of it. Callers of the API see the text: it names no path of this
/// machine.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no sense in it.
    #[error("the command lacks {0}")]
    Lacks(&'static str),
    /// Only files of the pool, by their UUIDs.
    #[error("{0:?} is not a name in the storage pool")]
    Name(String),
    /// The store is not here.
    #[error("image store {0} is not a directory of this machine; disks can only be made of templates on one that is")]
    NoMount(String),
    /// What the store says is not what is there.
    #[error("there is no usable file {path:?} on the image store; delete the template and register it again")]
    NoSource {
        /// Relative to the store.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A format that nothing here starts from.
    #[error("an image of format {0} cannot be started here; register it as QCOW2 or RAW")]
    Format(String),
    /// The image.
    #[error("the image on the image store cannot be used")]
    Image(#[from] BadImage),
    /// The disk is full, or would be.
    #[error("the storage pool has {available} bytes left and {needed} are needed; free some space and try again")]
    NoSpace {
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// A file of the pool.
    #[error("cannot {operation} a file of the storage pool")]
    Pool {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It said no; the log has its words, with paths of this machine.
    #[error("qemu-img could not {0}; the reason is in the server's log")]
    Tool(&'static str),
}

/// Bytes of a pool, as its file system counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// There are.
    pub total: u64,
    /// Not free, whoever uses them.
    pub used: u64,
    /// For us.
    pub available: u64,
}

impl Host {
    /// Takes the pool's directory, and makes it if need be. Removes what a killed server has left unfinished.
    ///
    /// # Errors
    /// The directory cannot be had.
    pub fn open(pool: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&pool)?;
        for entry in fs::read_dir(&pool)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                info!(path = %entry.path().display(), "Removing an unfinished file of the storage pool");
                fs::remove_file(entry.path())?;
            }
        }
        let copies = Semaphore::new(MAX_COPIES);
        Ok(Self { pool, copies })
    }

    /// The files that have a name of ours.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn files(&self) -> io::Result<Vec<Uuid>> {
        let entries = fs::read_dir(&self.pool)?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(names.collect())
    }

    /// How full the pool is.
    ///
    /// # Errors
    /// The system does not say.
    pub fn capacity(&self) -> io::Result<Capacity> {
        capacity(&self.pool)
    }

    /// Where a file of the pool is.
    pub fn path(&self, file: Uuid) -> PathBuf {
        self.pool.join(file.to_string())
    }

    /// Carries out a command; `progress` is told percents. Dropping it undoes what is not finished.
    pub async fn carry_out(&self, command: &Command, mounts: &Mounts, progress: &watch::Sender<u8>) -> Answer {
        let done = match &command.body {
            CommandBody::Copy(copy) => self.copy(copy, mounts, progress).await.map(|new_data| {
                Answer::new(CopyCmdAnswer {
                    new_data: Some(new_data),
                })
            }),
            CommandBody::Delete(delete) => self.delete(delete).map(|()| Answer::success()),
            _ => return Answer::unsupported(command),
        };
        done.unwrap_or_else(|error| {
            let error = chain(&error).to_string();
            warn!(error, "The storage pool's host could not do what it was told");
            Answer::failure(error)
        })
    }

    async fn copy(
        &self,
        command: &CopyCommand,
        mounts: &Mounts,
        progress: &watch::Sender<u8>,
    ) -> Result<DataTO, HostError> {
        let source = command.src_to.as_ref().ok_or(HostError::Lacks("a source"))?;
        let target = command.dest_to.as_ref().ok_or(HostError::Lacks("a target"))?;
        match (source, target) {
            (DataTO::Template(source), DataTO::Template(target)) => {
                let name = file_name(target.path.as_deref())?;
                let _place = self.copies.acquire().await;
                let made = self.fetch(source, name, mounts, progress).await?;
                Ok(DataTO::Template(Box::new(made)))
            }
            (DataTO::Template(source), DataTO::Volume(target))
                if matches!(source.image_data_store, Some(DataStoreTO::Primary(_))) =>
            {
                let base = self.path(file_name(source.path.as_deref())?);
                let name = file_name(target.path.as_deref())?;
                let size = self.overlay(&base, name).await?;
                Ok(DataTO::Volume(Box::new(VolumeObjectTO {
                    path: Some(name.to_string()),
                    size: Some(size),
                    format: Some(ImageFormat::Qcow2),
                    ..VolumeObjectTO::default()
                })))
            }
            _ => Err(HostError::Lacks("a source and a target that this host knows")),
        }
    }

    fn delete(&self, command: &DeleteCommand) -> Result<(), HostError> {
        let name = match &command.data {
            Some(DataTO::Template(template)) => file_name(template.path.as_deref())?,
            Some(DataTO::Volume(volume)) => file_name(volume.path.as_deref())?,
            _ => return Err(HostError::Lacks("a template or volume")),
        };
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(of_pool("remove")(error)),
            _ => Ok(()),
        }
    }
}

/// Files of the pool are named by UUIDs, so that no name leads elsewhere.
fn file_name(path: Option<&str>) -> Result<Uuid, HostError> {
    let path = path.ok_or(HostError::Lacks("the path of a file"))?;
    path.parse().map_err(|_| HostError::Name(path.to_owned()))
}

fn of_pool(operation: &'static str) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Pool { operation, source }
}

fn capacity(directory: &Path) -> io::Result<Capacity> {
    let found = statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(Capacity {
        total: bytes(found.blocks()),
        used: bytes(found.blocks().saturating_sub(found.blocks_free())),
        available: bytes(found.blocks_available()),
    })
}

#[cfg(test)]
mod tests;
