//! The programs that make an image, from locked packages instead of from this machine: their versions decide its bytes.
//!
//! They are unpacked into a directory and run with the loader and libraries beside them (image-pipeline.md §3.4), with
//! nothing of the environment: no chroot, no namespace, no root.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::syncfs;
use platform::exec::Cmd;
use sha2::{Digest, Sha256};

use crate::cache::{Cache, CacheError, failed, hex};
use crate::deb::Deb;
use crate::lock::Package;
use crate::tree::{Node, Tree, TreeError};

/// Changes when what is unpacked, or how, does: older directories are not used then.
const LAYOUT: &str = "tools 1";

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Tools in a directory of the cache.
#[derive(Debug, Clone)]
pub struct Tools {
    dir: PathBuf,
    /// The digest of the packages they come from, in hex: what was made with other tools has another one.
    key: String,
    epoch: u64,
}

/// Why there are no tools.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// A package is missing or damaged.
    #[error("cannot unpack the tools")]
    Package(#[from] CacheError),
    /// The packages do not fit together.
    #[error("cannot unpack the tools")]
    Tree(#[from] TreeError),
    /// The lock file has no package with this program.
    #[error("the locked tools have no {0}; run image-builder lock")]
    NoSuchTool(String),
}

impl Tools {
    /// Unpacks the packages into the cache unless they are there already. An interrupted run leaves no half of it.
    /// `epoch` is what the tools take for the present time (seconds since 1970).
    ///
    /// # Errors
    /// A package is missing or damaged, or the disk is full.
    pub fn unpack(cache: &Cache, packages: &[Package], epoch: u64) -> Result<Self, ToolsError> {
        let mut digest = Sha256::new_with_prefix(LAYOUT);
        let mut digests: Vec<&str> = packages.iter().map(|package| package.sha256.as_str()).collect();
        digests.sort_unstable();
        for sha256 in digests {
            digest.update(sha256);
        }
        let key = hex(digest.finalize());
        let all = cache.dir().join("tools");
        let dir = all.join(&key);
        let tools = Self { dir, key, epoch };
        if tools.dir.is_dir() {
            return Ok(tools);
        }

        let debs = cache.read_all(packages, |path, _| is_needed(path))?;
        let tree = together(debs)?;
        fs::create_dir_all(&all).map_err(failed("make the directory", &all))?;
        let beside = tempfile::Builder::new()
            .prefix(platform::files::BESIDE)
            .tempdir_in(&all);
        let beside = beside.map_err(failed("make a directory in", &all))?;
        write(&tree, beside.path())?;
        let opened = File::open(beside.path()).map_err(failed("open", beside.path()))?;
        syncfs(opened).map_err(|errno| failed("write", beside.path())(errno.into()))?;
        let beside = beside.keep();
        if let Err(error) = fs::rename(&beside, &tools.dir) {
            fs::remove_dir_all(&beside).ok();
            // Another build was faster.
            if !tools.dir.is_dir() {
                return Err(failed("make the directory", &tools.dir)(error).into());
            }
        }
        Ok(tools)
    }

    /// A program, by its name, ready to be given arguments. It knows nothing of this machine's settings and users.
    ///
    /// # Errors
    /// No locked package has it.
    pub fn cmd(&self, name: &str) -> Result<Cmd, ToolsError> {
        let places = ["usr/bin", "usr/sbin"].map(|place| self.dir.join(place).join(name));
        let program = places.into_iter().find(|place| place.is_file());
        let program = program.ok_or_else(|| ToolsError::NoSuchTool(name.to_owned()))?;
        Ok(Cmd::new(self.dir.join(LOADER))
            .arg("--library-path")
            .arg(self.dir.join(LIBRARIES))
            .args(["--argv0", name])
            .arg(program)
            .without_environment()
            // With plain C, mke2fs stops at a file name that is not ASCII.
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            // It decides which features an ext4 has, and would be this machine's.
            .env("MKE2FS_CONFIG", self.dir.join("etc/mke2fs.conf")))
    }

    /// A file or directory of the tools: `usr/lib/grub/i386-pc`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// The digest of the packages they come from, in hex.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// Documentation and translations are not.
fn is_needed(path: &str) -> bool {
    let kept = path.strip_prefix("usr/share/").is_none_or(|path| {
        let unused = ["doc/", "man/", "info/", "locale/", "lintian/", "bash-completion/"];
        !unused.iter().any(|prefix| path.starts_with(prefix))
    });
    kept && !path.starts_with("var/")
}

/// One tree of all packages. What some have in `/lib` is in `/usr/lib`, where the loader looks.
fn together(debs: Vec<(Package, Deb)>) -> Result<Tree, TreeError> {
    let mut tree = Tree::new();
    let merged = |path: &str| {
        let top = path.split('/').next().unwrap_or_default();
        let is_old = ["bin", "sbin", "lib", "lib64"].contains(&top);
        if is_old { format!("usr/{path}") } else { path.to_owned() }
    };
    for (_, deb) in debs {
        for (path, entry) in deb.data.iter() {
            let mut entry = entry.clone();
            if let Node::HardLink(target) = &entry.node {
                entry.node = Node::HardLink(merged(target));
            }
            let path = merged(path);
            tree.make_parents(&path);
            tree.insert(path, entry)?;
        }
    }
    tree.check()?;
    Ok(tree)
}

/// Writes a tree that was checked into an empty directory, as files of this user's.
fn write(tree: &Tree, dir: &Path) -> Result<(), CacheError> {
    for (path, entry) in tree.iter() {
        let to = dir.join(path);
        let written = match &entry.node {
            Node::Directory => fs::create_dir(&to),
            Node::File(contents) => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&to)
                .and_then(|mut file| {
                    file.write_all(contents)?;
                    file.set_permissions(Permissions::from_mode(entry.mode & 0o555 | 0o600))
                }),
            Node::Symlink(target) => symlink(target, &to),
            Node::HardLink(_) => Ok(()),
        };
        written.map_err(failed("write", &to))?;
    }
    for (path, entry) in tree.iter() {
        if let Node::HardLink(target) = &entry.node {
            let to = dir.join(path);
            fs::hard_link(dir.join(target), &to).map_err(failed("write", &to))?;
        }
    }
    Ok(())
}
