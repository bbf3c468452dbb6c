//! The pipeline: from recipe, lock file and programs to a directory with images, each step told and cached as far as it
//! can be.
//!
//! Packages, tools and the root tree of packages ("base") are cached by the digests of what they are made of. What is ours
//! (overlay, programs) is put on top each time: that, the disk and the formats are what a warm rebuild costs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use platform::files::{self, BESIDE, FileError};
use sha2::{Digest, Sha256};
use tracing::info;

use crate::base::{Base, BaseError};
use crate::cache::{Cache, CacheError, hex};
use crate::disk::{self, DiskError, Made};
use crate::fetch::{self, FetchError};
use crate::formats::{self, Compression, Format, OpenError, Watched};
use crate::lock::Lock;
use crate::manifest::{Contents, MANIFEST, Manifest, ManifestError, SUMS};
use crate::mirror::Source;
use crate::progress;
use crate::recipe::Recipe;
use crate::rootfs::{self, Additions, BadRoot};
use crate::stop;
use crate::tools::{Tools, ToolsError};

/// The name of images, before the ending.
pub const NAME: &str = "sysvm";
/// The program that the initrd runs; it is not in the root file system.
pub const STAGE1: &str = "stage1";

/// Bytes of one of our programs; they have some ten million.
const MAX_PROGRAM: u64 = 256 << 20;
/// Held while a build writes into its output directory.
const LOCK_FILE: &str = ".lock";

/// A file that a build can make.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum Artefact {
    /// The bytes of the disk, with holes
    Raw,
    /// For KVM: compressed with zstd, for QEMU 5.1 and later
    Qcow2,
    /// For older QEMU: a qcow2 without compression
    Qcow2Plain,
    /// For XenServer and Hyper-V: a dynamic VHD
    Vhd,
    /// For VMware: a streamOptimized VMDK and its description
    Ova,
    /// The root file system alone
    Tar,
}

/// What to build, of what, and where.
#[derive(Debug)]
pub struct Options {
    /// What the image is made of.
    pub recipe: Recipe,
    /// Exactly which packages.
    pub lock: Lock,
    /// Where packages are kept.
    pub cache: Cache,
    /// Where missing packages come from.
    pub source: Source,
    /// A directory with our programs and [`STAGE1`].
    pub programs: PathBuf,
    /// A directory with other files for the image, laid out as there.
    pub extra: Option<PathBuf>,
    /// The directory for what is made.
    pub output: PathBuf,
    /// What is made.
    pub artefacts: BTreeSet<Artefact>,
}

/// Why nothing was built. What was in the output directory before is still there.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Packages.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The tools.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// The part that is made of packages.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The root file system.
    #[error(transparent)]
    Root(#[from] BadRoot),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An image of another format.
    #[error("cannot make {name}{}", full(source))]
    Format {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The disk that was just made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The lock file's text.
    #[error("cannot write the lock file as text")]
    Lock(#[from] toml::ser::Error),
    /// A small file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program is not there.
    #[error("{} is missing; build our programs first (`cargo xtask image` does) or name their directory with --programs", .0.display())]
    NoProgram(PathBuf),
    /// The lock file is for other packages than the recipe.
    #[error(
        "the recipe and the lock file name different packages ({}); run `image-builder lock`",
        names.join(", ")
    )]
    OtherPackages {
        /// Those that are in one of them only.
        names: Vec<String>,
    },
    /// Two builds into one directory.
    #[error("another build is writing into {}; wait for its end, or name another --output", .0.display())]
    Busy(PathBuf),
    /// A file or directory.
    #[error("cannot {operation} {}{}", path.display(), full(source))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn full(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            "; the disk is full: free some space and run it again, what is done is not done twice"
        }
        _ => "",
    }
}

impl Artefact {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Raw,
        Self::Qcow2,
        Self::Qcow2Plain,
        Self::Vhd,
        Self::Ova,
        Self::Tar,
    ];

    /// Its name in the output directory.
    pub fn file_name(self) -> String {
        match self {
            Self::Raw => format!("{NAME}.raw"),
            Self::Qcow2 => format!("{NAME}.qcow2"),
            Self::Qcow2Plain => format!("{NAME}-plain.qcow2"),
            Self::Vhd => format!("{NAME}.vhd"),
            Self::Ova => format!("{NAME}.ova"),
            Self::Tar => format!("{NAME}.tar"),
        }
    }

    /// How it is written from the raw disk; the disk itself and the tar are not.
    fn format(self) -> Option<(Format, Compression)> {
        match self {
            Self::Raw | Self::Tar => None,
            Self::Qcow2 => Some((Format::Qcow2, Compression::Zstd)),
            Self::Qcow2Plain => Some((Format::Qcow2, Compression::None)),
            Self::Vhd => Some((Format::Vhd, Compression::None)),
            Self::Ova => Some((Format::Ova, Compression::None)),
        }
    }
}

