//! The recipe: everything about the image that a person decides.
//!
//! It is a folder with `recipe.toml` and `overlay/`, whose files are put into the image as they are. The program carries
//! the project's own; `--recipe DIR` takes another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use include_dir::{Dir, include_dir};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::cache::hex;

static OWN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/recipe");

const MAIN_FILE: &str = "recipe.toml";
const OVERLAY: &str = "overlay";

/// What `recipe.toml` says, and the overlay beside it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Debian's release: `trixie`.
    pub suite: String,
    /// Seconds since 1970: the time of every file.
    pub epoch: u64,
    /// The CloudStack version that the image says it fits: `4.22.0` (appliance.md §7.3).
    pub compat: String,
    /// Which packages.
    pub packages: Packages,
    /// The disk around the root file system.
    pub disk: Disk,
    /// Which kernel modules.
    pub modules: Modules,
    /// Groups by name, with their numbers, on top of base-passwd's.
    pub groups: BTreeMap<String, u32>,
    /// Who else is in a group.
    #[serde(default)]
    pub members: BTreeMap<String, Vec<String>>,
    /// Users by name, on top of base-passwd's.
    pub users: BTreeMap<String, User>,
    /// Directories that must be there, or that have another mode or owner than in their package.
    pub directories: BTreeMap<String, Directory>,
    /// Files that are made, or that have another mode or owner.
    pub files: BTreeMap<String, FileRule>,
    /// Symbolic links by path, with their targets.
    pub links: BTreeMap<String, String>,
    /// Which units start.
    pub units: Units,
    /// How the overlay becomes files.
    #[serde(rename = "overlay")]
    pub overlay_rules: OverlayRules,
    /// Files that run with another's rights.
    pub set_id: SetId,
    /// What packages have and the image has not.
    #[serde(default)]
    pub prune: Vec<Prune>,
    /// Our programs in the image, by name.
    pub programs: Vec<String>,
    /// SHA-256 of `recipe.toml`, in hexadecimal digits.
    #[serde(skip)]
    pub main_digest: String,
    /// SHA-256 of the whole recipe, in hexadecimal digits.
    #[serde(skip)]
    pub digest: String,
    /// Files of the overlay by their path in the image. Not in `recipe.toml`.
    #[serde(skip)]
    pub overlay: BTreeMap<String, Bytes>,
}

/// Which packages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// What the image is for; what they need comes with them.
    pub image: Vec<String>,
    /// What the builder runs.
    pub tools: Vec<String>,
    /// What comes with them and is not wanted.
    #[serde(default)]
    pub leave_out: Vec<LeaveOut>,
}

/// Packages that are resolved and of which nothing is unpacked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveOut {
    /// Their names.
    pub names: Vec<String>,
    /// Why they are not wanted.
    pub reason: String,
}

/// The disk around the root file system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// MiB, in all.
    pub size_mib: u64,
    /// What the boot loader gives to the kernel.
    pub kernel_command_line: String,
}

/// Which kernel modules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modules {
    /// In the initrd and in the root file system.
    pub stage1: Vec<String>,
    /// In the root file system.
    pub root: Vec<String>,
    /// Everything in these folders, such as `kernel/net/sched`.
    pub folders: Vec<String>,
}

/// A user without a password.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its number.
    pub id: u32,
    /// Its first group's name.
    pub group: String,
    /// Its home, which is not made.
    #[serde(default = "no_home")]
    pub home: String,
    /// What starts when it logs in.
    #[serde(default = "no_shell")]
    pub shell: String,
    /// Who that is.
    #[serde(default)]
    pub comment: String,
}

/// What a directory is to be.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Permissions; 0755 unless said.
    #[serde(default = "directory_mode")]
    pub mode: u32,
    /// A user's name.
    #[serde(default = "root")]
    pub owner: String,
    /// A group's name.
    #[serde(default = "root")]
    pub group: String,
}

/// What a file is to be.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRule {
    /// Permissions; unless said those it has, or 0644.
    pub mode: Option<u32>,
    /// A user's name.
    #[serde(default = "root")]
    pub owner: String,
    /// A group's name.
    #[serde(default = "root")]
    pub group: String,
    /// Whose contents it gets, by path in the image.
    pub from: Option<String>,
    /// Whether it is made, with nothing in it.
    #[serde(default)]
    pub empty: bool,
}

/// Which units start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Units {
    /// By what they say in `[Install]`.
    pub enable: Vec<String>,
    /// Never, not even when another unit asks for them.
    pub mask: Vec<String>,
}

/// How the overlay becomes files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlayRules {
    /// Patterns of files with mode 0755.
    pub executable: Vec<String>,
}

/// Files with the set-user-id or the set-group-id bit.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetId {
    /// They keep it.
    pub kept: Vec<String>,
    /// They lose it.
    pub cleared: Vec<String>,
}

