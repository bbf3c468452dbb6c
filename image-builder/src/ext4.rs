//! The root file system: ext4, made from a tar by a pinned `mke2fs`, as any user and without mounting it
//! (image-pipeline.md §8).

use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;

use platform::exec::{Cmd, ExecError};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::tools::{Tools, ToolsError};
use crate::tree::{Tree, TreeError};

/// The file system's name, by which it is found at boot.
pub const LABEL: &str = "root";

/// Where and as what it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes; a multiple of 4096.
    pub size: u64,
    /// Its id.
    pub uuid: Uuid,
    /// What directory hashes begin with.
    pub hash_seed: Uuid,
    /// The time of every file, in seconds since 1970.
    pub epoch: u64,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// Its package is missing.
    #[error("cannot make the root file system")]
    Tools(#[from] ToolsError),
    /// `mke2fs` said no: the disk is full, or the files do not fit.
    #[error("cannot make the root file system")]
    Run(#[from] ExecError),
    /// The tree is not whole.
    #[error("cannot make the root file system")]
    Tree(#[from] TreeError),
    /// It cannot be handed to `mke2fs`.
    #[error("cannot make the root file system")]
    Io(#[from] io::Error),
}

impl Ext4 {
    /// Makes it inside of a file that is there and is large enough, and leaves its unused parts holes. Gives the digest of
    /// the tar that it was made from ([`Tree::write_tar`]).
    ///
    /// # Errors
    /// The files do not fit, the disk is full, or the tree is not whole.
    pub fn make(&self, tree: &Tree, tools: &Tools, file: &Path) -> Result<[u8; 32], Ext4Error> {
        tree.check()?;
        let mut pipe = self.cmd(tools, file)?.pipe()?;
        let (input, output) = (pipe.input.take(), pipe.output.take());
        // Each side waits for the other when nobody listens.
        let written = thread::scope(|scope| -> Result<[u8; 32], Ext4Error> {
            scope.spawn(|| output.map(|mut output| output.read_to_end(&mut Vec::new())));
            let input = input.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
            let mut tee = Tee {
                digest: Sha256::new(),
                output: io::BufWriter::with_capacity(256 * 1024, input),
            };
            tree.write_tar(self.epoch, &mut tee)?;
            tee.flush()?;
            Ok(tee.digest.finalize().into())
        });
        // When it ended early, what it printed says more than the broken pipe.
        pipe.finish()?;
        written
    }

    fn cmd(&self, tools: &Tools, file: &Path) -> Result<Cmd, ToolsError> {
        let Self {
            offset,
            size,
            uuid,
            hash_seed,
            epoch,
        } = self;
        let options = format!(
            "offset={offset},hash_seed={hash_seed},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        );
        let cmd = tools.cmd("mke2fs")?.env("SOURCE_DATE_EPOCH", epoch.to_string());
        let cmd = cmd.args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-L", LABEL, "-m", "0", "-J", "size=16",
        ]);
        let cmd = cmd.arg("-U").arg(uuid.to_string()).args(["-E", &options, "-d", "-"]);
        Ok(cmd.arg(file).arg(format!("{}k", size / 1024)))
    }
}

struct Tee<W> {
    digest: Sha256,
    output: W,
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
