//! What the builder makes without running a maintainer script is what Debian's own tools make by running them all: the same
//! locked packages, installed by `mmdebstrap`, give the same tree but for what `reference/allowed.toml` explains.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may fail as tests do, and say what they do instead"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use image_builder::cache::Cache;
use image_builder::control::Control;
use image_builder::deb::Deb;
use image_builder::fetch;
use image_builder::lock::{Lock, Package};
use image_builder::mirror::Source;
use image_builder::recipe::Recipe;
use image_builder::rootfs;
use image_builder::tree::{Entry, Node, Tree};
use platform::exec::Cmd;
use platform::files::{self, Change};
use serde::Deserialize;

/// It takes a minute on a quiet machine.
const TIME_LIMIT: Duration = Duration::from_mins(15);

/// Permissions, owner and group by name, extended attributes, and what it is.
type Named = (u32, String, String, BTreeMap<String, Vec<u8>>, Node);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    /// Users and groups that differ, with the reason.
    accounts: BTreeMap<String, String>,
    difference: Vec<Difference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    paths: Vec<String>,
    reason: String,
}

#[tokio::test]
async fn the_tree_is_the_one_that_maintainer_scripts_make() {
    let recipe = Recipe::own().unwrap();
    let cache = Cache::open(Cache::default_dir().unwrap()).unwrap();
    let packages = packages(&cache).await;
    let debs = cache.read_all(&packages, |_, _| true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tar = install(folder.path(), &cache, &debs, &recipe).await;
    let debs: Vec<Deb> = debs.into_iter().map(|(_, deb)| deb).collect();
    let ours = rootfs::base(&debs, &recipe).unwrap();

    let mut theirs = Tree::read_tar(BufReader::new(File::open(tar).unwrap())).unwrap();
    take_out_packages(&mut theirs, &recipe);
    rootfs::prune(&mut theirs, &recipe).unwrap();

    let allowed = Allowed::read();
    let is_explained = |line: &String| allowed.accounts.keys().any(|name| line.split(' ').nth(1) == Some(name));
    let (our, their) = (accounts(&ours), accounts(&theirs));
    let different = our.symmetric_difference(&their).filter(|line| !is_explained(line));
    assert_eq!(different.collect::<Vec<_>>(), Vec::<&String>::new());
    compare_status(&ours, &theirs, &recipe);
    let allowed = allowed.compiled();
    let mut unused: BTreeSet<usize> = (0..allowed.len()).collect();
    let mut differences = Vec::new();
    for path in paths(&ours).union(&paths(&theirs)) {
        let (our, their) = (named(&ours, path), named(&theirs, path));
        if our == their {
            continue;
        }
        match allowed.iter().position(|(set, _)| set.is_match(path)) {
            Some(index) => drop(unused.remove(&index)),
            None => differences.push(format!(
                "{path}: {} here, {} by maintainer scripts",
                shown(our.as_ref()),
                shown(their.as_ref())
            )),
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
    let unused: Vec<&str> = unused.iter().map(|index| allowed[*index].1.as_str()).collect();
    assert!(
        unused.is_empty(),
        "allowed.toml explains what is no difference any more: {unused:?}"
    );
}

/// The packages that the image of this checkout is built from: where a mirror has deleted one of the lock file,
/// `cargo xtask image` resolves anew.
async fn packages(cache: &Cache) -> Vec<Package> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| {
        Lock::parse(&fs::read_to_string(folder.join(path)).unwrap())
            .unwrap()
            .packages
    };
    let released = read("image.lock");
    if let Err(error) = fetch::provide(cache, &released, &Source::default()).await {
        println!("{error}");
        let today = read("../target/image-parts/image.lock");
        fetch::provide(cache, &today, &Source::default()).await.unwrap();
        return today;
    }
    released
}

/// Installs the packages with mmdebstrap, and gives the tar of the result.
async fn install(folder: &Path, cache: &Cache, debs: &[(Package, Deb)], recipe: &Recipe) -> PathBuf {
    let pool = folder.join("repo/pool");
    fs::create_dir_all(&pool).unwrap();
    let mut index = String::new();
    for (package, deb) in debs {
        let name = format!("{}.deb", package.sha256);
        let from = cache.path(package);
        if fs::hard_link(&from, pool.join(&name)).is_err() {
            fs::copy(&from, pool.join(&name)).unwrap();
        }
        let (size, sha256) = (package.size, &package.sha256);
        write!(
            index,
            "{}Filename: ./pool/{name}\nSize: {size}\nSHA256: {sha256}\n\n",
            deb.control
        )
        .unwrap();
    }
    assert_eq!(
        files::replace(folder.join("repo/Packages"), index, 0o644).unwrap(),
        Change::Changed
    );
    // Another user reads it when mmdebstrap has no root rights.
    for folder in [folder.to_owned(), folder.join("repo"), pool] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let is_root = nix::unistd::geteuid().is_root();
    let tar = folder.join("root.tar");
    Cmd::new("mmdebstrap")
        .arg(if is_root { "--mode=root" } else { "--mode=unshare" })
        .args(["--variant=custom", "--skip=output/dev"])
        .arg(format!("--include={},?essential", recipe.packages.image.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(&recipe.suite)
        .arg(&tar)
        .arg(format!("deb [trusted=yes] copy://{} ./", folder.join("repo").display()))
        .env("SOURCE_DATE_EPOCH", recipe.epoch.to_string())
        .time_limit(TIME_LIMIT)
        .run()
        .await
        .unwrap();
    tar
}

/// What packages have that the recipe leaves out, by dpkg's lists.
fn take_out_packages(tree: &mut Tree, recipe: &Recipe) {
    let names = recipe.left_out();
    let mut left_out = BTreeSet::new();
    let mut kept = BTreeSet::new();
    for (path, _) in tree.below("var/lib/dpkg/info/") {
        let Some(name) = path.strip_suffix(".list").and_then(|path| path.rsplit('/').next()) else {
            continue;
        };
        let list = str::from_utf8(tree.contents(path).unwrap()).unwrap();
        let is_left_out = names.contains(name.split(':').next().unwrap());
        let set = if is_left_out { &mut left_out } else { &mut kept };
        set.extend(list.lines().map(|line| line.trim_start_matches('/').to_owned()));
    }
    for path in left_out.difference(&kept).collect::<Vec<_>>().into_iter().rev() {
        let inside = format!("{path}/");
        if tree.below(&inside).next().is_none() {
            tree.remove(path);
        }
    }
}

fn paths(tree: &Tree) -> BTreeSet<String> {
    // dpkg's lists are compared through the files they list.
    let is_compared = |path: &&str| !path.starts_with("var/lib/dpkg/info/") && *path != "var/lib/dpkg/status";
    tree.iter()
        .map(|(path, _)| path)
        .filter(is_compared)
        .map(str::to_owned)
        .collect()
}

/// An entry with the names of its owner and group: numbers depend on the order of installation.
fn named(tree: &Tree, path: &str) -> Option<Named> {
    let Entry {
        mode,
        uid,
        gid,
        xattrs,
        node,
    } = tree.get(path)?.clone();
    let node = match &node {
        // Which of several names has the contents is no difference.
        Node::HardLink(_) => Node::File(tree.contents(path).unwrap().clone()),
        _ => node,
    };
    Some((
        mode,
        name_of(tree, "etc/passwd", uid),
        name_of(tree, "etc/group", gid),
        xattrs,
        node,
    ))
}

fn name_of(tree: &Tree, table: &str, id: u32) -> String {
    let table = str::from_utf8(tree.contents(table).unwrap()).unwrap();
    let id = id.to_string();
    let mut lines = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields[2] == id).unwrap()[0].to_owned()
}

/// Users with group, comment, home and shell; groups with members; who has a password.
fn accounts(tree: &Tree) -> BTreeSet<String> {
    let read = |path| str::from_utf8(tree.contents(path).unwrap()).unwrap().lines();
    let users = read("etc/passwd").map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let group = name_of(tree, "etc/group", fields[3].parse().unwrap());
        format!("user {} {group} {}", fields[0], fields[4..].join(":"))
    });
    let groups = read("etc/group").map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        format!("group {} {}", fields[0], fields[3])
    });
    let passwords = read("etc/shadow").map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_locked = fields[1].starts_with(['*', '!']);
        format!("locked {} {is_locked}", fields[0])
    });
    users.chain(groups).chain(passwords).collect()
}

