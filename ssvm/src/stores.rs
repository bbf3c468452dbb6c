//! Stores as directories: mounted on demand, or mapped to local ones (ssvm.md §1.2, §1.6).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;
use platform::files;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::blocking::on_thread;
use crate::mount::{self, BadNfsVersion, BadStoreUrl, StoreUrl};
use crate::order::{StoreRef, shown_store};
use crate::settings::Settings;

/// For a look at a store that should be there (§6.7).
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// For a look whether a store is stale. Each command makes one: it must not wait long for a server that is away.
const STALE_LIMIT: Duration = Duration::from_secs(1);

/// How long the last known size of a store is told while it does not answer (§6.7).
const SPACE_IS_GOOD_FOR: Duration = Duration::from_mins(10);

/// Waits after failed mounts: the first, doubled up to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

/// For the name of a file server.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// All stores that were ever asked for.
#[derive(Debug)]
pub struct Stores {
    map: BTreeMap<String, PathBuf>,
    mount_root: PathBuf,
    mount_timeout: Duration,
    mount_options: BTreeMap<String, String>,
    default_version: Option<String>,
    /// Where credentials of CIFS shares are kept.
    private_dir: PathBuf,
    slots: Mutex<HashMap<StoreRef, Arc<Mutex<Slot>>>>,
}

/// One lock for each store: a hanging file server must not block others.
#[derive(Debug, Default)]
struct Slot {
    open: Option<Arc<Store>>,
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    again_at: Instant,
    wait: Duration,
    error: StoreError,
}

/// A store that can be used.
#[derive(Debug)]
pub struct Store {
    /// As commands name it.
    pub url: String,
    /// Its root on this machine.
    pub root: PathBuf,
    /// Name of its mount directory.
    pub directory: String,
    /// The file server, where its name has an address.
    pub ip: Option<IpAddr>,
    space: watch::Sender<Option<(Instant, Space)>>,
    /// Held while a thread looks.
    looking: Arc<Mutex<()>>,
}

/// Bytes of a file system, statvfs(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Total less what is free, as upstream counts.
    pub used: u64,
    /// What we may still write.
    pub available: u64,
}

/// Why a store cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No store's URL.
    #[error(transparent)]
    Url(#[from] BadStoreUrl),
    /// Plain-process mode, and an operator has given no directory for it.
    #[error("the setting store_map has no directory for {0}")]
    NotMapped(String),
    /// The mapped directory cannot be used.
    #[error("the directory of {url} cannot be used: {why}")]
    Directory {
        /// The store.
        url: String,
        /// What the system said.
        why: String,
    },
    /// No address.
    #[error("Unable to resolve {0}")]
    Unresolvable(String),
    /// The mount failed.
    #[error("Unable to mount {device} at {at} due to {why}")]
    Mount {
        /// What.
        device: String,
        /// Where.
        at: String,
        /// Why.
        why: String,
    },
    /// It was usable, and now it does not answer.
    #[error("the store {0} does not answer; its file server is away or too busy")]
    Dead(String),
}

impl Stores {
    /// Knows how to find stores, opens none.
    pub fn new(settings: &Settings, default_version: Option<String>) -> Self {
        Self {
            map: settings.store_map.clone(),
            mount_root: settings.mount_root.clone(),
            mount_timeout: settings.mount_timeout(),
            mount_options: settings.mount_options.clone(),
            default_version,
            private_dir: settings.state_dir.clone(),
            slots: Mutex::default(),
        }
    }

