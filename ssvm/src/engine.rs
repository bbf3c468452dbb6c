//! Carries out download jobs (ssvm.md §3.8): waits for a place, transfers, verifies, installs; keeps the journal.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use platform::logging::chain;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::blocking::{Lost, on_thread};
use crate::checksum::{Algorithm, Checksum};
use crate::install::{self, Installed, Place};
use crate::job::{Job, State, Status};
use crate::journal::{Entry, Journal, Names, Transfer};
use crate::metrics::Metrics;
use crate::order::Order;
use crate::rate::Rate;
use crate::rules::Rules;
use crate::sink::{Plan, Sink, Written};
use crate::source::{Client, Get, Length, Opened, Shown, SourceError};
use crate::stores::{Store, Stores};
use crate::stream::StreamError;

/// Between two entries in the journal about one transfer: what is lost by a crash is fetched again.
const JOURNAL_EVERY: Duration = Duration::from_secs(2);

/// Waits between attempts: 1, 2, 4 … s, at most this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// An answer says that a job has failed after its files are gone, unless the store takes longer than this.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(2);

/// Does the work of jobs.
#[derive(Debug)]
pub struct Engine {
    /// Asks sources.
    pub client: Client,
    /// Where images go.
    pub stores: Arc<Stores>,
    /// What a restart must know.
    pub journal: Journal,
    /// Jobs at work at once.
    pub places: Semaphore,
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
enum Failure {
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

impl Engine {
    /// Starts a job, or starts it again.
    pub fn spawn(self: &Arc<Self>, job: Arc<Job>, start: Start) {
        let token = job.reset();
        let engine = Arc::clone(self);
        let span = info_span!("download", job = job.id, path = %job.order.install_path);
        tokio::spawn(async move { engine.run(&job, start, token).await }.instrument(span));
    }

    /// What an earlier life left; unreadable: nothing.
    pub async fn journal_entries(&self) -> Vec<Entry> {
        let journal = self.journal.clone();
        match on_thread("journal", move || journal.load()).await {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => {
                warn!(%error, "Cannot read the journal; downloads of an earlier run are forgotten");
                Vec::new()
            }
            Err(Lost) => Vec::new(),
        }
    }

    /// Removes a job from the journal.
    pub async fn forget(&self, job: &str) {
        let (journal, job) = (self.journal.clone(), job.to_owned());
        let _ = on_thread("journal", move || journal.remove(&job)).await;
    }

    async fn record(&self, entry: &Entry) {
        let (journal, entry) = (self.journal.clone(), entry.clone());
        if let Ok(Err(error)) = on_thread("journal", move || journal.write(&entry)).await {
            // The job goes on: only a restart would not find it.
            warn!(error = chain(&error).to_string(), "Cannot write the journal");
        }
    }

    async fn run(self: &Arc<Self>, job: &Arc<Job>, start: Start, token: CancellationToken) {
        let mut entry = match start {
            Start::Again(entry) => *entry,
            Start::New => Entry {
                job: job.id.clone(),
                command: job.order.command.clone(),
                names: None,
                transfer: Transfer::default(),
                verified: None,
                ended: None,
                changed: 0,
            },
        };
        let started = SystemTime::now();
        let done = tokio::select! {
            biased;
            () = token.cancelled() => Err(Failure::Stopped),
            done = self.work(job, &mut entry) => done,
        };
        let url = Shown::new(&job.order.url);
        let elapsed = started.elapsed().unwrap_or_default();
        let end = match done {
            Ok(installed) => {
                info!(%url, path = installed.path, bytes = installed.physical_size, ?elapsed, "Download finished");
                self.metrics.finished.inc();
                installed_status(&installed, &entry)
            }
            Err(Failure::Stopped) => {
                info!(%url, "Download stopped");
                self.clean_up(&job.order, &entry).await;
                Status {
                    state: State::Aborted,
                    text: "Download stopped".into(),
                    ..job.status()
                }
            }
            Err(Failure::Failed(text)) => {
                warn!(%url, error = text, ?elapsed, "Download failed");
                self.metrics.failed.inc();
                self.clean_up(&job.order, &entry).await;
                Status {
                    state: State::Failed,
                    text,
                    virtual_size: 0,
                    ..job.status()
                }
            }
        };
        entry.ended = matches!(end.state, State::Done | State::Failed).then(|| end.clone());
        match entry.ended {
            Some(_) => self.record(&entry).await,
            None => self.forget(&entry.job).await,
        }
        job.update(|status| *status = end);
    }

