//! Real images, made by qemu-img and other programs.

use std::path::{Path, PathBuf};

use platform::exec::Cmd;
use tempfile::TempDir;

pub(crate) struct Images {
    directory: TempDir,
}

impl Images {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The bytes of an image that `qemu-img create` makes.
    pub(crate) async fn create(&self, name: &str, format: &str, size: &str, more: &[&str]) -> Vec<u8> {
        let path = self.path(name);
        let create = Cmd::new("qemu-img").args(["create", "-q", "-f", format]).args(more);
        create.arg(&path).arg(size).run().await.unwrap();
        std::fs::read(path).unwrap()
    }

    /// An empty disk of 10 MiB, as in the vectors.
    pub(crate) async fn qcow2(&self) -> Vec<u8> {
        self.create("a.qcow2", "qcow2", "10M", &[]).await
    }

    /// A disk with `mib` MiB of bytes that do not compress.
    pub(crate) async fn qcow2_with_data(&self, mib: usize) -> Vec<u8> {
        let raw = self.path("data.raw");
        let file = std::fs::File::create(&raw).unwrap();
        std::io::Write::write_all(&mut &file, &noise(mib << 20)).unwrap();
        let converted = self.path("data.qcow2");
        let convert = Cmd::new("qemu-img").args(["convert", "-q", "-f", "raw", "-O", "qcow2"]);
        convert.arg(&raw).arg(&converted).run().await.unwrap();
        std::fs::read(converted).unwrap()
    }

    /// What a program that writes to standard output makes of a file's bytes.
    pub(crate) async fn through(&self, program: &str, bytes: &[u8]) -> Vec<u8> {
        let command = Cmd::new(program).args(["-c"]).stdin(bytes.to_vec());
        command.run().await.unwrap().stdout
    }
}

/// Bytes without a pattern, always the same.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// `{SHA-512}…` by another program.
pub(crate) async fn sha512(path: &Path) -> String {
    let output = Cmd::new("sha512sum").arg("--").arg(path).run().await.unwrap().text();
    format!("{{SHA-512}}{}", output.split(' ').next().unwrap())
}
