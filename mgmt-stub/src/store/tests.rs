use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::task::Poll;

use super::id::{PodId, ZoneId};
use super::*;
use crate::host_status::{HostEvent, HostStatus};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn text(error: &dyn Error) -> String {
    platform::logging::chain(error).to_string()
}

#[test]
fn migrations_are_the_files_of_their_directory_in_order() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/migrations");
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), MIGRATIONS.len());
    for (number, (file, (version, sql))) in (1..).zip(files.iter().zip(MIGRATIONS)) {
        assert_eq!(*version, number);
        assert!(
            file.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&format!("{number:04}_"))
        );
        assert_eq!(&fs::read_to_string(file).unwrap(), sql);
    }
}

#[test]
fn only_the_owner_may_read_the_database_and_its_log() {
    let (dir, _store) = open();
    for name in [DATABASE, LOCK, "mgmt-stub.sqlite3-wal", "mgmt-stub.sqlite3-shm"] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777;
        assert_eq!(format!("{name} {mode:o}"), format!("{name} 600"));
    }
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused_until_the_first_is_gone() {
    let (dir, store) = open();
    let error = Store::open(dir.path()).err().unwrap();
    let wanted = format!(
        "{} is in use by another mgmt-stub; stop that one first",
        dir.path().display()
    );
    assert_eq!(text(&error), wanted);

    let clone = store.clone();
    drop(store);
    clone.set_setting("host", "10.1.1.2").await.unwrap();
    drop(clone);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.setting("host").await.unwrap().as_deref(), Some("10.1.1.2"));
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let (dir, store) = open();
    drop(store);
    let path = dir.path().join(DATABASE);
    let raw = Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);

    let wanted = format!(
        "{} has version 99, this program knows versions up to {}; run the newer program, or restore a backup",
        path.display(),
        newest(MIGRATIONS)
    );
    assert_eq!(text(&Store::open(dir.path()).err().unwrap()), wanted);
    assert_eq!(text(&Store::open_read_only(dir.path()).err().unwrap()), wanted);
    assert_eq!(version(&Connection::open(&path).unwrap()).unwrap(), 99);
}

#[test]
fn a_migration_that_fails_half_way_leaves_the_version_before_it() {
    const GOOD: (u32, &str) = (1, "CREATE TABLE one (a);");
    const HALF: (u32, &str) = (
        2,
        "CREATE TABLE two (a); INSERT INTO one VALUES (1); INSERT INTO three VALUES (1);",
    );
    const WHOLE: (u32, &str) = (2, "CREATE TABLE two (a);");
    let tables = |connection: &Connection| -> u32 {
        let sql = "SELECT count(*) + (SELECT count(*) FROM one) FROM sqlite_schema";
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let (path, mut connection) = (Path::new("db"), Connection::open_in_memory().unwrap());

    let error = migrate(&mut connection, path, &[GOOD, HALF]).unwrap_err();
    let wanted = "cannot bring db to version 2; it keeps the version before: no such table: three";
    assert!(text(&error).starts_with(wanted), "{}", text(&error));
    assert_eq!((version(&connection).unwrap(), tables(&connection)), (1, 1));

    migrate(&mut connection, path, &[GOOD, WHOLE]).unwrap();
    assert_eq!((version(&connection).unwrap(), tables(&connection)), (2, 2));
    migrate(&mut connection, path, &[GOOD, WHOLE]).unwrap();
}

#[tokio::test]
async fn a_power_cut_in_a_transaction_undoes_all_of_it() {
    let (dir, store) = open();
    store.set_setting("before", "kept").await.unwrap();
    let (from, to) = (dir.path().to_owned(), tempfile::tempdir().unwrap());
    let copy = to.path().to_owned();
    let cut = store.write(move |transaction| {
        transaction.pragma_update(None, "cache_size", 10)?; // pages, so that most are in the -wal file already
        for number in 0..10_000 {
            transaction.execute(
                "INSERT INTO setting VALUES (?, 'lost')",
                [format!("setting {number:5}")],
            )?;
        }
        for name in [DATABASE, "mgmt-stub.sqlite3-wal"] {
            fs::copy(from.join(name), copy.join(name)).unwrap();
        }
        Ok(())
    });
    cut.await.unwrap();
    assert!(fs::metadata(to.path().join("mgmt-stub.sqlite3-wal")).unwrap().len() > 100_000);

    let after = Store::open(to.path()).unwrap();
    let found = after.read(|transaction| {
        let settings: u32 = transaction.query_row("SELECT count(*) FROM setting", [], |row| row.get(0))?;
        let check: String = transaction.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        Ok((settings, check))
    });
    assert_eq!(found.await.unwrap(), (1, "ok".to_owned()));
    assert_eq!(after.setting("before").await.unwrap().as_deref(), Some("kept"));
}

#[tokio::test]
async fn what_was_asked_for_is_done_even_if_nobody_waits() {
    let (dir, store) = open();
    {
        let mut asked = std::pin::pin!(store.set_setting("a", "1"));
        std::future::poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_ready())).await;
    }
    drop(store);
    let store = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(store.setting("a").await.unwrap().as_deref(), Some("1"));
}

