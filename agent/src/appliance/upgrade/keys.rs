//! Whose bundles are taken: public keys in minisign's format, which are part of the image.

use std::fs;
use std::io;
use std::path::PathBuf;

use minisign_verify::{PublicKey, Signature};
use platform::files::{self, FileError};

use crate::appliance::root::Root;

/// Where they are: files that end in `.pub`.
pub const DIRECTORY: &str = "/etc/sysvm/upgrade-keys";
/// Bytes of a key's file; real ones have some 120.
const MAX_KEY: u64 = 4096;
/// Keys that are read.
const MAX_KEYS: usize = 64;

/// The keys that this VM trusts.
pub struct TrustedKeys(Vec<(String, PublicKey)>);

/// Why a signature does not count, or the keys cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// Nobody can sign for this VM.
    #[error(
        "this image trusts no key, so it takes no bundle; build one that does: put the public key into \
         EXTRA{DIRECTORY}/NAME.pub and give `--extra EXTRA` to `image-builder build`"
    )]
    NoKeys,
    /// The directory cannot be read.
    #[error("cannot read {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// One cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// One is no key.
    #[error("{0} is no public key in minisign's format; take it out of the image, or put a good one in")]
    NoKey(PathBuf, #[source] minisign_verify::Error),
    /// It is no signature at all.
    #[error("the bundle's signature is none in minisign's format")]
    NoSignature(#[source] minisign_verify::Error),
    /// Another key.
    #[error("the bundle is signed with a key that this image does not trust; it trusts {}", .0.join(", "))]
    OtherKey(Vec<String>),
    /// The manifest is not what was signed.
    #[error("the bundle's signature is wrong: its manifest has changed since it was signed with {0}")]
    Changed(String),
}

impl TrustedKeys {
    /// Reads all of them.
    ///
    /// # Errors
    /// One of them is none: who made the image meant something else.
    pub fn read(root: &Root) -> Result<Self, Untrusted> {
        let directory = root.path(DIRECTORY);
        let failed = |error| Untrusted::Directory(directory.clone(), error);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self(Vec::new())),
            entries => entries.map_err(failed)?,
        };
        let mut keys = Vec::new();
        for entry in entries.take(MAX_KEYS) {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "pub") {
                continue;
            }
            let bytes = files::read_limited(&path, MAX_KEY)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let key = PublicKey::decode(&text).map_err(|error| Untrusted::NoKey(path.clone(), error))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            keys.push((name, key));
        }
        keys.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(Self(keys))
    }

    /// Whether one of them has signed this; the name of its file.
    ///
    /// # Errors
    /// None has.
    pub fn check(&self, signed: &[u8], signature: &str) -> Result<String, Untrusted> {
        if self.0.is_empty() {
            return Err(Untrusted::NoKeys);
        }
        let signature = Signature::decode(signature).map_err(Untrusted::NoSignature)?;
        for (name, key) in &self.0 {
            match key.verify(signed, &signature, false) {
                Ok(()) => return Ok(name.clone()),
                Err(minisign_verify::Error::UnexpectedKeyId) => {}
                Err(_) => return Err(Untrusted::Changed(name.clone())),
            }
        }
        Err(Untrusted::OtherKey(
            self.0.iter().map(|(name, _)| name.clone()).collect(),
        ))
    }
}
