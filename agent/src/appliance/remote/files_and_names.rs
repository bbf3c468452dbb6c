//! Names that only look at files, or make one.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use platform::files;
use platform::logging::chain;

use super::Reply;
use crate::appliance::root::Root;

/// As `ls` says it.
const NO_SUCH_FILE: u8 = 2;

/// `patched.sh PATH`: whether it is there. The original lets its shell expand a pattern once more.
pub(super) fn patched(args: &[String]) -> Reply {
    let Some(path) = args.first() else {
        return Reply::failed(
            NO_SUCH_FILE,
            "patched.sh needs a path, such as /opt/cloud/bin/keystore*",
        );
    };
    let found = matching(Path::new(path));
    if found.is_empty() {
        return Reply::failed(
            NO_SUCH_FILE,
            format!("cannot access '{path}': no such file or directory"),
        );
    }
    let mut text = Vec::new();
    for path in found {
        text.extend_from_slice(path.as_os_str().as_encoded_bytes());
        text.push(b'\n');
    }
    Reply::ok(text)
}

/// The path, or, when its last part ends in a `*`, what begins so.
fn matching(path: &Path) -> Vec<PathBuf> {
    if path.symlink_metadata().is_ok() {
        return vec![path.to_owned()];
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(start), Some(directory)) = (name.and_then(|name| name.strip_suffix('*')), path.parent()) else {
        return Vec::new();
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(start.as_bytes()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// `bumpup_priority.sh`.
pub(super) fn bump_priority(root: &Root) -> Reply {
    match files::replace(root.path("/tmp/rrouter_bumped"), "", 0o644) {
        Ok(_changed) => Reply::default(),
        Err(error) => Reply::failed(1, chain(&error).to_string()),
    }
}

/// `filesystem_writable_check.py`: whether root's directory takes a file. A file system with errors is mounted read-only.
pub(super) fn is_writable(root: &Root) -> Reply {
    let probe = root.path("/root").join(format!("{}writable", files::BESIDE));
    let write = || {
        let mut file = File::create(&probe)?;
        file.write_all(b"?")?;
        file.sync_all()?;
        drop(file);
        fs::remove_file(&probe)
    };
    match write() {
        Ok(()) => Reply::ok("file system is writable\n"),
        Err(error) => {
            // The server looks for the first words.
            let text = match error.kind() {
                ErrorKind::ReadOnlyFilesystem => format!("Read-only file system: {}\n", probe.display()),
                _ => format!("file system is not writable: {error}\n"),
            };
            Reply {
                stdout: text.into_bytes(),
                stderr: String::new(),
                code: 1,
            }
        }
    }
}

/// `cleanup.sh PATH`: deletes what `get_diagnostics_files.py` made, and nothing else.
pub(super) fn clean_up(root: &Root, args: &[String]) -> Reply {
    let Some(path) = args.first() else {
        return Reply::failed(1, "the path of a diagnostics file is needed");
    };
    if !super::collect::is_archive(path) {
        return Reply::failed(
            1,
            format!("{path:?} is no diagnostics file; only those that this VM made are deleted"),
        );
    }
    match fs::remove_file(root.path(path)) {
        Ok(()) => Reply::ok(format!("Deleting diagnostics zip file {path}\n")),
        Err(error) if error.kind() == ErrorKind::NotFound => Reply::ok(format!("File {path} not found in vm \n")),
        Err(error) => Reply::failed(1, format!("cannot delete {path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_vm_is_patched_when_the_path_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        for name in ["keystore-setup", "keystore-cert-import", "other"] {
            let _ = files::replace(path(name), "", 0o755).unwrap();
        }
        assert_eq!(patched(&args(&[&path("other"), "x"])), Reply::ok(path("other") + "\n"));
        let both = path("keystore-cert-import") + "\n" + &path("keystore-setup") + "\n";
        assert_eq!(patched(&args(&[&path("keystore*")])), Reply::ok(both));
        assert_eq!(patched(&args(&[&path("nothing*")])).code, 2);
        assert_eq!(patched(&[]).code, 2);
    }

    #[test]
    fn only_diagnostics_files_are_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        fs::create_dir(root.path("/root")).unwrap();
        let zip = "/root/diagnostics_files_20260801-120000.zip";
        let _ = files::replace(root.path(zip), "zip", 0o600).unwrap();
        assert_eq!(
            clean_up(&root, &args(&[zip])),
            Reply::ok(format!("Deleting diagnostics zip file {zip}\n"))
        );
        assert_eq!(
            clean_up(&root, &args(&[zip])),
            Reply::ok(format!("File {zip} not found in vm \n"))
        );
        let _ = files::replace(root.path("/root/x.zip"), "zip", 0o600).unwrap();
        for other in ["/root/x.zip", "/root/diagnostics_files_../../etc/passwd.zip", "", "/"] {
            assert_eq!(clean_up(&root, &args(&[other])).code, 1, "{other}");
        }
        assert!(root.path("/root/x.zip").exists());
    }

    #[test]
    fn writing_is_tried() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let missing = is_writable(&root);
        assert_eq!(missing.code, 1);
        fs::create_dir(root.path("/root")).unwrap();
        assert_eq!(is_writable(&root), Reply::ok("file system is writable\n"));
        assert_eq!(fs::read_dir(root.path("/root")).unwrap().count(), 0);
    }
}
