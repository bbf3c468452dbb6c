//! From an image on a store, which others can write, to a file of the pool, which only we can.
//!
//! A qcow2 is copied first and judged then: what we judged is what `qemu-img` opens, whoever writes to the store
//! meanwhile. A raw image has no header that could name anything, and is read where it is. `qemu-img` writes a new image,
//! so that nothing of the old one's tables is left for the VM's process (decision 0072).

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use platform::exec::Cmd;
use platform::logging::chain;
use protocol::transfer::{DataStoreTO, ImageFormat, TemplateObjectTO};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::qcow2::{self, HEADER_LEN};
use super::{Host, HostError, Mounts, UNFINISHED, of_pool};

/// What one copy may need at most, in a slow minute for each GiB of 2 TiB: it is there to end what hangs for ever.
const CONVERT_LIMIT: Duration = Duration::from_hours(12);
/// Address space of `qemu-img`: a crafted image makes it ask for tables without end.
const MAX_MEMORY: u64 = 2 << 30;
/// Bytes between two looks at the progress of a copy.
const PART: u64 = 64 << 20;
/// Between two looks at how much `qemu-img` has written.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of the pool that a copy leaves alone.
const RESERVE: u64 = 64 << 20;

/// A file under a name that nobody looks for; dropping it removes it.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %self.0.display(), %error, "Cannot remove an unfinished file");
            }
            _ => {}
        }
    }
}

impl Host {
    pub(super) async fn fetch(
        &self,
        source: &TemplateObjectTO,
        name: Uuid,
        mounts: &Mounts,
        progress: &watch::Sender<u8>,
    ) -> Result<TemplateObjectTO, HostError> {
        let Some(DataStoreTO::Nfs(store)) = &source.image_data_store else {
            return Err(HostError::Lacks("an NFS image store"));
        };
        let url = store.url.as_deref().ok_or(HostError::Lacks("the image store's URL"))?;
        let directory = mounts.get(url).ok_or_else(|| HostError::NoMount(url.to_owned()))?;
        let path = source.path.as_deref().ok_or(HostError::Lacks("the template's path"))?;
        let file = open_below(directory, path)?;
        let target = self.unfinished("new");
        let virtual_size = match source.format {
            Some(ImageFormat::Qcow2) => {
                let staged = self.unfinished("copy");
                let size = self.stage(file, &staged.0, progress).await?;
                self.convert(&staged.0, "qcow2", &target.0, size, progress).await?;
                size
            }
            Some(ImageFormat::Raw) => {
                let length = file.metadata().map_err(|source| no_source(path, source))?.len();
                let size = qcow2::judge_size(length)?;
                // By its descriptor: its name may lead elsewhere by now.
                let opened = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
                self.convert(&opened, "raw", &target.0, size, progress).await?;
                size
            }
            other => {
                let format = other.map_or_else(|| "unknown".to_owned(), |format| format!("{format:?}").to_uppercase());
                return Err(HostError::Format(format));
            }
        };
        let physical_size = self.keep(&target, name)?;
        info!(path = %self.path(name).display(), virtual_size, physical_size, "Template copied to the storage pool");
        Ok(TemplateObjectTO {
            path: Some(name.to_string()),
            size: Some(signed(virtual_size)),
            physical_size: Some(signed(physical_size)),
            format: Some(ImageFormat::Qcow2),
            ..TemplateObjectTO::default()
        })
    }

    /// An overlay on a file of the pool; gives the bytes of its disk.
    pub(super) async fn overlay(&self, base: &Path, name: Uuid) -> Result<i64, HostError> {
        let mut header = [0; HEADER_LEN];
        let read = File::open(base).and_then(|mut base| base.read_exact(&mut header));
        read.map_err(of_pool("read"))?;
        let size = qcow2::judge(&header)?; // it is ours: if this fails, somebody has changed it
        let target = self.unfinished("new");
        hypervisor::disk::overlay(base, &target.0, None)
            .await
            .map_err(|error| {
                warn!(error = %chain(&error), "Cannot make a disk");
                self.full_or(RESERVE, HostError::Tool("make a disk of the template"))
            })?;
        self.keep(&target, name)?;
        Ok(signed(size))
    }

    fn unfinished(&self, kind: &str) -> Unfinished {
        Unfinished(self.pool.join(format!("{UNFINISHED}{}-{kind}", Uuid::new_v4())))
    }

