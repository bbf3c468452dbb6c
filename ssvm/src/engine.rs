//! Carries out download jobs (ssvm.md §3.8): each waits for its turn, transfers, verifies and installs, or leaves nothing
//! behind; keeps the journal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use platform::logging::chain;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::{Mutex as Turns, OwnedMutexGuard, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::blocking::{Lost, Threads, on_thread};
use crate::checksum::Checksum;
use crate::install::{self, Installed, Place};
use crate::job::{Job, State, Status};
use crate::journal::{Entry, Journal, Names, Transfer};
use crate::metrics::Metrics;
use crate::order::Order;
use crate::path::StorePath;
use crate::rate::Rate;
use crate::rules::Rules;
use crate::source::{Client, Shown, SourceError};
use crate::stores::Stores;
use crate::transfer;

/// A job is said to have ended after its files are gone, unless the store takes longer than this.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(2);

/// Places that a download takes which is unpacked on the way. bzip2 needs 4 MiB, xz up to 65 MiB, all a processor.
const UNPACKING: usize = 4;

/// Does the work of jobs.
#[derive(Debug)]
pub struct Engine {
    /// Asks sources.
    pub client: Client,
    /// Where images go.
    pub stores: Arc<Stores>,
    /// What a restart must know.
    pub journal: Journal,
    /// Who is at work, `active` at once.
    pub places: Places,
    /// Of all jobs together.
    pub rate_total: Rate,
    /// What an operator has set.
    pub rules: Rules,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// How a job begins.
#[derive(Debug)]
pub enum Start {
    /// From nothing.
    New,
    /// From what the journal says.
    Again(Box<Entry>),
}

/// Why a job ended without an image.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server wanted it.
    Stopped,
    /// For users.
    Failed(String),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Lost> for Failure {
    fn from(error: Lost) -> Self {
        Self::Failed(format!("Failed to install: {error}"))
    }
}

/// All bytes are there and right.
struct Brought<'a> {
    place: Arc<Place>,
    _permit: SemaphorePermit<'a>,
}

impl Engine {
    /// Starts a job.
    pub fn spawn(self: &Arc<Self>, job: Arc<Job>, start: Start) {
        let stop = job.stop_token();
        let entry = match start {
            Start::Again(entry) => *entry,
            Start::New => Entry::new(&job.id, &job.order.command),
        };
        let engine = Arc::clone(self);
        let span = info_span!("download", job = job.id, directory = %job.order.install_path);
        tokio::spawn(async move { engine.run(&job, entry, stop).await }.instrument(span));
    }

    /// Removes what a job of an earlier life has left in the store, and forgets it if nobody will ask for it.
    pub fn spawn_clean_up(self: &Arc<Self>, order: Order, entry: Entry) {
        let engine = Arc::clone(self);
        let span = info_span!("clean-up", job = entry.job, directory = %order.install_path);
        tokio::spawn(async move { engine.finish(&order, entry, &Threads::default(), None).await }.instrument(span));
    }

