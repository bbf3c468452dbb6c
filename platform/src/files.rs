//! Replacing files whole and reading them with a limit.
//!
//! These calls block, for a disk's time. The small files of a configuration may be replaced from an async function;
//! anything bigger belongs into `tokio::task::spawn_blocking`.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// How names of the files begin that [`replace`] writes beside: after a power cut one may be left. Programs that read a
/// whole directory (dnsmasq, haproxy) skip names with a leading dot.
pub const BESIDE: &str = ".new-";

/// Whether [`replace`] had anything to do: services are only reloaded when their files changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "compare with `Change::Changed` to know whether to reload, or drop it on purpose"]
pub enum Change {
    /// The file is new, or its contents or mode are.
    Changed,
    /// Contents and mode were as wanted; the file was not touched.
    Same,
}

/// Why a file could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system said no.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried, as a verb: `create a file beside`.
        operation: &'static str,
        /// The file (not the temporary one beside it) or the directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has more bytes than its reader is ready to believe.
    #[error("{path} is larger than the {limit} bytes that are allowed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes.
        limit: u64,
    },
}

/// Makes the file at `path` hold exactly `contents` with exactly the permission bits `mode` (the umask does not count).
///
/// A reader, or a power cut, sees the old file or the new one, never a part: we write beside it, fsync, rename, and
/// fsync the directory. The new file has its mode from the first moment, so a secret is never readable by others. On
/// failure the old file is as it was, and nothing is left beside it. A symbolic link at `path` is replaced, not followed.
pub fn replace(path: impl AsRef<Path>, contents: impl AsRef<[u8]>, mode: u32) -> Result<Change, FileError> {
    let (path, contents) = (path.as_ref(), contents.as_ref());
    if holds(path, contents, mode).unwrap_or(false) {
        return Ok(Change::Same);
    }
    let directory = directory_of(path);
    let permissions = Permissions::from_mode(mode);
    let mut beside = tempfile::Builder::new()
        .prefix(BESIDE)
        .permissions(permissions.clone())
        .tempfile_in(directory)
        .map_err(failed("create a file beside", path))?;
    beside
        .as_file()
        .set_permissions(permissions)
        .map_err(failed("set the mode of", path))?;
    beside
        .as_file_mut()
        .write_all(contents)
        .map_err(failed("write", path))?;
    beside.as_file().sync_all().map_err(failed("write", path))?;
    beside
        .persist(path)
        .map_err(|error| failed("replace", path)(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory", directory))?;
    Ok(Change::Changed)
}

/// Reads the whole file; `None` when there is none. More than `max_bytes` is an error, found without reading them all.
pub fn read_limited(path: impl AsRef<Path>, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let path = path.as_ref();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open", path)(source)),
    };
    let mut contents = Vec::new();
    // One byte more than allowed tells "just fits" from "goes on".
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut contents)
        .map_err(failed("read", path))?;
    match u64::try_from(contents.len()) {
        Ok(length) if length <= max_bytes => Ok(Some(contents)),
        _ => Err(FileError::TooLarge {
            path: path.to_owned(),
            limit: max_bytes,
        }),
    }
}

fn holds(path: &Path, contents: &[u8], mode: u32) -> io::Result<bool> {
    // Neither follow a link nor wait for a pipe's writer: both are something else than the file we want.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let found = file.metadata()?;
    let alike = found.is_file()
        && found.permissions().mode() & 0o7777 == mode
        && usize::try_from(found.len()).is_ok_and(|length| length == contents.len());
    let mut present = Vec::new();
    Ok(alike && file.read_to_end(&mut present).is_ok() && present == contents)
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::logging::chain;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_second_replace_with_the_same_wish_touches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");

        assert_eq!(replace(&path, "one", 0o644).unwrap(), Change::Changed);
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(replace(&path, "one", 0o644).unwrap(), Change::Same);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);

        assert_eq!(replace(&path, "two", 0o644).unwrap(), Change::Changed);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["hosts"]);
    }

    #[test]
    fn the_mode_is_exact_and_a_new_mode_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for wanted in [0o600, 0o666, 0o400, 0o755] {
            assert_eq!(replace(&path, "secret", wanted).unwrap(), Change::Changed);
            assert_eq!(mode(&path), wanted);
        }
    }

    #[test]
    fn a_link_is_replaced_and_what_it_points_at_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        let _ = replace(&target, "same", 0o644).unwrap();
        symlink(&target, &link).unwrap();

        assert_eq!(replace(&link, "same", 0o644).unwrap(), Change::Changed);
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(replace(&link, "other", 0o644).unwrap(), Change::Changed);
        assert_eq!(fs::read(&target).unwrap(), b"same");
    }

    #[test]
    fn a_failed_replace_leaves_what_was_there_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap(); // a directory cannot be renamed over: the last step fails
        let _ = replace(path.join("inside"), "old", 0o644).unwrap();

        let error = replace(&path, "new", 0o644).unwrap_err();

        let text = format!("cannot replace {}: Is a directory (os error 21)", path.display());
        assert_eq!(chain(&error).to_string(), text);
        assert_eq!(names(dir.path()), ["taken"]);
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"old");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/file");
        let error = replace(&path, "", 0o644).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot create a file beside {}", path.display())
        );
    }

    #[test]
    fn a_bare_name_is_in_the_current_directory() {
        assert_eq!(directory_of(Path::new("name")), Path::new("."));
        assert_eq!(directory_of(Path::new("/name")), Path::new("/"));
    }

    #[test]
    fn reading_knows_missing_fitting_and_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("five");
        assert_eq!(read_limited(&path, 5).unwrap(), None);

        let _ = replace(&path, "12345", 0o600).unwrap();
        assert_eq!(read_limited(&path, 5).unwrap().as_deref(), Some(&b"12345"[..]));
        assert_eq!(read_limited(&path, u64::MAX).unwrap().as_deref(), Some(&b"12345"[..]));
        assert_eq!(
            read_limited(&path, 4).unwrap_err().to_string(),
            format!("{} is larger than the 4 bytes that are allowed", path.display())
        );
        assert_eq!(
            chain(&read_limited(dir.path(), 4).unwrap_err()).to_string(),
            format!("cannot read {}: Is a directory (os error 21)", dir.path().display())
        );
    }
}
