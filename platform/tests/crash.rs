//! `files::replace` when the disk is full, and when the process dies in the middle. Both are a file size limit: the test
//! binary runs again as the program that hits it.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::path::Path;

use platform::exec::{Cmd, ExecError};
use platform::exit;
use platform::files::replace;

/// The program: replaces the file that `REPLACE` names by more bytes than it may write.
#[test]
fn program() {
    let Ok(path) = std::env::var("REPLACE") else { return };
    let error = replace(path, vec![b'n'; 100_000], 0o600).unwrap_err();
    let _ = exit::bad_config(&error);
    std::process::exit(1);
}

/// Runs [`program`] under a limit of 50,000 bytes per file: setrlimit(2). Going over it is SIGXFSZ, which kills, unless
/// ignored: then `write` fails.
async fn replace_too_much(directory: &Path, before: &[&str]) -> ExecError {
    let path = directory.join("file");
    let _ = replace(&path, "old", 0o600).unwrap();
    let limited = before
        .iter()
        .chain(&["prlimit", "--core=0", "--fsize=50000"])
        .collect::<Vec<_>>();
    let program = Cmd::new(limited[0])
        .args(&limited[1..])
        .arg(std::env::current_exe().unwrap());
    let error = program
        .args(["--exact", "program", "--nocapture"])
        .env("REPLACE", &path)
        .run()
        .await
        .unwrap_err();
    assert_eq!(fs::read(path).unwrap(), b"old");
    error
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[tokio::test]
async fn a_failing_write_leaves_the_old_file_and_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = replace_too_much(dir.path(), &["env", "--ignore-signal=XFSZ"]).await;
    let ExecError::Failed { printed, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(
        printed,
        format!(
            "error: cannot write {}/file: File too large (os error 27)",
            dir.path().display()
        )
    );
    assert_eq!(count(dir.path()), 1);
}

#[tokio::test]
async fn a_crash_while_writing_leaves_the_old_file_and_the_next_replace_works() {
    let dir = tempfile::tempdir().unwrap();
    let error = replace_too_much(dir.path(), &[]).await;
    assert!(error.to_string().contains("SIGXFSZ"), "{error}");
    assert_eq!(
        count(dir.path()),
        2,
        "dying leaves the part that was written, under another name"
    );
    let _ = replace(dir.path().join("file"), "new", 0o600).unwrap();
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"new");
}
