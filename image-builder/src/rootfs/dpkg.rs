//! What dpkg knows: which packages are installed, and which files are theirs. Scanners, `dpkg-query` and our `inspect`
//! read it; nothing in the image changes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use md5::{Digest as _, Md5};

use super::unpack::merged;
use super::{BadRoot, put};
use crate::deb::Deb;
use crate::tree::{Entry, Node, Tree};

const DATABASE: &str = "var/lib/dpkg";
const INFO: &str = "var/lib/dpkg/info/";

/// Writes the list of installed packages, and for each package the list of its files.
pub(super) fn write(tree: &mut Tree, packages: &BTreeMap<&str, &Deb>) -> Result<(), BadRoot> {
    let mut status = String::new();
    for (name, deb) in packages {
        status.push_str(&paragraph(deb));
        status.push('\n');
        put(
            tree,
            &format!("{INFO}{}.list", info_name(name, deb)),
            Entry::file(0o644, list(deb)),
        )?;
    }
    put(tree, &format!("{DATABASE}/status"), Entry::file(0o644, status))?;
    put(tree, &format!("{INFO}format"), Entry::file(0o644, "1\n"))?;
    for name in ["available", "diversions", "statoverride"] {
        put(tree, &format!("{DATABASE}/{name}"), Entry::file(0o644, ""))?;
    }
    Ok(())
}

/// Takes out of the lists what is not in the image any more.
pub(super) fn forget_missing(tree: &mut Tree) {
    let is_list = |path: &&str| Path::new(path).extension().is_some_and(|extension| extension == "list");
    let lists: Vec<String> = tree
        .below(INFO)
        .map(|(path, _)| path)
        .filter(is_list)
        .map(str::to_owned)
        .collect();
    for path in lists {
        let Some(Node::File(contents)) = tree.get(&path).map(|entry| &entry.node) else {
            continue;
        };
        let mut kept = String::new();
        for line in String::from_utf8_lossy(contents).lines() {
            let here = line.trim_start_matches('/');
            if here == "." || tree.get(&merged(here)).is_some() {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        if let Some(entry) = tree.get_mut(&path) {
            entry.node = Node::File(Bytes::from(kept));
        }
    }
}

/// The package as dpkg describes what it has installed: `Status` after the name, the digests of configuration files before
/// the description.
fn paragraph(deb: &Deb) -> String {
    let mut text = String::new();
    let mut conffiles = conffiles(deb);
    for (name, value) in deb.control.fields() {
        if name.eq_ignore_ascii_case("Description") {
            text.push_str(&std::mem::take(&mut conffiles));
        }
        let space = if value.starts_with('\n') || value.is_empty() {
            ""
        } else {
            " "
        };
        writeln!(text, "{name}:{space}{value}").expect("a text takes more text");
        if name.eq_ignore_ascii_case("Package") {
            text.push_str("Status: install ok installed\n");
        }
    }
    text + &conffiles
}

fn conffiles(deb: &Deb) -> String {
    let mut text = String::new();
    for path in &deb.conffiles {
        let inside = path.trim_start_matches('/');
        if let Some(contents) = deb.data.contents(inside) {
            if text.is_empty() {
                text.push_str("Conffiles:\n");
            }
            write!(text, " {path} ").expect("a text takes more text");
            for byte in Md5::digest(contents) {
                write!(text, "{byte:02x}").expect("a text takes more text");
            }
            text.push('\n');
        }
    }
    text
}

fn list(deb: &Deb) -> String {
    let mut text = String::from("/.\n");
    for (path, _) in deb.data.iter() {
        text.push('/');
        text.push_str(path);
        text.push('\n');
    }
    text
}

/// Packages that may be installed for several architectures at once carry it in their files' names.
fn info_name(name: &str, deb: &Deb) -> String {
    match deb.control.get("Multi-Arch") {
        Some("same") => format!("{name}:{}", deb.control.architecture()),
        _ => name.to_owned(),
    }
}
