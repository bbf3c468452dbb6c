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
        platform::files::replace(&folder.path().join(MAIN_FILE), b"siute = \"trixie\"", 0o644).unwrap();
        let error = Recipe::load(folder.path()).unwrap_err();
        assert!(format!("{error:?}").contains("siute"));
    }
}
