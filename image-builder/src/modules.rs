//! The kernel, and those of its modules that the image has: what the recipe lists, and what that needs.
//!
//! Packages bring 4,000 modules and none of the indexes that `modprobe` reads. Each module says in its own `.modinfo`
//! what it needs, so only those in question are unpacked and read (image-pipeline.md §5.1).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use platform::exec::ExecError;
use stage1::table::{Module, Table, matches};

use crate::recipe::Modules as Lists;
use crate::tools::{Tools, ToolsError};
use crate::tree::{Entry, Node, Tree, TreeError};

mod modinfo;

pub use modinfo::{BadModule, ModInfo};

/// Below it, one directory for each kernel.
const MODULES: &str = "usr/lib/modules";
/// What depmod makes, in the directory of the kernel.
const INDEX: &str = "modules.";

/// What starts the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// `6.12.117+deb13-amd64`.
    pub version: String,
    /// The kernel itself. It is on the EFI system partition and no longer in the tree.
    pub vmlinuz: Bytes,
    /// Modules of the initrd, for [`stage1`].
    pub table: Table,
    /// Their contents, unpacked, in the table's order.
    pub stage1: Vec<Bytes>,
}

/// Why the modules cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// There is no kernel, or there are several.
    #[error("the image needs exactly one kernel, and has {0:?}; which packages of the recipe bring them?")]
    NotOneKernel(Vec<String>),
    /// Its file is missing.
    #[error("{0} is missing")]
    NoFile(String),
    /// The recipe lists what there is not.
    #[error("kernel {version} has no module {}, which the recipe lists", names.join(", "))]
    Missing {
        /// The kernel.
        version: String,
        /// As the recipe spells them.
        names: Vec<String>,
    },
    /// The recipe lists a folder with nothing in it.
    #[error("kernel {version} has no modules in {folder}, which the recipe lists")]
    EmptyFolder {
        /// The kernel.
        version: String,
        /// As the recipe spells it.
        folder: String,
    },
    /// A module asks for another that is not there.
    #[error("module {module} needs {needed}, which kernel {version} does not have")]
    NoDependency {
        /// The kernel.
        version: String,
        /// Who.
        module: String,
        /// Whom.
        needed: String,
    },
    /// A module should come after something that nothing listed provides.
    #[error("module {module} wants {wanted} to be loaded before it; list a module that provides it in the recipe")]
    NoSoftDependency {
        /// Who.
        module: String,
        /// A name or an alias: `crypto-crc32c`.
        wanted: String,
    },
    /// Modules need each other.
    #[error("module {0} needs itself")]
    Circle(String),
    /// A module cannot be read.
    #[error("module {path} is damaged")]
    Bad {
        /// In the tree.
        path: String,
        /// Why.
        source: BadModule,
    },
    /// depmod is missing.
    #[error("cannot index the kernel's modules")]
    Tools(#[from] ToolsError),
    /// depmod said no.
    #[error("cannot index the kernel's modules")]
    Depmod(#[from] ExecError),
    /// A file for depmod, or of it.
    #[error("cannot index the kernel's modules in {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tree does not take them.
    #[error("cannot index the kernel's modules")]
    Tree(#[from] TreeError),
}

/// Removes the modules that nothing in the lists needs, makes the indexes of those that stay, and takes the kernel out.
///
/// # Errors
/// A module of the lists, or one that it needs, is neither there nor built in.
pub fn close(tree: &mut Tree, lists: &Lists, tools: &Tools) -> Result<Kernel, ModulesError> {
    let Choice {
        version,
        directory,
        paths,
        table,
        stage1,
    } = choose(tree, lists)?;
    prune(tree, &directory, &paths);
    let index = depmod(tree, &version, &directory, tools)?;
    let old: Vec<String> = tree
        .below(&format!("{directory}/{INDEX}"))
        .map(|(path, _)| path.to_owned())
        .collect();
    for path in old.iter().filter(|path| !is_shipped(path)) {
        tree.remove(path);
    }
    for (name, contents) in index {
        tree.insert(format!("{directory}/{name}"), Entry::file(0o644, contents))?;
    }
    let boot = format!("boot/vmlinuz-{version}");
    let vmlinuz = tree
        .contents(&boot)
        .cloned()
        .ok_or_else(|| ModulesError::NoFile(boot.clone()))?;
    tree.remove(&boot);
    Ok(Kernel {
        version,
        vmlinuz,
        table,
        stage1,
    })
}

/// What stays, before anything is changed.
struct Choice {
    version: String,
    directory: String,
    paths: BTreeSet<String>,
    table: Table,
    stage1: Vec<Bytes>,
}

fn choose(tree: &Tree, lists: &Lists) -> Result<Choice, ModulesError> {
    let catalogue = Catalogue::of(tree)?;
    let (stage1, root) = catalogue.listed(lists)?;
    let mut chosen = Chosen::new(tree, &catalogue);
    chosen.add(stage1.iter().chain(&root).copied())?;
    chosen.check_soft()?;
    let (table, unpacked) = chosen.table(&stage1)?;
    let paths = chosen
        .modules
        .keys()
        .map(|name| catalogue.paths[*name].clone())
        .collect();
    Ok(Choice {
        version: catalogue.version.clone(),
        directory: catalogue.directory.clone(),
        paths,
        table,
        stage1: unpacked,
    })
}

/// What the kernel has, without what is in it.
struct Catalogue {
    version: String,
    /// `usr/lib/modules/6.12.117+deb13-amd64`.
    directory: String,
    /// Paths by name.
    paths: BTreeMap<String, String>,
    /// Names of what is not a file of its own.
    built_in: BTreeSet<String>,
    /// What else those answer to.
    built_in_aliases: Vec<String>,
}

impl Catalogue {
    fn of(tree: &Tree) -> Result<Self, ModulesError> {
        let inside = format!("{MODULES}/");
        let versions: BTreeSet<&str> = tree
            .below(&inside)
            .filter_map(|(path, _)| Some(path[inside.len()..].split_once('/')?.0))
            .collect();
        let Some(version) = versions.first().filter(|_| versions.len() == 1) else {
            return Err(ModulesError::NotOneKernel(
                versions.into_iter().map(str::to_owned).collect(),
            ));
        };
        let directory = format!("{MODULES}/{version}");
        let read = |name: &str| {
            let path = format!("{directory}/{name}");
            tree.contents(&path).cloned().ok_or(ModulesError::NoFile(path))
        };
        let files = format!("{directory}/kernel/");
        let named = |path: &str| Some((name_of(path)?, path.to_owned()));
        let built_in = String::from_utf8_lossy(&read("modules.builtin")?)
            .lines()
            .filter_map(name_of)
            .collect();
        let aliases = read("modules.builtin.modinfo")?;
        let aliases = aliases.split(|byte| *byte == 0).filter_map(|record| {
            let (_, alias) = std::str::from_utf8(record).ok()?.split_once(".alias=")?;
            Some(alias.to_owned())
        });
        Ok(Self {
            version: (*version).to_owned(),
            paths: tree.below(&files).filter_map(|(path, _)| named(path)).collect(),
            built_in,
            built_in_aliases: aliases.collect(),
            directory,
        })
    }

    /// The modules that the recipe lists, by name: those for stage 1, and the others.
    fn listed(&self, lists: &Lists) -> Result<(Vec<&str>, Vec<&str>), ModulesError> {
        let mut missing = Vec::new();
        let mut find = |list: &[String]| {
            let mut found = Vec::new();
            for spelled in list {
                let name = spelled.replace('-', "_");
                match self.paths.get_key_value(&name) {
                    Some((name, _)) => found.push(name.as_str()),
                    None if self.built_in.contains(&name) => {}
                    None => missing.push(spelled.clone()),
                }
            }
            found
        };
        let (stage1, mut root) = (find(&lists.stage1), find(&lists.root));
        if !missing.is_empty() {
            let version = self.version.clone();
            return Err(ModulesError::Missing {
                version,
                names: missing,
            });
        }
        for folder in &lists.folders {
            let prefix = format!("{}/{}/", self.directory, folder.trim_matches('/'));
            let before = root.len();
            root.extend(
                self.paths
                    .iter()
                    .filter(|(_, path)| path.starts_with(&prefix))
                    .map(|(name, _)| name.as_str()),
            );
            if root.len() == before {
                return Err(ModulesError::EmptyFolder {
                    version: self.version.clone(),
                    folder: folder.clone(),
                });
            }
        }
        Ok((stage1, root))
    }
}

/// `kernel/drivers/block/xen-blkfront.ko.xz` is `xen_blkfront`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// Modules that stay, with what they say of themselves.
struct Chosen<'a> {
    tree: &'a Tree,
    catalogue: &'a Catalogue,
    modules: BTreeMap<&'a str, ModInfo>,
}

impl<'a> Chosen<'a> {
    fn new(tree: &'a Tree, catalogue: &'a Catalogue) -> Self {
        Self {
            tree,
            catalogue,
            modules: BTreeMap::new(),
        }
    }

    /// Adds modules and what they need, and what they would like to have when that is a module by this name.
    fn add(&mut self, names: impl Iterator<Item = &'a str>) -> Result<(), ModulesError> {
        let mut left: Vec<&str> = names.collect();
        while let Some(name) = left.pop() {
            if self.modules.contains_key(name) {
                continue;
            }
            let info = ModInfo::read(&self.unpacked(name)?).map_err(|source| self.bad(name, source))?;
            for needed in &info.needs {
                match self.catalogue.paths.get_key_value(needed) {
                    Some((needed, _)) => left.push(needed),
                    None if self.catalogue.built_in.contains(needed) => {}
                    None => {
                        return Err(ModulesError::NoDependency {
                            version: self.catalogue.version.clone(),
                            module: name.to_owned(),
                            needed: needed.clone(),
                        });
                    }
                }
            }
            let soft = info.before.iter().chain(&info.after);
            let named = |soft: &String| Some(self.catalogue.paths.get_key_value(&soft.replace('-', "_"))?.0.as_str());
            left.extend(soft.filter_map(named));
            self.modules.insert(name, info);
        }
        Ok(())
    }

    fn unpacked(&self, name: &str) -> Result<Bytes, ModulesError> {
        let path = &self.catalogue.paths[name];
        let packed = self
            .tree
            .contents(path)
            .ok_or_else(|| ModulesError::NoFile(path.clone()))?;
        modinfo::unpack(path, packed).map_err(|source| self.bad(name, source))
    }

    fn bad(&self, name: &str, source: BadModule) -> ModulesError {
        ModulesError::Bad {
            path: self.catalogue.paths[name].clone(),
            source,
        }
    }

    /// Those of the chosen modules that are what a soft dependency asks for, by name or alias.
    fn providing(&self, wanted: &str) -> impl Iterator<Item = &'a str> {
        let name = wanted.replace('-', "_");
        let is_it = move |module: &str, info: &ModInfo| {
            module == name
                || info
                    .aliases
                    .iter()
                    .any(|alias| matches(alias.as_bytes(), wanted.as_bytes()))
        };
        self.modules
            .iter()
            .filter(move |(module, info)| is_it(module, info))
            .map(|(module, _)| *module)
    }

    /// Whether what modules want to be loaded before them is there: a module of ours, or part of the kernel. Without a
    /// checksum's implementation, a file system's module cannot be loaded.
    fn check_soft(&self) -> Result<(), ModulesError> {
        for (module, info) in &self.modules {
            for wanted in &info.before {
                let is_built_in = self.catalogue.built_in.contains(&wanted.replace('-', "_"))
                    || self.catalogue.built_in_aliases.contains(wanted);
                if !is_built_in && self.providing(wanted).next().is_none() {
                    return Err(ModulesError::NoSoftDependency {
                        module: (*module).to_owned(),
                        wanted: wanted.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The table for stage 1, and the unpacked modules in its order.
    fn table(&self, names: &[&'a str]) -> Result<(Table, Vec<Bytes>), ModulesError> {
        let mut order = Vec::new();
        for name in names {
            self.put_after_needs(name, &mut order, &mut Vec::new())?;
        }
        let place = |name: &str| order.iter().position(|other| *other == name);
        let mut modules = Vec::new();
        for name in &order {
            let info = &self.modules[name];
            let mut soft: Vec<usize> = info
                .before
                .iter()
                .flat_map(|wanted| self.providing(wanted))
                .filter_map(place)
                .collect();
            soft.sort_unstable();
            soft.dedup();
            modules.push(Module {
                name: (*name).to_owned(),
                needs: info.needs.iter().filter_map(|needed| place(needed)).collect(),
                soft,
                aliases: info
                    .aliases
                    .iter()
                    .filter(|alias| !alias.contains(char::is_whitespace))
                    .cloned()
                    .collect(),
            });
        }
        let unpacked = order.iter().map(|name| self.unpacked(name)).collect::<Result<_, _>>()?;
        Ok((Table { modules }, unpacked))
    }

    fn put_after_needs(
        &self,
        name: &'a str,
        order: &mut Vec<&'a str>,
        above: &mut Vec<&'a str>,
    ) -> Result<(), ModulesError> {
        if order.contains(&name) {
            return Ok(());
        }
        if above.contains(&name) {
            return Err(ModulesError::Circle(name.to_owned()));
        }
        above.push(name);
        let info = &self.modules[name];
        let needs = info
            .needs
            .iter()
            .filter_map(|needed| Some(*self.modules.get_key_value(needed.as_str())?.0));
        let soft = info.before.iter().flat_map(|wanted| self.providing(wanted));
        for needed in soft.filter(|other| *other != name).chain(needs).collect::<Vec<_>>() {
            self.put_after_needs(needed, order, above)?;
        }
        above.pop();
        order.push(name);
        Ok(())
    }
}

/// Removes the other modules, and directories in which nothing is left.
fn prune(tree: &mut Tree, directory: &str, kept: &BTreeSet<String>) {
    let inside = format!("{directory}/kernel/");
    tree.retain_files(|path, _| !path.starts_with(&inside) || kept.contains(path));
    let mut folders: Vec<String> = tree
        .below(&inside)
        .filter(|(_, entry)| entry.node == Node::Directory)
        .map(|(path, _)| path.to_owned())
        .collect();
    // The deepest first: a directory may have had only directories in it.
    folders.reverse();
    for folder in folders {
        if tree.below(&format!("{folder}/")).next().is_none() {
            tree.remove(&folder);
        }
    }
}

/// What the kernel's package brings, and depmod reads.
fn is_shipped(path: &str) -> bool {
    ["/modules.order", "/modules.builtin", "/modules.builtin.modinfo"]
        .iter()
        .any(|name| path.ends_with(name))
}

/// Runs depmod over the modules that are left; gives the indexes by their file names.
fn depmod(tree: &Tree, version: &str, directory: &str, tools: &Tools) -> Result<Vec<(String, Bytes)>, ModulesError> {
    let work = tempfile::tempdir().map_err(io_error(Path::new("the directory for temporary files")))?;
    let root = work.path().join(directory);
    fs::create_dir_all(&root).map_err(io_error(&root))?;
    let old = work.path().join("lib");
    symlink("usr/lib", &old).map_err(io_error(&old))?;
    for (path, entry) in tree.below(&format!("{directory}/")) {
        let to = work.path().join(path);
        match &entry.node {
            Node::Directory => fs::create_dir_all(&to).map_err(io_error(&to))?,
            Node::File(contents) if name_of(path).is_some() || is_shipped(path) => {
                write(&to, contents).map_err(io_error(&to))?;
            }
            _ => {}
        }
    }
    tools
        .cmd("depmod")?
        .arg("-b")
        .arg(work.path())
        .arg(version)
        .pipe()?
        .finish()?;
    let mut index = Vec::new();
    for entry in fs::read_dir(&root).map_err(io_error(&root))? {
        let path = entry.map_err(io_error(&root))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        if name.starts_with(INDEX) && path.is_file() && !is_shipped(&format!("/{name}")) {
            index.push((name, fs::read(&path).map_err(io_error(&path))?.into()));
        }
    }
    Ok(index)
}

/// A file of a directory that only we use.
fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut fs::File::create_new(path)?, contents)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ModulesError {
    let path = path.to_owned();
    move |source| ModulesError::Io { path, source }
}

#[cfg(test)]
mod tests;
