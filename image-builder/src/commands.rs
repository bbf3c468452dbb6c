//! What can be asked of `image-builder`: one file for each command.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use image_builder::cache::Cache;
use image_builder::lock::Lock;
use image_builder::recipe::Recipe;
use platform::files;
use tokio::task::spawn_blocking;

pub(crate) mod build;
pub(crate) mod bundle;
pub(crate) mod check_signature;
pub(crate) mod convert;
pub(crate) mod diff;
pub(crate) mod fetch;
pub(crate) mod inspect;
pub(crate) mod lock;
pub(crate) mod publish;
pub(crate) mod sbom;
pub(crate) mod sign;
pub(crate) mod verify;

/// Bytes of a lock file; ours has 150 thousand.
const MAX_LOCK: u64 = 16 << 20;

/// Where the lock file is.
#[derive(Debug, Args)]
pub(crate) struct LockFile {
    /// The lock file: which packages, by their digests.
    #[arg(id = "lock", long, value_name = "FILE", default_value = "image-builder/image.lock")]
    pub(crate) path: PathBuf,
}

impl LockFile {
    /// What it says.
    pub(crate) fn read(&self) -> anyhow::Result<Lock> {
        let missing = || format!("{} does not exist; image-builder lock makes it", self.path.display());
        self.read_if_there()?.with_context(missing)
    }

    pub(crate) fn read_if_there(&self) -> anyhow::Result<Option<Lock>> {
        let Some(text) = files::read_limited(&self.path, MAX_LOCK)? else {
            return Ok(None);
        };
        let reading = || format!("reading {}", self.path.display());
        let text = String::from_utf8(text).with_context(reading)?;
        Lock::parse(&text).with_context(reading).map(Some)
    }
}

/// Where packages are kept.
#[derive(Debug, Args)]
pub(crate) struct CacheDir {
    /// Where packages and tools are kept for the next time [default: $XDG_CACHE_HOME/sysvm or ~/.cache/sysvm].
    #[arg(id = "cache", long, value_name = "DIR")]
    path: Option<PathBuf>,
}

impl CacheDir {
    /// The cache there; made if it is not.
    pub(crate) fn open(&self) -> anyhow::Result<Cache> {
        Ok(Cache::open(self.path.clone().map_or_else(Cache::default_dir, Ok)?)?)
    }
}

/// Which recipe.
#[derive(Debug, Args)]
pub(crate) struct RecipeDir {
    /// A directory with recipe.toml and overlay/ to use instead of the program's own
    #[arg(id = "recipe", long, value_name = "DIR")]
    path: Option<PathBuf>,
}

impl RecipeDir {
    /// What it says.
    pub(crate) fn read(&self) -> anyhow::Result<Recipe> {
        Ok(self.path.as_deref().map_or_else(Recipe::own, Recipe::load)?)
    }
}

/// Prints what was asked for. That nobody reads on (`| head`) is no error.
fn print(text: impl Display) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}

/// Puts a text into a file, or on standard output where none is named.
fn deliver(text: &str, file: Option<&PathBuf>) -> anyhow::Result<()> {
    match file {
        Some(file) => Ok(files::replace(file, text, 0o644).map(drop)?),
        None => print(text),
    }
}

/// Reads a file that must be there.
fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    files::read_limited(path, limit)?.with_context(|| format!("{} does not exist", path.display()))
}

/// Reads a text that must be there.
fn read_text(path: &Path, limit: u64) -> anyhow::Result<String> {
    String::from_utf8(read(path, limit)?).with_context(|| format!("{} is not text", path.display()))
}

/// A lock file by its path.
fn read_lock(path: &Path) -> anyhow::Result<Lock> {
    let text = read_text(path, MAX_LOCK)?;
    Lock::parse(&text).with_context(|| format!("{} is no lock file", path.display()))
}

/// Work that reads whole disks, away from the thread that answers ctrl-C.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    spawn_blocking(work).await.context("the work panicked")
}
