//! The lock file: exactly which packages, by their digests, an image and the tools that make it consist of.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::control::{is_package_name, is_version, is_word};

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

/// The archives that a package can come from.
pub const ARCHIVES: [&str; 2] = ["debian", "debian-security"];

/// The format that this program writes and reads.
const VERSION: u32 = 1;
/// The largest package that is fetched, in bytes; the kernel has 108 MB.
const MAX_SIZE: u64 = 1 << 30;
/// An image has about 260.
const MAX_PACKAGES: usize = 5000;

const HEAD: &str = "\
# Which packages the system VM image and the tools that make it consist of.
# Made by `image-builder lock`: do not edit.

";

/// Why a text is no lock file.
#[derive(Debug, thiserror::Error)]
pub enum BadLock {
    /// Not the TOML that is expected.
    #[error("not a lock file: {0}")]
    Toml(#[from] toml::de::Error),
    /// Of another program's version.
    #[error("a lock file of format {0}, and this program knows {VERSION}; make it again with image-builder lock")]
    Version(u32),
    /// A value that cannot be.
    #[error("the lock file says {what}; make it again with image-builder lock")]
    Value {
        /// Where, what, and what it should be.
        what: String,
    },
}

impl Lock {
    /// A lock of these parts, in the one order that it has.
    pub fn new(requested: &[String], suites: Vec<Suite>, packages: Vec<Package>, tools: Vec<Package>) -> Self {
        let mut lock = Self {
            version: VERSION,
            requested: requested.to_vec(),
            suites,
            packages,
            tools,
        };
        lock.requested.sort();
        lock.requested.dedup();
        lock.suites.sort_by(|a, b| a.name.cmp(&b.name));
        lock.packages.sort();
        lock.tools.sort();
        lock
    }

    /// Reads a lock file, and believes nothing of it: names, digests, sizes and paths are what they should be.
    ///
    /// # Errors
    /// It is none, or of another format.
    pub fn parse(text: &str) -> Result<Self, BadLock> {
        let lock: Self = toml::from_str(text)?;
        if lock.version != VERSION {
            return Err(BadLock::Version(lock.version));
        }
        lock.check().map_err(|what| BadLock::Value { what })?;
        Ok(lock)
    }

    /// The file's text; the same lock is always the same text.
    ///
    /// # Errors
    /// Never for a lock that [`Lock::new`] or [`Lock::parse`] made.
    pub fn render(&self) -> Result<String, toml::ser::Error> {
        Ok(format!("{HEAD}{}", toml::to_string_pretty(self)?))
    }

    /// Every package once, those of the image first: what must be fetched.
    pub fn all(&self) -> Vec<Package> {
        let only_tools = self.tools.iter().filter(|tool| !self.packages.contains(tool));
        self.packages.iter().chain(only_tools).cloned().collect()
    }

    /// What is different in `newer`: packages of the image and of the tools, each named once.
    pub fn changes(&self, newer: &Self) -> Changes {
        let mut changes = Changes::default();
        let parts = [
            ("image", &self.packages, &newer.packages),
            ("tools", &self.tools, &newer.tools),
        ];
        for (part, old, new) in parts {
            let by_name = |packages: &[Package]| -> BTreeMap<String, Package> {
                let named = packages.iter().map(|package| (package.name.clone(), package.clone()));
                named.collect()
            };
            let (old, new) = (by_name(old), by_name(new));
            for (name, package) in &new {
                match old.get(name) {
                    None => changes.0.push(format!("added to {part}: {name} {}", package.version)),
                    Some(before) if before.version != package.version => {
                        let (from, to) = (&before.version, &package.version);
                        changes.0.push(format!("updated in {part}: {name} {from} -> {to}"));
                    }
                    Some(before) if before != package => {
                        changes.0.push(format!(
                            "same version, other file in {part}: {name} {}",
                            package.version
                        ));
                    }
                    Some(_) => {}
                }
            }
            for (name, package) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
                changes
                    .0
                    .push(format!("removed from {part}: {name} {}", package.version));
            }
        }
        changes
    }

    fn check(&self) -> Result<(), String> {
        for name in &self.requested {
            must(is_package_name(name), || {
                format!("{name:?} is requested, which is no package's name")
            })?;
        }
        for suite in &self.suites {
            must(is_word(&suite.name, "-"), || format!("{:?} is a suite", suite.name))?;
            must(is_sha256(&suite.in_release), || {
                format!("{:?} is a sha256", suite.in_release)
            })?;
        }
        for packages in [&self.packages, &self.tools] {
            must(packages.len() <= MAX_PACKAGES, || {
                format!("there are {} packages, more than {MAX_PACKAGES}", packages.len())
            })?;
            packages.iter().try_for_each(check_package)?;
            if let Some(pair) = packages.windows(2).find(|pair| pair[0].name >= pair[1].name) {
                return Err(format!(
                    "{} after {}: they must be sorted, and each there once",
                    pair[1].name, pair[0].name
                ));
            }
        }
        Ok(())
    }
}

