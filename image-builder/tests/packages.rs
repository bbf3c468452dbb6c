//! `image-builder lock` and `fetch` with the real apt, against a mirror of the test's own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

mod mirror;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder::lock::Lock;
use mirror::{Archive, Sample, Server, Trouble, put, sample, sha256};
use platform::exec::{Cmd, ExecError, Output};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const BASE: Sample = sample("base", "1:1.0-1", "Essential: yes\nSource: the-base (1.0-1)\n");
const WANTED: Sample = sample("wanted", "2.0+x~rc1", "Depends: needed\n");
const NEEDED: Sample = sample("needed", "3", "");
const UNUSED: Sample = sample("unused", "4", "");
const TOOL: Sample = sample("tool", "5", "Depends: needed\n");
const ALL: [Sample; 5] = [BASE, WANTED, NEEDED, UNUSED, TOOL];

/// Where a user works: a recipe, a lock file, a cache.
struct Desk {
    dir: TempDir,
    keyring: PathBuf,
}

impl Desk {
    fn new(archive: &Archive) -> Self {
        let desk = Self {
            dir: TempDir::new().unwrap(),
            keyring: archive.keyring.clone(),
        };
        desk.recipe(&["wanted"]);
        // A proxy of this machine's does not know our loopback; nor do we wait for a mirror that is broken on purpose.
        put(
            &desk.path("apt.conf"),
            "Acquire::http::Proxy::127.0.0.1 \"DIRECT\";\nAcquire::Retries \"0\";\n",
        );
        desk
    }

