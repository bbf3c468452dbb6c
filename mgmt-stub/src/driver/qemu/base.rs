//! The image of system VMs as their disks build upon it: a copy of ours, which nobody changes under them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tracing::info;

use super::failed;
use crate::driver::DriverError;

/// How names of copies begin, in the directory of primary storage.
const PREFIX: &str = "system-vm-";

/// The copy for this image; made when it is not there. An image with another size or time is another image. Blocks.
pub(super) fn copy_of(image: &Path, primary: &Path) -> Result<PathBuf, DriverError> {
    let found = fs::metadata(image).map_err(failed("read", image))?;
    let modified = found
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let copy = primary.join(format!(
        "{PREFIX}{}-{}.qcow2",
        modified.unwrap_or_default().as_millis(),
        found.len()
    ));
    if copy.exists() {
        return Ok(copy);
    }
    let beside = part_of(&copy);
    fs::copy(image, &beside)
        .and_then(|_| fs::File::open(&beside)?.sync_all())
        .and_then(|()| fs::rename(&beside, &copy))
        .map_err(failed("copy the image to", &copy))?;
    info!(image = %image.display(), copy = %copy.display(), "Image of system VMs copied");
    Ok(copy)
}

/// One name: there is one server to a data directory, and a copy that was interrupted is overwritten.
fn part_of(copy: &Path) -> PathBuf {
    copy.with_extension("part")
}

/// Removes copies that no disk builds upon any more. Blocks.
pub(super) fn forget_unused(primary: &Path, used: &[PathBuf]) -> io::Result<()> {
    let entries = match fs::read_dir(primary) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_copy = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if is_copy && !used.contains(&path) {
            fs::remove_file(&path)?;
            info!(path = %path.display(), "Unused image of system VMs removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use platform::files;

    use super::*;

    #[test]
    fn another_image_is_another_copy_and_unused_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let (image, primary) = (directory.path().join("image"), directory.path().join("primary"));
        fs::create_dir(&primary).unwrap();
        let _ = files::replace(&image, "one", 0o600).unwrap();
        let first = copy_of(&image, &primary).unwrap();
        assert_eq!(copy_of(&image, &primary).unwrap(), first);
        assert_eq!(fs::read(&first).unwrap(), b"one");

        let _ = files::replace(&image, "another", 0o600).unwrap();
        let second = copy_of(&image, &primary).unwrap();
        assert_ne!(second, first);
        assert_eq!(fs::read(&first).unwrap(), b"one");

        let _ = files::replace(primary.join("volume"), "user's", 0o600).unwrap();
        forget_unused(&primary, std::slice::from_ref(&second)).unwrap();
        assert!(!first.exists() && second.exists() && primary.join("volume").exists());
        forget_unused(&directory.path().join("missing"), &[]).unwrap();
    }

    #[test]
    fn an_image_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = copy_of(&directory.path().join("sysvm.qcow2"), directory.path()).unwrap_err();
        assert!(error.to_string().ends_with("sysvm.qcow2"), "{error}");
    }
}
