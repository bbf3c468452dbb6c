//! The files of the console page (§9): our own, compiled in, and noVNC's, read from where it is installed. All are in
//! memory: small, few, and checked before the first request.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use include_dir::{Dir, include_dir};
use platform::files::{self, FileError};
use sha2::{Digest, Sha256};

static OWN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/page");

/// More than noVNC has; somebody named the wrong directory.
const MAX_FILES: usize = 1000;

/// The largest file of noVNC has 100 KB.
const MAX_FILE: u64 = 4 << 20;

/// The module that the page begins with.
const ENTRY: &str = "core/rfb.js";

/// One file.
#[derive(Debug, Clone)]
pub struct Asset {
    /// For the header `Content-Type`.
    pub content_type: &'static str,
    /// For the header `ETag`, in its quotes.
    pub etag: String,
    /// As it is sent.
    pub bytes: Bytes,
}

/// All files by their path below `/resource/noVNC/`.
#[derive(Debug, Default)]
pub struct Page(BTreeMap<String, Asset>);

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum NoPage {
    /// It is somewhere else, or not installed.
    #[error(
        "there is no {ENTRY} in {0}; set `novnc` to the directory of the unpacked npm package @novnc/novnc, or install \
         Debian's package novnc"
    )]
    NoNovnc(PathBuf),
    /// A directory of something else.
    #[error("{0} holds more than {MAX_FILES} files; is it the directory of noVNC?")]
    TooMany(PathBuf),
    /// The system said no.
    #[error("cannot list {path}")]
    List {
        /// Directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system said no.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Page {
    /// Reads noVNC from `novnc`.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn load(novnc: &Path) -> Result<Self, NoPage> {
        let mut page = Self::default();
        for directory in ["core", "vendor"] {
            page.add_directory(novnc, &novnc.join(directory))?;
        }
        if page.get(ENTRY).is_none() {
            return Err(NoPage::NoNovnc(novnc.to_owned()));
        }
        // Licences go with the code, under whatever name the package gives them.
        page.add_files(novnc, novnc, |name| {
            name.starts_with("LICENSE") || name.starts_with("AUTHORS")
        })?;
        page.add_own(&OWN);
        Ok(page)
    }

    fn add_own(&mut self, directory: &Dir<'static>) {
        for file in directory.files() {
            if let Some(path) = file.path().to_str() {
                self.add(path.to_owned(), Bytes::from_static(file.contents()));
            }
        }
        directory.dirs().for_each(|directory| self.add_own(directory));
    }

    fn add_directory(&mut self, root: &Path, directory: &Path) -> Result<(), NoPage> {
        self.add_files(root, directory, |name| content_type(name) != UNKNOWN)?;
        for entry in list(directory)? {
            if entry.is_dir() {
                self.add_directory(root, &entry)?;
            }
        }
        Ok(())
    }

    fn add_files(&mut self, root: &Path, directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), NoPage> {
        for path in list(directory)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(below) = path
                .strip_prefix(root)
                .ok()
                .and_then(Path::to_str)
                .filter(|_| wanted(name))
            else {
                continue;
            };
            if path.is_file()
                && let Some(bytes) = files::read_limited(&path, MAX_FILE)?
            {
                self.add(below.to_owned(), bytes.into());
            }
            if self.0.len() > MAX_FILES {
                return Err(NoPage::TooMany(root.to_owned()));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: String, bytes: Bytes) {
        let digest = Sha256::digest(&bytes);
        let mut etag = String::from('"');
        for byte in digest.iter().take(12) {
            write!(etag, "{byte:02x}").expect("a String takes everything");
        }
        etag.push('"');
        let asset = Asset {
            content_type: content_type(&path),
            etag,
            bytes,
        };
        self.0.insert(path, asset);
    }

    /// The file of a path below `/resource/noVNC/`.
    pub fn get(&self, path: &str) -> Option<&Asset> {
        // Older servers name a second page (§3.2); ours is one.
        let path = if path == "vnc_lite.html" { "vnc.html" } else { path };
        self.0.get(path)
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is in a directory, in the order of names; nothing, if it does not exist.
fn list(directory: &Path) -> Result<Vec<PathBuf>, NoPage> {
    let failed = |source| NoPage::List {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.sort_unstable();
    Ok(paths)
}

const UNKNOWN: &str = "application/octet-stream";

fn content_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "ico" => "image/vnd.microsoft.icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "mp3" => "audio/mpeg",
        "oga" => "audio/ogg",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ if name.starts_with("LICENSE") || name.starts_with("AUTHORS") => "text/plain; charset=utf-8",
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_novnc() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("core/rfb.js", "export default class {}"),
            ("core/input/keysym.js", "export default {}"),
            ("vendor/pako/LICENSE", "MIT"),
            ("LICENSE.txt", "MPL-2.0"),
            ("package.json", "{}"),
        ] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = files::replace(path, text, 0o644).unwrap();
        }
        directory
    }

    #[test]
    fn our_page_and_novncs_modules_and_licences_are_there_and_nothing_else() {
        let directory = fake_novnc();
        let page = Page::load(directory.path()).unwrap();
        assert_eq!(
            page.get("core/rfb.js").unwrap().content_type,
            "text/javascript; charset=utf-8"
        );
        assert_eq!(page.get("vendor/pako/LICENSE").unwrap().bytes, "MIT");
        assert_eq!(
            page.get("LICENSE.txt").unwrap().content_type,
            "text/plain; charset=utf-8"
        );
        assert_eq!(page.get("vnc.html").unwrap().content_type, "text/html; charset=utf-8");
        assert_eq!(
            page.get("vnc_lite.html").unwrap().etag,
            page.get("vnc.html").unwrap().etag
        );
        assert!(page.get("package.json").is_none() && page.get("core/../LICENSE.txt").is_none());
    }

    #[test]
    fn a_directory_without_novnc_is_refused_with_a_way_out() {
        let error = Page::load(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(
            error.starts_with("there is no core/rfb.js in /nowhere; set `novnc`"),
            "{error}"
        );
    }
}