fn check_package(package: &Package) -> Result<(), String> {
    let Package {
        name,
        arch,
        archive,
        path,
        ..
    } = package;
    must(is_package_name(name), || format!("{name:?} is a package's name"))?;
    must(is_package_name(&package.source), || {
        format!("{:?} is the source of {name}", package.source)
    })?;
    for version in [&package.version, &package.source_version] {
        must(is_version(version), || format!("{version:?} is a version of {name}"))?;
    }
    must(["all", "amd64"].contains(&arch.as_str()), || {
        format!("{name} is for {arch:?}; only amd64 and all can be in an image")
    })?;
    must(is_sha256(&package.sha256), || {
        format!("{:?} is the sha256 of {name}", package.sha256)
    })?;
    must((1..=MAX_SIZE).contains(&package.size), || {
        format!("{name} has {} bytes, and {MAX_SIZE} are allowed", package.size)
    })?;
    must(ARCHIVES.contains(&archive.as_str()), || {
        format!("{name} is from the archive {archive:?}")
    })?;
    let is_part = |part: &str| is_word(part.trim_start_matches('_'), "+-._~%:");
    must(
        path.len() <= 1024 && path.split('/').all(is_part) && path.strip_suffix(".deb").is_some(),
        || format!("{name} is at {path:?}, which is no path of a package"),
    )
}

fn must(is_so: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what()) }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// How one lock differs from another: a line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(Vec<String>);

impl Changes {
    /// Whether they are of the same packages.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            arch: "amd64".to_owned(),
            sha256: "0123456789abcdef".repeat(4),
            size: 10,
            source: name.to_owned(),
            source_version: version.to_owned(),
            archive: "debian".to_owned(),
            path: format!("pool/main/{}/{name}/{name}_{version}_amd64.deb", &name[..1]),
        }
    }

    fn lock(packages: Vec<Package>) -> Lock {
        let suite = Suite {
            name: "trixie".to_owned(),
            in_release: "f".repeat(64),
        };
        Lock::new(
            &["b".to_owned(), "a".to_owned()],
            vec![suite],
            packages,
            vec![package("t", "1")],
        )
    }

    #[test]
    fn a_lock_reads_back_as_it_was_written() {
        let lock = lock(vec![package("b", "1:2.0-1"), package("a", "3~rc1+b2")]);
        let text = lock.render().unwrap();
        assert!(text.starts_with("# Which packages"), "{text}");
        assert_eq!(Lock::parse(&text).unwrap(), lock);
        assert_eq!(Lock::parse(&text).unwrap().render().unwrap(), text);
        let names: Vec<_> = lock.packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_changed_is_told_by_package() {
        let old = lock(vec![package("gone", "1"), package("same", "1"), package("up", "1")]);
        let other = Package {
            size: 11,
            ..package("same", "1")
        };
        let new = lock(vec![package("new", "1"), package("up", "2"), other]);
        assert_eq!(
            old.changes(&new).to_string(),
            "added to image: new 1\nsame version, other file in image: same 1\nupdated in image: up 1 -> 2\n\
             removed from image: gone 1\n"
        );
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error_of = |change: fn(&mut Lock)| {
            let mut lock = lock(vec![package("a", "1"), package("b", "1")]);
            change(&mut lock);
            Lock::parse(&lock.render().unwrap()).unwrap_err().to_string()
        };
        let again = "; make it again with image-builder lock";
        assert_eq!(
            error_of(|lock| lock.version = 2),
            format!("a lock file of format 2, and this program knows 1{again}")
        );
        assert_eq!(
            error_of(|lock| "../x".clone_into(&mut lock.packages[0].sha256)),
            format!("the lock file says \"../x\" is the sha256 of a{again}")
        );
        for path in [
            "../x.deb",
            "/etc/x.deb",
            "pool//x.deb",
            "pool/-x.deb",
            "pool/x",
            "pool/a b.deb",
        ] {
            let mut lock = lock(vec![package("a", "1")]);
            path.clone_into(&mut lock.packages[0].path);
            let error = Lock::parse(&lock.render().unwrap()).unwrap_err().to_string();
            assert!(
                error.ends_with(&format!("which is no path of a package{again}")),
                "{error}"
            );
        }
        assert_eq!(
            error_of(|lock| lock.packages.reverse()),
            format!("the lock file says a after b: they must be sorted, and each there once{again}")
        );
        assert_eq!(
            error_of(|lock| lock.packages[1].size = u64::MAX >> 1),
            format!("the lock file says b has 9223372036854775807 bytes, and 1073741824 are allowed{again}")
        );
    }

    #[test]
    fn each_package_is_fetched_once() {
        let both = lock(vec![package("a", "1"), package("t", "1")]);
        let names: Vec<_> = both.all().into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["a", "t"]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "\\PC{0,200}") {
            Lock::parse(&text).ok();
        }
    }
}
