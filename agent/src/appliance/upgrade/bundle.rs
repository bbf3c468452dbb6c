//! A bundle's file. What it holds is believed step by step: the manifest when a key that we trust has signed it, the packed
//! programs when they have the digest in the manifest, and only then are they unpacked.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use platform::bundle::{
    BadManifest, Contents, Digest, MANIFEST, MAX_BYTES, MAX_MANIFEST, MAX_SIGNATURE, Manifest, PROGRAMS, SIGNATURE,
};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry};

use super::keys::{TrustedKeys, Untrusted};

/// Of one read or write.
const CHUNK: usize = 64 << 10;
/// Programs are for everybody, as those of the image: not every service is root.
const PROGRAM_MODE: u32 = 0o755;
/// What tar adds to the three members.
const TAR_OVERHEAD: u64 = 64 << 10;

/// A bundle that somebody we trust has made, and that is whole.
#[derive(Debug)]
pub struct Bundle {
    /// What is in it.
    pub manifest: Manifest,
    /// The manifest's SHA-256: the bundle's name on our disk.
    pub id: Digest,
    /// The file of the key that signed it.
    pub signed_by: String,
    manifest_json: Vec<u8>,
    signature: Vec<u8>,
    file: File,
    /// Where the packed programs begin.
    packed_at: u64,
}

/// Why a file is no bundle that we take.
#[derive(Debug, thiserror::Error)]
pub enum BadBundle {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a pipe, a link.
    #[error("{0} is no file; name the .sysvm file that `image-builder bundle` wrote")]
    NoFile(PathBuf),
    /// More than any bundle has.
    #[error("the bundle has {0} bytes, more than any that is allowed")]
    TooLarge(u64),
    /// It is not built as a bundle is.
    #[error("this is no bundle: {0}; is the file whole, and did `image-builder bundle` write it?")]
    Shape(String),
    /// Nobody we trust has signed it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// It is signed, and makes no sense to us.
    #[error("the bundle's manifest cannot be used")]
    Manifest(#[from] BadManifest),
    /// Other bytes than those that were signed.
    #[error("{what} of the bundle is not what was signed; upload it again")]
    Changed {
        /// What.
        what: String,
    },
    /// It could not be put on our disk.
    #[error("cannot {operation} {path}")]
    Write {
        /// What was tried.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Bundle {
    /// Reads the whole file once and checks it; unpacks nothing.
    ///
    /// # Errors
    /// It is no bundle that we take.
    pub fn open(path: &Path, keys: &TrustedKeys) -> Result<Self, BadBundle> {
        let failed = |source| BadBundle::Read {
            path: path.to_owned(),
            source,
        };
        // Neither a link nor a pipe, whoever put it there.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
            Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ELOOP) => {
                return Err(BadBundle::NoFile(path.to_owned()));
            }
            file => file.map_err(failed)?,
        };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(BadBundle::NoFile(path.to_owned()));
        }
        if found.len() > MAX_BYTES + MAX_MANIFEST + MAX_SIGNATURE + TAR_OVERHEAD {
            return Err(BadBundle::TooLarge(found.len()));
        }
        let read = read(&file, keys)?;
        file.seek(SeekFrom::Start(read.packed_at)).map_err(failed)?;
        Ok(Self {
            id: digest(Sha256::digest(&read.manifest_json)),
            manifest: read.manifest,
            signed_by: read.signed_by,
            manifest_json: read.manifest_json,
            signature: read.signature,
            file,
            packed_at: read.packed_at,
        })
    }

    /// Writes the programs, the manifest and its signature into a new directory, and onto the disk itself.
    ///
    /// # Errors
    /// The disk is full, or the file has changed meanwhile. What was written is left to the caller.
    pub fn unpack(&mut self, into: &Path) -> Result<(), BadBundle> {
        let failed = |operation| {
            move |source| BadBundle::Write {
                operation,
                path: into.to_owned(),
                source,
            }
        };
        DirBuilder::new()
            .mode(PROGRAM_MODE)
            .create(into)
            .map_err(failed("make the directory"))?;
        fs::set_permissions(into, Permissions::from_mode(PROGRAM_MODE)).map_err(failed("set the mode of"))?;
        write(
            &into.join(MANIFEST),
            0o644,
            &Contents {
                size: length(&self.manifest_json),
                sha256: self.id.clone(),
            },
            self.manifest_json.as_slice(),
        )?;
        let signature = Contents {
            size: length(&self.signature),
            sha256: digest(Sha256::digest(&self.signature)),
        };
        write(&into.join(SIGNATURE), 0o644, &signature, self.signature.as_slice())?;

        self.file
            .seek(SeekFrom::Start(self.packed_at))
            .map_err(failed("unpack the bundle into"))?;
        let packed = (&self.file).take(self.manifest.packed.size);
        let mut archive = Archive::new(GzDecoder::new(io::BufReader::with_capacity(CHUNK, packed)));
        let mut entries = members(&mut archive)?;
        for (name, contents) in &self.manifest.programs {
            let entry = next(&mut entries, &name.to_string(), contents.size, true)?;
            write(&into.join(name), PROGRAM_MODE, contents, entry)?;
        }
        ends(&mut entries)?;
        File::open(into)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("write"))
    }
}

