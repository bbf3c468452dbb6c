//! What is different between two images, whatever their formats.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::cache::hex;
use crate::control::BadControl;
use crate::facts::{self, Installed};
use crate::lock::{Lock, Package};
use crate::manifest::Contents;
use crate::tree::{Entry, Node, Tree};
use crate::view::View;

/// What is different between two images. Empty where they are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Packages, with their versions.
    pub packages: Changes,
    /// Kernel, releases, command line: what an image says of itself, by name.
    pub facts: Changes,
    /// Units that systemd starts, or never does: `enabled` or `masked`.
    pub units: Changes,
    /// Modules of the kernel, with their paths.
    pub modules: Changes,
    /// Files of the EFI system partition, with their digests.
    pub boot_files: Changes,
    /// Files of the root file system.
    pub files: BTreeMap<String, FileChange>,
}

/// Things by name that are only in one, or not the same in both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Only in the second.
    pub added: BTreeMap<String, String>,
    /// Only in the first.
    pub removed: BTreeMap<String, String>,
    /// In both: what it was, and what it is.
    pub changed: BTreeMap<String, [String; 2]>,
}

/// How a file is different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileChange {
    /// Only in the second, as this.
    Added(String),
    /// Only in the first, as this.
    Removed(String),
    /// In both: by property (`contents`, `mode`, `owner`, …) what it was, and what it is.
    Changed(BTreeMap<&'static str, [String; 2]>),
}

impl Diff {
    /// From `old` to `new`.
    ///
    /// # Errors
    /// The list of packages of one cannot be understood.
    pub fn of_images(old: &View, new: &View) -> Result<Self, BadControl> {
        let boot_files = |view: &View| -> BTreeMap<String, String> {
            let files = view.disk.iter().flat_map(|disk| &disk.esp);
            files
                .map(|(path, contents)| (path.clone(), describe(contents)))
                .collect()
        };
        // A root.tar has no boot files, and a comparison with one is about what both have.
        let have_disks = old.disk.is_some() && new.disk.is_some();
        Ok(Self {
            facts: Changes::between(&facts_of(old, have_disks), &facts_of(new, have_disks)),
            boot_files: if have_disks {
                Changes::between(&boot_files(old), &boot_files(new))
            } else {
                Changes::default()
            },
            ..Self::of_trees(&old.tree, &new.tree)?
        })
    }

    /// From the root file system `old` to `new`.
    ///
    /// # Errors
    /// The list of packages of one cannot be understood.
    pub fn of_trees(old: &Tree, new: &Tree) -> Result<Self, BadControl> {
        Ok(Self {
            packages: Changes::between(&installed(&facts::packages(old)?), &installed(&facts::packages(new)?)),
            units: Changes::between(&units(old), &units(new)),
            modules: Changes::between(&facts::modules(old), &facts::modules(new)),
            files: files(old, new),
            ..Self::default()
        })
    }

