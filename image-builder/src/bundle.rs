//! Upgrade bundles: our programs alone, for system VMs that run. The format is [`platform::bundle`]'s.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use minisign::SecretKey;
use platform::bundle::{
    BadManifest, BadWord, Contents, Digest, FORMAT, MANIFEST, MAX_BYTES, Manifest, PROGRAMS, ProgramName, Range,
    SIGNATURE, Version,
};
use platform::files::{self, FileError};
use sha2::{Digest as _, Sha256};

use crate::sign::{self, SignError};

/// How names of bundles end.
pub const SUFFIX: &str = ".sysvm";

/// Why no bundle was made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program is not there.
    #[error("{0} does not exist; `cargo xtask image` builds the programs")]
    NoProgram(PathBuf),
    /// A program with a name that no bundle can have.
    #[error(transparent)]
    Name(#[from] BadWord),
    /// No VM would take it.
    #[error("no VM would take this bundle")]
    Manifest(#[from] BadManifest),
    /// The key does not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Memory is full.
    #[error("packing the programs")]
    Pack(#[source] io::Error),
}

/// The bytes of a bundle of these programs in a directory. Without the signature (which has random numbers in it) they are the
/// same whenever and wherever they are made.
///
/// # Errors
/// A program is missing, or all together are too large.
pub fn make(
    directory: &Path,
    names: &[String],
    version: Version,
    image: Range,
    key: &SecretKey,
) -> Result<Vec<u8>, BundleError> {
    let mut programs: BTreeMap<ProgramName, Vec<u8>> = BTreeMap::new();
    for name in names {
        let path = directory.join(name);
        let program = files::read_limited(&path, MAX_BYTES)?.ok_or(BundleError::NoProgram(path))?;
        programs.insert(name.parse()?, program);
    }
    let packed = pack(&programs).map_err(BundleError::Pack)?;
    let manifest = Manifest {
        format: FORMAT,
        version,
        image,
        programs: programs
            .iter()
            .map(|(name, program)| Ok((name.clone(), contents(program)?)))
            .collect::<Result<_, BadWord>>()?,
        packed: contents(&packed)?,
    };
    let json = manifest.to_json()?;
    let signature = sign::signature_of(&json, key, &format!("file:{MANIFEST}\tsysvm {version}"))?;
    let members = [
        (MANIFEST, json.as_slice()),
        (SIGNATURE, signature.as_bytes()),
        (PROGRAMS, &packed),
    ];
    archive(members.map(|(name, contents)| (name, 0o644, contents)), Vec::new()).map_err(BundleError::Pack)
}

fn pack(programs: &BTreeMap<ProgramName, Vec<u8>>) -> io::Result<Vec<u8>> {
    // No time and no name in its header.
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let named: Vec<_> = programs
        .iter()
        .map(|(name, program)| (name.to_string(), program))
        .collect();
    let members = named
        .iter()
        .map(|(name, program)| (name.as_str(), 0o755, program.as_slice()));
    archive(members, gzip)?.finish()
}

/// A tar archive of files of nobody and no time.
fn archive<'a, W: Write>(members: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>, to: W) -> io::Result<W> {
    let mut archive = tar::Builder::new(to);
    for (name, mode, contents) in members {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_path(name)?;
        header.set_mode(mode);
        header.set_size(u64::try_from(contents.len()).unwrap_or(u64::MAX));
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        archive.append(&header, contents)?;
    }
    archive.into_inner()
}

fn contents(bytes: &[u8]) -> Result<Contents, BadWord> {
    Ok(Contents {
        size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        sha256: Digest::of(Sha256::digest(bytes))?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use platform::exec::Cmd;
    use platform::files::replace;

    use super::*;
    use crate::sign::{Password, new_key, secret_key};

    #[tokio::test]
    async fn a_bundle_is_the_same_each_time_but_for_its_signature_and_minisign_and_tar_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let [secret, public] = ["upgrade.key", "upgrade.pub"].map(|name| dir.path().join(name));
        new_key(&secret, &public, Password::None).unwrap();
        let key = secret_key(&secret, None).unwrap();
        for (name, program) in [("agent", vec![7; 100_000]), ("ssvm", b"#!".to_vec())] {
            let _ = replace(dir.path().join(name), program, 0o600).unwrap();
        }
        let names = ["ssvm".to_owned(), "agent".to_owned()];
        let version: Version = "0.2.0".parse().unwrap();
        let bundle = || make(dir.path(), &names, version, version.compatible(), &key).unwrap();

        let members = |bundle: &[u8]| {
            let mut archive = tar::Archive::new(bundle);
            let entries = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).unwrap();
                (entry.path().unwrap().to_str().unwrap().to_owned(), contents)
            });
            entries.collect::<Vec<_>>()
        };
        let (one, other) = (members(&bundle()), members(&bundle()));
        assert_eq!(one[0], other[0]);
        assert_eq!(one[2], other[2]);
        let found: Vec<_> = one.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, ["manifest.json", "manifest.json.minisig", "programs.tar.gz"]);
        let manifest = Manifest::parse(&one[0].1).unwrap();
        assert_eq!(manifest.unpacked_bytes(), 100_002);
        assert_eq!(manifest.packed, contents(&one[2].1).unwrap());

        for (name, contents) in &one {
            let _ = replace(dir.path().join(name), contents, 0o600).unwrap();
        }
        let minisign = Cmd::new("minisign").args(["-V", "-H", "-p"]).arg(&public).arg("-m");
        let said = minisign.arg(dir.path().join(MANIFEST)).run().await.unwrap().text();
        assert!(said.contains("file:manifest.json\tsysvm 0.2.0"), "{said}");
        let listed = Cmd::new("tar")
            .args(["-tvzf"])
            .arg(dir.path().join(PROGRAMS))
            .run()
            .await
            .unwrap();
        let listed = listed.text();
        let lines: Vec<_> = listed.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].starts_with("-rwxr-xr-x 0/0") && lines[0].ends_with(" agent"),
            "{listed}"
        );
    }

    #[test]
    fn a_missing_program_and_a_bundle_for_no_image_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("k"), dir.path().join("p"));
        new_key(&secret, &public, Password::None).unwrap();
        let key = secret_key(&secret, None).unwrap();
        let version: Version = "1.0.0".parse().unwrap();
        let names = ["agent".to_owned()];
        let error = make(dir.path(), &names, version, version.compatible(), &key).unwrap_err();
        let path = dir.path().join("agent").display().to_string();
        assert_eq!(
            error.to_string(),
            format!("{path} does not exist; `cargo xtask image` builds the programs")
        );
        let _ = replace(dir.path().join("agent"), "x", 0o755).unwrap();
        let none = Range {
            at_least: version,
            below: version,
        };
        assert!(matches!(
            make(dir.path(), &names, version, none, &key),
            Err(BundleError::Manifest(BadManifest::Range(_)))
        ));
    }
}
