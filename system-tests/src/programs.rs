//! The programs under test. `cargo xtask test` builds them before it runs these tests.

use std::path::{Path, PathBuf};

/// A built program of ours: it lies beside the directory of the running test.
///
/// # Panics
/// It is not there.
pub fn built(name: &str) -> PathBuf {
    let program = profile_dir().join(name);
    assert!(
        program.exists(),
        "{} is not built; run `cargo build --workspace` or `cargo xtask test`",
        program.display()
    );
    program
}

/// The directory that cargo builds into; downloaded assets are cached there, too.
///
/// # Panics
/// The running test is not in such a directory.
pub fn target_dir() -> PathBuf {
    let target = profile_dir().parent().map(Path::to_owned);
    target.expect("programs are in target/<profile>")
}

fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the running test has a path");
    let directory = test.parent().and_then(Path::parent);
    directory.expect("tests are in target/<profile>/deps").to_owned()
}
