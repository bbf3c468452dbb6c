//! Bills of materials, judged by the validators that SPDX and CycloneDX publish.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder::lock::{Lock, Package};
use image_builder::recipe::Recipe;
use image_builder::sbom::Bill;
use image_builder::tree::{Entry, Tree};
use platform::exec::Cmd;
use platform::files::replace;

/// What is installed from PyPI, all of it by version: the validators first, then what they need.
const VALIDATORS: [&str; 37] = [
    "spdx-tools==0.8.5",
    "cyclonedx-python-lib==11.12.0",
    "arrow==1.4.0",
    "attrs==26.1.0",
    "beartype==0.23.1",
    "boolean.py==5.0",
    "click==8.5.1",
    "defusedxml==0.7.1",
    "fqdn==1.6.0",
    "idna==3.20",
    "isoduration==20.11.0",
    "jsonpointer==3.12",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "lark==1.3.1",
    "license-expression==30.4.4",
    "packageurl-python==0.17.6",
    "ply==3.11",
    "py-serializable==2.1.0",
    "pyparsing==3.3.3",
    "python-dateutil==4.0.0",
    "PyYAML==6.0.3",
    "rdflib==7.6.0",
    "referencing==0.37.0",
    "rfc3339-validator==0.1.4",
    "rfc3986-validator==0.1.1",
    "rfc3987-syntax==1.1.0",
    "rpds-py==2026.9.1",
    "semantic-version==2.10.0",
    "six==1.17.0",
    "sortedcontainers==2.4.0",
    "typing_extensions==4.16.0",
    "tzdata==2026.6",
    "uri-template==1.3.0",
    "uritools==6.1.4",
    "webcolors==25.10.0",
    "xmltodict==1.0.4",
];

/// A Python with them, made once and kept with what this test builds.
async fn python() -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (directory, sign) = (base.join("sbom-validators"), base.join("sbom-validators.packages"));
    let lock = File::create(base.join("sbom-validators.lock")).unwrap();
    lock.lock().unwrap();
    let program = directory.join("bin/python3");
    if fs::read_to_string(&sign).is_ok_and(|found| found == VALIDATORS.join("\n")) {
        return program;
    }
    let venv = Cmd::new("python3").args(["-m", "venv", "--clear"]).arg(&directory);
    venv.time_limit(Duration::from_mins(2)).run().await.unwrap();
    let install = Cmd::new(&program).args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]);
    install
        .args(VALIDATORS)
        .time_limit(Duration::from_mins(10))
        .run()
        .await
        .unwrap();
    let _ = replace(&sign, VALIDATORS.join("\n"), 0o644).unwrap();
    program
}

fn tree() -> Tree {
    let mut tree = Tree::new();
    let status = "Package: libc6\nStatus: install ok installed\nSource: glibc\nVersion: 1:2.41-12+deb13u1\n\
        Architecture: amd64\n\nPackage: old\nStatus: install ok installed\nVersion: 1~rc1\nArchitecture: all\n";
    let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
        Files: *\nCopyright: 2024 A\nLicense: LGPL-2.1+ or Artistic, and Expat\n\n\
        Files: x\nCopyright: 2024 B\nLicense: GPL-2+ with a strange exception (1)\n\n\
        Files: y\nCopyright: none\nLicense: public-domain\n";
    for (path, contents) in [
        ("var/lib/dpkg/status", status),
        ("usr/share/doc/libc6/copyright", copyright),
        ("usr/share/doc/old/copyright", "For people only.\n"),
        ("usr/lib/sysvm/bin/agent", "a program"),
    ] {
        tree.make_parents(path);
        tree.insert(path, Entry::file(0o644, contents)).unwrap();
    }
    tree
}

fn lock(version: &str) -> Lock {
    let package = |name: &str, version: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        arch: "amd64".to_owned(),
        sha256: "0123456789abcdef".repeat(4),
        size: 1,
        source: name.to_owned(),
        source_version: version.to_owned(),
        archive: "debian".to_owned(),
        path: format!("pool/{name}.deb"),
    };
    let packages = vec![
        package("left-out", "1"),
        package("libc6", version),
        package("old", "1~rc1"),
    ];
    Lock::new(&[], Vec::new(), packages, Vec::new())
}

async fn metadata() -> Vec<u8> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let print = Cmd::new("cargo").args([
        "metadata",
        "--offline",
        "--format-version",
        "1",
        "--manifest-path",
        manifest,
    ]);
    print.run().await.unwrap().stdout
}

#[tokio::test]
async fn the_published_validators_accept_both_languages() {
    let recipe = Recipe::own().unwrap();
    let metadata = metadata().await;
    let bill = Bill::of(&tree(), Some(&lock("1:2.41-12+deb13u1")), Some(&metadata), &recipe).unwrap();
    let again = Bill::of(&tree(), Some(&lock("1:2.41-12+deb13u1")), Some(&metadata), &recipe).unwrap();
    assert_eq!(
        (bill.spdx().unwrap(), bill.cyclonedx().unwrap()),
        (again.spdx().unwrap(), again.cyclonedx().unwrap())
    );

    let dir = tempfile::tempdir().unwrap();
    let [spdx, cyclonedx] = ["bill.spdx.json", "bill.cdx.json"].map(|name| dir.path().join(name));
    let _ = replace(&spdx, bill.spdx().unwrap(), 0o644).unwrap();
    let document: serde_json::Value = serde_json::from_str(&bill.cyclonedx().unwrap()).unwrap();
    let components = document["components"].as_array().unwrap();
    assert_eq!(
        components[0]["purl"],
        "pkg:deb/debian/libc6@1%3A2.41-12%2Bdeb13u1?arch=amd64&distro=trixie"
    );
    assert!(components.len() > 50);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sbom/validate.py");
    let _ = replace(&cyclonedx, bill.cyclonedx().unwrap(), 0o644).unwrap();
    let judge = Cmd::new(python().await).arg(script).arg(&spdx).arg(&cyclonedx);
    judge.time_limit(Duration::from_mins(2)).run().await.unwrap();

    // The judges do judge.
    let wrong = bill.cyclonedx().unwrap().replace("\"library\"", "\"bookshelf\"");
    assert_ne!(wrong, bill.cyclonedx().unwrap());
    let _ = replace(&cyclonedx, wrong, 0o644).unwrap();
    let judge = Cmd::new(python().await).arg(script).arg(&spdx).arg(&cyclonedx);
    assert!(judge.time_limit(Duration::from_mins(2)).run().await.is_err());
}

#[test]
fn the_lock_of_another_image_is_refused() {
    let recipe = Recipe::own().unwrap();
    let error = Bill::of(&tree(), Some(&lock("2.40-1")), None, &recipe)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the image has libc6 1:2.41-12+deb13u1, the lock file 2.40-1; is it the lock file that the image was built from?"
    );
    let error = Bill::of(&Tree::new(), None, None, &recipe).unwrap_err().to_string();
    assert!(
        error.starts_with("the image does not say which packages it has"),
        "{error}"
    );
}
