//! Makes a [`Plan`] true. Does, never decides; safe to repeat, and to be cut off at any moment.
//!
//! The order: first the firewall, so that nothing is open that should not be; then the network; then keys and sshd's
//! address. What fails is told and the rest goes on: a VM without a route can still be reached and asked why.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use platform::exec::{Cmd, ExecError};
use platform::files::FileError;

use super::plan::Plan;
use super::plan::current::BadAnswer;
use super::progress::{Outcome, Progress, Step};
use super::root::Root;

pub mod access;
pub mod dhcp;
pub mod names;
pub mod network;
pub mod settings;

pub use access::Sshd;

/// Why something could not be made true.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program.
    #[error(transparent)]
    Program(#[from] ExecError),
    /// An answer of ip(8).
    #[error(transparent)]
    Answer(#[from] BadAnswer),
    /// A directory.
    #[error("cannot make the directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting that the kernel does not take.
    #[error("cannot set {name} to {value}")]
    Setting {
        /// As sysctl(8) writes it.
        name: String,
        /// What was wanted.
        value: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of an earlier configuration.
    #[error("cannot remove {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// NICs of the plan that this machine does not have.
    #[error("{}; they will be configured when they are there", missing(names))]
    Missing {
        /// Theirs.
        names: Vec<String>,
    },
    /// A password that chpasswd(8) would misunderstand.
    #[error("vmpassword: a password must not contain control characters")]
    Password,
}

/// What is left to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether sshd is to be started, restarted or stopped.
    pub sshd: Sshd,
    /// NICs that are not there yet.
    pub missing: Vec<String>,
}

/// Applies the plan. `is_fresh`: the host has given the line for this start.
pub async fn apply(plan: &Plan, root: &Root, is_fresh: bool, progress: &mut Progress) -> Applied {
    progress.set(Step::Firewall, Outcome::Running, "");
    let loaded = Cmd::new("nft")
        .args(["-f", "-"])
        .stdin(plan.firewall.render())
        .run()
        .await;
    let openings = plan.firewall.open.len();
    report(progress, Step::Firewall, loaded.map_err(ApplyError::from), |_| {
        format!("{openings} rules let something in; all else is dropped")
    });

    progress.set(Step::Network, Outcome::Running, "");
    if is_fresh {
        let forgotten = settings::forget_routers_state(root);
        warn(forgotten);
    }
    let network = network::apply(plan, root).await;
    let missing = network.missing;
    let failures = network.failures.into_iter().chain(settings::write(plan, root));
    let failures: Vec<String> = failures
        .map(|error| platform::logging::chain(&error).to_string())
        .collect();
    if failures.is_empty() {
        progress.set(Step::Network, Outcome::Done, described(plan));
    } else {
        progress.set(Step::Network, Outcome::Failed, failures.join("\n"));
    }

    progress.set(Step::Ssh, Outcome::Running, "");
    let access = access::write(plan, root);
    let sshd = access.as_ref().copied().unwrap_or(Sshd::Start);
    report(progress, Step::Ssh, access, |_| match &plan.sshd {
        Some(sshd) => format!("sshd listens on {}", listens(sshd)),
        None => "no address is left for sshd, so it does not run".to_owned(),
    });
    Applied { sshd, missing }
}

fn report<T>(progress: &mut Progress, step: Step, done: Result<T, ApplyError>, said: impl FnOnce(T) -> String) {
    match done {
        Ok(done) => progress.set(step, Outcome::Done, said(done)),
        Err(error) => progress.set(step, Outcome::Failed, platform::logging::chain(&error).to_string()),
    }
}

/// A directory that everybody may enter, with those above it; the umask does not count.
fn make(path: &Path) -> Result<(), ApplyError> {
    let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
    made.map_err(|source| ApplyError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// Of what nobody waits for.
pub(super) fn warn(done: Result<(), ApplyError>) {
    if let Err(error) = done {
        tracing::warn!(
            error = platform::logging::chain(&error).to_string(),
            "Went on without it"
        );
    }
}

fn described(plan: &Plan) -> String {
    let links = plan
        .links
        .iter()
        .filter(|link| link.up)
        .map(|link| match (link.ipv4, link.ipv6) {
            _ if link.dhcp => format!("{} by DHCP", link.name),
            (Some(ipv4), Some(ipv6)) => format!("{} {ipv4} {ipv6}", link.name),
            (Some(net), None) => format!("{} {net}", link.name),
            (None, Some(net)) => format!("{} {net}", link.name),
            (None, None) => link.name.to_string(),
        });
    let default = plan.routes.iter().filter(|route| route.to.prefix_len() == 0);
    let default = default.map(|route| format!("default route {}", route.via));
    links.chain(default).collect::<Vec<_>>().join(", ")
}

fn listens(sshd: &super::plan::SshAccess) -> String {
    let addresses: Vec<String> = sshd
        .addresses
        .iter()
        .map(|address| format!("{address}:{}", sshd.port))
        .collect();
    if addresses.is_empty() {
        format!("port {} of every address", sshd.port)
    } else {
        addresses.join(", ")
    }
}

fn missing(names: &[String]) -> String {
    format!("this machine has no {}", names.join(", no "))
}