    /// The store, mounted if it was not.
    ///
    /// # Errors
    /// Why it cannot be used; for a while after a failed mount at once.
    pub async fn open(&self, store: &StoreRef) -> Result<Arc<Store>, StoreError> {
        let slot = Arc::clone(self.slots.lock().await.entry(store.clone()).or_default());
        let mut slot = slot.lock().await;
        if let Some(open) = &slot.open {
            if !self.map.is_empty() {
                return Ok(Arc::clone(open));
            }
            if is_still_mounted(&open.root).await {
                if !open.is_stale().await {
                    return Ok(Arc::clone(open));
                }
                warn!(
                    store = open.shown(),
                    "The file server does not know this mount any more; mounting anew"
                );
                open.detach().await;
            }
        }
        if let Some(failed) = &slot.failed
            && Instant::now() < failed.again_at
        {
            return Err(failed.error.clone());
        }
        let opened = if self.map.is_empty() {
            self.mount(store).await
        } else {
            self.find_mapped(store).await
        };
        match opened {
            Ok(opened) => {
                info!(store = opened.shown(), root = %opened.root.display(), "Store is usable");
                let opened = Arc::new(opened);
                *slot = Slot {
                    open: Some(Arc::clone(&opened)),
                    failed: None,
                };
                Ok(opened)
            }
            Err(error) => {
                let wait = slot
                    .failed
                    .as_ref()
                    .map_or(BACKOFF.0, |failed| (failed.wait * 2).min(BACKOFF.1));
                warn!(?store, %error, ?wait, "Store is not usable");
                *slot = Slot {
                    open: None,
                    failed: Some(Failed {
                        again_at: Instant::now() + wait,
                        wait,
                        error: error.clone(),
                    }),
                };
                Err(error)
            }
        }
    }

    /// All that are usable now.
    pub async fn opened(&self) -> Vec<Arc<Store>> {
        let slots: Vec<_> = self.slots.lock().await.values().cloned().collect();
        // One that is being mounted at this moment is not usable yet.
        slots
            .iter()
            .filter_map(|slot| slot.try_lock().ok()?.open.clone())
            .collect()
    }

    async fn find_mapped(&self, store: &StoreRef) -> Result<Store, StoreError> {
        let not_mapped = || StoreError::NotMapped(shown_store(&store.url).to_owned());
        let root = self.map.get(&store.url).cloned().ok_or_else(not_mapped)?;
        let url = StoreUrl::parse(&store.url)?;
        // The directory's name is as if it were mounted (§1.6), but here nobody needs the file server to exist.
        let ip = resolve(&url.host).await;
        let directory = url.directory(&ip.map_or_else(|| url.host.clone(), |ip| ip.to_string()));
        let failed = |why: String| StoreError::Directory {
            url: shown_store(&store.url).to_owned(),
            why,
        };
        let path = root.clone();
        match timeout(
            self.mount_timeout,
            on_thread("store-open", move || make_directories(&path)),
        )
        .await
        {
            Ok(Ok(Ok(()))) => Ok(Store::new(&store.url, root, directory, ip)),
            Ok(Ok(Err(error))) => Err(failed(format!("{}: {error}", root.display()))),
            Ok(Err(lost)) => Err(failed(lost.to_string())),
            Err(_) => Err(StoreError::Dead(shown_store(&store.url).to_owned())),
        }
    }

    async fn mount(&self, store: &StoreRef) -> Result<Store, StoreError> {
        let url = StoreUrl::parse(&store.url)?;
        let unresolvable = || StoreError::Unresolvable(url.host.clone());
        let ip = resolve(&url.host).await.ok_or_else(unresolvable)?;
        let directory = url.directory(&ip.to_string());
        let at = self.mount_root.join(&directory);
        let device = url.device(ip);
        let failed = |why: String| StoreError::Mount {
            device: device.clone(),
            at: at.display().to_string(),
            why,
        };
        if !is_mount_point(&at).await {
            // The mount root is a local directory: these calls do not hang.
            std::fs::create_dir_all(&at).map_err(|error| failed(error.to_string()))?;
            let credentials = self.private_dir.join(format!("cifs-{directory}"));
            if let Some(content) = url.credentials() {
                let _ = files::replace(&credentials, content.expose(), 0o600)
                    .map_err(|error| failed(platform::logging::chain(&error).to_string()))?;
            }
            let version = store.nfs_version.as_deref().or(self.default_version.as_deref());
            let version = version.map(str::parse).transpose();
            let version = version.map_err(|error: BadNfsVersion| failed(error.to_string()))?;
            let options = self.mount_options.get(&url.host).map(String::as_str);
            let command = url.command(ip, version, options, &at, &credentials, self.mount_timeout);
            let mounted = command.run().await;
            let _ = std::fs::remove_file(&credentials);
            if let Err(error) = mounted {
                let _ = std::fs::remove_dir(&at); // only if it is empty
                return Err(failed(platform::logging::chain(&error).to_string()));
            }
        }
        let path = at.clone();
        match timeout(
            self.mount_timeout,
            on_thread("store-open", move || make_directories(&path)),
        )
        .await
        {
            Ok(Ok(Ok(()))) => Ok(Store::new(&store.url, at, directory, Some(ip))),
            Ok(Ok(Err(error))) => Err(failed(error.to_string())),
            Ok(Err(lost)) => Err(failed(lost.to_string())),
            Err(_) => Err(StoreError::Dead(shown_store(&store.url).to_owned())),
        }
    }
}

