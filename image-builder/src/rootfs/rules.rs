//! The recipe's directories, files, links and overlay.

use bytes::Bytes;
use time::OffsetDateTime;
use time::macros::format_description;

use super::patterns::Patterns;
use super::users::Accounts;
use super::{BadRoot, put};
use crate::recipe::{FileRule, Recipe};
use crate::tree::{Entry, Node, Tree};

/// Where a program reads which CloudStack the image fits, and which of ours it is (appliance.md §7.3).
const COMPAT_FILE: &str = "etc/cloudstack-release";
const VERSION_FILE: &str = "etc/sysvm-release";

/// Directories, links, and files as far as they are there or can be made.
pub(super) fn apply(tree: &mut Tree, recipe: &Recipe, accounts: &Accounts) -> Result<(), BadRoot> {
    for (path, target) in &recipe.links {
        if let Some(Entry {
            node: Node::Directory, ..
        }) = tree.get(path)
        {
            remove_empty(tree, path)?;
        }
        put(tree, path, Entry::symlink(target))?;
    }
    for (path, rule) in &recipe.directories {
        let entry = Entry::directory(rule.mode).owned(accounts.uid(&rule.owner)?, accounts.gid(&rule.group)?);
        put(tree, path, entry)?;
    }
    for (path, rule) in &recipe.files {
        let contents = match &rule.from {
            Some(from) => Some(tree.contents(from).cloned().ok_or_else(|| BadRoot::Missing {
                path: from.clone(),
                what: path.clone(),
            })?),
            None => rule.empty.then(Bytes::new),
        };
        if let Some(contents) = contents {
            put(tree, path, Entry::file(0o644, contents))?;
        }
        if tree.get(path).is_some() {
            own(tree, path, rule, accounts)?;
        }
    }
    Ok(())
}

/// The overlay's files.
pub(super) fn overlay(tree: &mut Tree, recipe: &Recipe) -> Result<(), BadRoot> {
    let executable = Patterns::new(&recipe.overlay_rules.executable)?;
    for (path, contents) in &recipe.overlay {
        let mode = if executable.match_any(path) { 0o755 } else { 0o644 };
        put(tree, path, Entry::file(mode, contents.clone()))?;
    }
    Ok(())
}

/// Modes and owners of the recipe's files, again: some came with the overlay. All must be there now.
pub(super) fn own_files(tree: &mut Tree, recipe: &Recipe, accounts: &Accounts) -> Result<(), BadRoot> {
    for (path, rule) in &recipe.files {
        own(tree, path, rule, accounts)?;
    }
    Ok(())
}

/// `etc/cloudstack-release`, which management servers ask for, and `etc/sysvm-release`.
pub(super) fn release_files(recipe: &Recipe, version: &str) -> Result<[(&'static str, String); 2], BadRoot> {
    let bad = || BadRoot::BadRecipe(format!("{} is no time in seconds since 1970", recipe.epoch));
    let time = i64::try_from(recipe.epoch).map_err(|_| bad())?;
    let time = OffsetDateTime::from_unix_timestamp(time).map_err(|_| bad())?;
    // As date(1) prints it.
    let format = format_description!(
        "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] UTC [year]"
    );
    let time = time.format(format).map_err(|_| bad())?;
    let compat = format!("Cloudstack Release {} {time}\n", recipe.compat);
    Ok([(COMPAT_FILE, compat), (VERSION_FILE, format!("{version}\n"))])
}

fn own(tree: &mut Tree, path: &str, rule: &FileRule, accounts: &Accounts) -> Result<(), BadRoot> {
    let (uid, gid) = (accounts.uid(&rule.owner)?, accounts.gid(&rule.group)?);
    let missing = || BadRoot::BadRecipe(format!("[files] has {path}, which is not in the image"));
    let entry = tree.get_mut(path).ok_or_else(missing)?;
    (entry.uid, entry.gid) = (uid, gid);
    entry.mode = rule.mode.unwrap_or(entry.mode);
    Ok(())
}

/// A directory that becomes a link.
fn remove_empty(tree: &mut Tree, path: &str) -> Result<(), BadRoot> {
    let inside = format!("{path}/");
    if tree.below(&inside).next().is_some() {
        return Err(BadRoot::BadRecipe(format!(
            "[links] has {path}, which is a directory with files in it"
        )));
    }
    tree.remove(path);
    Ok(())
}
