//! Downloading packages into the cache, with apt's own downloader: proxies, credentials and transports that this machine's
//! apt is set up for count here, too.
//!
//! Each download happens in a directory of its own and gets its place in the cache when size and digest are right. So
//! several programs may fill one cache, and what an interrupted one has got stays.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use platform::exec::{Cmd, ExecError};
use platform::logging::chain;
use tempfile::TempDir;
use tokio::time::interval;
use tracing::{info, warn};

use crate::cache::{Cache, CacheError, failed, sha256_of};
use crate::lock::Package;
use crate::mirror::{MirrorError, Mirrors, Source};
use crate::progress;

/// Part of the package apt, as apt-get is.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
/// Connections at a time.
const WORKERS: usize = 4;
/// Packages for one run of the downloader: starting it takes 50 ms.
const BATCH: usize = 8;
/// apt itself gives up on a mirror that is silent for 30 s; this is for a slow one.
const TIME_LIMIT: Duration = Duration::from_hours(2);
/// In error texts.
const SHOWN: usize = 10;

/// Why there are packages missing still.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The cache's disk said no.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// There is no mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// `--offline`, and the cache is not complete.
    #[error("{missing} of {total} packages are not in the cache {dir}, and --offline says not to fetch them:{names}")]
    Offline {
        /// How many.
        missing: usize,
        /// Of how many.
        total: usize,
        /// The cache.
        dir: PathBuf,
        /// Which.
        names: List,
    },
    /// Some could not be downloaded. The others are in the cache.
    #[error("cannot fetch {failed} of {total} packages:{reasons}")]
    Failed {
        /// How many.
        failed: usize,
        /// Of how many that were missing.
        total: usize,
        /// A line for each.
        reasons: List,
    },
}

/// Lines of an error text; of a long list only its beginning is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List(Vec<String>);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(SHOWN).try_for_each(|line| write!(f, "\n  {line}"))?;
        match self.0.len() {
            0..=SHOWN => Ok(()),
            more => write!(f, "\n  and {} more", more - SHOWN),
        }
    }
}

/// Makes sure that all these packages are in the cache. Nobody is asked for anything when they are.
///
/// # Errors
/// Some are not, and cannot be fetched, or must not be.
pub async fn provide(cache: &Cache, packages: &[Package], source: &Source) -> Result<(), FetchError> {
    let missing = cache.missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    if source.offline {
        let names = missing
            .iter()
            .map(|package| format!("{} {}", package.name, package.version));
        return Err(FetchError::Offline {
            missing: missing.len(),
            total: packages.len(),
            dir: cache.dir().to_owned(),
            names: List(names.collect()),
        });
    }
    fetch(cache, packages, &Mirrors::of(source).await?).await
}

/// Downloads those packages that are not in the cache.
///
/// # Errors
/// Some cannot be had: all of them are named, each with its reason.
pub async fn fetch(cache: &Cache, packages: &[Package], mirrors: &Mirrors) -> Result<(), FetchError> {
    let mut missing: Vec<Package> = cache.missing(packages).into_iter().cloned().collect();
    missing.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.cmp(b)));
    missing.dedup_by(|a, b| a.sha256 == b.sha256);
    let total = missing.len();
    if total == 0 {
        return Ok(());
    }
    let bytes = missing.iter().map(|package| package.size).sum();
    info!(packages = total, bytes, "Fetching packages");
    let place = Place::make(cache)?;
    let progress = progress::step("Downloading packages", bytes);

    let mut reasons = BTreeMap::new();
    let copies = missing.iter().map(|package| mirrors.of_archive(&package.archive).len());
    for copy in 0..copies.max().unwrap_or_default() {
        let with_url = |package: &Package| {
            let base = mirrors.of_archive(&package.archive).get(copy)?;
            Some((package.clone(), url(base, &package.path)))
        };
        let jobs: VecDeque<_> = missing.iter().filter_map(with_url).collect();
        let jobs = Mutex::new(jobs);
        let download = join_all((0..WORKERS).map(|_| work(cache, &place, &jobs)));
        let mut ticks = interval(Duration::from_millis(500));
        tokio::pin!(download);
        let results = loop {
            tokio::select! {
                results = &mut download => break results,
                _ = ticks.tick() => progress.set(arrived(cache, &place, packages, bytes)),
            }
        };
        for (name, reason) in results.into_iter().flatten() {
            warn!(package = name, error = %reason, "A package was not downloaded");
            reasons.insert(name, reason);
        }
        missing.retain(|package| !cache.path(package).exists());
        if missing.is_empty() {
            progress.set(bytes);
            return Ok(());
        }
    }
    let unknown = || Reason::Other("it was not tried any more".to_owned());
    let line = |package: &Package| {
        let reason = reasons.remove(&package.name).unwrap_or_else(unknown);
        format!("{} {}: {reason}", package.name, package.version)
    };
    let mut failed: Vec<&Package> = missing.iter().collect();
    failed.sort();
    Err(FetchError::Failed {
        failed: failed.len(),
        total,
        reasons: List(failed.into_iter().map(line).collect()),
    })
}

