//! New programs for a VM that runs: a signed bundle is checked, unpacked beside the old ones, taken into use by one rename,
//! watched, and confirmed or taken back. The manual is docs/upgrade.md, the why decision 0060.
//!
//! ```text
//! /usr/lib/sysvm/bin        the image's programs; never changed
//! /usr/lib/sysvm/current -> /var/lib/sysvm/current -> /usr/lib/sysvm/bin   or   bundles/DIGEST
//! /var/lib/sysvm/bundles/DIGEST/{agent,console-proxy,ssvm,manifest.json,manifest.json.minisig}
//! /var/lib/sysvm/upgrade.json   what is pending, what was before, how the last one went
//! ```
//!
//! Units run `/usr/lib/sysvm/current/PROGRAM`, except for what a person needs to get in when all else is broken: the boot
//! daemon, sshd's gate and the upgrade itself are always the image's.
//!
//! | module | |
//! |---|---|
//! | [`keys`] | whose bundles are taken |
//! | [`bundle`] | a bundle's file: checked whole before anything is unpacked |
//! | [`store`] | what is on the disk, and what a power cut leaves |
//! | [`health`] | whether the VM is as well as it was |
//! | [`machine`] | the VM that is looked at and restarted |
//! | [`change`] | the way from one set of programs to another, or back |

pub mod bundle;
pub mod change;
pub mod health;
pub mod keys;
pub mod machine;
pub mod store;

use std::path::Path;

use platform::bundle::Version;
use platform::files::{self, FileError};

use super::root::Root;

/// The image's own programs.
pub const IMAGE_PROGRAMS: &str = "/usr/lib/sysvm/bin";
/// The programs that units run.
pub const PROGRAMS: &str = "/usr/lib/sysvm/current";
/// Where a host puts a bundle that is to be taken into use: `cs-upgrade.path` watches it.
pub const UPLOADED: &str = "/var/cache/cloud/sysvm-bundle";
/// Our own version, as the image's builder wrote it.
const RELEASE: &str = "/etc/sysvm-release";
/// Of that file, in bytes.
const MAX_RELEASE: u64 = 1024;

/// The version of the image that this VM was started from.
///
/// # Errors
/// The file is not there, or has no version in it.
pub fn image_version(root: &Root) -> Result<Version, NoVersion> {
    let path = root.path(RELEASE);
    let bytes = files::read_limited(&path, MAX_RELEASE)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().map_err(|source| NoVersion::Text {
        path: path.display().to_string(),
        source,
    })
}

/// Why the image's version is not known.
#[derive(Debug, thiserror::Error)]
pub enum NoVersion {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It says something else.
    #[error("{path} has no version; is this an image of this project?")]
    Text {
        /// The file.
        path: String,
        /// What is in it.
        source: platform::bundle::BadWord,
    },
}

/// The directory of a path that has one.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
