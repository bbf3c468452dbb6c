//! The programs that make an image.

use std::path::PathBuf;

use platform::exec::Cmd;

/// Tools in a directory.
#[derive(Debug, Clone)]
pub struct Tools {
    dir: PathBuf,
    epoch: u64,
}

/// Why there are no tools.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// No package has it.
    #[error("the locked tools have no {0}; run image-builder lock")]
    NoSuchTool(String),
}

impl Tools {
    /// Tools that are unpacked there.
    pub fn at(dir: PathBuf, epoch: u64) -> Self {
        Self { dir, epoch }
    }

    /// A program, by its name.
    ///
    /// # Errors
    /// No package has it.
    pub fn cmd(&self, name: &str) -> Result<Cmd, ToolsError> {
        let places = ["usr/bin", "usr/sbin"].map(|place| self.dir.join(place).join(name));
        let program = places.into_iter().find(|place| place.is_file());
        let program = program.ok_or_else(|| ToolsError::NoSuchTool(name.to_owned()))?;
        Ok(Cmd::new(self.dir.join("usr/lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(self.dir.join("usr/lib/x86_64-linux-gnu"))
            .args(["--argv0", name])
            .arg(program)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string()))
    }

    /// A file or directory of the tools.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }
}