/// Every package that is not left out is described in the same words, whatever their order.
fn compare_status(ours: &Tree, theirs: &Tree, recipe: &Recipe) {
    let read = |tree: &Tree| -> BTreeMap<String, BTreeMap<String, String>> {
        let status = str::from_utf8(tree.contents("var/lib/dpkg/status").unwrap()).unwrap();
        let packages = Control::parse_all(status).unwrap();
        let fields = |package: &Control| {
            let clean = |value: &str| {
                // Files that a package wants removed are no configuration files of it.
                let lines = value.lines().filter(|line| !line.ends_with(" remove-on-upgrade"));
                lines.map(str::trim_end).collect::<Vec<_>>().join("\n")
            };
            let fields = package.fields().map(|(name, value)| (name.to_owned(), clean(value)));
            (package.package().to_owned(), fields.collect())
        };
        packages.iter().map(fields).collect()
    };
    let left_out = recipe.left_out();
    let mut theirs = read(theirs);
    theirs.retain(|name, _| !left_out.contains(name.as_str()));
    assert_eq!(read(ours), theirs);
}

impl Allowed {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/allowed.toml");
        toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn compiled(self) -> Vec<(GlobSet, String)> {
        let compiled = self.difference.into_iter().map(|difference| {
            let mut set = GlobSetBuilder::new();
            for path in &difference.paths {
                set.add(
                    GlobBuilder::new(path)
                        .empty_alternates(true)
                        .literal_separator(true)
                        .build()
                        .unwrap(),
                );
            }
            (set.build().unwrap(), difference.reason)
        });
        compiled.collect()
    }
}

fn shown(entry: Option<&Named>) -> String {
    match entry {
        None => "not there".to_owned(),
        Some((mode, owner, group, _, node)) => {
            let kind = match node {
                Node::Directory => "a directory".to_owned(),
                Node::File(contents) => format!("a file of {} bytes", contents.len()),
                Node::Symlink(target) => format!("a link to {target}"),
                Node::HardLink(target) => format!("another name of {target}"),
            };
            format!("{kind}, {mode:o} {owner}:{group}")
        }
    }
}
