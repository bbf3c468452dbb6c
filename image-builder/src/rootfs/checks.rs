//! What must not be in an image.

use std::collections::BTreeSet;

use super::{BadRoot, libraries};
use crate::recipe::{Recipe, SetId};
use crate::tree::{Entry, Node, Tree};

const SET_ID: u32 = 0o6000;
const EXECUTABLE: u32 = 0o111;
/// How OpenSSH and OpenSSL begin a key, in a file that is nothing else.
const KEY_BEGINS: &[u8] = b"-----BEGIN";
const KEY_SAYS: &[u8] = b"PRIVATE KEY-----";
/// What is there at run time only.
const RUN_TIME: [&str; 4] = ["dev/", "proc/", "run", "sys/"];

/// Takes away the set-user-id and set-group-id bits that nobody needs.
pub(super) fn clear_set_id(tree: &mut Tree, rules: &SetId) -> Result<(), BadRoot> {
    for path in &rules.cleared {
        let missing = || BadRoot::BadRecipe(format!("[set_id] names {path}, which no package has"));
        let entry = tree.get_mut(path).ok_or_else(missing)?;
        entry.mode &= !SET_ID;
    }
    Ok(())
}

/// Checks the whole image.
pub(super) fn check(tree: &Tree, recipe: &Recipe) -> Result<(), BadRoot> {
    let mut problems = Vec::new();
    let kept: BTreeSet<&str> = recipe.set_id.kept.iter().map(String::as_str).collect();
    for (path, entry) in tree.iter() {
        match &entry.node {
            Node::Directory => {}
            Node::Symlink(target) => {
                if is_dangling(tree, path, target) {
                    problems.push(format!("{path} leads to {target}, which is not there"));
                }
            }
            Node::File(contents) => {
                if let Some(interpreter) = interpreter(entry, contents)
                    && !is_program(tree, &interpreter)
                {
                    problems.push(format!("{path} needs {interpreter}, which is not there"));
                }
                if contents.starts_with(KEY_BEGINS) && contents.windows(KEY_SAYS.len()).any(|part| part == KEY_SAYS) {
                    problems.push(format!("{path} is a private key"));
                }
                if entry.mode & SET_ID != 0 && !kept.contains(path) {
                    problems.push(format!(
                        "{path} runs with another's rights (mode {:o}); see [set_id]",
                        entry.mode
                    ));
                }
            }
            Node::HardLink(_) => {
                if entry.mode & SET_ID != 0 && !kept.contains(path) {
                    problems.push(format!(
                        "{path} runs with another's rights (mode {:o}); see [set_id]",
                        entry.mode
                    ));
                }
            }
        }
    }
    problems.extend(libraries::missing(tree));
    if problems.is_empty() {
        Ok(())
    } else {
        Err(BadRoot::Unsound(problems))
    }
}

fn is_dangling(tree: &Tree, path: &str, target: &str) -> bool {
    let target = target.trim_start_matches("../").trim_start_matches('/');
    let is_run_time = RUN_TIME.iter().any(|start| target.starts_with(start));
    let is_root = target.is_empty(); // which is no entry
    !is_run_time && !is_root && tree.resolve(path).is_none()
}

/// What a script says it runs with.
fn interpreter(entry: &Entry, contents: &[u8]) -> Option<String> {
    let line = contents.strip_prefix(b"#!").filter(|_| entry.mode & EXECUTABLE != 0)?;
    let line = line.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let first = words.next()?;
    match first {
        "/usr/bin/env" => words.find(|word| !word.starts_with('-')).map(str::to_owned),
        _ => Some(first.to_owned()),
    }
}

fn is_program(tree: &Tree, name: &str) -> bool {
    if name.contains('/') {
        return tree.resolve(name).is_some();
    }
    ["usr/bin", "usr/sbin"]
        .iter()
        .any(|folder| tree.resolve(&format!("{folder}/{name}")).is_some())
}
