//! Where the files of a system VM are.

use std::path::{Path, PathBuf};

/// The directory under which a system VM's files are: `/` in a VM, a temporary directory in a test.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Root {
    /// All paths will be below this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Where a file of the VM is, whose path in the VM is given, such as `/etc/hosts` (or `etc/hosts`).
    pub fn path(&self, in_vm: impl AsRef<Path>) -> PathBuf {
        let in_vm = in_vm.as_ref();
        self.0.join(in_vm.strip_prefix("/").unwrap_or(in_vm))
    }
}

/// The boot arguments, where hosts write and everybody reads them (§5.4). Mode 0600: they hold secrets.
pub const LINE: &str = "/var/cache/cloud/cmdline";
/// The same as JSON (§2.1).
pub const LINE_JSON: &str = "/var/cache/cloud/cmd_line.json";
/// There when the VM is ready (§5.4): `get_template_version.sh` waits for it.
pub const BOOT_UP_DONE: &str = "/var/cache/cloud/boot_up_done";
/// SHA-512 of the scripts that the management server sent (§7.3).
pub const SIGNATURE: &str = "/var/cache/cloud/cloud-scripts-signature";
/// Where hosts upload files to.
pub const UPLOADS: &str = "/var/cache/cloud";
/// What this VM is said to be, by CloudStack's numbers (§7.3).
pub const RELEASE: &str = "/etc/cloudstack-release";
/// Runtime state of ours that ends with the machine.
pub const RUN: &str = "/run/sysvm";
/// State of ours that survives.
pub const STATE: &str = "/var/lib/sysvm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_below_the_root() {
        let root = Root::new("/tmp/vm");
        assert_eq!(root.path(LINE), Path::new("/tmp/vm/var/cache/cloud/cmdline"));
        assert_eq!(root.path("etc/hosts"), Path::new("/tmp/vm/etc/hosts"));
        assert_eq!(Root::default().path("/etc/hosts"), Path::new("/etc/hosts"));
    }
}
