//! Who may open a session, and who has one (§6, §10). One lock, held for moments; nothing waits under it.

mod report;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tracing::warn;

pub use self::report::{MAX_REPORT, keep_reporting};
use crate::session::End;

/// How long a permission waits for its viewer: the ticket in the token is older, and dead after two minutes at most (§3.3).
/// So whoever comes later gets the same refusal as a stranger, before the server is asked.
pub const PERMISSION_LIFE: Duration = Duration::from_mins(2);

/// Permissions that wait at the same time.
pub const MAX_PERMISSIONS: usize = 100_000;

/// Ended sessions of which the management server has not heard yet.
const MAX_UNREPORTED: usize = 100_000;

/// Longest session UUID that is kept; they have 36 characters.
const MAX_UUID: usize = 64;

/// The table. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    /// Viewers at the same time; 0 is no limit.
    limit: usize,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    /// Session UUIDs that may be used once, the oldest first.
    permissions: IndexMap<String, Instant>,
    viewers: BTreeMap<u64, Entry>,
    /// The viewer that has a key now. One that was taken over stays in `viewers` until its sockets are closed.
    by_key: HashMap<String, u64>,
    unreported: VecDeque<String>,
    last_id: u64,
}

struct Entry {
    viewer: Viewer,
    created_ms: u64,
    activity: Arc<Activity>,
    stop: Option<oneshot::Sender<End>>,
}

/// What a viewer looks at.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// Viewers of the same key take each other's place (§6).
    pub key: String,
    /// As in the token.
    pub host: String,
    /// As in the token.
    pub port: i32,
    /// The VM's UUID.
    pub tag: String,
    /// The session.
    pub session_uuid: String,
}

/// What others may see of a running session.
#[derive(Debug, Default)]
pub struct Activity {
    last_input_ms: AtomicU64,
    /// Bytes to the browser.
    pub down: AtomicU64,
    /// Bytes to the host.
    pub up: AtomicU64,
}

impl Activity {
    /// Somebody typed or moved.
    pub fn input(&self) {
        self.last_input_ms.store(epoch_ms(), Ordering::Relaxed);
    }
}

/// There are as many viewers as the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A viewer's place in the table. Dropping it gives it up, and the management server hears of it.
pub struct Place {
    sessions: Sessions,
    id: u64,
    /// Shared with the table.
    pub activity: Arc<Activity>,
    stop: oneshot::Receiver<End>,
}

impl Sessions {
    /// An empty table with room for `limit` viewers; 0 is no limit.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Shared {
            table: Mutex::default(),
            limit,
            changed: Notify::new(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a session be opened once.
    pub fn allow(&self, session_uuid: &str) {
        if session_uuid.is_empty() || session_uuid.len() > MAX_UUID {
            return;
        }
        let mut table = self.table();
        table.forget_old_permissions();
        if table.permissions.len() == MAX_PERMISSIONS {
            table.permissions.shift_remove_index(0);
        }
        // A permission that is given again is a new one, and the newest stand last.
        table.permissions.shift_remove(session_uuid);
        table.permissions.insert(session_uuid.to_owned(), Instant::now());
    }

    /// Whether a session could be opened now. Says nothing about a moment later: see [`Sessions::take_permission`].
    pub fn is_allowed(&self, session_uuid: &str) -> bool {
        let table = self.table();
        table
            .permissions
            .get(session_uuid)
            .is_some_and(|given| given.elapsed() < PERMISSION_LIFE)
    }

    /// Uses up a permission: of all who try, one succeeds.
    pub fn take_permission(&self, session_uuid: &str) -> bool {
        let taken = self.table().permissions.shift_remove(session_uuid);
        taken.is_some_and(|given| given.elapsed() < PERMISSION_LIFE)
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.0.limit == 0 || self.table().viewers.len() < self.0.limit
    }

    /// Takes a place for an authorised viewer. Whoever has the same key is asked to leave.
    ///
    /// # Errors
    /// There is no room. The management server hears that the session is over.
    pub fn open(&self, viewer: Viewer) -> Result<Place, Full> {
        let mut table = self.table();
        if self.0.limit > 0 && table.viewers.len() >= self.0.limit {
            table.ended(viewer.session_uuid);
            drop(table);
            self.0.changed.notify_one();
            return Err(Full);
        }
        table.last_id += 1;
        let id = table.last_id;
        let previous = table.by_key.insert(viewer.key.clone(), id);
        if let Some(previous) = previous.and_then(|id| table.viewers.get_mut(&id)) {
            previous.stop(End::TakenOver);
        }
        let (stop_it, stop) = oneshot::channel();
        let activity = Arc::new(Activity::default());
        activity.input();
        table.viewers.insert(
            id,
            Entry {
                viewer,
                created_ms: epoch_ms(),
                activity: Arc::clone(&activity),
                stop: Some(stop_it),
            },
        );
        drop(table);
        self.0.changed.notify_one();
        Ok(Place {
            sessions: self.clone(),
            id,
            activity,
            stop,
        })
    }

    /// Asks everybody to leave, because the program ends.
    pub fn close_all(&self) {
        for entry in self.table().viewers.values_mut() {
            entry.stop(End::ShuttingDown);
        }
    }

    /// Viewers now.
    pub fn count(&self) -> usize {
        self.table().viewers.len()
    }

    /// Ended sessions that the management server has not confirmed.
    pub fn unreported(&self) -> usize {
        self.table().unreported.len()
    }
}

impl Table {
    fn forget_old_permissions(&mut self) {
        let is_old = |given: &Instant| given.elapsed() >= PERMISSION_LIFE;
        let old = self.permissions.values().take_while(|given| is_old(given)).count();
        self.permissions.drain(..old);
    }

