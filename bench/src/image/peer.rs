//! What people use today for the same packages: mmdebstrap, mke2fs and qemu-img.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use image_builder::cache::Cache;
use image_builder::lock::Lock;
use nix::unistd::Uid;
use platform::exec::Cmd;
use platform::files;

use super::megabytes;

/// As much as our disk has.
const DISK: &str = "2048M";
const LIMIT: Duration = Duration::from_mins(15);
/// Of a lock file; ours has 150 KB.
const MAX_LOCK: u64 = 8 << 20;

/// Makes a disk of the packages of a lock file, from the same cache, and says how long each step took.
pub(super) async fn measure(lock: &Path) -> anyhow::Result<String> {
    ensure!(
        Uid::effective().is_root(),
        "mmdebstrap is measured as root; add --no-peer to leave it out"
    );
    let text = files::read_limited(lock, MAX_LOCK)?.with_context(|| format!("{} is missing", lock.display()))?;
    let lock = Lock::parse(&String::from_utf8(text)?)?;
    let cache = Cache::open(Cache::default_dir()?)?;
    let scene = tempfile::tempdir_in("target").context("making a directory in target")?;
    // mmdebstrap's apt reads it as another user.
    let place = fs::canonicalize(scene.path())?;
    let pool = place.join("pool");
    fs::create_dir(&pool)?;
    for package in &lock.packages {
        let name = format!(
            "{}_{}_{}.deb",
            package.name,
            package.version.replace(':', "%3a"),
            package.arch
        );
        fs::copy(cache.path(package), pool.join(name))
            .with_context(|| format!("copying {} from the cache", package.name))?;
    }
    let packages = Cmd::new("apt-ftparchive")
        .arg("packages")
        .arg(&pool)
        .time_limit(LIMIT)
        .run()
        .await?;
    let listed = packages.text().replace(&format!("{}/", place.display()), "./");
    let _ = files::replace(place.join("Packages"), listed, 0o644)?;

    let (root, disk, qcow2) = (place.join("root"), place.join("disk"), place.join("qcow2"));
    let steps = [
        (
            "mmdebstrap",
            Cmd::new("mmdebstrap")
                .args(["--mode=root", "--variant=custom", "--skip=cleanup/apt"])
                .arg(format!("--include={},?essential", lock.requested.join(",")))
                .args([
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-exclude=/usr/share/man/*",
                ])
                .args([
                    "--dpkgopt=path-exclude=/usr/share/locale/*",
                    "--dpkgopt=path-exclude=/usr/share/info/*",
                ])
                .arg("--aptopt=APT::Install-Recommends \"false\"")
                .arg("trixie")
                .arg(&root)
                .arg(format!("deb [trusted=yes] copy://{} ./", place.display())),
        ),
        (
            "mke2fs -d",
            Cmd::new("mke2fs")
                .args(["-q", "-t", "ext4", "-d"])
                .arg(&root)
                .arg(&disk)
                .arg(DISK),
        ),
        (
            "qemu-img convert -c",
            Cmd::new("qemu-img")
                .args(["convert", "-c", "-O", "qcow2"])
                .arg(&disk)
                .arg(&qcow2),
        ),
    ];
    let mut table = String::new();
    writeln!(table, "\n{:<40}{:>12}", "the same packages, by", "s")?;
    for (name, step) in steps {
        let started = Instant::now();
        step.time_limit(LIMIT).run().await?;
        writeln!(table, "{name:<40}{:>12.1}", started.elapsed().as_secs_f64())?;
    }
    let size = fs::metadata(&qcow2)?.len();
    writeln!(table, "{:<40}{:>12} MB (no boot loader)", "qcow2", megabytes(size))?;
    Ok(table)
}
