//! `reset-admin-password`.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use mgmt_stub::password;
use tracing::info;

use super::open_for_one_change;

/// Makes a password that is good for one login.
pub(crate) async fn run(data_dir: &Path) -> anyhow::Result<()> {
    let store = open_for_one_change(data_dir)?;
    let administrator = store.administrator().await?.user;
    let password = password::one_time();
    store
        .set_one_time_password(administrator.id, password::hash(&password))
        .await?;
    info!(
        user = administrator.username,
        "New password, good for one login; the web page then asks for another"
    );
    std::io::stdout()
        .write_all(format!("{}\n", password.expose()).as_bytes())
        .context("writing the password")
}