/// What one pass over the file tells.
struct Checked {
    manifest: Manifest,
    manifest_json: Vec<u8>,
    signature: Vec<u8>,
    signed_by: String,
    packed_at: u64,
}

fn read(file: &File, keys: &TrustedKeys) -> Result<Checked, BadBundle> {
    let mut archive = Archive::new(io::BufReader::with_capacity(CHUNK, file));
    let mut entries = members(&mut archive)?;
    let manifest_json = all_of(next(&mut entries, MANIFEST, MAX_MANIFEST, false)?)?;
    let signature = all_of(next(&mut entries, SIGNATURE, MAX_SIGNATURE, false)?)?;
    let signed_by = keys.check(&manifest_json, &String::from_utf8_lossy(&signature))?;
    let manifest = Manifest::parse(&manifest_json)?;

    let mut packed = next(&mut entries, PROGRAMS, manifest.packed.size, true)?;
    let packed_at = packed.raw_file_position();
    let mut sha256 = Sha256::new();
    copy(&mut packed, |chunk| {
        sha256.update(chunk);
        Ok(())
    })
    .and_then(|copied| expect_all(copied, manifest.packed.size))
    .map_err(|error| BadBundle::Shape(error.to_string()))?;
    if digest(sha256.finalize()) != manifest.packed.sha256 {
        return Err(BadBundle::Changed { what: PROGRAMS.into() });
    }
    ends(&mut entries)?;
    Ok(Checked {
        manifest,
        manifest_json,
        signature,
        signed_by,
        packed_at,
    })
}

/// The members as they are: no extension of the format is followed, so nothing but the names that we expect can come.
fn members<R: Read>(archive: &mut Archive<R>) -> Result<tar::Entries<'_, R>, BadBundle> {
    let entries = archive.entries().map_err(|error| BadBundle::Shape(error.to_string()))?;
    Ok(entries.raw(true))
}

/// The next member, which must be a plain file of this name and of at most (or exactly) this size.
fn next<'a, R: Read>(
    entries: &mut tar::Entries<'a, R>,
    name: &str,
    size: u64,
    is_exact: bool,
) -> Result<Entry<'a, R>, BadBundle> {
    let entry = match entries.next() {
        None => return Err(BadBundle::Shape(format!("{name} is missing"))),
        Some(entry) => entry.map_err(|error| BadBundle::Shape(error.to_string()))?,
    };
    let found = entry.path_bytes();
    if *found != *name.as_bytes() {
        let found: String = String::from_utf8_lossy(&found).chars().take(80).collect();
        return Err(BadBundle::Shape(format!("{found:?} is where {name} should be")));
    }
    if !entry.header().entry_type().is_file() {
        return Err(BadBundle::Shape(format!("{name} is no plain file in it")));
    }
    if entry.size() > size || (is_exact && entry.size() != size) {
        let wanted = if is_exact { "not" } else { "more than" };
        return Err(BadBundle::Shape(format!(
            "{name} has {} bytes, {wanted} {size}",
            entry.size()
        )));
    }
    Ok(entry)
}

fn ends<R: Read>(entries: &mut tar::Entries<'_, R>) -> Result<(), BadBundle> {
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(BadBundle::Shape("there is more in it than there should be".to_owned())),
    }
}

fn all_of(mut entry: Entry<'_, impl Read>) -> Result<Vec<u8>, BadBundle> {
    let mut bytes = Vec::new();
    let size = entry.size(); // it was compared with a limit
    entry
        .read_to_end(&mut bytes)
        .and_then(|_| expect_all(length(&bytes), size))
        .map_err(|error| BadBundle::Shape(error.to_string()))?;
    Ok(bytes)
}

/// Writes a file that is not there yet, with exactly these contents.
fn write(path: &Path, mode: u32, wanted: &Contents, mut contents: impl Read) -> Result<(), BadBundle> {
    let failed = |source| BadBundle::Write {
        operation: "write",
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    let mut sha256 = Sha256::new();
    let copied = copy(&mut contents, |chunk| {
        sha256.update(chunk);
        file.write_all(chunk)
    });
    copied
        .and_then(|copied| expect_all(copied, wanted.size))
        .map_err(failed)?;
    if digest(sha256.finalize()) != wanted.sha256 {
        let what = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(BadBundle::Changed { what });
    }
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

fn copy(from: &mut impl Read, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut copied: u64 = 0;
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(copied),
            Ok(read) => {
                to(&chunk[..read])?;
                copied = copied.saturating_add(length(&chunk[..read]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn expect_all(found: u64, wanted: u64) -> io::Result<()> {
    if found == wanted {
        return Ok(());
    }
    let why = format!("it ends after {found} of {wanted} bytes");
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn digest(sha256: impl IntoIterator<Item = u8>) -> Digest {
    Digest::of(sha256).expect("a SHA-256 has 32 bytes")
}
