//! What the management server remembers: one SQLite file in the data directory.
//!
//! One thread owns the connection; callers send it closures and await the answer. So there is one writer, statements
//! never wait for each other inside SQLite, and no async thread ever waits for a disk. All SQL of the program lives in
//! this module and the modules below it.
//!
//! The disk is what takes time, so all that was asked meanwhile shares one commit. Each writer has a savepoint of its
//! own, which a failure or a panic undoes; nobody is answered before the commit. Then come those who only read.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::mem;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::Ipv4Net;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, ffi};
use tokio::sync::{mpsc, oneshot, watch};

use crate::download_state;
use crate::driver::Traffic;
use crate::host_status::Rejected;
use crate::instance_state::{self, InstanceState};
use host::HostType;
use id::{HostId, InstanceId};
use instance::InstanceType;

/// Domains, accounts, users, their passwords and keys.
pub mod account;
/// What a person should look at.
pub mod alert;
/// Certificates that were issued, and which of them are revoked.
pub mod certificate;
mod command_log;
/// Who looks at which screen.
pub mod console_session;
/// What was done, by whom.
pub mod event;
/// System VM agents that are, or were, connected.
pub mod host;
/// Row numbers.
pub mod id;
/// Secondary storage.
pub mod image_store;
/// System VMs and user VMs.
pub mod instance;
/// Work that goes on after its caller was answered.
pub mod job;
/// NICs and addresses.
pub mod nic;
mod row;
/// Browser sessions.
pub mod session;
mod setting;
/// Primary storage.
pub mod storage_pool;
/// Labels on anything that has a UUID.
pub mod tag;
/// Templates and ISOs.
pub mod template;
/// VMs of users that we run, and their disks.
pub mod user_vm;
/// Zones and pods.
pub mod zone;

const DATABASE: &str = "mgmt-stub.sqlite3";
/// A file of its own: SQLite's locks on the database vanish when anybody in the process closes another handle to it.
const LOCK: &str = "mgmt-stub.lock";
/// The version each makes, and how. Published ones never change; a new idea is a new file.
const MIGRATIONS: Migrations = &[
    (1, include_str!("store/migrations/0001_zones_and_hosts.sql")),
    (2, include_str!("store/migrations/0002_api.sql")),
    (3, include_str!("store/migrations/0003_instances_and_templates.sql")),
    (4, include_str!("store/migrations/0004_proxies_of_others.sql")),
    (5, include_str!("store/migrations/0005_nics.sql")),
    (6, include_str!("store/migrations/0006_user_vms.sql")),
];
type Migrations = &'static [(u32, &'static str)];
/// Callers beyond this wait for room.
const QUEUE_LEN: usize = 256;
/// Jobs that share a commit. The first of them waits for the last, so not without a limit.
const BATCH_LEN: usize = 256;
/// For another program's lock, such as a backup's. Nothing of ours holds one for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Cheap to clone. What was asked for is done even if the caller stops waiting, and when the last clone is dropped
/// everything is on disk and the file is closed.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// Why the database could not be opened. Nothing was changed, except that migrations before a failed one are in.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0} is in use by another mgmt-stub; stop that one first")]
    InUse(PathBuf),
    #[error("{0} does not exist yet; start the server once to create it")]
    Missing(PathBuf),
    #[error("cannot open the database {path}")]
    Sql { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{path} has version {found}, this program knows versions up to {known}; run the newer program, or restore a backup"
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error(
        "{path} has version {found}, this program reads version {known}; start the server once to bring it up to date"
    )]
    Older { path: PathBuf, found: u32, known: u32 },
    #[error("cannot bring {path} to version {version}; it keeps the version before")]
    Migration {
        path: PathBuf,
        version: u32,
        source: rusqlite::Error,
    },
}

