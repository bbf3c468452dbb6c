//! Packages into one tree.

use std::collections::{BTreeMap, BTreeSet};

use super::BadRoot;
use crate::deb::Deb;
use crate::tree::{Entry, Node, Tree};

/// `/bin` is a link to `usr/bin`, and so on, since Debian 12; base-files brings the links.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// All packages, unpacked.
pub(super) struct Unpacked<'a> {
    pub tree: Tree,
    /// By name.
    pub packages: BTreeMap<&'a str, &'a Deb>,
}

/// Unpacks in the order of the packages' names.
pub(super) fn unpack<'a>(debs: &'a [Deb], left_out: &BTreeSet<&str>) -> Result<Unpacked<'a>, BadRoot> {
    let mut packages: BTreeMap<&str, &Deb> = debs.iter().map(|deb| (deb.control.package(), deb)).collect();
    for name in left_out {
        let there = packages.remove::<str>(name);
        there.ok_or_else(|| BadRoot::NotThere((*name).to_owned()))?;
    }
    let mut tree = Tree::new();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (name, deb) in &packages {
        for (path, entry) in deb.data.iter() {
            let mut path = merged(path);
            let mut entry = entry.clone();
            if entry.node == Node::Directory && MERGED.contains(&path.as_str()) {
                path = format!("usr/{path}");
            }
            if let Node::HardLink(target) = &mut entry.node {
                *target = merged(target);
            }
            if let Some(there) = tree.get(&path)
                && !is_same(there, &entry)
            {
                let first = owners.get(&path).copied().unwrap_or_default();
                return Err(BadRoot::Conflict {
                    first: first.to_owned(),
                    second: (*name).to_owned(),
                    path,
                });
            }
            if tree.get(&path).is_none() {
                tree.make_parents(&path);
                tree.insert(path.clone(), entry)?;
                owners.insert(path, name);
            }
        }
    }
    Ok(Unpacked { tree, packages })
}

/// Where a path of a package is in the image.
pub(super) fn merged(path: &str) -> String {
    match path.split_once('/') {
        Some((first, _)) if MERGED.contains(&first) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

/// Directories may be in several packages, and dpkg keeps the first one's mode and owner. Anything else only if it is
/// the same.
fn is_same(first: &Entry, second: &Entry) -> bool {
    match (&first.node, &second.node) {
        (Node::Directory, Node::Directory) => true,
        _ => first == second,
    }
}
