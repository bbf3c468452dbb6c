//! The lock file: exactly which packages, by their digests, an image and the tools that make it consist of.

use serde::{Deserialize, Serialize};

/// `image.lock`, in TOML. Neither mirrors nor times are in it: whoever serves the bytes, they are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The format of this file; 1.
    pub version: u32,
    /// What was asked for, sorted: the recipe's packages when the lock was made.
    pub requested: Vec<String>,
    /// The package lists that this was resolved from.
    pub suites: Vec<Suite>,
    /// The packages of the image, by name.
    pub packages: Vec<Package>,
    /// The packages of the tools that make the image, by name. Nothing of them is in it.
    pub tools: Vec<Package>,
}

/// A package list, as signed by Debian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// `trixie`, `trixie-updates`, `trixie-security`.
    pub name: String,
    /// SHA-256 of its InRelease file.
    pub in_release: String,
}

/// One `.deb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// `libc6`.
    pub name: String,
    /// With epoch: `1:2.41-12`.
    pub version: String,
    /// `amd64` or `all`.
    pub arch: String,
    /// Of the file.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// The source package's name.
    pub source: String,
    /// The source package's version.
    pub source_version: String,
    /// Which archive has it, by the last part of its suite: `debian` or `debian-security`.
    pub archive: String,
    /// Below the archive: `pool/main/g/glibc/libc6_2.41-12_amd64.deb`.
    pub path: String,
}
