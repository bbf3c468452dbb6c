//! What hosts upload to patch a VM: taken, measured, and never used (§7.5).
//!
//! A host copies three files into `/var/cache/cloud`: `agent.zip`, `cloud-scripts.tgz`, `patch-sysvms.sh`. They belong to
//! CloudStack's own appliance. All that we want is the SHA-512 of the second: reported as ours, it tells every management
//! server that this VM has its scripts. Nothing is unpacked or executed.
//!
//! Power may go at any moment. The upload is deleted last, so each state is one from which it all happens again:
//!
//! ```text
//! after                        upload  /usr/share/cloud  signature
//! (before)                     new     old               old
//! copy, synced, renamed        new     new               old
//! signature replaced           new     new               new
//! upload deleted               –       new               new
//! ```

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use nix::fcntl::OFlag;
use platform::files::{self, BESIDE, FileError};
use ring::digest::{Context, Digest, SHA512};
use tracing::{info, warn};

use super::root::{RELEASE, Root, SIGNATURE, UPLOADS};

/// The archive's name as uploaded.
pub const SCRIPTS: &str = "cloud-scripts.tgz";
/// The Java agent: nobody here wants it.
pub const AGENT_ZIP: &str = "agent.zip";
/// The stock script.
pub const SCRIPT: &str = "patch-sysvms.sh";
/// Where the last archive is (§5.4).
pub const KEPT: &str = "/usr/share/cloud/cloud-scripts.tgz";

/// Of the archive: a stock one has less than 1 MB.
const MAX_ARCHIVE: u64 = 64 << 20;
/// Of what is in it: zeros pack well, and unpacking them takes time.
const MAX_UNPACKED: u64 = 256 << 20;
/// Hexadecimal digits of a SHA-512, and a newline.
const MAX_SIGNATURE: u64 = 200;
const MAX_RELEASE: u64 = 4096;
const BLOCK: usize = 64 * 1024;

/// What became of the upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// There is none.
    Nothing,
    /// It was complete, and this is the signature now.
    Accepted(String),
    /// It is not complete, with the reason: it is left alone until it is.
    Incomplete(String),
}

/// Takes the uploaded archive if there is a complete one. Safe to repeat, and at the same time in several processes.
pub fn take(root: &Root) -> Result<Taken, FileError> {
    let (upload, kept) = (root.path(UPLOADS).join(SCRIPTS), root.path(KEPT));
    let directory = kept.parent().unwrap_or(Path::new("/"));
    // Most calls find nothing, and then there is nothing to lock.
    if fs::symlink_metadata(&upload).is_err() {
        return Ok(Taken::Nothing);
    }
    let _lock = lock(directory)?;
    let Some((file, before)) = open(&upload)? else {
        return Ok(Taken::Nothing);
    };
    if let Some(reason) = unfit(&before) {
        return Ok(Taken::Incomplete(reason));
    }
    let copy = tempfile::Builder::new()
        .prefix(BESIDE)
        .tempfile_in(directory)
        .map_err(failed("create a file in", directory))?;
    let signature = match measure(file, copy.as_file()) {
        Ok(signature) => signature,
        Err(error) if is_of_the_data(&error) => return Ok(Taken::Incomplete(error.to_string())),
        Err(error) => return Err(failed("copy", &upload)(error)),
    };
    copy.as_file().sync_all().map_err(failed("write", copy.path()))?;
    copy.persist(&kept)
        .map_err(|error| failed("replace", &kept)(error.error))?;
    sync(directory)?;
    let _changed = files::replace(root.path(SIGNATURE), format!("{signature}\n"), 0o644)?;
    // A file that was written again meanwhile is another upload: its end will be noticed.
    let is_same = fs::symlink_metadata(&upload).is_ok_and(|now| version(&now) == version(&before));
    if is_same {
        remove(&upload)?;
    }
    info!(
        signature,
        "Scripts of the management server taken; their digest is the version now"
    );
    Ok(Taken::Accepted(signature))
}

/// Deletes one of the two uploads that are of no use. Whoever is still writing it may go on: the bytes go nowhere.
pub fn discard(root: &Root, name: &str) -> Result<(), FileError> {
    debug_assert!([AGENT_ZIP, SCRIPT].contains(&name), "{name} is no upload of no use");
    remove(&root.path(UPLOADS).join(name))
}

/// What a power cut left half copied.
pub fn remove_leftovers(root: &Root) {
    let kept = root.path(KEPT);
    let Some(directory) = kept.parent() else { return };
    // Without the lock, another process's copy would be a leftover.
    let Ok(_lock) = lock(directory) else { return };
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    for leftover in names.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(BESIDE.as_bytes())) {
        if let Err(error) = fs::remove_file(leftover.path()) {
            warn!(path = %leftover.path().display(), %error, "Cannot delete half a copy");
        }
    }
}