/// A directory for downloads inside of the cache, ours while it is locked, and gone at the end.
struct Place {
    dir: TempDir,
    _lock: File,
}

impl Place {
    fn make(cache: &Cache) -> Result<Self, CacheError> {
        let all = cache.dir().join("partial");
        fs::create_dir_all(&all).map_err(failed("make the directory", &all))?;
        // What killed programs left: the lock of a directory ends with the program.
        for left in fs::read_dir(&all)
            .map_err(failed("read the directory", &all))?
            .flatten()
        {
            let is_left = File::open(left.path()).is_ok_and(|dir| dir.try_lock().is_ok());
            if is_left {
                fs::remove_dir_all(left.path()).ok();
            }
        }
        let dir = TempDir::new_in(&all).map_err(failed("make a directory in", &all))?;
        let lock = File::open(dir.path()).map_err(failed("open", dir.path()))?;
        lock.lock().map_err(failed("lock", dir.path()))?;
        Ok(Self { dir, _lock: lock })
    }

    fn of(&self, package: &Package) -> PathBuf {
        self.dir.path().join(&package.sha256)
    }
}

/// Why a package was not downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reason {
    Gone,
    Other(String),
    Bytes { expected: String, found: String },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str(
                "the mirror no longer has it; run image-builder lock to take what it has now, or name a mirror that keeps \
                 old versions (a snapshot) with --mirror",
            ),
            Self::Other(reason) => f.write_str(reason),
            Self::Bytes { expected, found } => write!(
                f,
                "the mirror sends another file: expected {expected}, found {found}; name another mirror with --mirror"
            ),
        }
    }
}

/// Takes jobs until there are none. After a failure that is not of one package alone it stops, and so do the others: a mirror
/// that does not answer would be asked hundreds of times.
async fn work(cache: &Cache, place: &Place, jobs: &Mutex<VecDeque<(Package, String)>>) -> Vec<(String, Reason)> {
    let mut failed = Vec::new();
    loop {
        let batch: Vec<_> = {
            let mut jobs = jobs.lock().expect("no thread panics while it holds the jobs");
            // A large one alone: the others need not wait for it.
            let count = jobs
                .front()
                .map_or(0, |(package, _)| if package.size > 4 << 20 { 1 } else { BATCH });
            let count = count.min(jobs.len());
            jobs.drain(..count).collect()
        };
        if batch.is_empty() {
            return failed;
        }
        let outcome = download(place, &batch).await;
        for (package, url) in &batch {
            let (cache, from, wanted) = (cache.clone(), place.of(package), package.clone());
            let stored = tokio::task::spawn_blocking(move || store(&cache, &wanted, &from)).await;
            let reason = match stored.unwrap_or_else(|error| Err(Some(Reason::Other(error.to_string())))) {
                Ok(()) => continue,
                Err(reason) => said_of(&outcome, url).or(reason).unwrap_or_else(|| said(&outcome)),
            };
            if matches!(reason, Reason::Other(_)) {
                jobs.lock().expect("no thread panics while it holds the jobs").clear();
            }
            failed.push((package.name.clone(), reason));
        }
    }
}

