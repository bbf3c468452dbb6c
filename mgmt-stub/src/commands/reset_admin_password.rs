//! `reset-admin-password`.

use std::path::Path;

use mgmt_stub::password;
use tracing::info;

use super::{open_for_one_change, print};

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
    print(&format!("{}\n", password.expose()))
}
