//! The boot: from a machine that knows nothing to one that a host can log in to, and again whenever another line comes.
//!
//! It waits for a line ([`line`](super::line)), decides ([`Plan::of`]), makes it true ([`apply`](super::apply)), and has
//! systemd start sshd and the rest of the set-up. It never gives up and never fails for what it is told: a bad line leaves the
//! machine as it is, says everything that is wrong, and the next one counts.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use platform::exec::Cmd;
use platform::files;
use platform::logging::chain;
use platform::notify::Notifier;
use platform::shutdown;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::apply::{self, Applied, Sshd, access, network};
use super::hypervisor::Hypervisor;
use super::hypervisor::detect::Detected;
use super::line::{Candidate, LineError, Parsed, REFUSED, Source};
use super::plan::Plan;
use super::progress::{Outcome, Progress, Step};
use super::root::{RUN, Root};

const SSH: &str = "ssh.service";
const SETUP: &str = "cs-setup.service";
/// Between looks for NICs that the plan has and the machine has not.
const NIC_EVERY: Duration = Duration::from_secs(1);

/// What a boot may be told on its command line.
#[derive(Debug, Default)]
pub struct Options {
    /// Where the machine's files are.
    pub root: Root,
    /// A file with the line, instead of all channels.
    pub cmdline_file: Option<PathBuf>,
    /// What this runs on, instead of finding out.
    pub hypervisor: Option<Hypervisor>,
}

/// What the machine has become.
#[derive(Debug)]
struct InForce {
    plan: Plan,
    /// Of the plan, not there.
    missing: Vec<String>,
    /// NICs at that time.
    nics: BTreeSet<String>,
    /// Tells the neighbours.
    announcing: JoinHandle<()>,
}

impl Drop for InForce {
    fn drop(&mut self) {
        self.announcing.abort();
    }
}

/// Runs until it is asked to stop. An error means that not even the files can be watched that it works with.
pub async fn run(options: Options, notifier: &Notifier) -> Result<(), LineError> {
    let root = &options.root;
    let mut stop = std::pin::pin!(shutdown::signal());
    let mut progress = Progress::new(root, "boot");
    let mut source = Source::open(root, options.cmdline_file, options.hypervisor)?;
    // From now on nothing that a host writes is lost: the guest agent may start.
    notifier.ready();
    let mut detected = None;
    let mut in_force: Option<InForce> = None;
    loop {
        if detected.as_ref() != Some(source.detected()) {
            detected = Some(tell(source.detected(), root, &mut progress));
        }
        tokio::select! {
            candidate = source.next(&mut progress) => {
                if detected.as_ref() != Some(source.detected()) {
                    detected = Some(tell(source.detected(), root, &mut progress));
                }
                match candidate.parse() {
                    Ok(parsed) => {
                        keep(&mut source, &candidate, &parsed, &mut progress);
                        let plan = Plan::of(&parsed.vm, source.detected().hypervisor);
                        notifier.status(&format!("This is {} ({})", name(&plan), plan.vm_type));
                        let is_first = in_force.is_none();
                        in_force = Some(become_that(plan, root, candidate.is_fresh, &mut progress, is_first).await);
                    }
                    Err(problems) => {
                        notifier.status("The boot arguments make no sense");
                        progress.set(Step::Arguments, Outcome::Failed, refused(&problems.to_string(), in_force.is_some()));
                        if let Err(error) = source.refuse(&candidate) {
                            tracing::warn!(error = chain(&error).to_string(), "Cannot put the bad line aside");
                        }
                    }
                }
            }
            () = other_nics(root, in_force.as_ref()) => {
                if let Some(was) = in_force.take() {
                    let plan = was.plan.clone();
                    in_force = Some(once_more(plan, root, &mut progress).await);
                }
            }
            () = &mut stop => return Ok(()),
        }
    }
}

