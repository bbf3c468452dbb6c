use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs in a thread of its own, which sees a file system of 4 MiB at the directory it is given.
fn on_a_small_store<T: Send>(work: impl FnOnce(&Path) -> T + Send) -> T {
    let directory: TempDir = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().to_owned();
    let in_namespace = move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests need root for a mount name space");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
        work(&path)
    };
    thread::scope(|scope| scope.spawn(in_namespace).join().unwrap())
}

#[test]
fn a_full_store_is_told_apart_from_a_broken_one() {
    on_a_small_store(|store| {
        let file = File::create_new(store.join("image")).unwrap();
        let mut sparse = SparseFile::resume(file, 0).unwrap();
        let error = (0..8).find_map(|_| sparse.write(&vec![1; 1 << 20]).err()).unwrap();
        assert!(error.is_no_space(), "{error:?}");
        assert_eq!(
            error.to_string(),
            "no space left on the store; free some, or choose another store"
        );
    });
}

#[test]
fn a_store_that_fills_up_while_unpacking_says_so_and_ends_xz() {
    let noise = |at: u32| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap();
    let random: Vec<u8> = (0..8 << 20).map(noise).collect();
    for program in ["gzip", "xz"] {
        let bytes = filter(program, &["-1", "-c"], &random[..]);
        on_a_small_store(|store| {
            let file = File::create_new(store.join("image")).unwrap();
            let sparse = SparseFile::resume(file, 0).unwrap();
            let compression = Compression::detect(&bytes).unwrap();
            let error = Unpack::new(compression, &GENEROUS)
                .run(&mut &bytes[..], sparse)
                .unwrap_err();
            assert!(error.is_no_space(), "{program}: {error:?}");
        });
    }
}
