//! Brings all bytes of a source to a file of a store, over as many connections as it takes (ssvm.md §3.3, §3.8).

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use platform::logging::chain;
use tokio::time::Instant;
use tracing::warn;

use crate::blocking::{Lost, Threads};
use crate::checksum::{Algorithm, Checksum};
use crate::engine::{Engine, Failure};
use crate::install::refused;
use crate::job::Job;
use crate::journal::{Entry, Transfer};
use crate::order::Order;
use crate::rate::Rate;
use crate::sink::{Plan, Sink, Written};
use crate::source::{Get, Length, Opened, Shown, SourceError};
use crate::stores::Store;
use crate::stream::StreamError;

/// Between two entries in the journal about one transfer: what is lost by a crash is fetched again.
const JOURNAL_EVERY: Duration = Duration::from_secs(2);

/// Waits between attempts: 1, 2, 4 … s, at most this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Fetches what `entry` says is missing in `file`.
pub(crate) async fn run(
    engine: &Engine,
    job: &Job,
    entry: &mut Entry,
    store: &Store,
    file: &Arc<File>,
    threads: &Threads,
) -> Result<Written, Failure> {
    let (order, rules) = (&job.order, &engine.rules);
    let plan = Plan {
        algorithm: order.expected.as_ref().map_or(Algorithm::Sha512, Checksum::algorithm),
        may_be_compressed: order.is_named_compressed,
        limits: rules.unpack_limits(order.max_bytes),
        format: order.format,
        images: rules.images.clone(),
        keep_free: rules.reserve_bytes,
    };
    let from = entry.transfer.synced;
    let mut pump = Pump {
        engine,
        job,
        store,
        rate: Rate::new(rules.rate_per_job),
        sink: Sink::start(threads, Arc::clone(file), from, plan.clone()),
        at: from,
        has_answered: from > 0,
        journaled: Instant::now(),
    };
    let (mut best, mut attempts) = (from, 0);
    loop {
        let error = match pump.attempt(entry).await {
            Ok(()) => break,
            Err(Stop::Failed(failure)) => return Err(failure),
            Err(Stop::Writer) => return Err(pump.why_writer_ended().await),
            Err(Stop::FromStart(why)) => {
                pump.start_again(file, &plan, entry).await;
                why
            }
            Err(Stop::Source(error)) => error,
        };
        if pump.at > best {
            (best, attempts) = (pump.at, 0);
        }
        if !error.is_passing() || !pump.has_answered || attempts >= rules.resume_attempts {
            return Err(error.into());
        }
        attempts += 1;
        engine.metrics.retries.inc();
        if matches!(error, SourceError::Silent { .. }) {
            engine.metrics.stalls.inc();
        }
        let wait = Duration::from_secs(1 << (attempts - 1).min(5)).min(LONGEST_BACKOFF);
        warn!(%error, at = pump.at, attempts, ?wait, "Transfer interrupted, will go on");
        job.update(|status| status.text = format!("{error}; going on in {} s", wait.as_secs()));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = pump.sink.ended() => return Err(pump.why_writer_ended().await),
        }
        job.update(|status| status.text.clear());
    }
    job.set_progress(pump.at, Some(pump.at));
    let finished = pump.sink.finish().await;
    let written = finished.map_err(|error| failed(engine, order, store, error))?;
    if written.size == 0 {
        return Err(Failure::Failed(format!(
            "the file at {} is empty",
            Shown::new(&order.url)
        )));
    }
    Ok(written)
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
    journaled: Instant,
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
        let known = entry.transfer.total;
        let length = match opened.status.as_u16() {
            416 => {
                let total = opened.range().and_then(|(_, total)| total);
                if total == Some(self.at) && known.is_none_or(|known| known == self.at) {
                    return Ok(());
                }
                return Err(changed("the file has another length now"));
            }
            206 => {
                let Some((first, total)) = opened.range() else {
                    return Err(changed("it does not tell which part of the file it sends"));
                };
                let fits = first == self.at && (known.is_none() || total.is_none() || known == total);
                let same = opened.validator().is_none_or(|found| Some(found) == validator);
                if !fits || !same {
                    return Err(changed("the file has changed"));
                }
                let part = match opened.length().map_err(Stop::Source)? {
                    Length::Exact(part) => Some(self.at.saturating_add(part)),
                    Length::Hint(_) | Length::Unknown => None,
                };
                known.or(total).or(part).map_or(Length::Unknown, Length::Exact)
            }
            _ if self.at > 0 => {
                // The whole file although the rest was asked for: it has changed, or the server knows no ranges.
                return Err(changed("it sends the file from the beginning only"));
            }
            _ => {
                let length = opened.length().map_err(Stop::Source)?;
                check_size(self.engine, order, self.store, length)
                    .await
                    .map_err(Stop::Failed)?;
                entry.transfer = Transfer {
                    synced: 0,
                    total: match length {
                        Length::Exact(total) => Some(total),
                        Length::Hint(_) | Length::Unknown => None,
                    },
                    validator: opened.validator(),
                };
                self.engine.journal.write(entry).await;
                length
            }
        };
        self.copy(&mut opened, length, entry).await
    }

    async fn copy(&mut self, opened: &mut Opened, length: Length, entry: &mut Entry) -> Result<(), Stop> {
        let order = &self.job.order;
        self.job.set_progress(self.at, length.expected());
        let mut ended = std::pin::pin!(self.sink.ended());
        loop {
            let next = tokio::select! {
                next = opened.next() => next.map_err(Stop::Source)?,
                () = &mut ended => return Err(Stop::Writer),
            };
            let Some(bytes) = next else { break };
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
            self.engine.journal.write(entry).await;
            self.journaled = Instant::now();
        }
    }

    async fn start_again(&mut self, file: &Arc<File>, plan: &Plan, entry: &mut Entry) {
        entry.transfer = Transfer::default();
        self.engine.journal.write(entry).await;
        self.sink.start_again(Arc::clone(file), plan.clone()).await;
        self.at = 0;
    }

    async fn why_writer_ended(self) -> Failure {
        let (order, store, engine) = (&self.job.order, self.store, self.engine);
        match self.sink.finish().await {
            Err(error) => failed(engine, order, store, error),
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

fn failed(engine: &Engine, order: &Order, store: &Store, error: StreamError) -> Failure {
    if error.is_content() {
        engine.metrics.verify_failures.inc();
    }
    Failure::Failed(match error {
        StreamError::NoSpace => return no_space(store, order),
        StreamError::Refused(refusal) => refused(refusal, order).text,
        error => format!("Failed to install: {} ({})", chain(&error), Shown::new(&order.url)),
    })
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
    Failure::Failed(format!(
        "No space left on secondary storage {} for {}; delete what is not needed, or let an administrator add storage",
        store.shown(),
        Shown::new(&order.url)
    ))
}
