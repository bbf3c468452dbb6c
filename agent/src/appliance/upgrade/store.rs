//! What an upgrade leaves on the disk. Each step is one rename (or the writing of something that nothing points at yet), so
//! whatever moment the power goes away, [`Store::recover`] finds the old programs or the new ones, never a mixture.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::statvfs::statvfs;
use platform::bundle::{Digest, MANIFEST, MAX_MANIFEST, Manifest, ProgramName, Version};
use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};

use super::bundle::{BadBundle, Bundle};
use super::{IMAGE_PROGRAMS, NoVersion, image_version, parent};
use crate::appliance::root::{Root, STATE};

/// Of the state's file, in bytes; it has some hundred.
const MAX_STATE: u64 = 64 << 10;
/// What must be free after a bundle is unpacked: the archives that a host uploads need it (§7.5), and so does the machine.
const RESERVE: u64 = 300 << 20;
/// How names begin of what is not complete yet.
const UNFINISHED: &str = ".new-";

/// A set of programs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Those that came with the image.
    Image,
    /// Those of a bundle.
    Bundle(Digest),
}

/// What survives a restart. Read tolerantly: the image's program reads what a bundle's has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// A change that nobody has confirmed yet.
    pub pending: Option<Pending>,
    /// What ran before the last confirmed change: where `--rollback` goes.
    pub previous: Option<Side>,
    /// How the last change went.
    pub last: Option<Attempt>,
}

/// A change that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What is known to work.
    pub from: Side,
    /// What is being tried.
    pub to: Side,
}

/// A change that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What ran before.
    pub from: Side,
    /// What was tried.
    pub to: Side,
    /// Whether it stayed.
    pub outcome: Outcome,
    /// For people: why it was taken back.
    pub why: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The new programs run.
    Confirmed,
    /// The old ones run again.
    RolledBack,
}

/// Why the disk could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system said no.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A small file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BadBundle),
    /// The image.
    #[error(transparent)]
    Version(#[from] NoVersion),
    /// The disk would be full.
    #[error(
        "the bundle needs {needed} MiB of the disk and {} MiB must stay free, but {free} MiB are; make room in /var",
        RESERVE >> 20
    )]
    NoSpace {
        /// MiB.
        needed: u64,
        /// MiB.
        free: u64,
    },
    /// A change has not ended.
    #[error("another upgrade has not ended; `agent upgrade --status` says more")]
    Pending,
    /// What should run is not whole.
    #[error("{0} is not whole")]
    Broken(String),
}

/// The directories and files of upgrades.
#[derive(Debug, Clone)]
pub struct Store {
    root: Root,
}

impl Store {
    /// Those of a machine.
    pub fn new(root: Root) -> Self {
        Self { root }
    }

    /// What units run now.
    ///
    /// # Errors
    /// The link is missing, or points at nothing of ours.
    pub fn current(&self) -> Result<Side, StoreError> {
        let link = self.link();
        let target = fs::read_link(&link).map_err(failed("read the link", &link))?;
        side_of(&target).ok_or_else(|| StoreError::Broken(format!("the link {}", link.display())))
    }

    /// The directory with the programs of one side.
    pub fn directory(&self, side: &Side) -> PathBuf {
        match side {
            Side::Image => self.root.path(IMAGE_PROGRAMS),
            Side::Bundle(id) => self.bundles().join(id),
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// It is not whole.
    pub fn version(&self, side: &Side) -> Result<Version, StoreError> {
        match side {
            Side::Image => Ok(image_version(&self.root)?),
            Side::Bundle(_) => Ok(self.manifest(side)?.version),
        }
    }

    /// Its programs.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn programs(&self, side: &Side) -> Result<BTreeSet<ProgramName>, StoreError> {
        if let Side::Bundle(_) = side {
            return Ok(self.manifest(side)?.programs.into_keys().collect());
        }
        let directory = self.directory(side);
        let entries = fs::read_dir(&directory).map_err(failed("read", &directory))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(names.collect())
    }

    /// What is remembered. A file that cannot be understood is as good as none: [`Store::recover`] then trusts the image only.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn state(&self) -> Result<State, StoreError> {
        let bytes = files::read_limited(self.state_file(), MAX_STATE)?.unwrap_or_default();
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Unpacks a bundle beside what runs. Nothing points at it yet.
    ///
    /// # Errors
    /// There is no room, or its file has changed since it was checked.
    pub fn add(&self, bundle: &mut Bundle) -> Result<Side, StoreError> {
        let side = Side::Bundle(bundle.id.clone());
        if self.is_whole(&side) {
            return Ok(side);
        }
        let bundles = self.bundles();
        fs::create_dir_all(&bundles).map_err(failed("make the directory", &bundles))?;
        self.prune()?;
        self.has_room(bundle.manifest.unpacked_bytes())?;
        let unfinished = bundles.join(format!("{UNFINISHED}{}", bundle.id));
        let unpacked = bundle.unpack(&unfinished);
        if let Err(error) = unpacked {
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error.into());
        }
        let final_name = self.directory(&side);
        // One that a power cut of a bad disk has damaged.
        remove_if_there(&final_name)?;
        fs::rename(&unfinished, &final_name).map_err(failed("rename", &unfinished))?;
        sync(&bundles)?;
        Ok(side)
    }

    /// Remembers that a change begins: from now on, until it is confirmed, a restart goes back to `from`.
    ///
    /// # Errors
    /// The disk cannot be written, or another change has not ended.
    pub fn begin(&self, pending: &Pending) -> Result<(), StoreError> {
        let mut state = self.state()?;
        if state.pending.is_some() {
            return Err(StoreError::Pending);
        }
        state.pending = Some(pending.clone());
        self.write_state(&state)
    }

