//! Takes out what the recipe says nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use super::BadRoot;
use super::patterns::Patterns;
use crate::recipe::Recipe;
use crate::tree::{Node, Tree};

/// Takes out the files that the recipe says nobody needs, and then the directories that this made empty. A file that has
/// other names lives on under these.
///
/// # Errors
/// A pattern is none.
pub fn prune(tree: &mut Tree, recipe: &Recipe) -> Result<(), BadRoot> {
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
            let node = if name == &names[0] {
                Node::File(contents.clone())
            } else {
                Node::HardLink(names[0].clone())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Prune;
    use crate::rootfs::put;
    use crate::tree::Entry;

    #[test]
    fn pruned_files_take_empty_directories_along_and_leave_other_names() {
        let mut recipe = Recipe::own().unwrap();
        recipe.prune = vec![Prune {
            paths: vec!["usr/share/{doc,man}/**".to_owned()],
            except: vec!["usr/share/doc/*/copyright".to_owned()],
            reason: String::new(),
        }];
        let mut tree = Tree::new();
        for path in [
            "usr/share/doc/a/copyright",
            "usr/share/doc/a/x/README",
            "usr/share/man/man1/a.1",
            "usr/bin/a",
        ] {
            put(&mut tree, path, Entry::file(0o644, path)).unwrap();
        }
        for path in ["usr/bin/b", "usr/bin/c"] {
            let link = Entry {
                node: Node::HardLink("usr/share/man/man1/a.1".to_owned()),
                ..Entry::file(0o644, "")
            };
            put(&mut tree, path, link).unwrap();
        }
        put(&mut tree, "srv", Entry::directory(0o755)).unwrap();

        prune(&mut tree, &recipe).unwrap();
        tree.check().unwrap();
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            [
                "srv",
                "usr",
                "usr/bin",
                "usr/bin/a",
                "usr/bin/b",
                "usr/bin/c",
                "usr/share",
                "usr/share/doc",
                "usr/share/doc/a",
                "usr/share/doc/a/copyright",
            ]
        );
        assert_eq!(tree.contents("usr/bin/b").unwrap(), "usr/share/man/man1/a.1");
        assert_eq!(
            tree.get("usr/bin/c").unwrap().node,
            Node::HardLink("usr/bin/b".to_owned())
        );
    }
}
