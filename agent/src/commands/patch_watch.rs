//! `agent patch-watch`.

use std::path::PathBuf;
use std::process::ExitCode;

use agent::appliance::patchd;
use agent::appliance::root::Root;
use platform::logging::chain;
use platform::{exit, shutdown};

/// Take what hosts upload into /var/cache/cloud to patch this VM, until told to stop (a daemon, cs-patchd.service).
///
/// A complete cloud-scripts.tgz goes to /usr/share/cloud, and its SHA-512 into
/// /var/cache/cloud/cloud-scripts-signature: the version that the management server is told. agent.zip and
/// patch-sysvms.sh are deleted. Nothing is unpacked or executed. At its start it also puts names under /opt/cloud/bin
/// right that are not links to this program any more.
#[derive(Debug, clap::Args)]
pub(crate) struct PatchWatch {
    /// The VM's files are below this directory: for tests
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
}

pub(crate) async fn run(PatchWatch { root }: &PatchWatch) -> ExitCode {
    let root = Root::new(root);
    tokio::select! {
        Err(error) = patchd::run(&root) => exit::failed(&chain(&error)),
        () = shutdown::signal() => ExitCode::SUCCESS,
    }
}
