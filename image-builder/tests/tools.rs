//! Packages from the cache, and tools that run from packages: with real programs, packed by the test.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::path::Path;

use image_builder::cache::{Cache, sha256_of};
use image_builder::lock::Package;
use image_builder::tools::Tools;
use platform::exec::Cmd;
use platform::files;
use platform::logging::chain;
use tempfile::TempDir;

/// Packs files of this machine, each at a path in the package, and puts the package into the cache.
async fn pack(cache: &Cache, name: &str, contents: &[(&str, &str)]) -> Package {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("DEBIAN")).unwrap();
    let control = format!(
        "Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\nDescription: for a test\n"
    );
    let _ = files::replace(root.join("DEBIAN/control"), control, 0o644).unwrap();
    for (to, from) in contents {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
    let deb = dir.path().join("sample.deb");
    let build = Cmd::new("dpkg-deb").args(["-Zgzip", "--root-owner-group", "-b"]);
    build.arg(&root).arg(&deb).run().await.unwrap();
    let package = Package {
        name: name.to_owned(),
        version: "1".to_owned(),
        arch: "amd64".to_owned(),
        sha256: sha256_of(fs::File::open(&deb).unwrap()).unwrap(),
        size: fs::metadata(&deb).unwrap().len(),
        source: name.to_owned(),
        source_version: "1".to_owned(),
        archive: "debian".to_owned(),
        path: format!("pool/{name}.deb"),
    };
    fs::copy(&deb, cache.path(&package)).unwrap();
    package
}

async fn libc(cache: &Cache) -> Package {
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let libc = "/lib/x86_64-linux-gnu/libc.so.6";
    let files = [
        ("usr/lib64/ld-linux-x86-64.so.2", loader),
        // As older packages have it.
        ("lib/x86_64-linux-gnu/libc.so.6", libc),
        ("usr/share/doc/libc6/copyright", "/etc/debian_version"),
    ];
    pack(cache, "libc6", &files).await
}

#[tokio::test]
async fn tools_run_with_their_own_loader_and_without_our_environment() {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let env = pack(
        &cache,
        "coreutils",
        &[("usr/bin/env", "/usr/bin/env"), ("usr/bin/sha256sum", "/usr/bin/env")],
    );
    let packages = [env.await, libc(&cache).await];
    let tools = Tools::unpack(&cache, &packages, 1_735_689_600).unwrap();

    let printed = tools.cmd("env").unwrap().run().await.unwrap().text();
    let mut lines: Vec<&str> = printed.lines().collect();
    lines.sort_unstable();
    let config = format!("MKE2FS_CONFIG={}", tools.path("etc/mke2fs.conf").display());
    assert_eq!(
        lines,
        [
            "LC_ALL=C.UTF-8",
            config.as_str(),
            "SOURCE_DATE_EPOCH=1735689600",
            "TZ=UTC"
        ]
    );
    // It is the loader and libc of the package, and not of this machine.
    let maps = tools
        .cmd("env")
        .unwrap()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .run()
        .await
        .unwrap()
        .text();
    assert!(
        maps.contains(&*tools.path("usr/lib/x86_64-linux-gnu/libc.so.6").to_string_lossy()),
        "{maps}"
    );
    assert!(!tools.path("usr/share/doc/libc6/copyright").exists());
    assert_eq!(
        tools.cmd("mke2fs").unwrap_err().to_string(),
        "the locked tools have no mke2fs; run image-builder lock"
    );

    // The second time nothing is unpacked: not even the packages are needed.
    fs::remove_dir_all(cache.dir().join("deb")).unwrap();
    let again = Tools::unpack(&cache, &packages, 1_735_689_600).unwrap();
    assert_eq!(again.key(), tools.key());
    let left = fs::read_dir(cache.dir().join("tools")).unwrap().count();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_package_that_was_changed_on_disk_is_refused() {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let package = libc(&cache).await;
    assert!(cache.missing(std::slice::from_ref(&package)).is_empty());
    let path = cache.path(&package);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let _ = files::replace(&path, &bytes, 0o644).unwrap();
    let found = sha256_of(bytes.as_slice()).unwrap();
    let error = Tools::unpack(&cache, &[package], 0).unwrap_err();
    assert_eq!(
        chain(&error).to_string(),
        format!(
            "cannot unpack the tools: {}, the package libc6, is damaged: its sha256 is {found}; delete it and run \
             image-builder fetch",
            path.display()
        )
    );
    assert!(!Path::new(&cache.dir().join("tools")).exists());
}

#[tokio::test]
async fn packages_come_in_their_order_and_the_first_that_fails_is_named() {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let mut packages = Vec::new();
    for name in ["small", "large", "middle"] {
        let file = if name == "large" {
            "/lib/x86_64-linux-gnu/libc.so.6"
        } else {
            "/etc/passwd"
        };
        packages.push(pack(&cache, name, &[("usr/a", file), ("usr/b", "/etc/hostname")]).await);
    }
    let read = cache.read_all(&packages, |path, _| path != "usr/b").unwrap();
    let names: Vec<_> = read
        .iter()
        .map(|(package, deb)| (package.name.as_str(), deb.control.package()))
        .collect();
    assert_eq!(names, [("small", "small"), ("large", "large"), ("middle", "middle")]);
    assert_eq!(
        read[1].1.data.contents("usr/a").unwrap(),
        &fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap()
    );
    assert!(read.iter().all(|(_, deb)| deb.data.get("usr/b").is_none()));

    "2".clone_into(&mut packages[2].version);
    assert_eq!(
        cache.read_all(&packages, |_, _| true).unwrap_err().to_string(),
        "the lock file says middle 2 amd64, and the package with this sha256 is middle 1 amd64; run image-builder lock"
    );
    fs::remove_file(cache.path(&packages[0])).unwrap();
    let missing = cache.read_all(&packages[..1], |_, _| true).unwrap_err().to_string();
    assert_eq!(
        missing,
        format!(
            "the package small 1 is not in the cache {}; run image-builder fetch",
            dir.path().display()
        )
    );
}
