//! Large files, whole or not at all: written beside, and named when they are complete.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use platform::files::BESIDE;

/// Everybody may read images: there are no secrets in them.
const MODE: u32 = 0o644;

/// Why a file was not written. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}{}", if source.kind() == ErrorKind::StorageFull { "; free some space there, or choose another place" } else { "" })]
pub struct OutputError {
    path: PathBuf,
    source: io::Error,
}

/// Lets `work` fill a new file, which then gets the name `path`: a file that is there is replaced, and until then
/// untouched. When `work` fails, nothing is left.
///
/// # Errors
/// The work failed, or the system did.
pub fn write<T>(path: &Path, work: impl FnOnce(&mut File) -> io::Result<T>) -> Result<T, OutputError> {
    let result = try_write(path, work);
    result.map_err(|source| OutputError {
        path: path.to_owned(),
        source,
    })
}

fn try_write<T>(path: &Path, work: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    let mut beside = tempfile::Builder::new().prefix(BESIDE).tempfile_in(directory)?;
    let done = work(beside.as_file_mut())?;
    // Whatever the umask is.
    beside.as_file().set_permissions(Permissions::from_mode(MODE))?;
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_gets_its_name_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let read = || fs::read_to_string(&path).unwrap();

        write(&path, |file| file.write_all(b"old")).unwrap();
        write(&path, |file| {
            file.write_all(b"new")?;
            assert_eq!(read(), "old");
            Ok(())
        })
        .unwrap();

        assert_eq!(read(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
    }

    #[test]
    fn of_failed_work_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        write(&path, |file| file.write_all(b"old")).unwrap();

        let error = write(&path, |file| {
            file.write_all(b"new")?;
            Err::<(), _>(ErrorKind::StorageFull.into())
        })
        .unwrap_err();

        let text = format!(
            "cannot write {}; free some space there, or choose another place",
            path.display()
        );
        assert_eq!(error.to_string(), text);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
