//! `agent patch-watch`: takes what hosts upload as soon as it is whole (§7.5), for as long as the machine runs.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use platform::logging::chain;
use platform::watch::{Watch, WatchError, Written};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use super::patch::{self, AGENT_ZIP, SCRIPT, SCRIPTS, Taken};
use super::remote;
use super::root::{Root, UPLOADS};

/// Nothing was written for so long: a host sends its files one after the other, and then it is done.
const QUIET: Duration = Duration::from_millis(300);
/// Even when something is always written.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// After a failure: of a full disk, most likely.
const RETRY: Duration = Duration::from_secs(30);

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub enum PatchdError {
    /// The directory cannot be watched.
    #[error(transparent)]
    Directory(#[from] WatchError),
}

/// Puts right what is not, takes what is there, and waits for more. Returns only when the directory cannot be watched.
pub async fn run(root: &Root) -> Result<Infallible, PatchdError> {
    let (restored, problems) = remote::restore_links(root);
    if !restored.is_empty() {
        warn!(
            names = restored.join(" "),
            "Names under /opt/cloud/bin were gone or changed, and are back"
        );
    }
    for problem in problems {
        warn!(problem, "A name under /opt/cloud/bin cannot be put right");
    }
    patch::remove_leftovers(root);
    loop {
        // Watch first, then look: what is written in between is seen twice, not never.
        let mut watch = Watch::new(root.path(UPLOADS))?;
        info!(directory = UPLOADS, "Watching for uploads");
        follow(root, &mut watch).await?;
    }
}

/// Until the kernel has lost track.
async fn follow(root: &Root, watch: &mut Watch) -> Result<(), PatchdError> {
    let mut left = sweep(root, &[SCRIPTS, AGENT_ZIP, SCRIPT].into());
    loop {
        let Some(mut written) = next(watch, !left.is_empty()).await? else {
            return Ok(());
        };
        written.append(&mut left);
        left = sweep(root, &written);
    }
}

/// The uploads that were written, once it is quiet; `None` when the kernel cannot say. When something is left to do, no
/// longer than [`RETRY`].
async fn next(watch: &mut Watch, is_something_left: bool) -> Result<Option<BTreeSet<&'static str>>, PatchdError> {
    let mut written = BTreeSet::new();
    let mut last = is_something_left.then(|| Instant::now() + RETRY);
    let mut quiet = None;
    loop {
        let until = [quiet, last].into_iter().flatten().min();
        let event = async {
            match until {
                Some(until) => timeout_at(until, watch.next()).await.ok(),
                None => Some(watch.next().await),
            }
        };
        match event.await {
            None => return Ok(Some(written)),
            Some(Ok(Written::Many)) => return Ok(None),
            Some(Ok(Written::File(name))) => {
                let uploads = [SCRIPTS, AGENT_ZIP, SCRIPT];
                let Some(upload) = uploads.into_iter().find(|upload| name == **upload) else {
                    continue;
                };
                if written.is_empty() {
                    last = Some(Instant::now() + MAX_DELAY);
                }
                written.insert(upload);
                quiet = Some(Instant::now() + QUIET);
            }
            Some(Err(error)) => {
                sleep_until(Instant::now() + QUIET).await; // never in a tight loop
                return Err(error.into());
            }
        }
    }
}

/// Deals with the uploads of these names. Answers those that must be tried again.
fn sweep(root: &Root, names: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    // Whoever asks for the version before anything was uploaded reads this file.
    if let Err(error) = patch::write_signature(root) {
        warn!(error = chain(&error).to_string(), "Cannot write the scripts' signature");
    }
    let mut left = BTreeSet::new();
    for name in names {
        let done = match *name {
            SCRIPTS => patch::take(root).map(|taken| {
                if let Taken::Incomplete(reason) = taken {
                    warn!(
                        reason,
                        "Uploaded scripts are not complete; they are left until they are"
                    );
                }
            }),
            name => patch::discard(root, name),
        };
        if let Err(error) = done {
            warn!(
                error = chain(&error).to_string(),
                retry_after = ?RETRY,
                "Cannot deal with an upload"
            );
            left.insert(*name);
        }
    }
    left
}