/// Builds. Files get their names in the output directory when all of them are whole and on the disk; those of an earlier
/// build that this one does not make are removed.
///
/// # Errors
/// Something is missing, damaged or does not fit together, or a disk is full.
pub async fn build(options: Options) -> Result<Manifest, BuildError> {
    let Options {
        recipe,
        lock,
        cache,
        output,
        ..
    } = &options;
    same_packages(recipe, lock)?;
    let programs = Programs::read(&options.programs, recipe)?;
    let extra = options.extra.as_deref().map_or_else(|| Ok(Vec::new()), extra_files)?;
    let place = Place::take(output)?;
    fetch::provide(cache, &lock.packages, &options.source).await?;
    fetch::provide(cache, &lock.tools, &options.source).await?;
    stop::until_dropped(move |stop| make(&options, &programs, extra, &place, stop)).await
}

/// All that needs no network.
fn make(
    options: &Options,
    programs: &Programs,
    extra: Vec<(String, u32, Bytes)>,
    place: &Place,
    stop: &AtomicBool,
) -> Result<Manifest, BuildError> {
    let Options {
        recipe, lock, cache, ..
    } = options;
    let tools = Tools::unpack(cache, &lock.tools, recipe.epoch)?;
    let base = Base::provide(cache, &lock.packages, recipe, &tools)?;

    let lock_text = lock.render()?;
    let mut manifest = Manifest::new(lock, &lock_text, recipe.digest.clone(), recipe.epoch);
    manifest.programs = programs.contents();
    let of_file = |(path, _, contents): &(String, u32, Bytes)| (path.clone(), Contents::of(contents));
    manifest.extra = extra.iter().map(of_file).collect();
    let build = build_id(&manifest);
    let additions = Additions {
        programs: programs.in_image.clone(),
        files: extra,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let tree = rootfs::finish(base.tree, recipe, &additions)?;
    info!(entries = tree.len(), "Root file system complete");

    let parts = disk::Parts {
        tree: &tree,
        kernel: &base.kernel,
        stage1: &programs.stage1,
        kernel_command_line: &recipe.disk.kernel_command_line,
        build: &build,
        epoch: recipe.epoch,
        size_mib: recipe.disk.size_mib,
    };
    let raw = place.path(Artefact::Raw);
    let made = disk::write(&parts, &tools, &raw)?;
    info!("Disk complete");
    manifest.intermediates = intermediates(&made);

    for artefact in &options.artefacts {
        if *artefact == Artefact::Tar {
            write_file(&place.path(*artefact), |file| {
                let tar = io::BufWriter::with_capacity(1 << 20, file);
                tree.write_tar(recipe.epoch, tar).map_err(io::Error::other)
            })?;
        }
        if let Some((format, compression)) = artefact.format() {
            let disk = formats::open(&raw)?.disk;
            let progress = progress::step("Writing an image", disk.size());
            let watched = Watched::new(disk.as_ref(), stop, |offset| progress.set(offset));
            write_file(&place.path(*artefact), |file| {
                formats::write(&watched, format, compression, file)
            })?;
            progress.set(disk.size());
            info!(name = artefact.file_name(), "Image complete");
        }
    }
    place.publish(&options.artefacts, &mut manifest)?;
    Ok(manifest)
}

/// The recipe may have changed since the lock file was made.
fn same_packages(recipe: &Recipe, lock: &Lock) -> Result<(), BuildError> {
    let wanted: BTreeSet<&String> = recipe.packages.image.iter().collect();
    let locked: BTreeSet<&String> = lock.requested.iter().collect();
    let names: Vec<String> = wanted
        .symmetric_difference(&locked)
        .map(|name| (*name).clone())
        .collect();
    if names.is_empty() {
        Ok(())
    } else {
        Err(BuildError::OtherPackages { names })
    }
}

/// Our programs.
struct Programs {
    in_image: Vec<(String, Bytes)>,
    stage1: Bytes,
}

impl Programs {
    fn read(directory: &Path, recipe: &Recipe) -> Result<Self, BuildError> {
        let read = |name: &str| {
            let path = directory.join(name);
            let program = files::read_limited(&path, MAX_PROGRAM)?;
            program.map(Bytes::from).ok_or(BuildError::NoProgram(path))
        };
        let named = |name: &String| Ok((name.clone(), read(name)?));
        Ok(Self {
            in_image: recipe.programs.iter().map(named).collect::<Result<_, BuildError>>()?,
            stage1: read(STAGE1)?,
        })
    }

    fn contents(&self) -> BTreeMap<String, Contents> {
        let all = self.in_image.iter().map(|(name, bytes)| (name.as_str(), bytes));
        let all = all.chain([(STAGE1, &self.stage1)]);
        all.map(|(name, bytes)| (name.to_owned(), Contents::of(bytes)))
            .collect()
    }
}

/// Every file of a directory: its path in the image, its permissions and its contents. Of the permissions here only
/// "executable" counts: the rest would be this machine's umask.
fn extra_files(directory: &Path) -> Result<Vec<(String, u32, Bytes)>, BuildError> {
    fn collect(directory: &Path, prefix: &str, all: &mut Vec<(String, u32, Bytes)>) -> io::Result<()> {
        let mut names = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names {
            let name = entry.file_name();
            let name = name
                .to_str()
                .ok_or_else(|| io::Error::other(format!("{} is not UTF-8", name.display())))?;
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                collect(&entry.path(), &format!("{path}/"), all)?;
            } else if kind.is_file() {
                let is_program = entry.metadata()?.permissions().mode() & 0o100 != 0;
                let mode = if is_program { 0o755 } else { 0o644 };
                all.push((path, mode, fs::read(entry.path())?.into()));
            } else {
                return Err(io::Error::other(format!("{path} is neither a file nor a directory")));
            }
        }
        Ok(())
    }
    let mut all = Vec::new();
    collect(directory, "", &mut all).map_err(failed("read", directory))?;
    Ok(all)
}