    async fn work(self: &Arc<Self>, job: &Arc<Job>, entry: &mut Entry) -> Result<Installed, Failure> {
        let order = &job.order;
        // The semaphore is never closed.
        let _place = self.places.acquire().await.map_err(|_| Failure::Stopped)?;
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
            self.record(entry).await; // first, so that a file of ours is never without an owner
            names
        };
        let temporary = store.root.join(order.install_path.to_string()).join(&names.temporary);
        job.update(|status| status.temporary = Some(temporary.display().to_string()));

        let place = Place {
            root: store.root.clone(),
            directory: order.install_path.clone(),
            names,
            kind: order.kind,
        };
        let has_begun = entry.transfer.synced > 0 || entry.verified.is_some();
        let place = on_thread("store-prepare", move || {
            place.prepare(has_begun).map(|found| (place, found))
        })
        .await?;
        let (place, prepared) = place.map_err(|error| {
            warn!(%error, "Cannot prepare the install directory");
            Failure::Failed(format!("Unable to create {}: {error}", order.install_path))
        })?;
        let place = Arc::new(place);
        let checksum = match (prepared.file, entry.verified.clone()) {
            // All bytes were here and right before a restart.
            (file, Some(checksum)) if file.is_some() || prepared.has_installed => checksum,
            (Some(file), _) => {
                let written = self.transfer(job, entry, &store, Arc::new(file)).await?;
                let checksum = self.verify(order, &written.checksum)?;
                entry.verified = Some(checksum.clone());
                self.record(entry).await;
                checksum
            }
            (None, _) => return Err(Failure::Failed("Failed to install: the temporary file is gone".into())),
        };
        job.update(|status| {
            status.state = State::Installing;
            status.text = "Download success, starting install ".into();
            status.checksum = Some(checksum);
        });
        let (rules, task) = (self.rules.clone(), Arc::clone(job));
        let installed = on_thread("store-install", move || place.install(&task.order, &rules)).await?;
        installed.map_err(|error| {
            if error.is_content {
                self.metrics.verify_failures.inc();
            }
            Failure::Failed(error.text)
        })
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

    /// Brings all bytes to the temporary file, over as many connections as it takes.
    async fn transfer(&self, job: &Job, entry: &mut Entry, store: &Store, file: Arc<File>) -> Result<Written, Failure> {
        let order = &job.order;
        let plan = Plan {
            algorithm: order.expected.as_ref().map_or(Algorithm::Sha512, Checksum::algorithm),
            may_be_compressed: order.is_named_compressed,
            limits: self.rules.unpack_limits(order.max_bytes),
        };
        let from = entry.transfer.synced;
        let mut pump = Pump {
            engine: self,
            job,
            store,
            rate: Rate::new(self.rules.rate_per_job),
            sink: Sink::start(Arc::clone(&file), from, plan.clone()),
            at: from,
            has_answered: from > 0,
            journaled: tokio::time::Instant::now(),
        };
        let (mut best, mut attempts) = (from, 0);
        loop {
            let error = match pump.attempt(entry).await {
                Ok(()) => break,
                Err(Stop::Failed(failure)) => return Err(failure),
                Err(Stop::Writer) => return Err(pump.why_writer_ended().await),
                Err(Stop::FromStart(why)) => {
                    pump.start_again(&file, &plan, entry).await;
                    why
                }
                Err(Stop::Source(error)) => error,
            };
            if pump.at > best {
                (best, attempts) = (pump.at, 0);
            }
            if !error.is_passing() || !pump.has_answered || attempts >= self.rules.resume_attempts {
                return Err(error.into());
            }
            attempts += 1;
            self.metrics.retries.inc();
            if matches!(error, SourceError::Silent { .. }) {
                self.metrics.stalls.inc();
            }
            let wait = Duration::from_secs(1 << (attempts - 1).min(5)).min(LONGEST_BACKOFF);
            warn!(%error, at = pump.at, attempts, ?wait, "Transfer interrupted, will go on");
            job.update(|status| status.text = format!("{error}; going on in {} s", wait.as_secs()));
            tokio::time::sleep(wait).await;
            job.update(|status| status.text.clear());
        }
        let Pump { sink, .. } = pump;
        let written = sink
            .finish()
            .await
            .map_err(|error| self.stream_failed(order, store, &error))?;
        if written.size == 0 {
            return Err(Failure::Failed(format!(
                "the file at {} is empty",
                Shown::new(&order.url)
            )));
        }
        Ok(written)
    }

