//! `cargo xtask guest`: a small guest to look at through a console, from Debian's kernel and busybox, in
//! `target/assets/guest`.
//!
//! It boots under plain emulation within seconds to a shell on the VGA text screen. Nothing on it moves by itself (no
//! blinking cursor, no clock), so that two pictures of it can be compared. The same kernel and files are also on a
//! disk that boots by itself: the demo template.

mod disk;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use platform::files;
use stage1::cpio::{Archive, Node};

use crate::assets::{self, remove_directory};
use crate::tools::{self, Install};

/// The kernel without hardware drivers: this guest needs none, and it is a third of the other.
const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";
/// They make the disk boot; used where they were unpacked, not installed.
const BOOT_TOOLS: [&str; 3] = ["mtools", "syslinux", "syslinux-common"];

/// Made anew when this changes, as it is when the packages change.
const RECIPE: u32 = 1;
/// Names what the guest was made of.
const KEY: &str = "packages";
const MAX_KEY: u64 = 4096;
/// Changed by `apt-get update`.
const APT_LISTS: &str = "/var/lib/apt/lists";
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(10);
const UNPACK_LIMIT: Duration = Duration::from_mins(2);

/// No cursor, no messages of the kernel over what the guest shows; the rest makes emulation quick and quiet.
pub(crate) const KERNEL_ARGUMENTS: &str =
    "quiet loglevel=0 vt.global_cursor_default=0 mitigations=off no_timer_check tsc=reliable panic=5";

/// Files of the guest.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// qcow2, bootable by BIOS.
    pub(crate) disk: PathBuf,
}

/// A package as it is downloaded: `name=version`.
type Package = String;

/// Makes sure that the guest is there.
pub(crate) async fn ensure(install: Install) -> anyhow::Result<Guest> {
    let directory = Path::new(assets::DIRECTORY).join("guest");
    let guest = Guest {
        kernel: directory.join("vmlinuz"),
        initramfs: directory.join("initramfs"),
        disk: directory.join("demo.qcow2"),
    };
    if is_unchanged(&guest, &directory) {
        eprintln!("The guest is in {}", directory.display());
        return Ok(guest);
    }
    let packages = match candidates().await {
        Ok(packages) => packages,
        Err(error) => {
            eprintln!("{error:#}");
            tools::update_package_lists(install).await?;
            candidates().await?
        }
    };
    let key = key(&packages);
    if is_made(&guest, &directory, &key)? {
        // Looked up: not again before the lists change.
        let _ = File::open(directory.join(KEY)).and_then(|file| file.set_modified(SystemTime::now()));
        eprintln!("The guest is in {}", directory.display());
        return Ok(guest);
    }
    make(&packages, &key, &directory, install).await?;
    eprintln!("The guest is in {}: {}", directory.display(), packages.join(", "));
    Ok(guest)
}

fn key(packages: &[Package]) -> String {
    packages
        .iter()
        .fold(format!("recipe {RECIPE}\n"), |key, package| key + package + "\n")
}

/// Whether it was made by this recipe and apt has not learnt of other packages since; asking apt takes seconds.
fn is_unchanged(guest: &Guest, directory: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let Ok(Some(written)) = files::read_limited(directory.join(KEY), MAX_KEY) else {
        return false;
    };
    let written = String::from_utf8_lossy(&written);
    let is_whole = written.starts_with(&key(&[])) && written.ends_with(&sizes(guest));
    is_whole && modified(&directory.join(KEY)) > modified(Path::new(APT_LISTS))
}

/// The key is written last, and with it the sizes: a file that was cut off or deleted is noticed.
fn is_made(guest: &Guest, directory: &Path, key: &str) -> anyhow::Result<bool> {
    let written = files::read_limited(directory.join(KEY), MAX_KEY)?;
    Ok(written.as_deref() == Some(format!("{key}{}", sizes(guest)).as_bytes()))
}

fn sizes(guest: &Guest) -> String {
    let Guest {
        kernel,
        initramfs,
        disk,
    } = guest;
    let size = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    format!("sizes {} {} {}\n", size(kernel), size(initramfs), size(disk))
}

/// What apt would take, from its lists, without network.
async fn candidates() -> anyhow::Result<Vec<Package>> {
    let architecture = Cmd::new("dpkg").arg("--print-architecture").run().await?.text();
    ensure!(
        architecture.trim() == "amd64",
        "the demo guest is made of packages for amd64; this machine has {}",
        architecture.trim()
    );
    let depends = Cmd::new("apt-cache")
        .args(["depends", "--important", KERNEL])
        .run()
        .await?;
    let text = depends.text();
    let kernel = depended(&text).with_context(|| format!("apt knows no kernel behind {KERNEL}"))?;
    let names: Vec<_> = [kernel, BUSYBOX].into_iter().chain(BOOT_TOOLS).collect();
    let policy = Cmd::new("apt-cache")
        .arg("policy")
        .args(&names)
        .env("LC_ALL", "C")
        .run()
        .await?;
    let text = policy.text();
    let version = |name: &&str| {
        let version = candidate(&text, name).with_context(|| format!("apt knows no package {name}"))?;
        Ok(format!("{name}={version}"))
    };
    names.iter().map(version).collect()
}