    /// Lets units run the programs of `side` from their next start on.
    ///
    /// # Errors
    /// The disk cannot be written; then nothing has changed.
    pub fn switch(&self, side: &Side) -> Result<(), StoreError> {
        let link = self.link();
        let unfinished = link.with_file_name(format!("{UNFINISHED}current"));
        remove_if_there(&unfinished)?;
        let target = match side {
            Side::Image => PathBuf::from(IMAGE_PROGRAMS),
            // Relative, so that it is right wherever the disk is mounted.
            Side::Bundle(id) => Path::new("bundles").join(id),
        };
        symlink(&target, &unfinished).map_err(failed("make the link", &unfinished))?;
        fs::rename(&unfinished, &link).map_err(failed("replace the link", &link))?;
        sync(parent(&link))
    }

    /// Remembers how a change has ended. After this a restart goes nowhere else.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub fn end(&self, pending: &Pending, outcome: Outcome, why: &str) -> Result<Attempt, StoreError> {
        let attempt = Attempt {
            from: pending.from.clone(),
            to: pending.to.clone(),
            outcome,
            why: why.to_owned(),
            at: now(),
        };
        let mut state = self.state()?;
        state.pending = None;
        match outcome {
            Outcome::Confirmed => state.previous = Some(pending.from.clone()),
            // It runs again: it is not what ran before it.
            Outcome::RolledBack => state.previous = state.previous.filter(|previous| *previous != pending.from),
        }
        state.last = Some(attempt.clone());
        self.write_state(&state)?;
        Ok(attempt)
    }

    /// Makes good what an upgrade has left that did not come to its end, because the power went away or somebody killed it.
    /// Answers what it did, if anything.
    ///
    /// # Errors
    /// The disk cannot be read or written.
    pub fn recover(&self) -> Result<Option<Attempt>, StoreError> {
        let state = self.state()?;
        let current = self.current().ok();
        let pending = match (state.pending, &current) {
            (Some(pending), _) => pending,
            (None, Some(current)) if self.is_whole(current) => return Ok(None),
            // What runs is damaged: back to what ran before it.
            (None, _) => Pending {
                from: state.previous.unwrap_or(Side::Image),
                to: current.clone().unwrap_or(Side::Image),
            },
        };
        let good = if self.is_whole(&pending.from) {
            pending.from.clone()
        } else {
            Side::Image
        };
        if current.as_ref() != Some(&good) {
            self.switch(&good)?;
        }
        let pending = Pending {
            from: good,
            to: pending.to,
        };
        let why = "it did not come to its end: the VM was restarted, or the upgrade was killed";
        self.end(&pending, Outcome::RolledBack, why).map(Some)
    }

    /// Whether all programs of a side are there, with their sizes. (Their digests were checked before their names were
    /// given.)
    pub fn is_whole(&self, side: &Side) -> bool {
        let directory = self.directory(side);
        match (side, self.manifest(side)) {
            (Side::Image, _) => directory.is_dir(),
            (Side::Bundle(_), Err(_)) => false,
            (Side::Bundle(_), Ok(manifest)) => manifest.programs.iter().all(|(name, contents)| {
                let found = directory.join(name).symlink_metadata();
                found.is_ok_and(|found| found.is_file() && found.len() == contents.size)
            }),
        }
    }

    /// Removes bundles that nothing points at, and what was never finished.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn prune(&self) -> Result<(), StoreError> {
        let bundles = self.bundles();
        let state = self.state()?;
        let kept: Vec<Side> = [self.current().ok(), state.previous]
            .into_iter()
            .flatten()
            .chain(state.pending.into_iter().flat_map(|pending| [pending.from, pending.to]))
            .collect();
        let entries = match fs::read_dir(&bundles) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed("read", &bundles))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("read", &bundles))?.path();
            if !kept.iter().any(|side| self.directory(side) == path) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    fn manifest(&self, side: &Side) -> Result<Manifest, StoreError> {
        let path = self.directory(side).join(MANIFEST);
        let bytes = files::read_limited(&path, MAX_MANIFEST)?.unwrap_or_default();
        Manifest::parse(&bytes).map_err(|error| StoreError::Broken(format!("{}: {error}", path.display())))
    }

    fn has_room(&self, needed: u64) -> Result<(), StoreError> {
        let bundles = self.bundles();
        let found = statvfs(&bundles).map_err(|error| failed("get the free space of", &bundles)(error.into()))?;
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        if free < needed.saturating_add(RESERVE) {
            return Err(StoreError::NoSpace {
                needed: needed >> 20,
                free: free >> 20,
            });
        }
        Ok(())
    }

    fn write_state(&self, state: &State) -> Result<(), StoreError> {
        let mut json = serde_json::to_vec_pretty(state).expect("plain data");
        json.push(b'\n');
        let _ = files::replace(self.state_file(), json, 0o644)?;
        Ok(())
    }

    fn link(&self) -> PathBuf {
        self.root.path(STATE).join("current")
    }

    fn bundles(&self) -> PathBuf {
        self.root.path(STATE).join("bundles")
    }

    fn state_file(&self) -> PathBuf {
        self.root.path(STATE).join("upgrade.json")
    }
}

/// What the link leads to, if we made it.
fn side_of(target: &Path) -> Option<Side> {
    if target == Path::new(IMAGE_PROGRAMS) {
        return Some(Side::Image);
    }
    let id = target.strip_prefix("bundles").ok()?.to_str()?;
    id.parse().ok().map(Side::Bundle)
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// A link, a file or a whole directory.
fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("write", directory))
}

fn now() -> u64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    elapsed.unwrap_or_default().as_secs()
}