    fn stream_failed(&self, order: &Order, store: &Store, error: &StreamError) -> Failure {
        if error.is_no_space() {
            return no_space(store, order);
        }
        if error.is_content() {
            self.metrics.verify_failures.inc();
        }
        Failure::Failed(format!(
            "Failed to install: {} ({})",
            chain(error),
            Shown::new(&order.url)
        ))
    }

    /// Removes what is ours in the install directory.
    async fn clean_up(&self, order: &Order, entry: &Entry) {
        let Some(names) = entry.names.clone() else { return };
        let Ok(Ok(store)) = timeout(CLEAN_UP_LIMIT, self.stores.open(&order.store)).await else {
            return;
        };
        let place = Place {
            root: store.root.clone(),
            directory: order.install_path.clone(),
            names,
            kind: order.kind,
        };
        let _ = timeout(CLEAN_UP_LIMIT, on_thread("store-clean", move || place.clean_up())).await;
    }
}

/// One transfer: what is the same over all its connections.
struct Pump<'a> {
    engine: &'a Engine,
    job: &'a Job,
    store: &'a Store,
    rate: Rate,
    sink: Sink,
    /// Bytes of the source that the sink has.
    at: u64,
    /// The source has worked once: what fails now is an interruption.
    has_answered: bool,
    journaled: tokio::time::Instant,
}

/// Why a connection brought no more.
enum Stop {
    /// Maybe for a while only.
    Source(SourceError),
    /// What we have is of no use for the rest.
    FromStart(SourceError),
    /// The sink has ended; it knows why.
    Writer,
    /// For good.
    Failed(Failure),
}

impl Pump<'_> {
    async fn attempt(&mut self, entry: &mut Entry) -> Result<(), Stop> {
        let order = &self.job.order;
        let validator = entry.transfer.validator.clone();
        let changed = |why: &str| {
            Stop::FromStart(SourceError::Broken {
                url: Shown::new(&order.url),
                why: why.to_owned(),
            })
        };
        if self.at > 0 && validator.is_none() {
            return Err(changed(
                "it does not tell whether the file is still the same, so we start from the beginning",
            ));
        }
        let rest = validator
            .as_deref()
            .filter(|_| self.at > 0)
            .map(|validator| (self.at, validator));
        let get = Get {
            url: &order.url,
            auth: order.auth.as_ref(),
            proxy: order.proxy.as_ref(),
            follow_redirects: order.follow_redirects,
            rest,
        };
        let mut opened = self.engine.client.get(&get).await.map_err(Stop::Source)?;
        self.has_answered = true;
        let expected = match opened.status.as_u16() {
            416 if opened.range().is_some_and(|(total, _)| total == self.at) => return Ok(()),
            416 => return Err(changed("the file is shorter now")),
            206 => {
                let length = opened.length().map_err(Stop::Source)?.expected();
                let fits = match (opened.range(), entry.transfer.total) {
                    (Some((first, Some(total))), Some(known)) => first == self.at && total == known,
                    (Some((first, _)), _) => first == self.at,
                    (None, _) => false,
                };
                let same = opened.validator().is_none_or(|found| Some(found) == validator);
                if !fits || !same {
                    return Err(changed("the file has changed"));
                }
                let total = entry.transfer.total.or_else(|| Some(self.at + length?));
                total.map_or(Length::Unknown, Length::Exact)
            }
            _ if self.at > 0 => {
                // The whole file although the rest was asked for: it has changed, or the server knows no ranges.
                return Err(changed("it sends the file from the beginning only"));
            }
            _ => {
                let length = opened.length().map_err(Stop::Source)?;
                let (engine, store) = (self.engine, self.store);
                check_size(engine, order, store, length).await.map_err(Stop::Failed)?;
                entry.transfer = Transfer {
                    synced: 0,
                    total: match length {
                        Length::Exact(total) => Some(total),
                        _ => None,
                    },
                    validator: opened.validator(),
                };
                self.engine.record(entry).await;
                length
            }
        };
        self.copy(&mut opened, expected, entry).await
    }