/// The package that a metapackage stands for, from `apt-cache depends`.
fn depended(depends: &str) -> Option<&str> {
    let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-"))
}

/// From `apt-cache policy`, which has a paragraph for each package.
fn candidate<'a>(policy: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = policy
        .lines()
        .skip_while(|line| line.strip_suffix(':') != Some(name))
        .skip(1);
    let version = lines.find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    Some(version).filter(|version| *version != "(none)")
}

async fn make(packages: &[Package], key: &str, directory: &Path, install: Install) -> anyhow::Result<()> {
    let work = tempfile::tempdir_in(assets::DIRECTORY).context("making a directory to work in")?;
    let downloads = work.path().join("packages");
    fs::create_dir(&downloads)?;
    // apt-get downloads to where it is started.
    let download = Cmd::new("env")
        .arg("--chdir")
        .arg(&downloads)
        .args(["apt-get", "-q", "download"])
        .args(packages)
        .time_limit(DOWNLOAD_LIMIT);
    eprintln!("$ {download}");
    if let Err(error) = download.run().await {
        // Lists that are a few weeks old name files that are gone.
        eprintln!("{error:#}");
        tools::update_package_lists(install).await?;
        download
            .run()
            .await
            .context("getting the packages of the guest; is there a network?")?;
    }
    let root = work.path().join("root");
    for package in sorted(&downloads)? {
        Cmd::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&root)
            .time_limit(UNPACK_LIMIT)
            .run()
            .await?;
    }

    let fresh = directory.with_extension("new");
    remove_directory(&fresh)?;
    fs::create_dir_all(&fresh)?;
    let guest = Guest {
        kernel: fresh.join("vmlinuz"),
        initramfs: fresh.join("initramfs"),
        disk: fresh.join("demo.qcow2"),
    };
    let kernel = sorted(&root.join("boot"))?
        .into_iter()
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .context("the kernel's package has no boot/vmlinuz-…")?;
    fs::copy(kernel, &guest.kernel).context("copying the kernel")?;
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(root.join(path)).ok())
        .with_context(|| format!("{BUSYBOX} has no bin/busybox"))?;
    let _ = files::replace(&guest.initramfs, initramfs(&busybox), 0o644)?;
    for name in packages.iter().filter_map(|package| package.split('=').next()) {
        let copyright = root.join("usr/share/doc").join(name).join("copyright");
        fs::copy(&copyright, fresh.join(format!("copyright-{name}")))
            .with_context(|| format!("copying {}", copyright.display()))?;
    }
    disk::make(&guest, &root, &sorted(&downloads)?, work.path()).await?;
    let _ = files::replace(fresh.join(KEY), format!("{key}{}", sizes(&guest)), 0o644)?;
    remove_directory(directory)?;
    fs::rename(&fresh, directory).with_context(|| format!("putting the guest to {}", directory.display()))
}

/// What is in a directory.
fn sorted(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The guest's only file system: busybox, what it starts, and nothing else.
fn initramfs(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in [
        "bin", "dev", "etc", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin",
    ] {
        archive.add(directory, &Node::Directory);
    }
    // The kernel opens it for its first process, before anything is mounted.
    archive.add("dev/console", &Node::Device { major: 5, minor: 1 });
    archive.add("bin/busybox", &Node::Program(busybox));
    archive.add("init", &Node::Link("bin/busybox"));
    archive.add("etc/inittab", &Node::File(include_bytes!("guest/inittab")));
    archive.add("etc/rc", &Node::Program(include_bytes!("guest/rc")));
    archive.add("etc/profile", &Node::File(include_bytes!("guest/profile")));
    archive.add("etc/banner", &Node::File(include_bytes!("guest/banner")));
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_answers_are_understood() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(depended(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(depended("linux-image-cloud-amd64\n"), None);
        let policy = "cpio:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\nbusybox-static:\n  Installed: 1\n  \
                      Candidate: 1:1.35.0-4+b1\n  Version table:\n";
        assert_eq!(candidate(policy, "busybox-static"), Some("1:1.35.0-4+b1"));
        assert_eq!(candidate(policy, "cpio"), None);
        assert_eq!(candidate(policy, "static"), None);
    }

    #[test]
    fn a_file_that_was_cut_off_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let guest = Guest {
            kernel: at("vmlinuz"),
            initramfs: at("initramfs"),
            disk: at("demo.qcow2"),
        };
        for path in [&guest.kernel, &guest.initramfs, &guest.disk] {
            let _ = files::replace(path, "whole", 0o644).unwrap();
        }
        let _ = files::replace(at("packages"), format!("key\n{}", sizes(&guest)), 0o644).unwrap();
        assert!(is_made(&guest, place.path(), "key\n").unwrap());
        assert!(!is_made(&guest, place.path(), "newer\n").unwrap());
        let _ = files::replace(&guest.disk, "cut", 0o644).unwrap();
        assert!(!is_made(&guest, place.path(), "key\n").unwrap());
    }
}
