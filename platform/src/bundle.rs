//! What an upgrade bundle is: new programs for a system VM that runs. `image-builder bundle` writes it, `agent upgrade` reads
//! it.
//!
//! A bundle is an uncompressed tar archive with three members, in this order: [`MANIFEST`], its [`SIGNATURE`] in minisign's
//! format, and [`PROGRAMS`], whose digest is in the manifest. So whoever reads it knows who made it before anything is
//! unpacked, in one pass, and people can look into it with `tar` and `minisign`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The first member: a [`Manifest`] as JSON.
pub const MANIFEST: &str = "manifest.json";
/// The second: the signature of the manifest.
pub const SIGNATURE: &str = "manifest.json.minisig";
/// The third: a gzipped tar archive of the programs, in the manifest's order.
pub const PROGRAMS: &str = "programs.tar.gz";

/// The version of the format that this is.
pub const FORMAT: u32 = 1;
/// Bytes of a manifest; real ones have some hundred.
pub const MAX_MANIFEST: u64 = 64 << 10;
/// Bytes of a signature; real ones have some 350.
pub const MAX_SIGNATURE: u64 = 4 << 10;
/// Programs in a bundle; we have three.
pub const MAX_PROGRAMS: usize = 16;
/// Bytes of all programs together, packed or not: they are to fit on the disk of a system VM twice.
pub const MAX_BYTES: u64 = 512 << 20;
/// Letters of a program's name.
const MAX_NAME: usize = 32;

/// What is in a bundle, and which machines it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Of the programs.
    pub version: Version,
    /// The versions of the image that they can run on.
    pub image: Range,
    /// The programs by name.
    pub programs: BTreeMap<ProgramName, Contents>,
    /// [`PROGRAMS`].
    pub packed: Contents,
}

/// What a file holds, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Bytes.
    pub size: u64,
    /// Of all bytes.
    pub sha256: Digest,
}

/// Versions from one up to, but without, another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The first.
    pub at_least: Version,
    /// The first that is too new.
    pub below: Version,
}

/// Three numbers, compared one after the other: `0.10.0` is newer than `0.9.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version([u32; 3]);

/// A file's name: lower-case letters, digits and `-`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProgramName(String);

/// A SHA-256 in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {wanted}")]
pub struct BadWord {
    found: String,
    wanted: &'static str,
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum BadManifest {
    /// No JSON, or other fields.
    #[error("it cannot be read")]
    Json(#[from] serde_json::Error),
    /// Made for a newer reader.
    #[error("it has version {0} of the format, and this program knows {FORMAT}")]
    Format(u32),
    /// It has no program, or too many.
    #[error("it names {0} programs, not 1 to {MAX_PROGRAMS}")]
    Count(usize),
    /// Larger than a disk can hold.
    #[error("it has {0} bytes, more than the {MAX_BYTES} that are allowed")]
    Size(u64),
    /// No version is in the range.
    #[error("it is for images from {} and below {}, which are none", .0.at_least, .0.below)]
    Range(Range),
}

impl Manifest {
    /// Reads one, and checks it against the limits.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(json: &[u8]) -> Result<Self, BadManifest> {
        /// Of all formats.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        match serde_json::from_slice(json)? {
            Format { format: FORMAT } => {}
            Format { format } => return Err(BadManifest::Format(format)),
        }
        let manifest: Self = serde_json::from_slice(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The same as JSON, always the same bytes.
    ///
    /// # Errors
    /// No reader would take it.
    pub fn to_json(&self) -> Result<Vec<u8>, BadManifest> {
        self.check()?;
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Bytes of all programs when they are unpacked.
    pub fn unpacked_bytes(&self) -> u64 {
        self.programs
            .values()
            .fold(0, |sum, program| sum.saturating_add(program.size))
    }

    fn check(&self) -> Result<(), BadManifest> {
        if !(1..=MAX_PROGRAMS).contains(&self.programs.len()) {
            return Err(BadManifest::Count(self.programs.len()));
        }
        let largest = self.unpacked_bytes().max(self.packed.size);
        if largest > MAX_BYTES {
            return Err(BadManifest::Size(largest));
        }
        if self.image.at_least >= self.image.below {
            return Err(BadManifest::Range(self.image));
        }
        Ok(())
    }
}

impl Range {
    /// Whether a version is in it.
    pub fn contains(self, version: Version) -> bool {
        self.at_least <= version && version < self.below
    }
}

impl Version {
    /// The versions that promise to be compatible: those with the same first number, or the same second where the first is 0
    /// (semver.org §4, §8).
    pub fn compatible(self) -> Range {
        let Self([major, minor, _]) = self;
        let (at_least, below) = match major {
            0 => ([0, minor, 0], [0, minor.saturating_add(1), 0]),
            _ => ([major, 0, 0], [major.saturating_add(1), 0, 0]),
        };
        Range {
            at_least: Self(at_least),
            below: Self(below),
        }
    }
}

impl FromStr for Version {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        let number = |word: &str| {
            let is_plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
            word.parse().ok().filter(|_| is_plain)
        };
        let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.map(Self).ok_or_else(|| BadWord {
            found: shortened(text),
            wanted: "a version; write it like 1.2.3",
        })
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl FromStr for ProgramName {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        let is_good = text.len() <= MAX_NAME
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        is_good.then(|| Self(text.to_owned())).ok_or_else(|| BadWord {
            found: shortened(text),
            wanted: "the name of a program: at most 32 lower-case letters, digits and -",
        })
    }
}

impl FromStr for Digest {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        let is_good = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_good.then(|| Self(text.to_owned())).ok_or_else(|| BadWord {
            found: shortened(text),
            wanted: "a SHA-256 in hexadecimal",
        })
    }
}

impl Digest {
    /// Of the bytes that a SHA-256 is.
    pub fn of(sha256: impl IntoIterator<Item = u8>) -> Result<Self, BadWord> {
        let mut text = String::new();
        for byte in sha256 {
            use fmt::Write;
            let _ = write!(text, "{byte:02x}");
        }
        text.parse()
    }
}

/// What a stranger wrote, in an error.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What the three kinds of words have in common: text is the only way in and out.
macro_rules! word {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = BadWord;

            fn try_from(text: String) -> Result<Self, BadWord> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(word: $type) -> Self {
                word.to_string()
            }
        }
    };
}

