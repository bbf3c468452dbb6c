//! What `mgmt-stub` does, a module for each command.

use std::path::Path;

use anyhow::Context;
use mgmt_stub::ca::Ca;
use mgmt_stub::store::{OpenError, Store};

pub(crate) mod api;
pub(crate) mod hosts;
pub(crate) mod issue_certificate;
pub(crate) mod reset_admin_password;
pub(crate) mod serve;
pub(crate) mod stop_system_vms;

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
