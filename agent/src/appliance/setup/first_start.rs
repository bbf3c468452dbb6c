//! Doing what user data wants: files, then a script, once for each VM and each text.
//!
//! At most once, as cloud-init does it: what is begun is not begun again, or a script that restarts the machine would do so
//! for ever.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use nix::unistd::{Group, User};
use platform::exec::{Cmd, ExecError};
use platform::files::{self, FileError};
use tracing::{info, warn};

use super::user_data::{UserData, WantedFile};
use crate::appliance::root::{Root, STATE};

/// Below [`STATE`].
const DIRECTORY: &str = "user-data";
/// More than a name and all that boot arguments can carry.
const MAX_MARK: u64 = 1 << 20;
/// Of a file that `append` adds to.
const MAX_FILE: u64 = 64 << 20;

/// Why user data was not done, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum FirstStartError {
    /// A file or directory of ours or of theirs.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory cannot be made, or an owner not set.
    #[error("cannot {operation} {path}")]
    Io {
        /// As a verb.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The owner is unknown here.
    #[error("{path} should belong to {owner:?}; there is no such user or group in this image")]
    Owner {
        /// Which file.
        path: PathBuf,
        /// As it was written.
        owner: String,
    },
    /// The script could not be started.
    #[error("the script cannot be run")]
    Script(#[from] ExecError),
    /// It ran, and said no.
    #[error("the script has failed ({0})")]
    Failed(std::process::ExitStatus),
}

/// Whether this was begun before, in this boot or an earlier one.
pub fn is_begun(root: &Root, name: &str, bytes: &[u8]) -> bool {
    let mark = root.path(STATE).join(DIRECTORY).join("begun");
    let found = files::read_limited(mark, MAX_MARK).ok().flatten();
    found.as_deref() == Some(&mark_of(name, bytes))
}

/// Does it; `name` is the VM's, which is cloud-init's instance id. All files are tried; the first problem is the answer.
pub async fn run(root: &Root, name: &str, bytes: &[u8], wanted: &UserData) -> Result<(), FirstStartError> {
    let directory = root.path(STATE).join(DIRECTORY);
    fs::create_dir_all(&directory).map_err(io_error("make the directory", &directory))?;
    let _ = files::replace(directory.join("begun"), mark_of(name, bytes), 0o600)?;
    let (script, written) = match wanted {
        UserData::Script(script) => (Some(script), Ok(())),
        UserData::CloudConfig(config) => {
            let mut result = Ok(());
            for file in &config.files {
                match write(root, file) {
                    Ok(()) => info!(path = file.path, "File of the user data written"),
                    Err(error) => {
                        let shown = platform::logging::chain(&error).to_string();
                        warn!(error = shown, "File of the user data not written");
                        result = result.and(Err(error));
                    }
                }
            }
            (config.script.as_ref(), result)
        }
    };
    if let Some(script) = script {
        let path = directory.join("script");
        let _ = files::replace(&path, script, 0o700)?;
        let status = Cmd::new(&path).env("INSTANCE_ID", name).run_inherited().await?;
        info!(?status, "Script of the user data has ended");
        if !status.success() {
            return written.and(Err(FirstStartError::Failed(status)));
        }
    }
    written
}

fn write(root: &Root, file: &WantedFile) -> Result<(), FirstStartError> {
    let path = root.path(&file.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("make the directory", parent))?;
    }
    let mut contents = if file.is_appended {
        files::read_limited(&path, MAX_FILE)?.unwrap_or_default()
    } else {
        Vec::new()
    };
    contents.extend_from_slice(&file.contents);
    let _ = files::replace(&path, contents, file.mode)?;
    let Some(owner) = &file.owner else { return Ok(()) };
    let unknown = || FirstStartError::Owner {
        path: path.clone(),
        owner: owner.clone(),
    };
    let (user, group) = owner
        .split_once(':')
        .map_or((owner.as_str(), None), |(user, group)| (user, Some(group)));
    let user = User::from_name(user).ok().flatten().ok_or_else(unknown)?;
    let gid = match group {
        None | Some("") => user.gid,
        Some(group) => Group::from_name(group).ok().flatten().ok_or_else(unknown)?.gid,
    };
    chown(&path, Some(user.uid.as_raw()), Some(gid.as_raw())).map_err(io_error("set the owner of", &path))
}

fn mark_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\n", bytes].concat()
}

fn io_error(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> FirstStartError {
    let path = path.to_owned();
    move |source| FirstStartError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn files_are_written_before_the_script_runs_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let log = directory.path().join("log");
        let text = format!(
            "#cloud-config\nwrite_files:\n- path: /etc/a/b\n  content: one\n  permissions: '0640'\n  owner: root:root\n\
             - path: /etc/a/b\n  content: two\n  append: true\n\
             runcmd:\n- [cp, {0}/etc/a/b, {1}]\n- echo \"$INSTANCE_ID\" >>{1}\n",
            directory.path().display(),
            log.display()
        );
        let wanted = UserData::parse(text.as_bytes()).unwrap().unwrap();
        assert!(!is_begun(&root, "v-2-VM", text.as_bytes()));
        run(&root, "v-2-VM", text.as_bytes(), &wanted).await.unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "onetwov-2-VM\n");
        assert!(is_begun(&root, "v-2-VM", text.as_bytes()));
        assert!(!is_begun(&root, "v-3-VM", text.as_bytes()));
        let mode = fs::metadata(root.path("/etc/a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "the last one counts");
    }

    #[tokio::test]
    async fn what_fails_is_said_and_the_rest_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let text = "#cloud-config\nwrite_files:\n- {path: /a, owner: nobody-knows}\n- {path: /b}\nruncmd: ['exit 3']\n";
        let wanted = UserData::parse(text.as_bytes()).unwrap().unwrap();
        let error = run(&root, "v", text.as_bytes(), &wanted).await.unwrap_err();
        assert!(matches!(error, FirstStartError::Owner { .. }), "{error}");
        assert!(root.path("/b").exists());

        let script = "#!/bin/sh\nexit 3\n";
        let wanted = UserData::parse(script.as_bytes()).unwrap().unwrap();
        let error = run(&root, "v", script.as_bytes(), &wanted).await.unwrap_err();
        assert_eq!(error.to_string(), "the script has failed (exit status: 3)");
        // What has begun counts, whatever came of it.
        assert!(is_begun(&root, "v", script.as_bytes()));
    }
}
