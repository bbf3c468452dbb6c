//! The part of an image that is made of packages and recipe alone, cached: unpacking 250 packages takes seconds, reading
//! what came out takes a fraction of one.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use platform::files::BESIDE;
use sha2::{Digest, Sha256};
use stage1::table::Table;
use tracing::{info, warn};

use crate::cache::{Cache, CacheError, hex, sha256_of};
use crate::lock::Package;
use crate::modules::{self, Kernel, ModulesError};
use crate::recipe::Recipe;
use crate::rootfs::{self, BadRoot};
use crate::tools::Tools;
use crate::tree::{Entry, Node, Tree, TreeError};

/// How many are kept in the cache: two recipes can be worked on by turns. Each has some 240 MB.
const KEPT: usize = 3;
/// Nobody takes so long to write one.
const ABANDONED: Duration = Duration::from_hours(24);
/// The directories in the cached archive.
const ROOT: &str = "root/";
const KERNEL: &str = "kernel/";

/// A root tree without what is ours, and its kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Files of packages, pruned; modules as the recipe lists them.
    pub tree: Tree,
    /// What starts it.
    pub kernel: Kernel,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// A package.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Packages and recipe do not fit together.
    #[error(transparent)]
    Root(#[from] BadRoot),
    /// The kernel's modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// It cannot be kept.
    #[error("cannot keep the unpacked packages in {}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Base {
    /// From the cache, or from the packages, and then it is in the cache.
    ///
    /// # Errors
    /// A package is missing or damaged, the recipe does not fit, or the disk is full.
    pub fn provide(cache: &Cache, packages: &[Package], recipe: &Recipe, tools: &Tools) -> Result<Self, BaseError> {
        let directory = cache.dir().join("base");
        let key = key(packages, recipe, tools).map_err(keep(&directory))?;
        let path = directory.join(format!("{key}.tar"));
        if let Ok(file) = File::open(&path) {
            match Self::read(&file) {
                Ok(base) => {
                    // The time of the last use, for `forget`.
                    file.set_modified(SystemTime::now()).ok();
                    return Ok(base);
                }
                Err(error) => {
                    warn!(error = %error, path = %path.display(), "Cached packages are damaged, unpacking again");
                }
            }
        }
        let left_out = recipe.left_out();
        let debs = cache.read_all(packages, |_, _| true)?;
        let debs: Vec<_> = debs.into_iter().map(|(_, deb)| deb).collect();
        info!(packages = debs.len() - left_out.len(), "Packages unpacked");
        let mut tree = rootfs::base(&debs, recipe)?;
        let kernel = modules::close(&mut tree, &recipe.modules, tools)?;
        let base = Self { tree, kernel };
        base.write(&directory, &path).map_err(keep(&directory))?;
        forget(&directory).map_err(keep(&directory))?;
        Ok(base)
    }

    fn write(&self, directory: &Path, path: &Path) -> io::Result<()> {
        let mut all = Tree::new();
        let mut put = |path: String, entry: Entry| -> Result<(), TreeError> {
            all.make_parents(&path);
            all.insert(path, entry)
        };
        let together = (|| {
            for (path, entry) in self.tree.iter() {
                let mut entry = entry.clone();
                if let Node::HardLink(target) = &mut entry.node {
                    target.insert_str(0, ROOT);
                }
                put(format!("{ROOT}{path}"), entry)?;
            }
            let Kernel {
                version,
                vmlinuz,
                table,
                stage1,
            } = &self.kernel;
            put(format!("{KERNEL}version"), Entry::file(0o644, version.clone()))?;
            put(format!("{KERNEL}vmlinuz"), Entry::file(0o644, vmlinuz.clone()))?;
            put(format!("{KERNEL}table"), Entry::file(0o644, table.render()))?;
            for (index, module) in stage1.iter().enumerate() {
                put(format!("{KERNEL}modules/{index}"), Entry::file(0o644, module.clone()))?;
            }
            Ok(())
        })();
        together.map_err(|error: TreeError| io::Error::other(error))?;
        fs::create_dir_all(directory)?;
        let beside = tempfile::Builder::new().prefix(BESIDE).tempfile_in(directory)?;
        let output = BufWriter::with_capacity(1 << 20, beside.as_file());
        all.write_tar(0, output).map_err(io::Error::other)?;
        beside.as_file().sync_all()?;
        beside.persist(path)?;
        Ok(())
    }

    fn read(file: &File) -> Result<Self, TreeError> {
        let all = Tree::read_tar(BufReader::with_capacity(1 << 20, file))?;
        let mut tree = Tree::new();
        for (path, entry) in all.below(ROOT) {
            let mut entry = entry.clone();
            if let Node::HardLink(target) = &mut entry.node {
                *target = target.strip_prefix(ROOT).unwrap_or(target).to_owned();
            }
            tree.insert(&path[ROOT.len()..], entry)?;
        }
        let file = |name: &str| {
            let path = format!("{KERNEL}{name}");
            let contents = all.contents(&path).cloned();
            contents.ok_or_else(|| TreeError::Archive(io::Error::other(format!("{path} is missing"))))
        };
        let text = |name: &str| {
            let contents = file(name)?;
            String::from_utf8(contents.to_vec()).map_err(|error| TreeError::Archive(io::Error::other(error)))
        };
        let table = Table::parse(&text("table")?).map_err(|error| TreeError::Archive(io::Error::other(error)))?;
        let stage1 = (0..table.modules.len()).map(|index| file(&format!("modules/{index}")));
        let kernel = Kernel {
            version: text("version")?,
            vmlinuz: file("vmlinuz")?,
            stage1: stage1.collect::<Result<Vec<Bytes>, _>>()?,
            table,
        };
        Ok(Self { tree, kernel })
    }
}

/// What it is made of, and by whom: another builder may unpack otherwise, so this very program is part of it.
fn key(packages: &[Package], recipe: &Recipe, tools: &Tools) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut digests: Vec<&str> = packages.iter().map(|package| package.sha256.as_str()).collect();
    digests.sort_unstable();
    for sha256 in digests {
        digest.update(sha256);
    }
    digest.update(&recipe.main_digest);
    digest.update(tools.key());
    digest.update(sha256_of(File::open("/proc/self/exe")?)?);
    Ok(hex(digest.finalize()))
}

/// Removes those that were not used for the longest time, and what builds have left that were killed a day ago.
fn forget(directory: &Path) -> io::Result<()> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(used) = entry.metadata().and_then(|data| data.modified()) else {
            continue; // another build has removed it
        };
        if !entry.file_name().to_string_lossy().starts_with(BESIDE) {
            all.push((used, entry.path()));
        } else if used.elapsed().is_ok_and(|age| age > ABANDONED) {
            fs::remove_file(entry.path()).ok();
        }
    }
    all.sort();
    for (_, path) in all.iter().rev().skip(KEPT) {
        fs::remove_file(path).ok();
    }
    Ok(())
}

fn keep(path: &Path) -> impl FnOnce(io::Error) -> BaseError {
    let path = path.to_owned();
    move |source| BaseError::Keep { path, source }
}
