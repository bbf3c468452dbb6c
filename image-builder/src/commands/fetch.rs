//! `image-builder fetch`.

use clap::Args;
use image_builder::fetch::provide;
use image_builder::mirror::Source;
use tracing::info;

use super::{CacheDir, LockFile};

const EXAMPLES: &str = "\
Examples:
  image-builder fetch                                      from this machine's Debian mirror
  image-builder fetch --mirror https://mirror.example.org  from another one
  image-builder fetch --offline                            is everything here?";

/// Download the packages of the lock file into the cache, so that a build needs no network.
///
/// What is there already is not downloaded again; an interrupted run goes on where it was.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Fetch {
    #[command(flatten)]
    lock: LockFile,
    #[command(flatten)]
    cache: CacheDir,
    #[command(flatten)]
    source: Source,
}

pub(crate) async fn run(args: &Fetch) -> anyhow::Result<()> {
    let packages = args.lock.read()?.all();
    let cache = args.cache.open()?;
    provide(&cache, &packages, &args.source).await?;
    let bytes: u64 = packages.iter().map(|package| package.size).sum();
    info!(packages = packages.len(), bytes, cache = %cache.dir().display(), "All packages are in the cache");
    Ok(())
}
