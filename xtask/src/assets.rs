//! `cargo xtask assets`: what the console page needs and is not ours, in `target/assets`.
//!
//! noVNC comes as an npm package of a pinned version and digest. The package itself is kept beside what was unpacked
//! from it, so that damage to either is seen, and the second run needs no network.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use platform::exec::Cmd;
use platform::files;
use sha2::{Digest, Sha256};

/// Where everything downloaded or built for running is kept; not a part of any program.
pub(crate) const DIRECTORY: &str = "target/assets";

const NAME: &str = "@novnc/novnc";
const VERSION: &str = "1.7.0";
/// As `npm pack` calls it.
const FILE: &str = "novnc-novnc-1.7.0.tgz";
/// Of the package as the npm registry has it.
const SHA256: &str = "32689f18d6abe96bc6530828a6bd0b9ae33bda07c083a6575ed255b5a8f2e903";

/// The package has 160 KB.
const MAX_PACKAGE: u64 = 8 << 20;
/// Of one unpacked file; the largest has 130 KB.
const MAX_FILE: u64 = 4 << 20;
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(3);

/// What a package must have to be of use, and to be passed on: the code, and the licences that go with it.
const NEEDED: [&str; 4] = ["core/rfb.js", "LICENSE.txt", "AUTHORS", "vendor/pako/LICENSE"];

/// One file of the package.
struct Entry {
    path: PathBuf,
    contents: Vec<u8>,
}

/// Makes sure that noVNC is unpacked; its directory.
pub(crate) async fn novnc() -> anyhow::Result<PathBuf> {
    let assets = Path::new(DIRECTORY);
    fs::create_dir_all(assets).with_context(|| format!("creating {DIRECTORY}"))?;
    let package = assets.join(FILE);
    let directory = assets.join("novnc");
    let bytes = match kept(&package)? {
        Some(bytes) => bytes,
        None => download(assets, &package).await?,
    };
    let entries = entries(&bytes).with_context(|| format!("reading {}", package.display()))?;
    if is_unpacked(&entries, &directory)? {
        eprintln!("noVNC {VERSION} is in {}", directory.display());
    } else {
        unpack(&entries, &directory)?;
        eprintln!(
            "noVNC {VERSION} unpacked to {}, with its licences (MPL-2.0; pako: MIT)",
            directory.display()
        );
    }
    Ok(directory)
}

/// The package, if it is here and whole.
fn kept(package: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let bytes = files::read_limited(package, MAX_PACKAGE)?;
    Ok(bytes.filter(|bytes| {
        let is_right = digest(bytes) == SHA256;
        if !is_right {
            eprintln!("{} is damaged, getting it again", package.display());
        }
        is_right
    }))
}

async fn download(assets: &Path, package: &Path) -> anyhow::Result<Vec<u8>> {
    // Into a directory of its own: what is interrupted or wrong never gets the package's name.
    let partial = tempfile::tempdir_in(assets).context("making a directory for the download")?;
    let pack = Cmd::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(partial.path())
        .arg(format!("{NAME}@{VERSION}"))
        .time_limit(DOWNLOAD_LIMIT);
    eprintln!("$ {pack}");
    pack.run()
        .await
        .context("getting noVNC from the npm registry; is there a network, and is npm set up for it?")?;
    let downloaded = partial.path().join(FILE);
    let bytes = files::read_limited(&downloaded, MAX_PACKAGE)?
        .with_context(|| format!("`npm pack` ended well but made no {FILE}"))?;
    let found = digest(&bytes);
    ensure!(
        found == SHA256,
        "{NAME} {VERSION} from the npm registry is not what it was: SHA-256 {found} instead of {SHA256}; do not use it, \
         and find out why the registry has another file"
    );
    fs::rename(&downloaded, package).with_context(|| format!("keeping {}", package.display()))?;
    Ok(bytes)
}

/// All files of the package, without the directory `package/` that npm puts around them.
fn entries(package: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(package)).entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path()?.into_owned();
        let inside = path.strip_prefix("package").unwrap_or(&path).to_owned();
        let is_plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(is_plain, "it has a file outside of its directory: {}", path.display());
        let mut contents = Vec::new();
        entry.take(MAX_FILE + 1).read_to_end(&mut contents)?;
        ensure!(
            u64::try_from(contents.len()).is_ok_and(|size| size <= MAX_FILE),
            "{} is larger than {MAX_FILE} bytes",
            path.display()
        );
        entries.push(Entry { path: inside, contents });
    }
    for needed in NEEDED {
        if !entries.iter().any(|entry| entry.path == Path::new(needed)) {
            bail!("it has no {needed}");
        }
    }
    Ok(entries)
}

/// Whether the directory has each file as it should be.
fn is_unpacked(entries: &[Entry], directory: &Path) -> anyhow::Result<bool> {
    for Entry { path, contents } in entries {
        if files::read_limited(directory.join(path), MAX_FILE)?.as_ref() != Some(contents) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn unpack(entries: &[Entry], directory: &Path) -> anyhow::Result<()> {
    replace_directory(directory, |fresh| {
        for Entry { path, contents } in entries {
            let path = fresh.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            File::create(&path)?.write_all(contents)?;
        }
        Ok(())
    })
    .with_context(|| format!("unpacking to {}", directory.display()))
}

/// Fills a new directory beside `directory` and then puts it in its place: it is whole or it is not there.
pub(crate) fn replace_directory(
    directory: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let fresh = directory.with_extension("new");
    remove_directory(&fresh)?;
    fs::create_dir_all(&fresh)?;
    fill(&fresh)?;
    remove_directory(directory)?;
    fs::rename(&fresh, directory)?;
    Ok(())
}

/// Deletes a directory with all in it, if it is there.
pub(crate) fn remove_directory(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("deleting {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn package(names: &[&str]) -> Vec<u8> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, &b"ok"[..]).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap()
    }

    fn needed() -> Vec<String> {
        NEEDED.iter().map(|name| format!("package/{name}")).collect()
    }

    #[test]
    fn a_package_is_unpacked_and_damage_is_seen() {
        let names = needed();
        let package = package(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let entries = entries(&package).unwrap();
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("novnc");
        assert!(!is_unpacked(&entries, &directory).unwrap());

        unpack(&entries, &directory).unwrap();
        assert!(is_unpacked(&entries, &directory).unwrap());

        let _ = files::replace(directory.join("core/rfb.js"), "no", 0o644).unwrap();
        assert!(!is_unpacked(&entries, &directory).unwrap());
        unpack(&entries, &directory).unwrap();
        assert!(is_unpacked(&entries, &directory).unwrap());
    }

    #[test]
    fn a_package_without_its_licence_or_with_paths_that_lead_out_is_refused() {
        let names = needed();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let reason = |names: &[&str]| entries(&package(names)).err().unwrap().to_string();
        assert_eq!(reason(&names[..1]), "it has no LICENSE.txt");
        let outside = [&names[..], &["package/../../x"]].concat();
        assert_eq!(
            reason(&outside),
            "it has a file outside of its directory: package/../../x"
        );
    }

    #[test]
    fn a_damaged_package_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let package = place.path().join(FILE);
        assert_eq!(kept(&package).unwrap(), None);
        let _ = files::replace(&package, "cut off", 0o644).unwrap();
        assert_eq!(kept(&package).unwrap(), None);
    }
}