    fn ended(&mut self, session_uuid: String) {
        if session_uuid.is_empty() {
            return;
        }
        if self.unreported.len() == MAX_UNREPORTED {
            warn!(
                MAX_UNREPORTED,
                "Too many ended sessions wait for the management server, dropping the oldest"
            );
            self.unreported.pop_front();
        }
        self.unreported.push_back(session_uuid);
    }
}

impl Entry {
    fn stop(&mut self, end: End) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(end); // it may be ending by itself
        }
    }
}

impl Place {
    /// Completes when the viewer shall leave: another took over, or the program ends.
    pub async fn stopped(&mut self) -> End {
        (&mut self.stop).await.unwrap_or(End::ShuttingDown)
    }

    /// Number of this viewer, counted from 1 since the program started.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.sessions.table();
        if let Some(entry) = table.viewers.remove(&self.id) {
            if table.by_key.get(&entry.viewer.key) == Some(&self.id) {
                table.by_key.remove(&entry.viewer.key);
            }
            table.ended(entry.viewer.session_uuid);
        }
        drop(table);
        self.sessions.0.changed.notify_one();
    }
}

fn epoch_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer(key: &str, session_uuid: &str) -> Viewer {
        Viewer {
            key: key.into(),
            host: "192.168.10.21".into(),
            port: 5901,
            tag: key.into(),
            session_uuid: session_uuid.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_serves_once_and_not_for_ever() {
        let sessions = Sessions::new(0);
        sessions.allow("a");
        sessions.allow("b");
        assert!(sessions.is_allowed("a") && !sessions.is_allowed("c"));
        assert!(sessions.take_permission("a"));
        assert!(!sessions.take_permission("a") && !sessions.is_allowed("a"));
        tokio::time::advance(PERMISSION_LIFE).await;
        assert!(!sessions.is_allowed("b") && !sessions.take_permission("b"));
    }

    #[tokio::test]
    async fn fifty_at_the_same_time_are_one_too_few_for_two_to_win() {
        let sessions = Sessions::new(0);
        sessions.allow("once");
        let barrier = std::sync::Barrier::new(50);
        let wins = std::thread::scope(|scope| {
            let attempt = || {
                barrier.wait();
                sessions.take_permission("once")
            };
            let threads: Vec<_> = (0..50).map(|_| scope.spawn(attempt)).collect();
            threads
                .into_iter()
                .filter(|_| true)
                .map(|thread| thread.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(wins, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn permissions_are_bounded_in_number_and_length_and_the_oldest_go_first() {
        let sessions = Sessions::new(0);
        sessions.allow(&"x".repeat(MAX_UUID + 1));
        assert!(sessions.table().permissions.is_empty());
        for number in 0..=MAX_PERMISSIONS {
            sessions.allow(&number.to_string());
        }
        assert_eq!(sessions.table().permissions.len(), MAX_PERMISSIONS);
        assert!(!sessions.is_allowed("0") && sessions.is_allowed("1"));
        tokio::time::advance(PERMISSION_LIFE).await;
        sessions.allow("new");
        assert_eq!(sessions.table().permissions.len(), 1);
    }

    #[tokio::test]
    async fn the_newer_viewer_of_a_vm_takes_over_and_the_older_is_told() {
        let sessions = Sessions::new(0);
        let mut first = sessions.open(viewer("vm", "s1")).unwrap();
        let second = sessions.open(viewer("vm", "s2")).unwrap();
        assert!(matches!(first.stopped().await, End::TakenOver));
        assert_eq!(sessions.count(), 2, "until its sockets are closed");
        drop(first);
        assert_eq!(sessions.table().unreported, ["s1"]);
        let mut third = sessions.open(viewer("vm", "s3")).unwrap();
        drop(second);
        sessions.close_all();
        assert!(matches!(third.stopped().await, End::ShuttingDown));
        drop(third);
        assert_eq!((sessions.count(), sessions.unreported()), (0, 3));
        assert!(sessions.table().by_key.is_empty());
    }

    #[tokio::test]
    async fn who_finds_no_room_is_reported_as_ended() {
        let sessions = Sessions::new(1);
        let _first = sessions.open(viewer("a", "s1")).unwrap();
        assert!(!sessions.has_room());
        assert_eq!(sessions.open(viewer("b", "s2")).err(), Some(Full));
        assert_eq!(sessions.table().unreported, ["s2"]);
    }
}