impl Store {
    fn new(url: &str, root: PathBuf, directory: String, ip: Option<IpAddr>) -> Self {
        Self {
            url: url.to_owned(),
            root,
            directory,
            ip,
            space: watch::Sender::new(None),
            looking: Arc::default(),
        }
    }

    /// Its URL for logs and users.
    pub fn shown(&self) -> &str {
        shown_store(&self.url)
    }

    /// Whether its server has forgotten what is mounted (`ESTALE`): it was restored, or the export was made anew. A store that
    /// does not answer is not stale: what is open goes on when its server is back.
    async fn is_stale(&self) -> bool {
        // While another look hangs, this one would, too.
        let Ok(looking) = Arc::clone(&self.looking).try_lock_owned() else {
            return false;
        };
        let root = self.root.clone();
        let look = on_thread("store-look", move || {
            let found = std::fs::metadata(&root);
            drop(looking);
            found
        });
        let found = timeout(STALE_LIMIT, look).await;
        matches!(found, Ok(Ok(Err(error))) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ESTALE))
    }

    /// Takes the mount away at once. Whoever has files of it open keeps them, for what they are worth.
    async fn detach(&self) {
        let root = self.root.clone();
        let detached = on_thread("store-detach", move || umount2(&root, MntFlags::MNT_DETACH)).await;
        if let Ok(Err(error)) = detached {
            warn!(root = %self.root.display(), %error, "Cannot unmount a store");
        }
    }

    /// Its size, within [`LOOK_LIMIT`]; the last known one for some minutes while the store does not answer. A store
    /// that hangs holds one thread, however often it is asked.
    pub async fn space(&self) -> Option<Space> {
        let mut seen = self.space.subscribe();
        seen.mark_unchanged();
        if let Ok(looking) = Arc::clone(&self.looking).try_lock_owned() {
            let (root, space) = (self.root.clone(), self.space.clone());
            drop(on_thread("store-space", move || {
                let found = look(&root);
                drop(looking);
                match found {
                    Ok(found) => drop(space.send_replace(Some((Instant::now(), found)))),
                    Err(error) => {
                        warn!(root = %root.display(), %error, "Cannot get the size of a store");
                        space.send_modify(|_| {});
                    }
                }
            }));
        }
        let _ = timeout(LOOK_LIMIT, seen.changed()).await;
        let (at, space) = (*seen.borrow())?;
        (at.elapsed() <= SPACE_IS_GOOD_FOR).then_some(space)
    }
}

fn look(root: &Path) -> nix::Result<Space> {
    let found = statvfs(root)?;
    let unit = found.fragment_size();
    let total = found.blocks().saturating_mul(unit);
    Ok(Space {
        total,
        used: total.saturating_sub(found.blocks_free().saturating_mul(unit)),
        available: found.blocks_available().saturating_mul(unit),
    })
}

