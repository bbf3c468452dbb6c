//! Names that only look at files, or make one.

use std::path::{Path, PathBuf};

use platform::files;
use platform::logging::chain;

use super::Reply;
use crate::appliance::root::Root;

/// As `ls` says it.
const NO_SUCH_FILE: u8 = 2;

/// `patched.sh PATH`: whether it is there. The original lets its shell expand a pattern once more.
pub(super) fn patched(args: &[String]) -> Reply {
    let Some(path) = args.first() else {
        return Reply::failed(
            NO_SUCH_FILE,
            "patched.sh needs a path, such as /opt/cloud/bin/keystore*",
        );
    };
    let found = matching(Path::new(path));
    if found.is_empty() {
        return Reply::failed(
            NO_SUCH_FILE,
            format!("cannot access '{path}': no such file or directory"),
        );
    }
    Reply::ok(
        found
            .iter()
            .map(|path| format!("{}\n", path.display()))
            .collect::<String>(),
    )
}

/// The path, or, when its last part ends in a `*`, what begins so.
fn matching(path: &Path) -> Vec<PathBuf> {
    if path.symlink_metadata().is_ok() {
        return vec![path.to_owned()];
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(start), Some(directory)) = (name.and_then(|name| name.strip_suffix('*')), path.parent()) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(start.as_bytes()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// `bumpup_priority.sh`.
pub(super) fn bump_priority(root: &Root) -> Reply {
    match files::replace(root.path("/tmp/rrouter_bumped"), "", 0o644) {
        Ok(_changed) => Reply::default(),
        Err(error) => Reply::failed(1, chain(&error).to_string()),
    }
}