    /// The project's own recipe, but with other packages.
    fn recipe(&self, image: &[&str]) {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipe/recipe.toml");
        let mut recipe: toml::Table = fs::read_to_string(own).unwrap().parse().unwrap();
        let packages = recipe["packages"].as_table_mut().unwrap();
        packages.insert("image".to_owned(), image.to_vec().into());
        packages.insert("tools".to_owned(), vec!["tool"].into());
        put(&self.path("recipe/recipe.toml"), toml::to_string(&recipe).unwrap());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn builder(&self, command: &str) -> Cmd {
        Cmd::new(env!("CARGO_BIN_EXE_image-builder"))
            .arg(command)
            .arg("--lock")
            .arg(self.path("image.lock"))
            .env("APT_CONFIG", self.path("apt.conf"))
            .env("SYSVM_LOG", "info")
            .time_limit(Duration::from_mins(5))
    }

    async fn lock(&self, url: &str, more: &[&str]) -> Result<Output, String> {
        let lock = self.builder("lock").arg("--recipe").arg(self.path("recipe"));
        let lock = lock
            .arg("--keyring")
            .arg(&self.keyring)
            .args(["--mirror", url])
            .args(more);
        lock.run().await.map_err(|error| said(&error))
    }

    fn fetching(&self, options: &[&str]) -> Cmd {
        self.builder("fetch")
            .arg("--cache")
            .arg(self.path("cache"))
            .args(options)
    }

    async fn fetch(&self, options: &[&str]) -> Result<Output, String> {
        self.fetching(options).run().await.map_err(|error| said(&error))
    }

    fn lock_text(&self) -> String {
        fs::read_to_string(self.path("image.lock")).unwrap()
    }

    /// The names of packages in the cache; each is what its file's name says.
    fn cached(&self) -> Vec<String> {
        let lock = Lock::parse(&self.lock_text()).unwrap();
        let file = |sha256: &str| self.path("cache/deb").join(sha256);
        let is_there = |sha256: &String| file(sha256).exists();
        let mut names = Vec::new();
        for package in lock.all().into_iter().filter(|package| is_there(&package.sha256)) {
            assert_eq!(sha256(&fs::read(file(&package.sha256)).unwrap()), package.sha256);
            names.push(package.name);
        }
        assert_eq!(
            fs::read_dir(self.path("cache/deb")).unwrap().count(),
            names.len(),
            "nothing else is there"
        );
        names
    }
}

/// The error line that the program printed.
fn said(error: &ExecError) -> String {
    let ExecError::Failed { printed, .. } = error else {
        panic!("{error}");
    };
    printed
        .split_once("error: ")
        .map_or(printed.as_str(), |(_, line)| line)
        .to_owned()
}

#[tokio::test]
async fn a_lock_is_the_same_whichever_mirror_answers() {
    let archive = Archive::of(&ALL).await;
    let server = Server::start(&archive);
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();
    let first = desk.lock_text();

    fs::remove_file(desk.path("image.lock")).unwrap();
    desk.lock(&server.url, &[]).await.unwrap();
    assert_eq!(desk.lock_text(), first);
    assert!(!first.contains("127.0.0.1") && !first.contains("file:"), "{first}");

    let lock = Lock::parse(&first).unwrap();
    let names = |packages: &[image_builder::lock::Package]| -> Vec<String> {
        packages
            .iter()
            .map(|package| format!("{} {}", package.name, package.version))
            .collect()
    };
    assert_eq!(lock.requested, ["wanted"]);
    assert_eq!(names(&lock.packages), ["base 1:1.0-1", "needed 3", "wanted 2.0+x~rc1"]);
    assert_eq!(names(&lock.tools), ["needed 3", "tool 5"]);
    let base = &lock.packages[0];
    assert_eq!(
        (base.source.as_str(), base.source_version.as_str()),
        ("the-base", "1.0-1")
    );
    assert_eq!(base.path, "pool/main/base/base_1%3a1.0-1_all.deb");
    assert_eq!(base.archive, "debian");
    let suites: Vec<_> = lock.suites.iter().map(|suite| suite.name.as_str()).collect();
    assert_eq!(suites, ["trixie", "trixie-security", "trixie-updates"]);
    let in_release = fs::read(archive.debian().join("dists/trixie/InRelease")).unwrap();
    assert_eq!(lock.suites[0].in_release, sha256(&in_release));
}

#[tokio::test]
async fn newer_packages_are_told_and_taken_only_when_asked_for() {
    let archive = Archive::of(&ALL).await;
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();
    let old = desk.lock_text();
    let checked = desk.lock(&archive.url(), &["--check"]).await.unwrap();
    assert_eq!(checked.text(), "");

    let newer = sample("wanted", "2.0+x-1", "Depends: unused\n");
    archive.publish(&[BASE, NEEDED, UNUSED, TOOL, newer]).await;
    let news =
        "added to image: unused 4\nupdated in image: wanted 2.0+x~rc1 -> 2.0+x-1\nremoved from image: needed 3\n";
    assert!(desk.lock(&archive.url(), &["--check"]).await.is_err());
    assert_eq!(desk.lock_text(), old);
    let taken = desk.lock(&archive.url(), &[]).await.unwrap();
    assert_eq!(taken.text(), news);
    assert_ne!(desk.lock_text(), old);
}

#[tokio::test]
async fn what_cannot_be_locked_is_named_and_the_old_lock_stays() {
    let archive = Archive::of(&ALL).await;
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();
    let old = desk.lock_text();

    desk.recipe(&["wanted", "no-such-thing", "nor-this"]);
    assert_eq!(
        desk.lock(&archive.url(), &[]).await.unwrap_err(),
        "trixie has no package no-such-thing, nor-this; correct the recipe's list of packages for the image"
    );
    desk.recipe(&["wanted", "--force"]);
    assert_eq!(
        desk.lock(&archive.url(), &[]).await.unwrap_err(),
        "\"--force\" cannot be the name of a package or of a Debian release; correct the recipe"
    );

    desk.recipe(&["wanted"]);
    let list = archive.debian().join("dists/trixie/main/binary-amd64/Packages");
    let good = fs::read_to_string(&list).unwrap();
    put(&list, good.replace("Depends: needed", "Depends: unused"));
    let error = desk.lock(&archive.url(), &[]).await.unwrap_err();
    let begin = format!(
        "cannot get the lists of packages from {0}/debian and {0}/debian-security: ",
        archive.url()
    );
    assert!(
        error.starts_with(&begin) && error.contains("Hash Sum mismatch"),
        "{error}"
    );
    put(&list, good);

    let other = Archive::of(&[]).await;
    let error = desk.lock(&other.url(), &[]).await.unwrap_err();
    assert!(
        error.contains("public key is not available") || error.contains("Missing key"),
        "{error}"
    );
    assert_eq!(desk.lock_text(), old);
}

#[tokio::test]
async fn packages_are_fetched_once_and_then_nobody_is_asked() {
    let archive = Archive::of(&ALL).await;
    let server = Server::start(&archive);
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();
    let error = desk.fetch(&["--offline"]).await.unwrap_err();
    let cache = desk.path("cache");
    assert_eq!(
        error,
        format!(
            "4 of 4 packages are not in the cache {}, and --offline says not to fetch them:\n  base 1:1.0-1\n  needed 3\n  \
             wanted 2.0+x~rc1\n  tool 5",
            cache.display()
        )
    );

    desk.fetch(&["--mirror", &server.url]).await.unwrap();
    assert_eq!(desk.cached(), ["base", "needed", "wanted", "tool"]);
    assert_eq!(server.asked().len(), 4);
    desk.fetch(&["--mirror", &server.url]).await.unwrap();
    assert_eq!(server.asked(), [""; 0]);
    desk.fetch(&["--offline"]).await.unwrap();
    assert_eq!(fs::read_dir(cache.join("partial")).unwrap().count(), 0);

    fs::remove_dir_all(&cache).unwrap();
    desk.fetch(&["--mirror", &archive.url()]).await.unwrap();
    assert_eq!(desk.cached(), ["base", "needed", "wanted", "tool"]);
}

#[tokio::test]
async fn each_package_that_cannot_be_fetched_is_named_and_the_others_stay() {
    let archive = Archive::of(&ALL).await;
    let server = Server::start(&archive);
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();
    let lock = Lock::parse(&desk.lock_text()).unwrap();
    let wanted = lock.packages.iter().find(|package| package.name == "wanted").unwrap();

    server.trouble("needed_3", Trouble::Missing);
    server.trouble("wanted_2", Trouble::Changed);
    let error = desk.fetch(&["--mirror", &server.url]).await.unwrap_err();
    let mut changed = fs::read(archive.debian().join(&wanted.path)).unwrap();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    assert_eq!(
        error,
        format!(
            "cannot fetch 2 of 4 packages:\n  needed 3: the mirror no longer has it; run image-builder lock to take what it \
             has now, or name a mirror that keeps old versions (a snapshot) with --mirror\n  wanted 2.0+x~rc1: the mirror \
             sends another file: expected sha256 {}, found sha256 {}; name another mirror with --mirror",
            wanted.sha256,
            sha256(&changed)
        )
    );
    assert_eq!(desk.cached(), ["base", "tool"]);

    server.asked();
    let both = [server.url.as_str(), &archive.url()]
        .map(|url| ["--mirror".to_owned(), url.to_owned()])
        .concat();
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    desk.fetch(&both).await.unwrap();
    assert_eq!(desk.cached(), ["base", "needed", "wanted", "tool"]);
    assert_eq!(
        server.asked().len(),
        2,
        "what the first mirror lacks is taken from the second"
    );
}

#[tokio::test]
async fn a_package_that_ends_early_is_not_taken_and_a_rerun_goes_on() {
    let archive = Archive::of(&ALL).await;
    let server = Server::start(&archive);
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();

    server.trouble("wanted_2", Trouble::Cut);
    let error = desk.fetch(&["--mirror", &server.url]).await.unwrap_err();
    assert!(
        error.contains("\n  wanted 2.0+x~rc1: ") && error.contains(&server.url),
        "{error}"
    );
    assert!(!desk.cached().contains(&"wanted".to_owned()));

    server.all_is_well();
    desk.fetch(&["--mirror", &server.url]).await.unwrap();
    assert_eq!(desk.cached(), ["base", "needed", "wanted", "tool"]);
}

#[tokio::test]
async fn a_fetch_that_was_killed_is_continued() {
    // Large: it is fetched alone, and the others meanwhile.
    const LARGE: Sample = Sample {
        length: 5 << 20,
        ..sample("wanted", "2.0+x~rc1", "Depends: needed\n")
    };
    let archive = Archive::of(&[BASE, LARGE, NEEDED, TOOL]).await;
    let server = Server::start(&archive);
    let desk = Desk::new(&archive);
    desk.lock(&archive.url(), &[]).await.unwrap();

    server.trouble("wanted_2", Trouble::Stalled);
    let running = desk
        .fetching(&["--mirror", &server.url])
        .spawn(desk.path("log"))
        .unwrap();
    let others = async {
        while !desk.path("cache/deb").is_dir() || desk.cached() != ["base", "needed", "tool"] {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_mins(5), others).await.unwrap();
    drop(running); // SIGKILL
    let left = fs::read_dir(desk.path("cache/partial")).unwrap().count();
    assert_eq!(left, 1, "what a killed program leaves");

    server.all_is_well();
    server.asked();
    desk.fetch(&["--mirror", &server.url]).await.unwrap();
    assert_eq!(desk.cached(), ["base", "needed", "wanted", "tool"]);
    assert_eq!(server.asked(), ["wanted_2.0+x~rc1_all.deb"]);
    assert_eq!(fs::read_dir(desk.path("cache/partial")).unwrap().count(), 0);
}