/// What every store has at its root. A plain file of such a name is replaced, as upstream does.
fn make_directories(root: &Path) -> std::io::Result<()> {
    if !root.is_dir() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "the directory is missing",
        ));
    }
    for name in ["snapshots", "volumes"] {
        let path = root.join(name);
        let found = std::fs::symlink_metadata(&path);
        if found.as_ref().is_ok_and(std::fs::Metadata::is_file) {
            std::fs::remove_file(&path)?;
        }
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn resolve(host: &str) -> Option<IpAddr> {
    if let Ok(ip) = host.parse() {
        return Some(ip);
    }
    let mut found = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((host, 0)))
        .await
        .ok()?
        .ok()?;
    found.next().map(|address| address.ip())
}

async fn is_mount_point(at: &Path) -> bool {
    let table = tokio::fs::read_to_string("/proc/self/mountinfo").await;
    table.is_ok_and(|table| mount::is_mounted(&table, at))
}

/// The table of mounts is asked, not the store: this cannot hang.
async fn is_still_mounted(root: &Path) -> bool {
    is_mount_point(root).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str) -> StoreRef {
        StoreRef {
            url: url.into(),
            nfs_version: None,
        }
    }

    #[tokio::test]
    async fn a_mapped_store_has_the_name_of_its_mount_and_its_directories() {
        let directory = tempfile::tempdir().unwrap();
        let _ = files::replace(directory.path().join("volumes"), "", 0o644).unwrap();
        let url = "nfs://192.168.10.5/export/secondary";
        let settings = Settings {
            store_map: [(url.to_owned(), directory.path().to_owned())].into(),
            ..Settings::default()
        };
        let stores = Stores::new(&settings, None);
        let opened = stores.open(&store(url)).await.unwrap();
        assert_eq!(opened.directory, "5eda6d4d-6968-33f9-bc69-d9d54e240213");
        assert_eq!(opened.root, directory.path());
        assert!(directory.path().join("volumes").is_dir() && directory.path().join("snapshots").is_dir());
        let space = opened.space().await.unwrap();
        assert!(space.total > space.used && space.available > 0);
        assert_eq!(stores.opened().await.len(), 1);

        let error = stores.open(&store("nfs://192.168.10.6/other")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the setting store_map has no directory for nfs://192.168.10.6/other"
        );
    }

    #[tokio::test]
    async fn a_failed_mount_is_not_tried_again_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            mount_root: directory.path().join("mnt"),
            state_dir: directory.path().to_owned(),
            mount_options: [("192.0.2.5".to_owned(), "bogus_option".to_owned())].into(),
            mount_timeout_s: 5,
            ..Settings::default()
        };
        let stores = Stores::new(&settings, Some("4.1".into()));
        let error = stores.open(&store("nfs://192.0.2.5/e")).await.unwrap_err().to_string();
        assert!(
            error.starts_with("Unable to mount 192.0.2.5:/e at ") && error.contains("vers=4.1"),
            "{error}"
        );
        let left = std::fs::read_dir(directory.path().join("mnt")).unwrap().count();
        assert_eq!(left, 0, "the empty directory is removed");
        let started = Instant::now();
        assert_eq!(
            stores.open(&store("nfs://192.0.2.5/e")).await.unwrap_err().to_string(),
            error
        );
        assert!(started.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_version_that_would_be_more_options_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            mount_root: directory.path().join("mnt"),
            state_dir: directory.path().to_owned(),
            ..Settings::default()
        };
        let stores = Stores::new(&settings, Some("4.1,suid".into()));
        let error = stores.open(&store("nfs://192.0.2.5/e")).await.unwrap_err().to_string();
        assert!(
            error.contains(
                "due to the NFS version \"4.1,suid\" is none that can be mounted; set secstorage.nfs.version"
            ),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_password_of_a_share_is_shown_nowhere() {
        let settings = Settings {
            store_map: [("nfs://a/b".to_owned(), PathBuf::from("/nonexistent"))].into(),
            ..Settings::default()
        };
        let stores = Stores::new(&settings, None);
        let share = store("cifs://h/share?user=u&password=hush");
        let error = stores.open(&share).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the setting store_map has no directory for cifs://h/share"
        );
        assert!(!format!("{share:?} {error:?} {stores:?}").contains("hush"));
    }
}
