//! What an image was made of and what came out: `manifest.json` and `SHA256SUMS`.
//!
//! Neither has a time, a path or the name of a machine in it, so both are the same wherever they are made.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::hex;
use crate::lock::{Lock, Package};

/// The manifest's name beside the images.
pub const MANIFEST: &str = "manifest.json";
/// The list of digests' name beside the images.
pub const SUMS: &str = "SHA256SUMS";
/// The version of [`Manifest`]'s format.
const VERSION: u32 = 1;
/// Bytes of a manifest or list of digests; real ones have some ten thousand.
const MAX_FILE: u64 = 4 << 20;

/// Everything that decides the bytes of a build, and the digests of all that came out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format of this file; 1.
    pub version: u32,
    /// Program and version: `image-builder 0.1.0`.
    pub builder: String,
    /// The time that all files have, in seconds since 1970.
    pub epoch: u64,
    /// SHA-256 of the recipe with its overlay.
    pub recipe: String,
    /// SHA-256 of the lock file.
    pub lock: String,
    /// The packages that the tools came from.
    pub tools: Vec<Tool>,
    /// Our programs in the image, by name.
    pub programs: BTreeMap<String, Contents>,
    /// Other files that were put into the image, by their path there.
    pub extra: BTreeMap<String, Contents>,
    /// SHA-256 of parts of the image, by name: `esp`, `initrd`, `root.tar`.
    pub intermediates: BTreeMap<String, String>,
    /// The files that were delivered, by name.
    pub artefacts: BTreeMap<String, Contents>,
}

/// A package of the tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `e2fsprogs`.
    pub name: String,
    /// With epoch.
    pub version: String,
    /// Of the `.deb`.
    pub sha256: String,
}

/// What a file holds, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Bytes.
    pub size: u64,
    /// In hexadecimal.
    pub sha256: String,
}

/// Why a manifest or a list of digests cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not there.
    #[error("{0} does not exist; is this a directory that `image-builder build` filled?")]
    Missing(PathBuf),
    /// It is no JSON, or has other fields.
    #[error("{path} is not a manifest of this program")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Made by a newer program.
    #[error("{path} has version {found} of the format; this program knows {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// A line of the list of digests.
    #[error("line {line} of {path} is not `DIGEST  NAME`, or NAME is not that of a file beside it")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A file that is listed cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Manifest {
    /// The manifest of a build whose parts are not known yet.
    pub fn new(lock: &Lock, lock_text: &str, recipe: String, epoch: u64) -> Self {
        Self {
            version: VERSION,
            builder: concat!("image-builder ", env!("CARGO_PKG_VERSION")).to_owned(),
            epoch,
            recipe,
            lock: Contents::of(lock_text.as_bytes()).sha256,
            tools: lock.tools.iter().map(Tool::of).collect(),
            programs: BTreeMap::new(),
            extra: BTreeMap::new(),
            intermediates: BTreeMap::new(),
            artefacts: BTreeMap::new(),
        }
    }

    /// Adds delivered files, by their names in `directory`.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn add_artefacts(&mut self, directory: &Path, names: &[String]) -> Result<(), ManifestError> {
        let paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
        for (name, contents) in names.iter().zip(Contents::of_files(&paths)) {
            self.artefacts.insert(name.clone(), contents?);
        }
        Ok(())
    }

    /// The digests of the delivered files and of the manifest itself.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::of(&self.artefacts);
        sums.0
            .insert(MANIFEST.to_owned(), Contents::of(self.render().as_bytes()).sha256);
        sums
    }

    /// Writes the manifest, and then the list of digests, into a directory.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), ManifestError> {
        let _ = files::replace(directory.join(MANIFEST), self.render(), 0o644)?;
        let _ = files::replace(directory.join(SUMS), self.sums().render(), 0o644)?;
        Ok(())
    }

    /// As JSON, with a line end.
    pub fn render(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("it has neither maps with odd keys nor floats");
        text.push('\n');
        text
    }

    /// Reads the manifest in a directory.
    ///
    /// # Errors
    /// There is none, or it is of another program or version.
    pub fn load(directory: &Path) -> Result<Self, ManifestError> {
        let path = directory.join(MANIFEST);
        let text = read(&path)?;
        let manifest: Self = match serde_json::from_slice(&text) {
            Ok(manifest) => manifest,
            Err(source) => return Err(ManifestError::Manifest { path, source }),
        };
        match manifest.version {
            VERSION => Ok(manifest),
            found => Err(ManifestError::Version { path, found }),
        }
    }
}

impl Tool {
    fn of(package: &Package) -> Self {
        Self {
            name: package.name.clone(),
            version: package.version.clone(),
            sha256: package.sha256.clone(),
        }
    }
}

impl Contents {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            sha256: hex(Sha256::digest(bytes)),
        }
    }

    /// Of all that `input` still has.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(mut input: impl Read) -> io::Result<Self> {
        let mut buffer = vec![0; 256 << 10];
        let (mut hash, mut size) = (Sha256::new(), 0);
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hash.update(&buffer[..length]);
                    size += u64::try_from(length).unwrap_or(u64::MAX);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            size,
            sha256: hex(hash.finalize()),
        })
    }

    /// Of a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(path: &Path) -> Result<Self, ManifestError> {
        let contents = File::open(path).and_then(Self::read);
        contents.map_err(|source| ManifestError::Read {
            path: path.to_owned(),
            source,
        })
    }

    /// Of several files, on all cores. The answers are in the order of the paths.
    pub fn of_files(paths: &[PathBuf]) -> Vec<Result<Self, ManifestError>> {
        let workers = thread::available_parallelism().map_or(1, usize::from).min(paths.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some(path) = paths.get(index)
            {
                done.push((index, Self::of_file(path)));
            }
            done
        };
        let mut all: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let done = workers
                .into_iter()
                .map(|worker| worker.join().expect("reading does not panic"));
            done.flatten().collect()
        });
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, contents)| contents).collect()
    }
}

