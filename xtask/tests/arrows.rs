//! The map of the crates, kept true: who may depend on whom, what `protocol` must never need, and that nothing of a
//! developer's own machine is in the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use platform::exec::Cmd;
use serde::Deserialize;

/// Every crate, the crates of ours it may use, and those that only its tests may use besides. Drawn for people in
/// ARCHITECTURE.md: a new arrow is first drawn there.
const ARROWS: [(&str, &[&str], &[&str]); 13] = [
    ("agent", &["platform", "protocol"], &[]),
    (
        "bench",
        &[
            "agent",
            "console-proxy",
            "hypervisor",
            "image-builder",
            "mgmt-stub",
            "platform",
            "protocol",
            "ssvm",
            "system-tests",
        ],
        &[],
    ),
    ("console-proxy", &["agent", "platform", "protocol"], &[]),
    ("hypervisor", &["platform", "protocol"], &[]),
    ("image-builder", &["platform", "stage1"], &[]),
    ("mgmt-stub", &["hypervisor", "platform", "protocol"], &["agent"]),
    ("platform", &[], &[]),
    ("protocol", &[], &["platform"]),
    ("router", &["platform", "protocol"], &[]),
    ("ssvm", &["agent", "platform", "protocol"], &[]),
    ("stage1", &[], &["platform"]),
    ("system-tests", &["hypervisor", "platform"], &[]),
    ("xtask", &["hypervisor", "platform", "stage1"], &[]),
];

/// What does I/O, and thus is nothing that `protocol` may need, directly or not.
const IO: [&str; 5] = ["hyper", "mio", "nix", "tokio", "tokio-rustls"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: String,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing for a normal one.
    kind: Option<String>,
    /// Only of crates in this repository.
    path: Option<PathBuf>,
}

async fn metadata() -> Metadata {
    let output = Cmd::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .run()
        .await;
    serde_json::from_slice(&output.expect("cargo is here").stdout).expect("cargo metadata prints JSON")
}

#[tokio::test]
async fn only_drawn_arrows_exist() {
    let mut wrong = Vec::new();
    for package in metadata().await.packages {
        let Some((_, normal, tests)) = ARROWS.iter().find(|(name, ..)| *name == package.name) else {
            wrong.push(format!("{} is on no map", package.name));
            continue;
        };
        for Dependency { name, kind, .. } in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some())
        {
            let is_for_tests = kind.as_deref() == Some("dev");
            let is_drawn = normal.contains(&name.as_str()) || is_for_tests && tests.contains(&name.as_str());
            if !is_drawn {
                wrong.push(format!(
                    "{} -> {name} ({})",
                    package.name,
                    kind.as_deref().unwrap_or("normal")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "not drawn: {wrong:#?}");
}

#[tokio::test]
async fn protocol_needs_nothing_that_does_io() {
    let tree = Cmd::new("cargo").args(["tree", "--package", "protocol", "--edges", "normal", "--prefix", "none"]);
    let tree = tree.run().await.unwrap().text();
    let needed: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(needed.contains("protocol"), "{tree}");
    let io: Vec<_> = IO.into_iter().filter(|name| needed.contains(name)).collect();
    assert!(
        io.is_empty(),
        "protocol needs {io:?}; `cargo tree -p protocol -e normal -i tokio` shows why"
    );
}

const LINTS: &str = "\n[lints]\nworkspace = true\n";

#[tokio::test]
async fn every_crate_has_the_lints_of_the_workspace() {
    let has_lints = |package: &Package| fs::read_to_string(&package.manifest_path).unwrap().contains(LINTS);
    let without: Vec<_> = metadata()
        .await
        .packages
        .into_iter()
        .filter(|package| !has_lints(package))
        .collect();
    assert!(
        without.is_empty(),
        "add {LINTS:?} to {:?}",
        without.iter().map(|p| &p.manifest_path).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn no_file_names_a_place_on_the_developers_machine() {
    let root = metadata().await.workspace_root;
    let places = private_places(&root);
    let git = Cmd::new("git").args([
        "-C",
        &root,
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let files = git.run().await.unwrap().text();

    let mut found = Vec::new();
    for file in files
        .split('\0')
        .filter(|file| !file.is_empty() && *file != "Cargo.lock")
    {
        // A deleted file is still listed, and a link may lead nowhere.
        let Ok(bytes) = fs::read(Path::new(&root).join(file)) else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes);
        found.extend(
            places
                .iter()
                .filter(|place| names(&text, place))
                .map(|place| format!("{file}: {place}")),
        );
    }
    assert!(
        found.is_empty(),
        "replace by something that is true on every machine: {found:#?}"
    );
}

/// The checkout, cargo's own directory, and the hosts of package mirrors that this machine is told to use.
fn private_places(root: &str) -> Vec<String> {
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let config = home
        .as_ref()
        .map(|home| fs::read_to_string(format!("{home}/config.toml")).unwrap_or_default());
    let hosts = config
        .iter()
        .flat_map(|config| config.split("://").skip(1))
        .filter_map(host);

    let directories = [
        Some(root.to_owned()),
        home.as_ref().ok().map(|home| format!("{home}/registry")),
    ];
    // `/src` is a word that any text may hold; `/home/me/sysvm` is not.
    let directories = directories
        .into_iter()
        .flatten()
        .filter(|path| path.matches('/').count() >= 2);
    directories
        .chain(hosts.filter(|host| !PUBLIC.contains(&host.as_str())))
        .collect()
}

const PUBLIC: [&str; 4] = ["crates.io", "github.com", "index.crates.io", "static.crates.io"];

fn host(after_scheme: &str) -> Option<String> {
    let authority = after_scheme.split(['/', '"', '\'', '\n', ' ']).next()?;
    let host = authority.rsplit('@').next()?.split(':').next()?;
    Some(host.to_owned()).filter(|host| !host.is_empty())
}

/// Whether `place` is in `text` as a whole, not as a part of a longer name.
fn names(text: &str, place: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    text.match_indices(place).any(|(start, _)| {
        !text[..start].ends_with(is_name) && !text[start + place.len()..].trim_start_matches('.').starts_with(is_name)
    })
}

#[test]
fn a_place_is_found_whole_only() {
    let place = "/home/me/sysvm";
    for text in [
        "see /home/me/sysvm/agent",
        "\"/home/me/sysvm\"",
        "in /home/me/sysvm.",
        "/home/me/sysvm",
    ] {
        assert!(names(text, place), "{text}");
    }
    for text in ["/home/me/sysvm2", "backup/home/me/sysvm", "/home/me"] {
        assert!(!names(text, place), "{text}");
    }
    let config = "https://user:word@mirror.example:8443/index/\"";
    assert_eq!(host(config.split("://").nth(1).unwrap()).unwrap(), "mirror.example");
}