word!(Version);
word!(ProgramName);
word!(Digest);

impl Display for ProgramName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for ProgramName {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl AsRef<std::path::Path> for Digest {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(size: u64) -> Contents {
        Contents {
            size,
            sha256: "0123456789abcdef".repeat(4).parse().unwrap(),
        }
    }

    fn manifest() -> Manifest {
        let version: Version = "0.2.1".parse().unwrap();
        Manifest {
            format: FORMAT,
            version,
            image: version.compatible(),
            programs: [("agent".parse().unwrap(), contents(5))].into(),
            packed: contents(3),
        }
    }

    #[test]
    fn versions_are_compared_by_number_and_have_three() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("0.10.0") > version("0.9.1"));
        assert_eq!(version("1.2.3").to_string(), "1.2.3");
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "01.2.3",
            "+1.2.3",
            "1.2.3-rc",
            "1..2",
            "4294967296.0.0",
        ] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
        let range = version("0.2.1").compatible();
        assert!(range.contains(version("0.2.0")) && range.contains(version("0.2.99")));
        assert!(!range.contains(version("0.3.0")) && !range.contains(version("0.1.9")));
        assert!(version("2.5.1").compatible().contains(version("2.0.0")));
    }

    #[test]
    fn a_name_is_never_a_path() {
        for bad in [
            "", ".", "..", "../agent", "/agent", "a/b", "Agent", "-a", "1a", "a b", "a\0", "ä",
        ] {
            assert!(bad.parse::<ProgramName>().is_err(), "{bad}");
        }
        assert!("a".repeat(33).parse::<ProgramName>().is_err());
        assert_eq!(
            "console-proxy".parse::<ProgramName>().unwrap().to_string(),
            "console-proxy"
        );
    }

    #[test]
    fn a_manifest_beyond_the_limits_is_refused_with_what_is_wrong() {
        let refused = |change: fn(&mut Manifest)| {
            let mut changed = manifest();
            change(&mut changed);
            let json = serde_json::to_vec(&changed).unwrap();
            let error = Manifest::parse(&json).unwrap_err();
            assert_eq!(changed.to_json().is_err(), changed.format == FORMAT);
            error.to_string()
        };
        assert_eq!(
            refused(|manifest| manifest.format = 2),
            "it has version 2 of the format, and this program knows 1"
        );
        assert_eq!(
            refused(|manifest| manifest.programs.clear()),
            "it names 0 programs, not 1 to 16"
        );
        assert_eq!(
            refused(|manifest| manifest.packed.size = u64::MAX),
            "it has 18446744073709551615 bytes, more than the 536870912 that are allowed"
        );
        assert_eq!(
            refused(|manifest| {
                let huge = contents(u64::MAX);
                manifest.programs = ["a", "b"].map(|name| (name.parse().unwrap(), huge.clone())).into();
            }),
            "it has 18446744073709551615 bytes, more than the 536870912 that are allowed"
        );
        assert_eq!(
            refused(|manifest| manifest.image.below = manifest.image.at_least),
            "it is for images from 0.2.0 and below 0.2.0, which are none"
        );
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = String::from_utf8(manifest().to_json().unwrap()).unwrap();
        let more = json.replacen('{', "{\"run\": \"rm\",", 1);
        assert!(matches!(Manifest::parse(more.as_bytes()), Err(BadManifest::Json(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers: [u32; 3],
            names in proptest::collection::btree_set("[a-z][a-z0-9-]{0,31}", 1..=MAX_PROGRAMS),
            size in 0..(MAX_BYTES / 16),
        ) {
            let numbers = numbers.map(|number| number % 1_000_000);
            let version: Version = numbers.map(|number| number.to_string()).join(".").parse().unwrap();
            let programs = names.iter().map(|name| (name.parse().unwrap(), contents(size))).collect();
            let written = Manifest { version, image: version.compatible(), programs, ..manifest() };
            prop_assert_eq!(Manifest::parse(&written.to_json().unwrap()).unwrap(), written);
        }

        #[test]
        fn noise_is_no_manifest_and_no_panic(noise: Vec<u8>, text in "[{}\\[\\]\",:a-z0-9.]*") {
            prop_assert!(Manifest::parse(&noise).is_err());
            let _ = Manifest::parse(text.as_bytes());
        }
    }
}
