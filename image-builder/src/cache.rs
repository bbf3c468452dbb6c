//! Packages on this machine's disk: `deb/SHA256` below one directory. What is there is whole, so a build that was
//! interrupted goes on where it was, and one without a network uses what an earlier one got.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use sha2::{Digest, Sha256};

use crate::deb::{Deb, DebError};
use crate::lock::Package;
use crate::progress;
use crate::tree::Entry;

/// A directory of packages, and of what is made of them once.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// Why a package cannot be had from the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither `XDG_CACHE_HOME` nor `HOME` says where it would be.
    #[error("neither XDG_CACHE_HOME nor HOME is set; name a directory with --cache")]
    NoPlace,
    /// The disk said no.
    #[error("cannot {operation} {path}")]
    Io {
        /// As a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was not downloaded.
    #[error("the package {package} is not in the cache {dir}; run image-builder fetch")]
    Missing {
        /// Its name and version.
        package: String,
        /// The cache.
        dir: PathBuf,
    },
    /// The file is not what its name says.
    #[error("{path}, the package {name}, is damaged: its sha256 is {found}; delete it and run image-builder fetch")]
    Damaged {
        /// Of the package.
        name: String,
        /// In the cache.
        path: PathBuf,
        /// Hex.
        found: String,
    },
    /// The digest is right, and yet it cannot be used.
    #[error("cannot use the package {package}")]
    Deb {
        /// Its name and version.
        package: String,
        /// Why.
        source: Box<DebError>,
    },
    /// The lock file and the package do not agree.
    #[error("the lock file says {package}, and the package with this sha256 is {found}; run image-builder lock")]
    Other {
        /// Name, version and architecture in the lock file.
        package: String,
        /// The same in the package.
        found: String,
    },
}

impl Cache {
    /// `$XDG_CACHE_HOME/sysvm`, or `~/.cache/sysvm`.
    ///
    /// # Errors
    /// There is neither.
    pub fn default_dir() -> Result<PathBuf, CacheError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // A relative one is to be ignored (XDG Base Directory Specification).
        let of_xdg = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let of_home = || set("HOME").map(|home| home.join(".cache"));
        Ok(of_xdg.or_else(of_home).ok_or(CacheError::NoPlace)?.join("sysvm"))
    }

    /// The cache in this directory, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let dir = dir.into();
        let debs = dir.join("deb");
        fs::create_dir_all(&debs).map_err(failed("make the directory", &debs))?;
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where this package is, or will be.
    pub fn path(&self, package: &Package) -> PathBuf {
        self.dir.join("deb").join(&package.sha256)
    }

    /// Those that are not here.
    pub fn missing<'a>(&self, packages: &'a [Package]) -> Vec<&'a Package> {
        let has = |package: &Package| {
            let found = fs::metadata(self.path(package));
            found.is_ok_and(|found| found.is_file() && found.len() == package.size)
        };
        packages.iter().filter(|package| !has(package)).collect()
    }

    /// Opens a package. Its digest was right when it was stored; [`Cache::read`] looks again.
    ///
    /// # Errors
    /// It is not here, or cannot be opened.
    pub fn deb(&self, package: &Package) -> Result<File, CacheError> {
        let path = self.path(package);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CacheError::Missing {
                package: format!("{} {}", package.name, package.version),
                dir: self.dir.clone(),
            },
            _ => failed("open", &path)(error),
        })
    }

    /// Reads a package, and compares it with what the lock file says: digest, name, version, architecture.
    ///
    /// # Errors
    /// It is not here, it is damaged, or it is another one.
    pub fn read(&self, package: &Package) -> Result<Deb, CacheError> {
        let mut input = Hashing {
            input: self.deb(package)?,
            digest: Sha256::new(),
        };
        let deb = Deb::read(&mut input);
        let path = self.path(package);
        io::copy(&mut input, &mut io::sink()).map_err(failed("read", &path))?;
        let found = hex(input.digest.finalize());
        if found != package.sha256 {
            let name = package.name.clone();
            return Err(CacheError::Damaged { name, path, found });
        }
        let deb = deb.map_err(|source| CacheError::Deb {
            package: format!("{} {}", package.name, package.version),
            source: Box::new(source),
        })?;
        let control = &deb.control;
        let named = |name: &str, version: &str, arch: &str| format!("{name} {version} {arch}");
        let found = named(control.package(), control.version(), control.architecture());
        let package = named(&package.name, &package.version, &package.arch);
        if found != package {
            return Err(CacheError::Other { package, found });
        }
        Ok(deb)
    }

    /// Reads packages with all processors, in the order they are given. `keep` says which of their files are kept, so that
    /// what is not wanted never takes memory together; directories are kept.
    ///
    /// # Errors
    /// The first package, in order, that cannot be read.
    pub fn read_all(
        &self,
        packages: &[Package],
        keep: impl Fn(&str, &Entry) -> bool + Sync,
    ) -> Result<Vec<(Package, Deb)>, CacheError> {
        let progress = progress::step("Unpacking packages", packages.iter().map(|package| package.size).sum());
        // The largest first: no thread is left alone with it at the end.
        let mut order: Vec<usize> = (0..packages.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(packages[*index].size));
        let next = AtomicUsize::new(0);
        let (done, results) = mpsc::channel();
        let work = || {
            while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let package = &packages[*index];
                let result = self.read(package).map(|mut deb| {
                    deb.data.retain_files(&keep);
                    deb
                });
                let has_failed = result.is_err();
                progress.add(package.size);
                if done.send((*index, result)).is_err() || has_failed {
                    next.store(order.len(), Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads() {
                scope.spawn(work);
            }
            work();
        });
        drop(done);
        let mut results: Vec<_> = results.into_iter().collect();
        results.sort_by_key(|(index, _)| *index);
        let with_package = |(index, result): (usize, Result<Deb, _>)| Ok((packages[index].clone(), result?));
        results.into_iter().map(with_package).collect()
    }
}

/// How many threads to work with.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Passes on what is read, and knows the digest of it all.
struct Hashing<R> {
    input: R,
    digest: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}

/// The SHA-256 of a file's contents, in hex.
pub fn sha256_of(input: impl Read) -> io::Result<String> {
    let digest = Sha256::new();
    let mut input = Hashing { input, digest };
    let mut buffer = vec![0; 128 << 10];
    while input.read(&mut buffer)? > 0 {}
    Ok(hex(input.digest.finalize()))
}

/// Lower case.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    use std::fmt::Write;
    let bytes = bytes.as_ref();
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").ok(); // into a string it cannot fail
            text
        })
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |source| CacheError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
