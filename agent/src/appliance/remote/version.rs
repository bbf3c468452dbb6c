//! `get_template_version.sh` (§7.3).

use std::time::Duration;

use platform::logging::chain;
use platform::watch::Watch;
use tokio::time::timeout;
use tracing::warn;

use super::Reply;
use crate::appliance::patch;
use crate::appliance::root::{BOOT_UP_DONE, Root, UPLOADS};

/// As the original. Then it answers all the same: a VM that is not ready still has a version.
const LIMIT: Duration = Duration::from_mins(4);

pub(super) async fn answer(root: &Root) -> Reply {
    timeout(LIMIT, ready(root)).await.ok();
    // What has just arrived counts, also when nobody has looked at it yet.
    if let Err(error) = patch::take(root) {
        warn!(error = chain(&error).to_string(), "Cannot take the uploaded scripts");
    }
    match patch::version_line(root) {
        Ok(line) => Reply::ok(line + "\n"),
        Err(error) => Reply::failed(1, chain(&error).to_string()),
    }
}

async fn ready(root: &Root) {
    let marker = root.path(BOOT_UP_DONE);
    let Ok(mut watch) = Watch::new(root.path(UPLOADS)) else {
        return; // without the directory nothing will come
    };
    while !marker.exists() {
        if watch.next().await.is_err() {
            return;
        }
    }
}
