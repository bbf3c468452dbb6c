//! The crates in our programs, from what `cargo metadata` prints.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A crate that is linked into one of our programs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Crate {
    /// `tokio`.
    pub name: String,
    /// `1.48.0`.
    pub version: String,
    /// An SPDX expression, or `NOASSERTION`.
    pub licence: String,
    /// Whether it is ours and not from a registry.
    pub is_ours: bool,
}

/// Why the crates are not known.
#[derive(Debug, thiserror::Error)]
pub enum BadCrates {
    /// Another file.
    #[error("this is not what `cargo metadata --format-version 1` prints")]
    Format(#[from] serde_json::Error),
    /// Printed with `--no-deps`.
    #[error("it has no dependencies in it; run cargo metadata without --no-deps")]
    NoDependencies,
    /// Of another project.
    #[error("no crate in it makes the program {0} that is in the image")]
    NoProgram(String),
    /// It names what it does not have.
    #[error("it names the crate {0} and does not describe it")]
    Unknown(String),
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Option<Resolve>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// The crates that are linked into these programs: reached through normal dependencies only, and no macros, which are
/// gone when a program is built.
///
/// # Errors
/// It is no metadata, or not of the project that made the programs.
pub fn crates_of(metadata: &[u8], programs: &BTreeSet<String>) -> Result<Vec<Crate>, BadCrates> {
    let metadata: Metadata = serde_json::from_slice(metadata)?;
    let links = metadata.resolve.ok_or(BadCrates::NoDependencies)?.nodes;
    let links: BTreeMap<_, _> = links.iter().map(|link| (link.id.as_str(), &link.deps)).collect();
    let packages: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package))
        .collect();
    let mut left = Vec::new();
    for program in programs {
        let makes = |package: &&&Package| {
            let mut targets = package.targets.iter();
            targets.any(|target| target.name == *program && target.kind.iter().any(|kind| kind == "bin"))
        };
        let members = metadata
            .workspace_members
            .iter()
            .filter_map(|id| packages.get(id.as_str()));
        let maker = members
            .into_iter()
            .find(makes)
            .ok_or_else(|| BadCrates::NoProgram(program.clone()))?;
        left.push(maker.id.as_str());
    }
    let mut seen = BTreeSet::new();
    let mut crates = BTreeSet::new();
    while let Some(id) = left.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = packages.get(id).ok_or_else(|| BadCrates::Unknown(id.to_owned()))?;
        if package
            .targets
            .iter()
            .any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
        {
            continue;
        }
        crates.insert(Crate {
            name: package.name.clone(),
            version: package.version.clone(),
            // An old spelling of cargo's.
            licence: package
                .license
                .as_deref()
                .map_or("NOASSERTION".to_owned(), |text| text.replace('/', " OR ")),
            is_ours: package.source.is_none(),
        });
        let dependencies = links.get(id).into_iter().flat_map(|links| links.iter());
        let normal = dependencies.filter(|link| link.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        left.extend(normal.map(|link| link.pkg.as_str()));
    }
    Ok(crates.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use platform::exec::Cmd;
    use serde_json::json;

    use super::*;

    fn programs(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_is_linked_counts() {
        let package = |name: &str, kind: &str, source: Option<&str>| {
            json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source,
                "targets": [{ "name": name, "kind": [kind] }] })
        };
        let link = |name: &str, kind: Option<&str>| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let from = Some("registry");
        let metadata = json!({
            "workspace_members": ["agent", "other"],
            "packages": [package("agent", "bin", None), package("other", "bin", None), package("used", "lib", from),
                package("macro", "proc-macro", from), package("syn", "lib", from), package("cc", "lib", from),
                package("proptest", "lib", from)],
            "resolve": { "nodes": [
                { "id": "agent", "deps": [link("used", None), link("cc", Some("build")), link("proptest", Some("dev"))] },
                { "id": "used", "deps": [link("macro", None)] },
                { "id": "macro", "deps": [link("syn", None)] },
            ] },
        });
        let metadata = serde_json::to_vec(&metadata).unwrap();
        let found = crates_of(&metadata, &programs(&["agent"])).unwrap();
        let names: Vec<_> = found.iter().map(|krate| (krate.name.as_str(), krate.is_ours)).collect();
        assert_eq!(names, [("agent", true), ("used", false)]);
        assert_eq!(found[1].licence, "MIT OR Apache-2.0");

        let error = crates_of(&metadata, &programs(&["router"])).unwrap_err().to_string();
        assert_eq!(error, "no crate in it makes the program router that is in the image");
        assert!(crates_of(b"{}", &programs(&[])).is_err());
    }

    #[tokio::test]
    async fn what_the_real_cargo_prints_is_understood() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let print = Cmd::new("cargo").args([
            "metadata",
            "--offline",
            "--format-version",
            "1",
            "--manifest-path",
            manifest,
        ]);
        let metadata = print.run().await.unwrap().stdout;
        let crates = crates_of(&metadata, &programs(&["agent"])).unwrap();
        let has = |name: &str| crates.iter().any(|krate| krate.name == name);
        assert!(has("agent") && has("platform") && has("tokio"));
        // For tests only; only of the image builder; only while building.
        assert!(!has("proptest") && !has("ext4-view") && !has("serde_derive"));
    }
}