/// The scripts' half of the version answer (§7.3): 128 hexadecimal digits, always. Until a host has uploaded something
/// it is a digest of what this image is.
pub fn signature(root: &Root) -> Result<String, FileError> {
    let written = files::read_limited(root.path(SIGNATURE), MAX_SIGNATURE)?.unwrap_or_default();
    let written = String::from_utf8_lossy(&written);
    if is_signature(written.trim()) {
        return Ok(written.trim().to_owned());
    }
    let mut digest = Context::new(&SHA512);
    digest.update(concat!("sysvm ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    digest.update(&files::read_limited(root.path(RELEASE), MAX_RELEASE)?.unwrap_or_default());
    Ok(hex(&digest.finish()))
}

/// Writes [`signature`] down where others read it (§5.4), if no host's is there.
pub fn write_signature(root: &Root) -> Result<(), FileError> {
    let text = signature(root)? + "\n";
    files::replace(root.path(SIGNATURE), text, 0o644).map(|_changed| ())
}

/// The version answer of §7.3, a line without its end: what this image is said to be, `&`, and the signature.
pub fn version_line(root: &Root) -> Result<String, BadVersion> {
    let path = root.path(RELEASE);
    let release = files::read_limited(&path, MAX_RELEASE)?.unwrap_or_default();
    let release = String::from_utf8_lossy(&release);
    let first = release.lines().next().unwrap_or_default().trim();
    // Management servers count: one `&`, and the third word is a version.
    if first.is_empty() || first.contains('&') || first.split(' ').nth(2).is_none() {
        return Err(BadVersion::Release(path));
    }
    Ok(format!("{first}&{}", signature(root)?))
}

/// Why the version cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum BadVersion {
    /// A management server would stumble over it.
    #[error("{} does not say `Cloudstack Release X.Y.Z DATE`; it is part of the image", .0.display())]
    Release(PathBuf),
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Copies and digests what is a complete gzip file. Errors of kind `InvalidData`, `InvalidInput` and `UnexpectedEof` are about the data.
fn measure(upload: File, copy: &File) -> io::Result<String> {
    let mut tee = Tee {
        from: upload.take(MAX_ARCHIVE + 1),
        copy,
        digest: Context::new(&SHA512),
        count: 0,
    };
    let mut unpacked = MultiGzDecoder::new(BufReader::with_capacity(BLOCK, &mut tee)).take(MAX_UNPACKED + 1);
    let count = io::copy(&mut unpacked, &mut io::sink())?;
    if count == 0 || count > MAX_UNPACKED {
        let problem = format!("{count} bytes or more are in it, and an archive of scripts has 1 to {MAX_UNPACKED}");
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    if tee.count > MAX_ARCHIVE {
        let problem = format!("it is larger than the {MAX_ARCHIVE} bytes that are allowed");
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    Ok(hex(&tee.digest.finish()))
}

/// Hands on what is read, and copies and digests it.
struct Tee<'a> {
    from: io::Take<File>,
    copy: &'a File,
    digest: Context,
    count: u64,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.copy.write_all(&buffer[..count])?;
        self.count += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(count)
    }
}

fn is_of_the_data(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof
    )
}

/// The file itself: neither what a link points to nor a pipe that nobody writes to.
fn open(upload: &Path) -> Result<Option<(File, fs::Metadata)>, FileError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(upload);
    match opened.and_then(|file| file.metadata().map(|found| (file, found))) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("open", upload)(error)),
    }
}

fn unfit(found: &fs::Metadata) -> Option<String> {
    if !found.is_file() {
        return Some("it is no plain file".to_owned());
    }
    (found.len() == 0).then(|| "it is empty".to_owned())
}

/// Changes whenever the file does.
fn version(found: &fs::Metadata) -> (u64, u64, i64, i64) {
    (found.ino(), found.len(), found.mtime(), found.mtime_nsec())
}

fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("delete", path)(error)),
    }
}

fn lock(directory: &Path) -> Result<File, FileError> {
    let locked = File::open(directory).and_then(|opened| opened.lock().map(|()| opened));
    locked.map_err(failed("lock the directory", directory))
}

fn sync(directory: &Path) -> Result<(), FileError> {
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(failed("sync the directory", directory))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn is_signature(text: &str) -> bool {
    text.len() == 128 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn hex(digest: &Digest) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}