#[tokio::test]
async fn reading_works_beside_a_server_and_without_one_and_never_writes() {
    let (dir, server) = open();
    let reader = Store::open_read_only(dir.path()).unwrap();
    server.set_setting("a", "1").await.unwrap();
    assert_eq!(reader.setting("a").await.unwrap().as_deref(), Some("1"));

    let error = reader.set_setting("a", "2").await.unwrap_err();
    let wanted = "the database refused: attempt to write a readonly database: Error code 8: ";
    assert!(text(&error).starts_with(wanted), "{}", text(&error));

    drop((server, reader));
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(reader.setting("a").await.unwrap().as_deref(), Some("1"));
}

#[test]
fn reading_what_is_not_there_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open_read_only(dir.path()).err().unwrap();
    let path = dir.path().join(DATABASE);
    let wanted = format!(
        "{} does not exist yet; start the server once to create it",
        path.display()
    );
    assert_eq!(text(&error), wanted);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_new_zone_has_one_pod_and_both_are_found_by_name_or_id() {
    let (_dir, store) = open();
    let zone = store.find_zone("zone1").await.unwrap().unwrap();
    assert_eq!(
        (zone.id, zone.name.as_str(), zone.uuid.get_version_num()),
        (ZoneId(1), "zone1", 4)
    );
    assert_eq!(store.find_zone("1").await.unwrap().as_ref(), Some(&zone));
    for unknown in ["zone2", "2", "default", ""] {
        assert_eq!(store.find_zone(unknown).await.unwrap(), None);
    }

    let pod = store.find_pod(zone.id, "pod1").await.unwrap().unwrap();
    assert_eq!(
        (pod.id, pod.name.as_str(), pod.uuid.get_version_num()),
        (PodId(1), "pod1", 4)
    );
    assert_eq!(store.find_pod(zone.id, "1").await.unwrap().as_ref(), Some(&pod));
    assert_eq!(store.find_pod(ZoneId(2), "1").await.unwrap(), None);
    assert_ne!(zone.uuid, pod.uuid);
}

#[tokio::test]
async fn an_image_store_is_added_once_and_keeps_its_parent() {
    let (_dir, store) = open();
    let url = "nfs://10.1.4.2/export";
    let first = store.add_image_store(ZoneId(1), "secondary", url, None).await.unwrap();
    store
        .set_image_store_parent(first.id, "/mnt/SecStorage/abc")
        .await
        .unwrap();
    let again = store
        .add_image_store(ZoneId(1), "renamed", url, Some("4.2".to_owned()))
        .await
        .unwrap();
    let other = store
        .add_image_store(ZoneId(1), "other", "nfs://10.1.4.3/export", None)
        .await
        .unwrap();

    let wanted = image_store::ImageStore {
        name: "renamed".to_owned(),
        nfs_version: Some("4.2".to_owned()),
        parent: Some("/mnt/SecStorage/abc".to_owned()),
        ..first
    };
    assert_eq!(again, wanted);
    assert_eq!(store.image_stores(ZoneId(1)).await.unwrap(), [again, other]);
    assert_eq!(store.image_stores(ZoneId(2)).await.unwrap(), []);
    let error = store.add_image_store(ZoneId(2), "lost", url, None).await.unwrap_err();
    assert_eq!(
        text(&error),
        "the database refused: FOREIGN KEY constraint failed: Error code 787: constraint failed"
    );
}

#[tokio::test]
async fn what_is_made_once_is_the_same_for_all_who_ask() {
    let (_dir, store) = open();
    let mut askers = tokio::task::JoinSet::new();
    for number in 0..100 {
        let store = store.clone();
        askers.spawn(async move {
            store
                .setting_or_insert_with("key", move || format!("made by {number}"))
                .await
        });
    }
    let answers: Vec<String> = askers.join_all().await.into_iter().map(Result::unwrap).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(store.setting("key").await.unwrap().as_ref(), Some(&answers[0]));
    assert_eq!(store.setting("other").await.unwrap(), None);
}