    async fn run(&self, job: &Job, mut entry: Entry, stop: CancellationToken) {
        let (threads, started) = (Threads::default(), Instant::now());
        let mut turn = None;
        let brought = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Failure::Stopped),
            brought = self.bring(job, &mut entry, &threads, &mut turn) => brought,
        };
        // From here on it is too late to stop: soon there is an image, or there is none.
        let done = match brought {
            Ok(brought) => self.install(job, brought, &threads).await,
            Err(failure) => Err(failure),
        };
        let end = self.end_of(job, &entry, done, started.elapsed());
        entry.ended = Some(end.clone());
        let mut finish = std::pin::pin!(self.finish(&job.order, entry, &threads, turn));
        let finished = timeout(CLEAN_UP_LIMIT, &mut finish).await;
        job.update(|status| *status = end);
        let (is_clean, _turn) = match finished {
            Ok(finished) => finished,
            Err(_) => finish.await,
        };
        if is_clean && job.set_over() {
            self.journal.remove(&job.id).await;
        }
    }

    /// Waits for its turn and a place, and brings all bytes to the temporary file.
    async fn bring<'a>(
        &'a self,
        job: &Job,
        entry: &mut Entry,
        threads: &Threads,
        turn: &mut Option<Turn>,
    ) -> Result<Brought<'a>, Failure> {
        let order = &job.order;
        *turn = Some(self.places.turn(order).await);
        self.journal.write(entry).await;
        let permit = self.places.take(order).await;
        job.update(|status| {
            status.state = State::Transferring;
            status.text.clear();
        });
        let store = self.stores.open(&order.store).await;
        let store = store.map_err(|error| Failure::Failed(chain(&error).to_string()))?;
        let names = if let Some(names) = entry.names.clone() {
            names
        } else {
            let names = install::names(order);
            entry.names = Some(names.clone());
            self.journal.write(entry).await; // first, so that a file of ours is never without an owner
            names
        };
        let temporary = store.root.join(order.install_path.as_str()).join(&names.temporary);
        job.update(|status| status.temporary = Some(temporary.display().to_string()));

        let place = Arc::new(Place {
            root: store.root.clone(),
            directory: order.install_path.clone(),
            names,
            kind: order.kind,
        });
        let prepare = |begun| {
            let place = Arc::clone(&place);
            let prepared = threads.start("store-prepare", move || place.prepare(begun));
            async move {
                prepared.await?.map_err(|error| {
                    warn!(%error, "Cannot prepare the install directory");
                    Failure::Failed(format!("Unable to create {}: {error}", order.install_path))
                })
            }
        };
        let synced = entry.transfer.synced;
        let mut prepared = prepare((synced > 0 || entry.verified.is_some()).then_some(synced)).await?;
        let is_here = prepared.file.is_some() || (prepared.has_installed && entry.verified.is_some());
        if !is_here {
            warn!("The temporary file is gone, starting from the beginning");
            (entry.transfer, entry.verified) = (Transfer::default(), None);
            prepared = prepare(None).await?;
        }
        let checksum = match (prepared.file, entry.verified.clone()) {
            (_, Some(checksum)) => {
                // All bytes were here and right before a restart.
                let total = entry.transfer.total;
                job.set_progress(total.unwrap_or(0), total);
                checksum
            }
            (Some(file), None) => {
                let file = Arc::new(file);
                let written = transfer::run(self, job, entry, &store, &file, threads).await?;
                let checksum = self.verify(order, &written.checksum)?;
                entry.verified = Some(checksum.clone());
                self.journal.write(entry).await;
                checksum
            }
            (None, None) => return Err(Lost.into()),
        };
        job.update(|status| {
            status.state = State::Installing;
            status.text = "Download success, starting install ".into();
            status.checksum = Some(checksum);
        });
        Ok(Brought { place, _permit: permit })
    }

    fn verify(&self, order: &Order, found: &Checksum) -> Result<String, Failure> {
        match &order.expected {
            Some(expected) if expected != found => {
                self.metrics.verify_failures.inc();
                Err(Failure::Failed(format!(
                    "Failed post download script: checksum \"{found}\" didn't match the given value, \"{}\" ({}: the file \
                     has changed or was damaged; compare with its publisher's checksum)",
                    order.checksum.as_deref().unwrap_or_default(),
                    Shown::new(&order.url)
                )))
            }
            _ => Ok(found.to_string()),
        }
    }

    async fn install(&self, job: &Job, brought: Brought<'_>, threads: &Threads) -> Result<Installed, Failure> {
        let (rules, order) = (self.rules.clone(), job.order.clone());
        let place = Arc::clone(&brought.place);
        let installed = threads
            .start("store-install", move || place.install(&order, &rules))
            .await?;
        installed.map_err(|error| {
            if error.is_content {
                self.metrics.verify_failures.inc();
            }
            Failure::Failed(error.text)
        })
    }

    /// What the server is told of the end.
    fn end_of(&self, job: &Job, entry: &Entry, done: Result<Installed, Failure>, elapsed: Duration) -> Status {
        let url = Shown::new(&job.order.url);
        match done {
            Ok(installed) => {
                info!(%url, path = installed.path, bytes = installed.physical_size, ?elapsed, "Download finished");
                self.metrics.finished.inc();
                installed_status(&installed, entry)
            }
            Err(Failure::Stopped) => {
                info!(%url, "Download stopped");
                Status {
                    state: State::Aborted,
                    text: "Download stopped".into(),
                    ..job.status()
                }
            }
            Err(Failure::Failed(text)) => {
                warn!(%url, error = text, ?elapsed, "Download failed");
                self.metrics.failed.inc();
                Status {
                    state: State::Failed,
                    text,
                    virtual_size: 0,
                    ..job.status()
                }
            }
        }
    }

    /// Keeps in the journal how a job ended, after what it has left in the store is gone: if that cannot be done now, the
    /// next start of the program does it. Tells whether nothing is left. However long it takes, nobody else gets the
    /// directory meanwhile.
    async fn finish(&self, order: &Order, mut entry: Entry, threads: &Threads, turn: Option<Turn>) -> (bool, Turn) {
        let turn = match turn {
            Some(turn) => turn,
            None => self.places.turn(order).await,
        };
        if entry.is_to_be_cleaned() {
            self.journal.write(&entry).await; // a restart shall clean up, too, not go on
            threads.ended().await;
            if self.clean_up(order, &entry).await {
                entry.names = None;
            }
        }
        let is_clean = !entry.is_to_be_cleaned();
        let is_stopped = entry.ended.as_ref().is_some_and(|end| end.state == State::Aborted);
        if is_stopped && is_clean {
            self.journal.remove(&entry.job).await;
        } else {
            self.journal.write(&entry).await;
        }
        (is_clean, turn)
    }

    async fn clean_up(&self, order: &Order, entry: &Entry) -> bool {
        let Some(names) = entry.names.clone() else { return true };
        let store = match self.stores.open(&order.store).await {
            Ok(store) => store,
            Err(error) => {
                warn!(error = chain(&error).to_string(), "Cannot clean up after a download");
                return false;
            }
        };
        let place = Place {
            root: store.root.clone(),
            directory: order.install_path.clone(),
            names,
            kind: order.kind,
        };
        let may_be_moved = entry.verified.is_some();
        match on_thread("store-clean", move || place.clean_up(may_be_moved)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!(%error, "Cannot clean up after a download");
                false
            }
            Err(Lost) => false,
        }
    }
}