/// Why a question was not answered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Shared by all who waited for the same commit.
    #[error("the database refused")]
    Sql(#[source] Arc<rusqlite::Error>),
    #[error("the database thread has ended")]
    Stopped,
    #[error("this program failed while it used the database, which undid it; please report the panic in the log")]
    Panicked,
    #[error("there is no host {0}")]
    NoSuchHost(HostId),
    #[error(transparent)]
    Rejected(#[from] Rejected),
    #[error(transparent)]
    NoInstanceTransition(#[from] instance_state::NoTransition),
    #[error(transparent)]
    NoDownloadTransition(#[from] download_state::NoTransition),
    #[error("{name} is not {state} any more: somebody else has changed it just now; look again")]
    LostRace { name: String, state: InstanceState },
    #[error("all ports from {first} on are given to console proxies")]
    NoConsolePort { first: u16 },
    #[error("instance {0} is not being started any more: somebody else has changed it just now; look again")]
    NotStarting(InstanceId),
    #[error(
        "no address of {subnet} is free for {} traffic; destroy a VM, or give the zone more addresses",
        traffic.as_str().to_lowercase()
    )]
    NoFreeAddress { traffic: Traffic, subnet: Ipv4Net },
    #[error("guid {guid} belongs to host {host}, which is a {kind}")]
    GuidTaken { guid: String, host: HostId, kind: HostType },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

/// Something asked of the database, of any type of answer.
trait Job: Send {
    fn writes(&self) -> bool;
    /// Keeps the answer for later. A second call does nothing.
    fn run(&mut self, transaction: &Transaction<'_>);
    fn error(&self) -> Option<&StoreError>;
    fn answer(self: Box<Self>, committed: Result<(), Arc<rusqlite::Error>>);
}

struct Question<W, T> {
    writes: bool,
    /// `None` once it ran.
    work: Option<W>,
    result: Result<T, StoreError>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

struct Shared {
    /// `None` only while dropping.
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
    changes: watch::Receiver<u64>,
    transitions: Mutex<Transitions>,
}

/// How often instances of a type went from one state to another, in this run of the server.
pub type Transitions = HashMap<(InstanceType, InstanceState, InstanceState), u64>;

impl Store {
    /// Opens or creates the database in `data_dir` and brings it up to date. One server per data directory. Blocks.
    pub fn open(data_dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        let data_dir = data_dir.as_ref();
        let path = data_dir.join(DATABASE);
        let mut private_dir = DirBuilder::new();
        let created = private_dir.recursive(true).mode(0o700).create(data_dir);
        created.map_err(failed("create the directory", data_dir))?;

        let lock = private_file(&data_dir.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse(data_dir.to_owned()),
            TryLockError::Error(source) => failed("lock", data_dir)(source),
        })?;

        drop(private_file(&path)?); // SQLite gives its -wal and -shm files the mode of the database
        let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        migrate(&mut connection, &path, MIGRATIONS)?;
        Self::start(connection, Some(lock))
    }

    /// For looking, also while the server runs. Every change is refused. Blocks.
    pub fn open_read_only(data_dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_existing(data_dir.as_ref(), OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// For a single change while the server runs: takes turns with it, and never migrates. Blocks.
    pub fn open_beside_server(data_dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_existing(data_dir.as_ref(), OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    fn open_existing(data_dir: &Path, access: OpenFlags) -> Result<Self, OpenError> {
        let path = data_dir.join(DATABASE);
        match fs::exists(&path) {
            Ok(true) => {}
            Ok(false) => return Err(OpenError::Missing(path)),
            Err(source) => return Err(failed("look for", &path)(source)),
        }
        let connection = connect(&path, access)?;
        let (found, known) = (version(&connection).map_err(refused(&path))?, newest(MIGRATIONS));
        match found {
            _ if found > known => Err(OpenError::Newer { path, found, known }),
            _ if found < known => Err(OpenError::Older { path, found, known }),
            _ => Self::start(connection, None),
        }
    }

    fn start(mut connection: Connection, lock: Option<File>) -> Result<Self, OpenError> {
        let (jobs, mut queue) = mpsc::channel::<Box<dyn Job>>(QUEUE_LEN);
        let (changed, changes) = watch::channel(0);
        let work = move || {
            while let Some(first) = queue.blocking_recv() {
                let others = std::iter::from_fn(|| queue.try_recv().ok());
                let batch = std::iter::once(first).chain(others).take(BATCH_LEN);
                let (writers, readers) = batch.partition(|job| job.writes());
                if transact(&mut connection, TransactionBehavior::Immediate, writers) {
                    changed.send_modify(|count| *count += 1);
                }
                transact(&mut connection, TransactionBehavior::Deferred, readers);
            }
            drop(connection);
            // Last, so that whoever gets the lock finds the file closed. Said aloud, because a program that is just being
            // started by another thread may hold our files for a moment longer.
            lock.map(|lock| lock.unlock());
        };
        let thread = thread::Builder::new().name("store".to_owned()).spawn(work);
        let thread = thread.map_err(failed("start the thread of", Path::new(DATABASE)))?;
        Ok(Self {
            shared: Arc::new(Shared {
                jobs: Some(jobs),
                thread: Some(thread),
                changes,
                transitions: Mutex::default(),
            }),
        })
    }

    /// What instances went through since this server began.
    pub fn transitions(&self) -> Transitions {
        self.shared
            .transitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Counts the commits that may have changed something, of this program: for who shows the latest state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.clone()
    }

    /// All or nothing. `work` sees what writers before it did, and has to go through `?` with SQLite's errors.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(true, work).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(false, work).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        writes: bool,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let question = Question {
            writes,
            work: Some(work),
            result: Err(StoreError::Stopped),
            answer,
        };
        let jobs = self.shared.jobs.as_ref().ok_or(StoreError::Stopped)?;
        jobs.send(Box::new(question)).await.map_err(|_| StoreError::Stopped)?;
        answered.await.map_err(|_| StoreError::Stopped)?
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // a panic in there was printed when it happened
        }
    }
}

impl<W, T> Job for Question<W, T>
where
    W: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn writes(&self) -> bool {
        self.writes
    }

    fn run(&mut self, transaction: &Transaction<'_>) {
        let Some(work) = self.work.take() else { return };
        // What a panic leaves half-done is in the database, and that is rolled back.
        self.result = catch_unwind(AssertUnwindSafe(|| work(transaction))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(panic = text, "Panic in a use of the database; undone");
            Err(StoreError::Panicked)
        });
    }

    fn error(&self) -> Option<&StoreError> {
        self.result.as_ref().err()
    }

    fn answer(self: Box<Self>, committed: Result<(), Arc<rusqlite::Error>>) {
        let result = committed.map_err(StoreError::Sql).and(self.result);
        self.answer.send(result).ok(); // the caller may have stopped waiting
    }
}

/// Runs the jobs in one transaction, then answers them all. Taking the write lock at its begin (`Immediate`) means that
/// it can wait, but never fails half-way for a lock.
///
/// An error that ends the whole transaction is the answer for all that ran in it; those behind get another one. Says
/// whether any was committed.
fn transact(connection: &mut Connection, behavior: TransactionBehavior, jobs: Vec<Box<dyn Job>>) -> bool {
    let mut is_any_committed = false;
    let mut waiting = jobs.into_iter();
    while !waiting.as_slice().is_empty() {
        let mut ran = Vec::new();
        let mut run = || {
            let transaction = connection.transaction_with_behavior(behavior)?;
            for mut job in &mut waiting {
                let intact = run_in_savepoint(&transaction, &mut *job);
                ran.push(job);
                intact?; // dropping the transaction rolls it back
            }
            Ok(transaction.commit()?)
        };
        let committed: Result<(), Arc<rusqlite::Error>> = run();
        if ran.is_empty() {
            ran = mem::take(&mut waiting).collect(); // there was no transaction
        }
        is_any_committed |= committed.is_ok();
        for job in ran {
            job.answer(committed.clone());
        }
    }
    is_any_committed
}

/// An error means that the transaction cannot go on, not that the job failed.
fn run_in_savepoint(transaction: &Transaction<'_>, job: &mut dyn Job) -> Result<(), Arc<rusqlite::Error>> {
    let execute = |sql| transaction.prepare_cached(sql)?.execute([]);
    execute("SAVEPOINT job")?;
    job.run(transaction);
    // With a full disk, for example, SQLite rolls back everything at once.
    if transaction.is_autocommit() {
        return Err(match job.error() {
            Some(StoreError::Sql(cause)) => cause.clone(),
            _ => Arc::new(rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK),
                None,
            )),
        });
    }
    if job.error().is_some() {
        execute("ROLLBACK TO job")?;
    }
    execute("RELEASE job")?;
    Ok(())
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, OpenError> {
    let open = || {
        let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        if access.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            connection.pragma_update(None, "journal_mode", "WAL")?; // readers do not wait for the writer
            // What we answered survives a power cut. An agent remembers its host id; we must not give it to another.
            connection.pragma_update(None, "synchronous", "FULL")?;
        }
        Ok(connection)
    };
    open().map_err(refused(path))
}

/// Each migration is in whole, with its number, or not at all.
fn migrate(connection: &mut Connection, path: &Path, migrations: Migrations) -> Result<(), OpenError> {
    let (found, known) = (version(connection).map_err(refused(path))?, newest(migrations));
    if found > known {
        let path = path.to_owned();
        return Err(OpenError::Newer { path, found, known });
    }
    for &(version, sql) in migrations.iter().filter(|(version, _)| *version > found) {
        let mut step = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()
        };
        step().map_err(|source| OpenError::Migration {
            path: path.to_owned(),
            version,
            source,
        })?;
        tracing::info!(path = %path.display(), version, "Database brought to version");
    }
    Ok(())
}

fn newest(migrations: Migrations) -> u32 {
    migrations.last().map_or(0, |(version, _)| *version)
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// The open file, created if need be, that nobody else may read.
fn private_file(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed("open", path))?;
    let private = file.set_permissions(Permissions::from_mode(0o600));
    private.map_err(failed("set the mode of", path)).map(|()| file)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io {
        operation,
        path,
        source,
    }
}

fn refused(path: &Path) -> impl FnOnce(rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Sql { path, source }
}

#[cfg(test)]
mod tests;
