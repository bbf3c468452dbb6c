//! The directory of a zone: made for its owner only, and never mistaken for somebody's other files.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, ensure};

/// All that a zone writes there.
const OURS: [&str; 6] = [
    "zone.json",
    super::SERVER_LOG,
    super::OLD_SERVER_LOG,
    "data",
    "store",
    "guest",
];
/// One of these is there once a zone was started.
const MARKS: [&str; 3] = ["zone.json", super::SERVER_LOG, "data/mgmt-stub.lock"];

/// Makes the directory, or takes the one of an earlier zone; it is closed to others, as it has passwords.
///
/// # Errors
/// It has something else in it: closing somebody's home or `/tmp` would do harm.
pub(super) fn claim(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    ensure!(
        is_empty(directory)? || is_zone(directory),
        "{} has other files in it; give --dir a new or an empty directory",
        directory.display()
    );
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("closing {} to others", directory.display()))
}

/// Deletes what a zone has written, and the directory if nothing else is in it. Answers whether it is gone.
///
/// # Errors
/// It has never been a zone's.
pub(super) fn purge(directory: &Path) -> anyhow::Result<bool> {
    if !directory.exists() {
        return Ok(true);
    }
    if !is_empty(directory)? {
        ensure!(
            is_zone(directory),
            "{} is not the directory of a zone; nothing is deleted",
            directory.display()
        );
        for name in OURS {
            let path = directory.join(name);
            let deleted = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match deleted {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("deleting {}", path.display()));
                }
                _ => {}
            }
        }
    }
    if is_empty(directory)? {
        fs::remove_dir(directory).with_context(|| format!("deleting {}", directory.display()))?;
    }
    Ok(!directory.exists())
}

fn is_empty(directory: &Path) -> anyhow::Result<bool> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    Ok(entries.next().is_none())
}

fn is_zone(directory: &Path) -> bool {
    MARKS.iter().any(|mark| directory.join(mark).exists())
}

#[cfg(test)]
mod tests {
    use platform::files;

    use super::*;

    fn write(path: &Path) {
        let _ = files::replace(path, "x", 0o600).unwrap();
    }

    #[test]
    fn a_directory_with_other_things_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let letter = home.path().join("letter");
        write(&letter);
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = claim(home.path()).unwrap_err().to_string();
        assert!(refused.contains("has other files in it"), "{refused}");
        let refused = purge(home.path()).unwrap_err().to_string();
        assert!(refused.contains("nothing is deleted"), "{refused}");
        assert!(letter.exists());
        let mode = fs::metadata(home.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn a_zone_is_deleted_and_what_somebody_put_beside_it_stays() {
        let place = tempfile::tempdir().unwrap();
        let zone = place.path().join("zone");
        for note in [false, true] {
            claim(&zone).unwrap();
            assert_eq!(fs::metadata(&zone).unwrap().permissions().mode() & 0o777, 0o700);
            fs::create_dir_all(zone.join("data/vms")).unwrap();
            write(&zone.join(super::super::SERVER_LOG));
            if note {
                write(&zone.join("note"));
            }
            claim(&zone).unwrap();
            assert_eq!(purge(&zone).unwrap(), !note);
            assert!(!zone.join("data").exists());
            assert_eq!(zone.join("note").exists(), note);
        }
        assert!(purge(&place.path().join("absent")).unwrap());
    }
}