    /// A copy that only we can write, judged. It is half of the work.
    async fn stage(&self, mut source: File, target: &Path, progress: &watch::Sender<u8>) -> Result<u64, HostError> {
        let length = source.metadata().map_err(of_pool("measure"))?.len();
        self.need(length)?;
        let (target, progress) = (target.to_owned(), progress.clone());
        let stop = CancellationToken::new();
        let _stop_if_dropped = stop.clone().drop_guard();
        let copy = move || {
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(target)?;
            let mut copied = 0;
            while copied < length && !stop.is_cancelled() {
                let part = io::copy(&mut (&mut source).take(PART.min(length - copied)), &mut file)?;
                if part == 0 {
                    break; // it became shorter meanwhile; what is left is judged
                }
                copied += part;
                progress.send_replace(percent(copied, length) / 2);
            }
            let mut header = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.take(u64::try_from(HEADER_LEN).unwrap_or(u64::MAX))
                .read_to_end(&mut header)?;
            Ok(header)
        };
        let copied = tokio::task::spawn_blocking(copy)
            .await
            .map_err(|_| HostError::Tool("be started"))?;
        let header = copied.map_err(|source| {
            self.full_or(
                length,
                HostError::Pool {
                    operation: "write",
                    source,
                },
            )
        })?;
        Ok(qcow2::judge(&header)?)
    }

    async fn convert(
        &self,
        source: &Path,
        format: &str,
        target: &Path,
        size: u64,
        progress: &watch::Sender<u8>,
    ) -> Result<(), HostError> {
        let expected = fs::metadata(source).map_err(of_pool("measure"))?;
        let expected = expected.blocks().saturating_mul(512).max(1);
        self.need(expected.min(size))?;
        let begun = *progress.borrow();
        // The tables of a full image are far below a sixty-fourth of it.
        let most = size.saturating_add(size / 64).saturating_add(RESERVE);
        let limits = [format!("--as={MAX_MEMORY}"), format!("--fsize={most}")];
        let convert = Cmd::new("qemu-img")
            .args(["convert", "-q", "-f", format, "-O", "qcow2", "--"])
            .arg(source)
            .arg(target)
            .through(Cmd::new("prlimit").args(limits))
            .time_limit(CONVERT_LIMIT);
        let look = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let written = fs::metadata(target).map_or(0, |found| found.blocks().saturating_mul(512));
                let done = u64::from(begun) + u64::from(percent(written, expected)) * u64::from(100 - begun) / 100;
                progress.send_replace(u8::try_from(done.min(99)).unwrap_or(99));
            }
        };
        tokio::select! {
            done = convert.run() => done.map(drop).map_err(|error| {
                warn!(error = %chain(&error), "Cannot convert an image");
                self.full_or(expected, HostError::Tool("convert the image"))
            }),
            () = look => Ok(()),
        }
    }

    /// Gives a finished file its name, for good; says how many bytes it takes.
    fn keep(&self, file: &Unfinished, name: Uuid) -> Result<u64, HostError> {
        let finished = File::open(&file.0).map_err(of_pool("open"))?;
        let private = fs::Permissions::from_mode(0o600);
        finished.set_permissions(private).map_err(of_pool("protect"))?;
        finished.sync_all().map_err(of_pool("write"))?;
        let size = finished
            .metadata()
            .map_err(of_pool("measure"))?
            .blocks()
            .saturating_mul(512);
        fs::rename(&file.0, self.path(name)).map_err(of_pool("name"))?;
        File::open(&self.pool)
            .and_then(|pool| pool.sync_all())
            .map_err(of_pool("name"))?;
        Ok(size)
    }

    fn need(&self, bytes: u64) -> Result<(), HostError> {
        let needed = bytes.saturating_add(RESERVE);
        let available = self.capacity().map_err(of_pool("measure"))?.available;
        if available < needed {
            return Err(HostError::NoSpace { needed, available });
        }
        Ok(())
    }

    /// A full disk explains most failures.
    fn full_or(&self, needed: u64, error: HostError) -> HostError {
        match self.capacity() {
            Ok(found) if found.available < RESERVE => HostError::NoSpace {
                needed,
                available: found.available,
            },
            _ => error,
        }
    }
}

/// Opens a regular file below `directory`, without following any link: an SSVM can put links there that lead to files of
/// this machine.
fn open_below(directory: &Path, path: &str) -> Result<File, HostError> {
    let refused = |error: nix::Error| no_source(path, error.into());
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let store = open(directory, flags, Mode::empty()).map_err(refused)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
    let file: OwnedFd = openat2(&store, path, how).map_err(refused)?;
    let file = File::from(file);
    let found = file.metadata().map_err(|source| no_source(path, source))?;
    if !found.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(no_source(path, source));
    }
    Ok(file)
}

fn no_source(path: &str, source: io::Error) -> HostError {
    HostError::NoSource {
        path: path.to_owned(),
        source,
    }
}

fn percent(part: u64, whole: u64) -> u8 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u8::try_from(percent.min(100)).unwrap_or(100)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