/// The digest of everything that decides what an image is, but for the permissions of other files.
fn build_id(manifest: &Manifest) -> [u8; 32] {
    let mut digest = Sha256::new_with_prefix(&manifest.builder);
    digest.update(&manifest.recipe);
    digest.update(&manifest.lock);
    for (name, contents) in &manifest.programs {
        digest.update(format!("{name}\0{}", contents.sha256));
    }
    for (path, contents) in &manifest.extra {
        digest.update(format!("{path}\0{}", contents.sha256));
    }
    digest.finalize().into()
}

fn write_file(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> Result<(), BuildError> {
    let written = File::create_new(path).and_then(|file| {
        write(&file)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()
    });
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    written.map_err(|source| BuildError::Format { name, source })
}

/// The output directory while a build writes into it: unfinished files are in a directory beside the finished ones.
struct Place {
    output: PathBuf,
    beside: tempfile::TempDir,
    _lock: Flock<File>,
}

impl Place {
    fn take(output: &Path) -> Result<Self, BuildError> {
        fs::create_dir_all(output).map_err(failed("make the directory", output))?;
        let path = output.join(LOCK_FILE);
        let file = File::create(&path).map_err(failed("make", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|_| BuildError::Busy(output.to_owned()))?;
        // Nobody else writes here now: what is beside was left by a build that was killed.
        for entry in fs::read_dir(output).map_err(failed("read", output))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(BESIDE) {
                let left = entry.path();
                let removed = if left.is_dir() {
                    fs::remove_dir_all(&left)
                } else {
                    fs::remove_file(&left)
                };
                removed.map_err(failed("remove", &left))?;
            }
        }
        let beside = tempfile::Builder::new().prefix(BESIDE).tempdir_in(output);
        Ok(Self {
            output: output.to_owned(),
            beside: beside.map_err(failed("make a directory in", output))?,
            _lock: lock,
        })
    }

    fn path(&self, artefact: Artefact) -> PathBuf {
        self.beside.path().join(artefact.file_name())
    }

    /// Gives the files their names, the list of them last.
    fn publish(&self, artefacts: &BTreeSet<Artefact>, manifest: &mut Manifest) -> Result<(), BuildError> {
        let names: Vec<String> = artefacts.iter().map(|artefact| artefact.file_name()).collect();
        manifest.add_artefacts(self.beside.path(), &names)?;
        // Until the new manifest is there, there is none: it never describes files that are not those beside it.
        [MANIFEST, SUMS].iter().try_for_each(|name| self.remove(name))?;
        for name in &names {
            let path = self.output.join(name);
            fs::rename(self.beside.path().join(name), &path).map_err(failed("write", &path))?;
        }
        let others = Artefact::ALL.map(Artefact::file_name).into_iter();
        others
            .filter(|name| !names.contains(name))
            .try_for_each(|name| self.remove(&name))?;
        manifest.write(&self.output)?;
        Ok(())
    }

    /// Removes a file of an earlier build, if there is one.
    fn remove(&self, name: &str) -> Result<(), BuildError> {
        let path = self.output.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

fn intermediates(made: &Made) -> BTreeMap<String, String> {
    let all = [
        ("esp", hex(made.esp_sha256)),
        ("initrd", Contents::of(&made.initrd).sha256),
        ("root.tar", hex(made.tar_sha256)),
    ];
    all.map(|(name, sha256)| (name.to_owned(), sha256)).into()
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Io {
        operation,
        path,
        source,
    }
}