/// Where everybody finds what this runs on.
fn tell(detected: &Detected, root: &Root, progress: &mut Progress) -> Detected {
    let Detected { hypervisor, because } = detected;
    progress.set(Step::Hypervisor, Outcome::Done, format!("{hypervisor}: {because}"));
    if let Err(error) = files::replace(root.path(RUN).join("hypervisor"), format!("{hypervisor}\n"), 0o644) {
        tracing::warn!(
            error = chain(&error).to_string(),
            "Cannot tell others what this runs on"
        );
    }
    detected.clone()
}

fn keep(source: &mut Source, candidate: &Candidate, parsed: &Parsed, progress: &mut Progress) {
    let from = match (candidate.is_fresh, candidate.line.channel.is_fixed()) {
        (false, false) => "the last start, since the host has given no other".to_owned(),
        _ => candidate.line.channel.to_string(),
    };
    match source.accept(candidate, parsed) {
        Ok(()) => progress.set(Step::Line, Outcome::Done, format!("boot arguments from {from}")),
        Err(error) => progress.set(
            Step::Line,
            Outcome::Failed,
            format!(
                "boot arguments from {from} count, but cannot be kept: {}",
                chain(&error)
            ),
        ),
    }
}

async fn become_that(plan: Plan, root: &Root, is_fresh: bool, progress: &mut Progress, is_first: bool) -> InForce {
    let said =
        std::iter::once(format!("this is {} ({})", name(&plan), plan.vm_type)).chain(plan.problems.iter().cloned());
    progress.set(Step::Arguments, Outcome::Done, said.collect::<Vec<_>>().join("\n"));
    let nics = nics(root);
    let Applied { sshd, missing } = apply::apply(&plan, root, is_fresh, progress).await;
    start(sshd, Some(is_first)).await;
    if let Some(password) = plan.root_password.as_ref().filter(|_| is_fresh) {
        apply::warn(access::set_password(password).await);
    }
    let announcing = tokio::spawn(network::announce(plan.clone()));
    InForce {
        plan,
        missing,
        nics,
        announcing,
    }
}

/// The same plan on a machine that has other NICs now.
async fn once_more(plan: Plan, root: &Root, progress: &mut Progress) -> InForce {
    let nics = nics(root);
    let Applied { sshd, missing } = apply::apply(&plan, root, false, progress).await;
    start(sshd, None).await;
    let announcing = tokio::spawn(network::announce(plan.clone()));
    InForce {
        plan,
        missing,
        nics,
        announcing,
    }
}

/// Has systemd start what comes next. The set-up runs once in a boot and again for each other line.
async fn start(sshd: Sshd, setup_is_first: Option<bool>) {
    let ssh = match sshd {
        Sshd::Start => "start",
        Sshd::Restart => "restart",
        Sshd::Stop => "stop",
    };
    let calls = match setup_is_first {
        None => vec![(ssh, vec![SSH])],
        // What does not run yet is started by either, and one program is faster than two.
        Some(true) if sshd != Sshd::Stop => vec![(ssh, vec![SSH, SETUP])],
        Some(is_first) => vec![
            (ssh, vec![SSH]),
            (if is_first { "start" } else { "restart" }, vec![SETUP]),
        ],
    };
    for (verb, units) in calls {
        if let Err(error) = Cmd::new("systemctl").args([verb, "--no-block"]).args(units).run().await {
            tracing::error!(error = chain(&error).to_string(), "Cannot start what comes next");
        }
    }
}

/// Ends when a machine that lacks NICs has other ones than before.
async fn other_nics(root: &Root, in_force: Option<&InForce>) {
    let Some(in_force) = in_force.filter(|in_force| !in_force.missing.is_empty()) else {
        return std::future::pending().await;
    };
    while nics(root) == in_force.nics {
        sleep(NIC_EVERY).await;
    }
}

fn nics(root: &Root) -> BTreeSet<String> {
    let entries = fs::read_dir(root.path("/sys/class/net"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn name(plan: &Plan) -> &str {
    plan.hostname.as_deref().unwrap_or("a VM without a name")
}

fn refused(problems: &str, has_other: bool) -> String {
    let then = if has_other {
        "the ones before stay in force"
    } else {
        "waiting for better ones"
    };
    format!("{problems}\n{then}; to look at them: agent cmdline {REFUSED}")
}
