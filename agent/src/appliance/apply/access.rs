//! Who gets in, and where sshd listens (§4).

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use platform::exec::Cmd;
use platform::files::{self, Change};
use protocol::secret::Secret;

use super::ApplyError;
use crate::appliance::plan::Plan;
use crate::appliance::plan::access::DROP_IN;
use crate::appliance::root::Root;

const KEYS: &str = "/root/.ssh/authorized_keys";
/// If it is there, it holds the keys that count (§4.1).
const OTHER_KEYS: &str = "/var/cache/cloud/authorized_keys";
/// Some 200 keys.
const MAX_KEYS: u64 = 256 * 1024;

/// What sshd needs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sshd {
    /// To run, if it does not.
    #[default]
    Start,
    /// To read its configuration again.
    Restart,
    /// Not to run: there is no address for it.
    Stop,
}

/// Writes root's keys and sshd's address.
pub fn write(plan: &Plan, root: &Root) -> Result<Sshd, ApplyError> {
    let other = files::read_limited(root.path(OTHER_KEYS), MAX_KEYS)?;
    if let Some(keys) = other.or_else(|| plan.authorized_keys.clone().map(String::into_bytes)) {
        let path = root.path(KEYS);
        if let Some(directory) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|source| ApplyError::Directory {
                path: directory.to_owned(),
                source,
            })?;
        }
        let _ = files::replace(path, keys, 0o600)?;
    }
    let path = root.path(DROP_IN);
    match &plan.sshd {
        Some(sshd) => match files::replace(path, sshd.sshd_config(), 0o644)? {
            Change::Changed => Ok(Sshd::Restart),
            Change::Same => Ok(Sshd::Start),
        },
        None => match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(ApplyError::Remove { path, source }),
            _ => Ok(Sshd::Stop),
        },
    }
}

/// Sets root's password, which `vmpassword=` asks for; the image has none.
pub async fn set_password(password: &Secret<String>) -> Result<(), ApplyError> {
    /// Deriving a password's hash takes seconds where there is no fast processor.
    const LIMIT: Duration = Duration::from_mins(1);
    let password = password.expose();
    if password.contains(char::is_control) {
        return Err(ApplyError::Password);
    }
    // By its input: arguments of programs can be seen by everybody.
    Cmd::new("chpasswd")
        .stdin(format!("root:{password}\n"))
        .time_limit(LIMIT)
        .run()
        .await?;
    Ok(())
}
