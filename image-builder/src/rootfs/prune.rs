//! Takes out what the recipe says nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use super::BadRoot;
use super::patterns::Patterns;
use crate::recipe::Recipe;
use crate::tree::{Node, Tree};

/// Takes files out, and then the directories that this made empty. Hard links keep their contents.
pub(super) fn prune(tree: &mut Tree, recipe: &Recipe) -> Result<(), BadRoot> {
    let mut rules = Vec::new();
    for rule in &recipe.prune {
        rules.push((Patterns::new(&rule.paths)?, Patterns::new(&rule.except)?));
    }
    let is_pruned = |path: &str| {
        let mut rules = rules.iter();
        rules.any(|(paths, except)| paths.match_any(path) && !except.match_any(path))
    };
    let gone: BTreeSet<String> = tree
        .iter()
        .filter(|(path, entry)| entry.node != Node::Directory && is_pruned(path))
        .map(|(path, _)| path.to_owned())
        .collect();
    keep_contents_of_links(tree, &gone);
    for path in &gone {
        tree.remove(path);
    }
    let mut emptied: BTreeSet<String> = gone.iter().flat_map(|path| parents(path)).collect();
    // Directories that packages have empty, below what is pruned, go as well: their names match.
    let empty = tree
        .iter()
        .filter(|(path, entry)| entry.node == Node::Directory && is_pruned(path));
    emptied.extend(empty.map(|(path, _)| path.to_owned()));
    for path in emptied.iter().rev() {
        let is_wanted = recipe.directories.contains_key(path);
        let inside = format!("{path}/");
        if !is_wanted && tree.below(&inside).next().is_none() {
            tree.remove(path);
        }
    }
    Ok(())
}

/// A file that goes, and of which another name stays, lives on under that name.
fn keep_contents_of_links(tree: &mut Tree, gone: &BTreeSet<String>) {
    let mut heirs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, entry) in tree.iter() {
        if let Node::HardLink(target) = &entry.node
            && gone.contains(target)
            && !gone.contains(path)
        {
            heirs.entry(target.clone()).or_default().push(path.to_owned());
        }
    }
    for (target, names) in heirs {
        let Some(contents) = tree.contents(&target).cloned() else {
            continue;
        };
        for name in &names {
            let node = match name == &names[0] {
                true => Node::File(contents.clone()),
                false => Node::HardLink(names[0].clone()),
            };
            if let Some(entry) = tree.get_mut(name) {
                entry.node = node;
            }
        }
    }
}

fn parents(path: &str) -> impl Iterator<Item = String> {
    path.match_indices('/').map(|(end, _)| path[..end].to_owned())
}