#[tokio::test]
async fn certificates_are_remembered_and_revoked_once() {
    let (_dir, store) = open();
    let ca_dir = tempfile::tempdir().unwrap();
    let ca = crate::ca::Ca::open_or_create(ca_dir.path()).unwrap();
    let request = crate::ca::Request::new(
        "s-1-VM".to_owned(),
        vec!["s-1-VM".to_owned()],
        vec!["10.1.1.5".parse().unwrap()],
    );
    let signed = ca.issue(&request).unwrap().signed;

    store.record_certificate(&signed, None).await.unwrap();
    let rows = store.certificates().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (&rows[0].serial, rows[0].subject.as_str()),
        (&signed.serial, "CN=s-1-VM")
    );
    assert_eq!(rows[0].sans, ["s-1-VM", "10.1.1.5"]);
    assert_eq!(
        (rows[0].not_before, rows[0].not_after),
        (signed.not_before, signed.not_after)
    );
    assert!(!store.is_revoked(&signed.serial).await.unwrap());

    assert!(store.revoke(&signed.serial).await.unwrap());
    let revoked = store.certificates().await.unwrap()[0].revoked;
    assert!(store.revoke(&signed.serial).await.unwrap());
    assert_eq!(store.certificates().await.unwrap()[0].revoked, revoked);
    assert!(store.is_revoked(&signed.serial).await.unwrap());

    let unknown = "1234".parse().unwrap();
    assert!(!store.revoke(&unknown).await.unwrap());
    assert!(!store.is_revoked(&unknown).await.unwrap());
}

/// What was committed, one frame each in the log. The log starts over at a checkpoint: only for tests that write little,
/// or after `PRAGMA wal_autocheckpoint = 0`.
fn commits(dir: &Path) -> usize {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    let log = fs::read(dir.join("mgmt-stub.sqlite3-wal")).unwrap();
    let frames = log.get(HEADER..).unwrap_or_default().chunks_exact(FRAME);
    let last_of_commit = |frame: &&[u8]| frame[4..8] != [0; 4] && frame[8..16] == log[16..24]; // salts: not an old one
    frames.filter(last_of_commit).count()
}

/// Holds up the store's thread until something is sent, so that what is asked meanwhile is one batch.
async fn held_up(store: &Store) -> std::sync::mpsc::Sender<()> {
    let (go, wait) = std::sync::mpsc::channel();
    let (started, running) = oneshot::channel();
    let holder = store.clone();
    tokio::spawn(async move {
        let wait = holder.read(move |_| {
            started.send(()).unwrap();
            wait.recv().ok();
            Ok(())
        });
        wait.await
    });
    running.await.unwrap();
    go
}

async fn fails(store: &Store) -> Result<(), StoreError> {
    let half_done = store.write(|transaction| {
        transaction.execute("INSERT INTO setting VALUES ('failed', 'lost')", [])?;
        Err(StoreError::NoSuchHost(HostId(7)))
    });
    half_done.await
}

async fn panics(store: &Store) -> Result<(), StoreError> {
    let half_done = store.write(|transaction| {
        transaction.execute("INSERT INTO setting VALUES ('panicked', 'lost')", [])?;
        panic!("a panic for the test")
    });
    half_done.await
}

#[tokio::test]
async fn those_who_ask_at_once_share_a_commit_and_not_their_failures() {
    let (dir, store) = open();
    let before = commits(dir.path());
    let go = held_up(&store).await;
    let asked = async {
        tokio::join!(
            store.setting("b"),
            store.set_setting("a", "1"),
            fails(&store),
            panics(&store),
            store.add_image_store(ZoneId(9), "lost", "nfs://10.1.4.2/export", None),
            store.set_setting("b", "2"),
            async { go.send(()).unwrap() },
        )
    };
    let (b, first, failed, panicked, refused, last, ()) = asked.await;
    first.unwrap();
    last.unwrap();
    assert_eq!(b.unwrap().as_deref(), Some("2")); // readers come after the commit
    let panic = "this program failed while it used the database, which undid it; please report the panic in the log";
    let foreign = "the database refused: FOREIGN KEY constraint failed: Error code 787: constraint failed";
    assert_eq!(text(&failed.unwrap_err()), "there is no host 7");
    assert_eq!(text(&panicked.unwrap_err()), panic);
    assert_eq!(text(&refused.unwrap_err()), foreign);
    assert_eq!(commits(dir.path()) - before, 1);

    for (name, value) in [("a", Some("1")), ("failed", None), ("panicked", None)] {
        assert_eq!(store.setting(name).await.unwrap().as_deref(), value);
    }
}