    async fn copy(&mut self, opened: &mut Opened, length: Length, entry: &mut Entry) -> Result<(), Stop> {
        let order = &self.job.order;
        self.job.set_progress(self.at, length.expected());
        while let Some(bytes) = opened.next().await.map_err(Stop::Source)? {
            let count = u64::try_from(bytes.len()).unwrap_or(0);
            self.at += count;
            if self.at > order.max_bytes {
                return Err(Stop::Failed(too_large(order)));
            }
            self.rate.take(count).await;
            self.engine.rate_total.take(count).await;
            self.sink.write(bytes).await.map_err(|_| Stop::Writer)?;
            self.engine.metrics.received_bytes.inc_by(count);
            self.job.set_progress(self.at, length.expected());
            self.note(entry).await;
        }
        match length {
            Length::Exact(total) if self.at != total => Err(Stop::Source(SourceError::Broken {
                url: Shown::new(&order.url),
                why: format!("it ended after {} of {total} bytes", self.at),
            })),
            _ => Ok(()),
        }
    }

    /// Keeps the journal near what is on disk.
    async fn note(&mut self, entry: &mut Entry) {
        let synced = self.sink.synced();
        if synced > entry.transfer.synced && self.journaled.elapsed() >= JOURNAL_EVERY {
            entry.transfer.synced = synced;
            self.engine.record(entry).await;
            self.journaled = tokio::time::Instant::now();
        }
    }

    async fn start_again(&mut self, file: &Arc<File>, plan: &Plan, entry: &mut Entry) {
        entry.transfer = Transfer::default();
        self.engine.record(entry).await;
        self.sink.start_again(Arc::clone(file), plan.clone()).await;
        self.at = 0;
    }

    async fn why_writer_ended(self) -> Failure {
        let (order, store, engine) = (&self.job.order, self.store, self.engine);
        match self.sink.finish().await {
            Err(error) => engine.stream_failed(order, store, &error),
            Ok(_) => Failure::from(Lost),
        }
    }
}

async fn check_size(engine: &Engine, order: &Order, store: &Store, length: Length) -> Result<(), Failure> {
    let expected = length.expected().unwrap_or(0);
    if length == Length::Exact(0) {
        return Err(Failure::Failed(format!(
            "the file at {} is empty: its length is 0; check the URL",
            Shown::new(&order.url)
        )));
    }
    if expected > order.max_bytes {
        return Err(too_large(order));
    }
    let space = store.space().await;
    if space.is_some_and(|space| expected.saturating_add(engine.rules.reserve_bytes) > space.available) {
        return Err(no_space(store, order));
    }
    Ok(())
}

fn too_large(order: &Order) -> Failure {
    Failure::Failed(format!(
        "Download file size is too large ({}: more than the {} bytes that are allowed; the administrator's limits are \
         max.template.iso.size and storage.max.volume.upload.size)",
        Shown::new(&order.url),
        order.max_bytes
    ))
}

fn no_space(store: &Store, order: &Order) -> Failure {
    let store = store.url.split('?').next().unwrap_or_default();
    Failure::Failed(format!(
        "No space left on secondary storage {store} for {}; delete what is not needed, or let an administrator add \
         storage",
        Shown::new(&order.url)
    ))
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