    /// From the lock file `old` to `new`: packages of the image, and (as `tools: kmod`) of the tools.
    pub fn of_locks(old: &Lock, new: &Lock) -> Self {
        let packages = |lock: &Lock| {
            let image = lock
                .packages
                .iter()
                .map(|package| (package.name.clone(), version(package)));
            let tools = lock
                .tools
                .iter()
                .map(|package| (format!("tools: {}", package.name), version(package)));
            image.chain(tools).collect()
        };
        Self {
            packages: Changes::between(&packages(old), &packages(new)),
            ..Self::default()
        }
    }

    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The digest is in it, since a version may be built twice.
fn version(package: &Package) -> String {
    let digest = package.sha256.get(..12).unwrap_or(&package.sha256);
    format!("{} ({}, sha256 {digest}…)", package.version, package.arch)
}

fn installed(packages: &[Installed]) -> BTreeMap<String, String> {
    packages
        .iter()
        .map(|package| (package.name.clone(), package.version.clone()))
        .collect()
}

fn units(tree: &Tree) -> BTreeMap<String, String> {
    let units = facts::units(tree);
    let enabled = units.enabled.into_iter().map(|unit| (unit, "enabled".to_owned()));
    enabled
        .chain(units.masked.into_iter().map(|unit| (unit, "masked".to_owned())))
        .collect()
}

fn facts_of(view: &View, have_disks: bool) -> BTreeMap<String, String> {
    let mut facts = facts::release(&view.tree);
    let kernel = facts::kernel(&view.tree, view.disk.as_ref());
    facts.extend(kernel.version.map(|version| ("kernel".to_owned(), version)));
    if have_disks && let Some(disk) = &view.disk {
        facts.extend(kernel.command_line.map(|line| ("kernel command line".to_owned(), line)));
        facts.insert("disk size".to_owned(), disk.size.to_string());
        facts.insert("disk id".to_owned(), disk.gpt.id.to_string());
        for (number, part) in (1..).zip(&disk.gpt.partitions) {
            let text = format!(
                "{} bytes at {}, type {}, id {}, {:?}",
                part.size(),
                part.offset(),
                part.kind,
                part.id,
                part.name
            );
            facts.insert(format!("partition {number}"), text);
        }
    }
    facts
}

impl Changes {
    /// From `old` to `new`.
    pub fn between(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Self {
        let mut changes = Self::default();
        for (name, value) in old {
            match new.get(name) {
                None => drop(changes.removed.insert(name.clone(), value.clone())),
                Some(other) if other != value => {
                    changes.changed.insert(name.clone(), [value.clone(), other.clone()]);
                }
                Some(_) => {}
            }
        }
        let added = new.iter().filter(|(name, _)| !old.contains_key(*name));
        changes.added = added.map(|(name, value)| (name.clone(), value.clone())).collect();
        changes
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn files(old: &Tree, new: &Tree) -> BTreeMap<String, FileChange> {
    let (old_links, new_links) = (link_groups(old), link_groups(new));
    let paths: BTreeSet<_> = old.iter().chain(new.iter()).map(|(path, _)| path).collect();
    let mut changes = BTreeMap::new();
    for path in paths {
        let change = match (old.get(path), new.get(path)) {
            (Some(entry), None) => FileChange::Removed(describe_entry(old, entry)),
            (None, Some(entry)) => FileChange::Added(describe_entry(new, entry)),
            (Some(before), Some(after)) => {
                let mut properties = BTreeMap::new();
                let mut compare = |name, before: String, after: String| {
                    if before != after {
                        properties.insert(name, [before, after]);
                    }
                };
                compare("mode", format!("{:04o}", before.mode), format!("{:04o}", after.mode));
                compare("owner", owner(before), owner(after));
                compare("attributes", attributes(before), attributes(after));
                compare("kind", kind(before).to_owned(), kind(after).to_owned());
                compare("hard links", link(&old_links, path), link(&new_links, path));
                match (&before.node, &after.node) {
                    (Node::Symlink(before), Node::Symlink(after)) => compare("target", before.clone(), after.clone()),
                    _ if kind(before) == "file" && kind(after) == "file" => {
                        let (before, after) = (contents(old, before), contents(new, after));
                        if before != after {
                            compare("contents", describe(before), describe(after));
                        }
                    }
                    _ => {}
                }
                if properties.is_empty() {
                    continue;
                }
                FileChange::Changed(properties)
            }
            (None, None) => continue,
        };
        changes.insert(path.to_owned(), change);
    }
    changes
}

/// For each name of a file with several: all of them. Which of them carries the contents does not matter.
fn link_groups(tree: &Tree) -> BTreeMap<String, BTreeSet<String>> {
    let mut groups = BTreeMap::<&str, BTreeSet<String>>::new();
    for (path, entry) in tree.iter() {
        if let Node::HardLink(target) = &entry.node {
            let group = groups.entry(target).or_insert_with(|| [target.clone()].into());
            group.insert(path.to_owned());
        }
    }
    let named = |group: BTreeSet<String>| {
        let names: Vec<_> = group.iter().cloned().collect();
        names.into_iter().map(move |name| (name, group.clone()))
    };
    groups.into_values().flat_map(named).collect()
}

fn link(groups: &BTreeMap<String, BTreeSet<String>>, path: &str) -> String {
    let Some(group) = groups.get(path) else {
        return "none".to_owned();
    };
    let others: Vec<_> = group.iter().filter(|name| *name != path).map(String::as_str).collect();
    others.join(" ")
}

fn contents<'a>(tree: &'a Tree, entry: &'a Entry) -> &'a [u8] {
    match &entry.node {
        Node::File(contents) => contents,
        Node::HardLink(target) => tree.contents(target).map_or(&[], |contents| contents.as_ref()),
        Node::Directory | Node::Symlink(_) => &[],
    }
}

fn describe(contents: impl AsRef<[u8]>) -> String {
    let Contents { size, sha256 } = Contents::of(contents.as_ref());
    format!("{size} bytes, sha256 {sha256}")
}

fn describe_entry(tree: &Tree, entry: &Entry) -> String {
    let what = match &entry.node {
        Node::Directory => "directory".to_owned(),
        Node::Symlink(target) => format!("link to {target}"),
        Node::File(_) | Node::HardLink(_) => format!("file of {}", describe(contents(tree, entry))),
    };
    format!("{what}, mode {:04o}, owner {}", entry.mode, owner(entry))
}

fn kind(entry: &Entry) -> &'static str {
    match entry.node {
        Node::Directory => "directory",
        Node::Symlink(_) => "link",
        Node::File(_) | Node::HardLink(_) => "file",
    }
}

fn owner(entry: &Entry) -> String {
    format!("{}:{}", entry.uid, entry.gid)
}

fn attributes(entry: &Entry) -> String {
    let all: Vec<_> = entry
        .xattrs
        .iter()
        .map(|(name, value)| format!("{name}={}", hex(value)))
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(" ")
    }
}

impl Display for Diff {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let groups = [
            ("Packages", &self.packages),
            ("Image", &self.facts),
            ("Units", &self.units),
            ("Kernel modules", &self.modules),
            ("Boot files", &self.boot_files),
        ];
        for (title, changes) in groups.into_iter().filter(|(_, changes)| !changes.is_empty()) {
            writeln!(f, "{title}")?;
            write!(f, "{changes}")?;
        }
        if self.files.is_empty() {
            return Ok(());
        }
        writeln!(f, "Files")?;
        for (path, change) in &self.files {
            match change {
                FileChange::Added(what) => writeln!(f, "  + {}  {what}", Shown(path))?,
                FileChange::Removed(what) => writeln!(f, "  - {}  {what}", Shown(path))?,
                FileChange::Changed(properties) => {
                    writeln!(f, "  ~ {}", Shown(path))?;
                    for (name, [before, after]) in properties {
                        writeln!(f, "      {name}: {} -> {}", Shown(before), Shown(after))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Display for Changes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.added {
            writeln!(f, "  + {}  {}", Shown(name), Shown(value))?;
        }
        for (name, value) in &self.removed {
            writeln!(f, "  - {}  {}", Shown(name), Shown(value))?;
        }
        for (name, [before, after]) in &self.changed {
            writeln!(f, "  ~ {}  {} -> {}", Shown(name), Shown(before), Shown(after))?;
        }
        Ok(())
    }
}

/// Text of an image on somebody's terminal: control characters in it do nothing.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.contains(char::is_control) {
            f.pad(&format!("{:?}", self.0))
        } else {
            f.pad(self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: &str) -> Entry {
        let text = format!("Package: kmod\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n");
        Entry::file(0o644, text)
    }

    fn tree(entries: Vec<(&str, Entry)>) -> Tree {
        let mut tree = Tree::new();
        for (path, entry) in entries {
            tree.make_parents(path);
            tree.insert(path, entry).unwrap();
        }
        tree
    }

    fn hard_link(target: &str) -> Entry {
        Entry {
            node: Node::HardLink(target.to_owned()),
            ..Entry::file(0o644, "")
        }
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let old = tree(vec![
            ("var/lib/dpkg/status", status("34-1")),
            ("etc/gone", Entry::file(0o644, "x")),
            ("etc/mode", Entry::file(0o644, "x")),
            ("etc/owner", Entry::file(0o644, "x")),
            ("etc/text", Entry::file(0o644, "old")),
            ("etc/link", Entry::symlink("old")),
            ("etc/kind", Entry::symlink("x")),
            ("etc/same", Entry::file(0o644, "x")),
            ("etc/twin", hard_link("etc/same")),
            (
                "etc/systemd/system/multi-user.target.wants/a.service",
                Entry::symlink("x"),
            ),
        ]);
        let ping = Entry {
            xattrs: [("security.capability".to_owned(), vec![1, 2])].into(),
            ..Entry::file(0o755, "x").owned(0, 42)
        };
        let new = tree(vec![
            ("var/lib/dpkg/status", status("34-2")),
            ("etc/mode", Entry::file(0o4755, "x")),
            ("etc/owner", ping),
            ("etc/text", Entry::file(0o644, "new")),
            ("etc/link", Entry::symlink("new")),
            ("etc/kind", Entry::directory(0o755)),
            ("etc/same", Entry::file(0o644, "x")),
            ("etc/twin", Entry::file(0o644, "x")),
            ("etc/new\n", Entry::file(0o600, "x")),
            ("etc/systemd/system/a.service", Entry::symlink("/dev/null")),
        ]);
        insta::assert_snapshot!(Diff::of_trees(&old, &new).unwrap());
        assert!(Diff::of_trees(&old, &old).unwrap().is_empty());
    }

    #[test]
    fn it_does_not_matter_which_name_of_a_file_has_the_contents() {
        let one = tree(vec![("a", Entry::file(0o644, "x")), ("b", hard_link("a"))]);
        let other = tree(vec![("b", Entry::file(0o644, "x")), ("a", hard_link("b"))]);
        assert_eq!(Diff::of_trees(&one, &other).unwrap(), Diff::default());
    }

    #[test]
    fn locks_differ_by_packages() {
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            arch: "amd64".to_owned(),
            sha256: "0123456789abcdef".repeat(4),
            size: 1,
            source: name.to_owned(),
            source_version: version.to_owned(),
            archive: "debian".to_owned(),
            path: "pool/x.deb".to_owned(),
        };
        let lock = |packages, tools| Lock {
            version: 1,
            requested: Vec::new(),
            suites: Vec::new(),
            packages,
            tools,
        };
        let old = lock(
            vec![package("kmod", "34-1"), package("gone", "1")],
            vec![package("kmod", "34-1")],
        );
        let new = lock(
            vec![package("kmod", "34-2"), package("new", "1:2")],
            vec![package("kmod", "34-1")],
        );
        insta::assert_snapshot!(Diff::of_locks(&old, &new));
    }
}
