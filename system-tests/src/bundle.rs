//! Signed bundles of our programs, as an administrator makes them for [live upgrades](../../../docs/upgrade.md).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use platform::exec::Cmd;
use platform::files::replace;
use tempfile::TempDir;

use crate::programs::{built, target_dir};

/// As hosts upload them.
pub const UPLOADED: &str = "sysvm-bundle";
/// Where a VM has the keys that it trusts; with any name.
pub const TRUSTED_KEY: &str = "/etc/sysvm/upgrade-keys/test.pub";

const PACK_LIMIT: Duration = Duration::from_mins(3);

/// A key, and bundles signed with it.
#[derive(Debug)]
pub struct Maker {
    directory: TempDir,
}

impl Maker {
    /// With a new key.
    ///
    /// # Errors
    /// `image-builder` fails.
    pub async fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for bundles")?;
        Cmd::new(built("image-builder"))
            .args(["sign", "--new-key", "--no-password", "--key"])
            .arg(directory.path().join("upgrade.key"))
            .run()
            .await?;
        Ok(Self { directory })
    }

    /// What a VM must have at [`TRUSTED_KEY`] to take them.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn public_key(&self) -> anyhow::Result<Vec<u8>> {
        Ok(fs::read(self.directory.path().join("upgrade.pub"))?)
    }

    /// A bundle of the image's programs under this version, one of them replaced by a script; its file, which is called
    /// [`UPLOADED`].
    ///
    /// # Errors
    /// There is one of this version already, or `image-builder` fails.
    pub async fn bundle(&self, version: &str, other: Option<(&str, &str)>) -> anyhow::Result<PathBuf> {
        let programs = self.directory.path().join(version);
        fs::create_dir(&programs).with_context(|| format!("a second bundle of version {version}"))?;
        for name in ["agent", "console-proxy", "ssvm"] {
            let from = target_dir().join("image-parts/programs").join(name);
            fs::copy(&from, programs.join(name)).with_context(|| format!("copying {}", from.display()))?;
        }
        if let Some((name, script)) = other {
            let _ = replace(programs.join(name), script, 0o755)?;
        }
        let file = programs.join(UPLOADED);
        Cmd::new(built("image-builder"))
            .args(["bundle", "--version", version, "--programs"])
            .arg(&programs)
            .arg("--key")
            .arg(self.directory.path().join("upgrade.key"))
            .arg("--output")
            .arg(&file)
            .time_limit(PACK_LIMIT)
            .run()
            .await?;
        fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        Ok(file)
    }
}