/// The right to work in a directory of a store: one job at a time, from its first file until nothing of it is left.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// A store's URL and a directory in it.
type Directory = (String, StorePath);

/// Who may work when.
#[derive(Debug)]
pub struct Places {
    active: usize,
    free: Semaphore,
    directories: Mutex<HashMap<Directory, Arc<Turns<()>>>>,
}

impl Places {
    /// For so many downloads at once.
    pub fn new(active: usize) -> Self {
        Self {
            active,
            free: Semaphore::new(active),
            directories: Mutex::default(),
        }
    }

    async fn take(&self, order: &Order) -> SemaphorePermit<'_> {
        let wanted = if order.is_named_compressed { UNPACKING } else { 1 };
        let wanted = u32::try_from(wanted.min(self.active)).unwrap_or(1);
        let permit = self.free.acquire_many(wanted).await;
        permit.expect("the semaphore is never closed")
    }

    /// Waits until nobody else works in the order's directory.
    async fn turn(&self, order: &Order) -> Turn {
        let turns = {
            let mut directories = self.directories.lock().expect("nothing panics while holding it");
            directories.retain(|_, turns| Arc::strong_count(turns) > 1);
            let directory = (order.store.url.clone(), order.install_path.clone());
            Arc::clone(directories.entry(directory).or_default())
        };
        turns.lock_owned().await
    }
}

fn installed_status(installed: &Installed, entry: &Entry) -> Status {
    let now = OffsetDateTime::now_utc();
    let at = now.format(format_description!(
        "[month]/[day]/[year repr:last_two] [hour]:[minute]"
    ));
    Status {
        state: State::Done,
        text: format!("Install completed successfully at {}", at.unwrap_or_default()),
        temporary: entry.names.as_ref().map(|names: &Names| {
            let directory = installed.root.join(&installed.path);
            directory.with_file_name(&names.temporary).display().to_string()
        }),
        install_path: installed.path.clone(),
        virtual_size: installed.virtual_size,
        physical_size: installed.physical_size,
        checksum: entry.verified.clone(),
        ovf: installed.ovf.clone(),
    }
}
