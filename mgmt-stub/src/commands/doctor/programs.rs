//! Programs and libraries.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Finding;

/// Each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 10] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ssh", "openssh-client"),
    ("scp", "openssh-client"),
    ("ganesha.nfsd", "nfs-ganesha"),
    ("nsenter", "util-linux"),
    ("prlimit", "util-linux"),
    ("setsid", "util-linux"),
];
/// Only NFS version 3 has it.
const RPCBIND: &str = "rpcbind";
/// What serves a directory; one directory for each architecture is in there.
const LIBRARIES: &str = "/usr/lib";
const VFS: &str = "ganesha/libfsalvfs.so";

/// One finding if all are there, else one for each that is missing.
pub(super) fn all() -> Vec<Finding> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &str| find(&path, name).is_some();
    let missing = PROGRAMS.iter().filter(|(name, _)| !is_there(name));
    let mut findings: Vec<Finding> = missing
        .map(|(name, package)| {
            let text = format!("{name} is not in PATH");
            Finding::error("programs", text, format!("apt-get install {package}"))
        })
        .collect();
    if !has_vfs(Path::new(LIBRARIES)) {
        let text = "the NFS server cannot serve directories: libfsalvfs.so is not there";
        findings.push(Finding::error("programs", text, "apt-get install nfs-ganesha-vfs"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("programs", "all are there"));
    }
    if !is_there(RPCBIND) {
        let text = "rpcbind is not in PATH; --nfs-v3 needs it, and nothing else";
        findings.push(Finding::warning(
            "programs",
            text,
            "apt-get install rpcbind, if you want --nfs-v3",
        ));
    }
    findings
}

fn find(path: &std::ffi::OsStr, name: &str) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        let metadata = fs::metadata(file);
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(is_program)
}

fn has_vfs(libraries: &Path) -> bool {
    let Ok(entries) = fs::read_dir(libraries) else {
        return false;
    };
    let mut places = entries.flatten().map(|entry| entry.path().join(VFS));
    libraries.join(VFS).exists() || places.any(|place| place.exists())
}

#[cfg(test)]
mod tests {
    use platform::files;

    use super::*;

    #[test]
    fn only_what_can_be_run_is_a_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = format!("/nowhere:{}", directory.path().display());
        let found = |name: &str| find(path.as_ref(), name);
        let _ = files::replace(directory.path().join("nft"), "", 0o644).unwrap();
        assert_eq!(found("nft"), None);
        let _ = files::replace(directory.path().join("ip"), "", 0o755).unwrap();
        assert_eq!(found("ip"), Some(directory.path().join("ip")));
        assert_eq!(found("absent"), None);
    }

    #[test]
    fn the_library_is_looked_for_under_each_architecture() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_vfs(directory.path()));
        let place = directory.path().join("x86_64-linux-gnu/ganesha");
        fs::create_dir_all(&place).unwrap();
        let _ = files::replace(place.join("libfsalvfs.so"), "", 0o644).unwrap();
        assert!(has_vfs(directory.path()));
    }
}