/// Digests by file name, as sha256sum(1) writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums(pub BTreeMap<String, String>);

impl Sums {
    /// Of these files.
    pub fn of(files: &BTreeMap<String, Contents>) -> Self {
        Self(
            files
                .iter()
                .map(|(name, file)| (name.clone(), file.sha256.clone()))
                .collect(),
        )
    }

    /// The text that `sha256sum -c` reads.
    pub fn render(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (name, digest)| {
            writeln!(text, "{digest}  {name}").expect("a string takes it");
            text
        })
    }

    /// Reads the list in a directory. Names with a `/` in them are refused: what is listed is beside the list.
    ///
    /// # Errors
    /// There is none, or a line is not as it should be.
    pub fn load(directory: &Path) -> Result<Self, ManifestError> {
        let path = directory.join(SUMS);
        let text = String::from_utf8_lossy(&read(&path)?).into_owned();
        let mut sums = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let parts = line.split_once("  ").or_else(|| line.split_once(" *"));
            let good = parts.filter(|(digest, name)| is_digest(digest) && is_file_name(name));
            let is_new = good.is_some_and(|(digest, name)| sums.insert(name.to_owned(), digest.to_owned()).is_none());
            if !is_new {
                let line = number + 1;
                return Err(ManifestError::Line { path, line });
            }
        }
        Ok(Self(sums))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ManifestError> {
    files::read_limited(path, MAX_FILE)?.ok_or_else(|| ManifestError::Missing(path.to_owned()))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_file_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && !text.contains(['/', '\\', '\0']) && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use platform::exec::Cmd;
    use platform::files::replace;
    use proptest::prelude::*;

    use super::*;

    fn lock() -> Lock {
        let package = Package {
            name: "kmod".to_owned(),
            version: "34-1".to_owned(),
            arch: "amd64".to_owned(),
            sha256: "ab".repeat(32),
            size: 5,
            source: "kmod".to_owned(),
            source_version: "34-1".to_owned(),
            archive: "debian".to_owned(),
            path: "pool/main/k/kmod/kmod_34-1_amd64.deb".to_owned(),
        };
        Lock {
            version: 1,
            requested: Vec::new(),
            suites: Vec::new(),
            packages: Vec::new(),
            tools: vec![package],
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::new(&lock(), "the lock", "00".repeat(32), 1_735_689_600);
        manifest
            .artefacts
            .insert("disk.qcow2".to_owned(), Contents::of(b"image"));
        let _ = replace(dir.path().join(MANIFEST), manifest.render(), 0o644).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), manifest);

        manifest.version = 2;
        let _ = replace(dir.path().join(MANIFEST), manifest.render(), 0o644).unwrap();
        let error = Manifest::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("has version 2 of the format; this program knows 1"),
            "{error}"
        );
    }

    #[test]
    fn a_manifest_says_only_what_decides_the_bytes() {
        insta::assert_snapshot!(Manifest::new(&lock(), "the lock", "00".repeat(32), 1_735_689_600).render());
    }

    #[tokio::test]
    async fn the_real_sha256sum_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a b.qcow2", "ü.raw", "-x"];
        let paths: Vec<_> = names.iter().map(|name| dir.path().join(name)).collect();
        for (path, name) in paths.iter().zip(names) {
            let _ = replace(path, name.repeat(100_000), 0o644).unwrap();
        }
        let contents = Contents::of_files(&paths).into_iter().map(Result::unwrap);
        let files = names.iter().map(|name| (*name).to_owned()).zip(contents).collect();
        let sums = Sums::of(&files);
        let _ = replace(dir.path().join(SUMS), sums.render(), 0o644).unwrap();
        assert_eq!(Sums::load(dir.path()).unwrap(), sums);
        assert_eq!(files["-x"].size, 200_000);

        let check = Cmd::new("env")
            .arg("-C")
            .arg(dir.path())
            .args(["sha256sum", "--strict", "-c", SUMS]);
        check.run().await.unwrap();
        let _ = replace(&paths[1], "changed", 0o644).unwrap();
        assert!(check.run().await.is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let digest = "ab".repeat(32);
        for name in ["../x", "/etc/passwd", "..", "", "a\\nb"] {
            let _ = replace(
                dir.path().join(SUMS),
                format!("{digest}  good\n{digest}  {name}\n"),
                0o644,
            )
            .unwrap();
            let error = Sums::load(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with("line 2 of "), "{error}");
        }
    }

    proptest! {
        #[test]
        fn noise_in_a_list_never_panics(text in any::<Vec<u8>>()) {
            let dir = tempfile::tempdir().unwrap();
            let _ = replace(dir.path().join(SUMS), &text, 0o644).unwrap();
            if let Ok(sums) = Sums::load(dir.path()) {
                prop_assert!(text.is_empty() || !sums.0.is_empty());
            }
        }
    }
}
