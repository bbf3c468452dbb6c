//! The bill of materials of an image: which packages and crates are in it, from which sources, under which licences.
//!
//! The same image gives the same bytes: no random numbers, and the only time is the one that all its files have.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::{Builder, Uuid};

use crate::cache::hex;
use crate::control::BadControl;
use crate::facts::{self, Installed};
use crate::lock::Lock;
use crate::recipe::Recipe;
use crate::tree::Tree;

mod crates;
mod cyclonedx;
mod licences;
mod spdx;

pub use crates::{BadCrates, Crate, crates_of};
pub use licences::Licence;

/// Where our programs are in the image.
const PROGRAMS: &str = "usr/lib/sysvm/bin/";

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bill {
    /// The time that all files of the image have, in seconds since 1970.
    pub epoch: u64,
    /// The Debian release: `trixie`.
    pub distribution: String,
    /// Debian packages, by name.
    pub packages: Vec<Item>,
    /// Rust crates in our programs, by name and version.
    pub crates: Vec<Crate>,
}

/// A Debian package in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What dpkg says of it.
    pub package: Installed,
    /// Of the `.deb`, if a lock file was given.
    pub sha256: Option<String>,
    /// From its copyright file.
    pub licence: Licence,
}

/// Why there is no bill.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// Nothing is known of what is in the image.
    #[error("the image does not say which packages it has: there is no /var/lib/dpkg/status in it")]
    NoPackages,
    /// That makes no sense.
    #[error("the image's /var/lib/dpkg/status cannot be understood")]
    Packages(#[from] BadControl),
    /// The lock is of another image.
    #[error(
        "the image has {package} {found}, the lock file {locked}; is it the lock file that the image was built from?"
    )]
    OtherLock {
        /// The package's name.
        package: String,
        /// The version in the image.
        found: String,
        /// The version in the lock, or `none`.
        locked: String,
    },
    /// The time is no time.
    #[error("{0} seconds since 1970 is no time")]
    Epoch(u64),
    /// The list of crates cannot be used.
    #[error(transparent)]
    Crates(#[from] BadCrates),
}

impl Bill {
    /// What is in this root file system. Digests of packages come from `lock`, which must be the image's; crates from
    /// `metadata`, what `cargo metadata --format-version 1` prints; time and release from the recipe.
    ///
    /// # Errors
    /// The image does not say, or says something else than the lock.
    pub fn of(tree: &Tree, lock: Option<&Lock>, metadata: Option<&[u8]>, recipe: &Recipe) -> Result<Self, SbomError> {
        let installed = facts::packages(tree)?;
        if installed.is_empty() {
            return Err(SbomError::NoPackages);
        }
        if let Some(lock) = lock {
            check(&installed, lock)?;
        }
        let digests: BTreeMap<_, _> = lock
            .iter()
            .flat_map(|lock| &lock.packages)
            .map(|p| (&p.name, &p.sha256))
            .collect();
        let packages = installed.into_iter().map(|package| Item {
            sha256: digests.get(&package.name).map(|digest| (*digest).clone()),
            licence: licences::of_package(tree, &package.name),
            package,
        });
        let programs = tree.below(PROGRAMS).map(|(path, _)| path[PROGRAMS.len()..].to_owned());
        Ok(Self {
            epoch: recipe.epoch,
            distribution: recipe.suite.clone(),
            packages: packages.collect(),
            crates: match metadata {
                Some(metadata) => crates_of(metadata, &programs.collect())?,
                None => Vec::new(),
            },
        })
    }

    /// As SPDX 2.3 JSON.
    ///
    /// # Errors
    /// The epoch is no time.
    pub fn spdx(&self) -> Result<String, SbomError> {
        Ok(render(&spdx::document(self, &self.time()?)))
    }

    /// As CycloneDX 1.6 JSON.
    ///
    /// # Errors
    /// The epoch is no time.
    pub fn cyclonedx(&self) -> Result<String, SbomError> {
        Ok(render(&cyclonedx::document(self, &self.time()?)))
    }

    fn time(&self) -> Result<String, SbomError> {
        let seconds = i64::try_from(self.epoch).ok();
        let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        let text = time.and_then(|time| time.format(&Rfc3339).ok());
        text.ok_or(SbomError::Epoch(self.epoch))
    }

    /// What tells this bill from every other.
    fn digest(&self) -> [u8; 32] {
        let text = serde_json::to_vec(self).expect("it has no maps with odd keys");
        Sha256::digest(text).into()
    }

    fn id(&self) -> String {
        hex(self.digest())
    }

    /// The same as a UUID (RFC 9562 version 8: made from a digest of ours).
    fn uuid(&self) -> Uuid {
        let mut first = [0; 16];
        first.copy_from_slice(&self.digest()[..16]);
        Builder::from_custom_bytes(first).into_uuid()
    }
}

/// What is installed must be locked. The recipe may leave out packages that are.
fn check(installed: &[Installed], lock: &Lock) -> Result<(), SbomError> {
    let locked: BTreeMap<_, _> = lock
        .packages
        .iter()
        .map(|package| (&package.name, &package.version))
        .collect();
    let is_other = |package: &&Installed| locked.get(&package.name) != Some(&&package.version);
    installed.iter().find(is_other).map_or(Ok(()), |package| {
        let locked = locked.get(&package.name).map_or("none", |version| version.as_str());
        Err(SbomError::OtherLock {
            package: package.name.clone(),
            found: package.version.clone(),
            locked: locked.to_owned(),
        })
    })
}

/// The package URL of a Debian package (package-url/purl-spec, type `deb`).
fn deb_purl(package: &Installed, distribution: &str) -> String {
    let (name, version) = (percent(&package.name), percent(&package.version));
    format!(
        "pkg:deb/debian/{name}@{version}?arch={}&distro={distribution}",
        percent(&package.arch)
    )
}

/// The package URL of a crate.
fn cargo_purl(krate: &Crate) -> String {
    format!("pkg:cargo/{}@{}", percent(&krate.name), percent(&krate.version))
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => write!(out, "%{other:02X}").expect("a string takes it"),
        }
        out
    })
}

fn render(document: &serde_json::Value) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("JSON is JSON");
    text.push('\n');
    text
}