#[tokio::test]
async fn when_a_commit_fails_all_its_writers_are_told() {
    let (_dir, store) = open();
    let go = held_up(&store).await;
    let breaks_the_commit = store.write(|transaction| {
        transaction.pragma_update(None, "defer_foreign_keys", true)?;
        transaction.execute("UPDATE pod SET zone_id = 9", [])?;
        Ok(())
    });
    let (first, broken, last, read, ()) = tokio::join!(
        store.set_setting("a", "1"),
        breaks_the_commit,
        store.set_setting("b", "2"),
        store.setting("a"),
        async { go.send(()).unwrap() },
    );
    let wanted = "the database refused: FOREIGN KEY constraint failed: Error code 787: constraint failed";
    for result in [first, broken, last] {
        assert_eq!(text(&result.unwrap_err()), wanted);
    }
    assert_eq!(read.unwrap(), None);
    store.set_setting("a", "1").await.unwrap();
}

#[tokio::test]
async fn when_sqlite_undoes_the_whole_transaction_those_behind_get_another() {
    let (_dir, store) = open();
    let go = held_up(&store).await;
    let as_with_a_full_disk = store.write(|transaction| {
        transaction.execute_batch("ROLLBACK")?;
        Ok(transaction.execute_batch("SELECT * FROM missing")?)
    });
    let (before, full, behind, ()) = tokio::join!(
        store.set_setting("a", "1"),
        as_with_a_full_disk,
        store.set_setting("b", "2"),
        async { go.send(()).unwrap() },
    );
    for result in [before, full] {
        let error = text(&result.unwrap_err());
        assert!(
            error.starts_with("the database refused: no such table: missing"),
            "{error}"
        );
    }
    behind.unwrap();
    assert_eq!(store.setting("a").await.unwrap(), None);
    assert_eq!(store.setting("b").await.unwrap().as_deref(), Some("2"));
}

#[tokio::test]
async fn those_who_only_read_do_not_wait_for_another_programs_write_lock() {
    let (dir, store) = open();
    let mut other = Connection::open(dir.path().join(DATABASE)).unwrap();
    let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let go = held_up(&store).await;
    let started = std::time::Instant::now();
    let (a, b, ()) = tokio::join!(store.setting("a"), store.hosts(), async { go.send(()).unwrap() });
    assert_eq!((a.unwrap(), b.unwrap()), (None, Vec::new()));
    assert!(started.elapsed() < BUSY_TIMEOUT);
    drop(lock);
}

#[tokio::test]
async fn a_thousand_agents_that_register_at_once_share_few_commits() {
    const AGENTS: usize = 1000;
    let (dir, store) = open();
    let keep_the_log = store.read(|transaction| {
        let sql = "PRAGMA wal_autocheckpoint = 0";
        Ok(transaction.query_row(sql, [], |row| row.get::<_, u32>(0))?)
    });
    keep_the_log.await.unwrap();
    let before = commits(dir.path());
    let go = held_up(&store).await;
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..AGENTS {
        let store = store.clone();
        agents.spawn(async move {
            let facts = host::StartupFacts {
                guid: format!("s-{number}-VM"),
                resource_name: None,
                host_type: HostType::SecondaryStorageVm,
                name: format!("s-{number}-VM"),
                zone: ZoneId(1),
                pod: None,
                version: String::new(),
                arch: String::new(),
                private: host::HostNic::default(),
                public: host::HostNic::default(),
                storage: host::HostNic::default(),
                ms_host_list: None,
                proxy_port: None,
            };
            let id = store.find_or_create_host(facts).await.unwrap().id;
            let connected = store.apply_host_event(id, HostEvent::AgentConnected, "startup");
            assert_eq!(connected.await.unwrap(), HostStatus::Connecting);
            id
        });
    }
    go.send(()).unwrap();
    let ids: std::collections::HashSet<_> = agents.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), AGENTS);
    let commits = commits(dir.path()) - before;
    println!("{} jobs in {commits} commits", 2 * AGENTS);
    assert!(commits <= 2 * AGENTS / 8, "{commits}"); // measured: 8
}
