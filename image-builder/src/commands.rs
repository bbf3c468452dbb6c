//! The commands: a file for each.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use image_builder::cache::Cache;
use image_builder::lock::Lock;
use platform::files;

pub(crate) mod fetch;
pub(crate) mod lock;

/// Bytes; ours has about 120 KB.
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
        let dir = self.path.as_deref().map(Path::to_owned);
        Ok(Cache::open(dir.map_or_else(Cache::default_dir, Ok)?)?)
    }
}