/// What the downloader said of one package: it prints `E: Failed to fetch URL  REASON`.
fn said_of(outcome: &Result<(), ExecError>, url: &str) -> Option<Reason> {
    let Err(ExecError::Failed { printed, .. }) = outcome else {
        return None;
    };
    let mut lines = printed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("E: Failed to fetch "));
    let (_, reason) = lines.find_map(|line| line.split_once("  ").filter(|(of, _)| *of == url))?;
    let reason = reason.trim();
    if reason.starts_with("404") || reason.starts_with("410") || reason.contains("No such file") {
        return Some(Reason::Gone);
    }
    Some(Reason::Other(format!("{reason} ({url})")))
}

/// What it said at all.
fn said(outcome: &Result<(), ExecError>) -> Reason {
    Reason::Other(match outcome {
        Ok(()) => "it was not downloaded, and apt-helper does not say why".to_owned(),
        Err(error) => chain(error).to_string(),
    })
}

async fn download(place: &Place, batch: &[(Package, String)]) -> Result<(), ExecError> {
    // Root's downloads would be done as the user _apt, which cannot write here. The digests say whether a server lies.
    let mut helper = Cmd::new(APT_HELPER).args(["-q", "-o", "APT::Sandbox::User=root", "download-file"]);
    for (package, url) in batch {
        helper = helper.arg(url).arg(place.of(package));
    }
    let helper = helper.env("LC_ALL", "C").time_limit(TIME_LIMIT);
    helper.run().await.map(drop)
}

/// Puts a downloaded package into the cache. `None` when there is nothing to put.
fn store(cache: &Cache, package: &Package, from: &Path) -> Result<(), Option<Reason>> {
    let other = |error: &dyn fmt::Display| Some(Reason::Other(error.to_string()));
    let file = match File::open(from) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(other(&error)),
    };
    let size = file.metadata().map_err(|error| other(&error))?.len();
    if size != package.size {
        return Err(Some(Reason::Bytes {
            expected: format!("{} bytes", package.size),
            found: format!("{size} bytes"),
        }));
    }
    let found = sha256_of(&file).map_err(|error| other(&error))?;
    if found != package.sha256 {
        return Err(Some(Reason::Bytes {
            expected: format!("sha256 {}", package.sha256),
            found: format!("sha256 {found}"),
        }));
    }
    let stored = file.sync_all().and_then(|()| fs::rename(from, cache.path(package)));
    stored.map_err(|error| other(&chain(&failed("store", &cache.path(package))(error))))
}

/// Bytes of the missing packages that are here by now, whole or in part.
fn arrived(cache: &Cache, place: &Place, packages: &[Package], bytes: u64) -> u64 {
    let missing: u64 = cache.missing(packages).iter().map(|package| package.size).sum();
    let parts = fs::read_dir(place.dir.path()).into_iter().flatten().flatten();
    let parts = parts.filter_map(|part| part.metadata().ok()).map(|part| part.len());
    bytes.saturating_sub(missing) + parts.sum::<u64>()
}

/// The address of a file, in the form that apt uses itself: all but the plainest letters escaped.
fn url(base: &str, path: &str) -> String {
    use std::fmt::Write;
    // apt makes a link instead of a file for `file:`.
    let base = base
        .strip_prefix("file:")
        .map_or_else(|| base.to_owned(), |path| format!("copy:{path}"));
    path.bytes().fold(base + "/", |mut url, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => url.push(char::from(byte)),
            _ => write!(url, "%{byte:02x}").unwrap_or_default(), // into a string it cannot fail
        }
        url
    })
}
