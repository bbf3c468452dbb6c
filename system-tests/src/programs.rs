//! The programs under test. `cargo xtask test` builds them before it runs these tests.

use std::path::{Path, PathBuf};

use crate::vm::Format;

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

/// noVNC, which the console proxy serves.
///
/// # Panics
/// It is not there.
pub fn novnc() -> PathBuf {
    asset("novnc/core/rfb.js", "assets");
    target_dir().join("assets/novnc")
}

/// Makes sure that the demo guest is there: making it inside of a test would take longer than the test may.
///
/// # Panics
/// It is not.
pub fn guest_is_made() {
    asset("guest/demo.qcow2", "guest");
}

/// The image of the system VMs.
///
/// # Panics
/// It is not there.
pub fn image(format: Format) -> PathBuf {
    let file = target_dir().join("image").join(format.file_name());
    made_by(&file, "image");
    file
}

fn asset(path: &str, task: &str) {
    made_by(&target_dir().join("assets").join(path), task);
}

fn made_by(file: &Path, task: &str) {
    assert!(
        file.exists(),
        "{} is not there; run `cargo xtask {task}` or `cargo xtask test`",
        file.display()
    );
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
