//! What `mgmt-stub` does, a module for each command.

use std::fmt::Display;
use std::io::{Write, stderr};
use std::path::Path;

use anyhow::Context;
use mgmt_stub::ca::Ca;
use mgmt_stub::store::{OpenError, Store};

mod administrator;
pub(crate) mod api;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod hosts;
pub(crate) mod issue_certificate;
mod progress;
pub(crate) mod reset_admin_password;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod stop_system_vms;
pub(crate) mod system_vm;
mod table;
pub(crate) mod template;
pub(crate) mod up;
pub(crate) mod vm;

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All is well.
    Done,
    /// What it has found is not as it should be; it has said so.
    Failed,
    /// The server, or what was asked for, is not up or not ready.
    NotReady,
}

/// Writes an answer.
fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing the answer")
}

/// Says what goes on. A closed terminal is no reason to stop.
fn tell(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

fn open_ca(data_dir: &Path) -> anyhow::Result<Ca> {
    Ca::open_or_create(data_dir.join("ca")).context("opening the certificate authority")
}

/// Also while the server runs, and before its first start.
fn open_for_one_change(data_dir: &Path) -> anyhow::Result<Store> {
    let store = match Store::open(data_dir) {
        Err(OpenError::InUse(_)) => Store::open_beside_server(data_dir),
        opened => opened,
    };
    store.context("opening the database")
}