/// What packages have and the image has not.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Patterns of files.
    pub paths: Vec<String>,
    /// Patterns of files among them that stay.
    #[serde(default)]
    pub except: Vec<String>,
    /// Why nobody needs them.
    pub reason: String,
}

fn no_home() -> String {
    "/nonexistent".to_owned()
}

fn no_shell() -> String {
    "/usr/sbin/nologin".to_owned()
}

fn root() -> String {
    "root".to_owned()
}

fn directory_mode() -> u32 {
    0o755
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum BadRecipe {
    /// A file of it cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its main file is missing.
    #[error("{} is no recipe: it has no {MAIN_FILE}", .0.display())]
    NoMainFile(PathBuf),
    /// Its main file says something that we do not understand.
    #[error("{MAIN_FILE} is not a recipe")]
    Syntax(#[from] toml::de::Error),
    /// A name in the overlay is not UTF-8, or is not a file.
    #[error("{} cannot be in an overlay: only directories and files with UTF-8 names can", .0.display())]
    BadOverlay(PathBuf),
}

impl Recipe {
    /// The project's own recipe, which is part of this program.
    ///
    /// # Errors
    /// It is not a recipe; a test makes sure that it is.
    pub fn own() -> Result<Self, BadRecipe> {
        let mut files = BTreeMap::new();
        collect_own(&OWN, &mut files);
        Self::from_files(&files, Path::new("the program's own recipe"))
    }

    /// Reads a recipe from a folder.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be.
    pub fn load(folder: &Path) -> Result<Self, BadRecipe> {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files)?;
        Self::from_files(&files, folder)
    }

    /// The names of packages of which nothing is unpacked.
    pub fn left_out(&self) -> BTreeSet<&str> {
        let names = self.packages.leave_out.iter().flat_map(|packages| &packages.names);
        names.map(String::as_str).collect()
    }

    fn from_files(files: &BTreeMap<String, Bytes>, folder: &Path) -> Result<Self, BadRecipe> {
        let main = files.get(MAIN_FILE);
        let main = main.ok_or_else(|| BadRecipe::NoMainFile(folder.to_owned()))?;
        let mut recipe: Self = toml::from_slice(main)?;
        let overlay = files.iter().filter_map(|(path, contents)| {
            let path = path.strip_prefix(OVERLAY)?.strip_prefix('/')?;
            Some((path.to_owned(), contents.clone()))
        });
        recipe.overlay = overlay.collect();
        recipe.main_digest = hex(Sha256::digest(main));
        let mut digest = Sha256::new();
        for (path, contents) in files {
            digest.update(format!("{path}\0{}\0", contents.len()));
            digest.update(contents);
        }
        recipe.digest = hex(digest.finalize());
        Ok(recipe)
    }
}

fn collect_own(folder: &Dir<'static>, files: &mut BTreeMap<String, Bytes>) {
    for file in folder.files() {
        let path = file.path().to_string_lossy().into_owned();
        files.insert(path, Bytes::from_static(file.contents()));
    }
    for folder in folder.dirs() {
        collect_own(folder, files);
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Bytes>) -> Result<(), BadRecipe> {
    let cannot_read = |path: &Path| {
        let path = path.to_owned();
        move |source| BadRecipe::Read { path, source }
    };
    for entry in fs::read_dir(folder).map_err(cannot_read(folder))? {
        let entry = entry.map_err(cannot_read(folder))?;
        let path = entry.path();
        let bad = || BadRecipe::BadOverlay(path.clone());
        let name = entry.file_name().into_string().map_err(|_| bad())?;
        let inside = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(cannot_read(&path))?;
        if kind.is_dir() {
            collect(&path, &format!("{inside}/"), files)?;
        } else if kind.is_file() {
            files.insert(inside, fs::read(&path).map_err(cannot_read(&path))?.into());
        } else {
            return Err(bad());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use platform::files::{self, Change};

    use super::*;

    #[test]
    fn the_own_recipe_is_one_and_is_the_folders() {
        let own = Recipe::own().unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipe");
        let loaded = Recipe::load(&folder).unwrap();
        assert_eq!(own.overlay, loaded.overlay);
        assert_eq!(own.packages.image, loaded.packages.image);
        let mut sorted = own.packages.image.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(own.packages.image, sorted);
    }

    #[test]
    fn a_folder_without_a_recipe_and_a_typo_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = Recipe::load(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with("is no recipe: it has no recipe.toml"));
        let main = folder.path().join(MAIN_FILE);
        assert_eq!(
            files::replace(main, b"siute = \"trixie\"", 0o644).unwrap(),
            Change::Changed
        );
        let error = Recipe::load(folder.path()).unwrap_err();
        assert!(format!("{error:?}").contains("siute"));
    }
}
