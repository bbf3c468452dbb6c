//! The certificates that the image trusts, in one file (`update-ca-certificates` would make it).

use std::path::Path;

use super::{BadRoot, put};
use crate::tree::{Entry, Node, Tree};

const SOURCES: &str = "usr/share/ca-certificates/";
/// curl reads it, and OpenSSL through a link in the recipe. Certificates by hash are not made: nothing in the image looks
/// for them when this file is there.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

pub(super) fn bundle(tree: &mut Tree) -> Result<(), BadRoot> {
    let mut bundle = Vec::new();
    for (path, entry) in tree.below(SOURCES) {
        let Node::File(contents) = &entry.node else { continue };
        if Path::new(path).extension().is_some_and(|extension| extension == "crt") {
            bundle.extend_from_slice(contents);
            if !contents.ends_with(b"\n") {
                bundle.push(b'\n');
            }
        }
    }
    if bundle.is_empty() {
        return Err(BadRoot::Missing {
            path: format!("{SOURCES}*.crt"),
            what: "trusting other machines".to_owned(),
        });
    }
    put(tree, BUNDLE, Entry::file(0o644, bundle))?;
    Ok(())
}
