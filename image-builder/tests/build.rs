//! Whole builds, by the program: the same bytes wherever, whenever and by whomever they are made; and what happens when
//! something is missing, damaged, full or cut short.
//!
//! Our programs are stood in for by others: which bytes they have does not matter here.

#![cfg(test)]

mod locked;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder::cache::Cache;
use image_builder::fetch;
use image_builder::mirror::Source;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use platform::exec::{Cmd, ExecError};
use platform::files;

const BUILDER: &str = env!("CARGO_BIN_EXE_image-builder");
/// A build takes 20 s on a quiet machine, when nothing is cached.
const TIME_LIMIT: Duration = Duration::from_mins(10);
/// `nobody`.
const SOMEBODY_ELSE: u32 = 65534;

/// A place to build in: stand-ins for our programs, a cache with all packages, and nothing else in it.
struct Place(tempfile::TempDir);

impl Place {
    async fn make() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for directory in ["programs", "extra/usr/share/sysvm"] {
            fs::create_dir_all(place.path(directory)).unwrap();
        }
        for name in ["agent", "console-proxy", "ssvm", "stage1"] {
            fs::copy("/bin/true", place.path("programs").join(name)).unwrap();
        }
        // Another user may not be allowed to look into this checkout.
        fs::copy(BUILDER, place.path("image-builder")).unwrap();
        fs::copy(locked::lock_file(), place.path("image.lock")).unwrap();
        let _ = files::replace(place.path("extra/usr/share/sysvm/hello"), "hello\n", 0o600).unwrap();

        let shared = Cache::open(Cache::default_dir().unwrap()).unwrap();
        let lock = locked::lock();
        let packages: Vec<_> = lock.packages.into_iter().chain(lock.tools).collect();
        let source = Source::default();
        fetch::provide(&shared, &packages, &source)
            .await
            .expect("this machine has a mirror with the locked packages");
        let own = Cache::open(place.path("cache")).unwrap();
        for package in &packages {
            let (from, to) = (shared.path(package), own.path(package));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            // Tools and image have packages in common.
            if !to.exists() {
                fs::copy(from, to).unwrap();
            }
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn build(&self, output: &str) -> Cmd {
        Cmd::new(self.path("image-builder"))
            .args(["build", "--offline", "--lock"])
            .arg(self.path("image.lock"))
            .args(["--programs"])
            .arg(self.path("programs"))
            .arg("--extra")
            .arg(self.path("extra"))
            .arg("--cache")
            .arg(self.path("cache"))
            .arg("--output")
            .arg(self.path(output))
            .env("TMPDIR", self.0.path())
            .time_limit(TIME_LIMIT)
    }

    fn verify(&self, directory: &str) -> Cmd {
        Cmd::new(self.path("image-builder"))
            .arg("verify")
            .arg(self.path(directory))
            .args(["--offline", "--lock"])
            .arg(self.path("image.lock"))
            .args(["--programs"])
            .arg(self.path("programs"))
            .arg("--extra")
            .arg(self.path("extra"))
            .arg("--cache")
            .arg(self.path("cache"))
            .env("TMPDIR", self.0.path())
            .time_limit(TIME_LIMIT)
    }

    /// Names in the output directory; hidden ones are not for users.
    fn made(&self, output: &str) -> Vec<String> {
        let mut names: Vec<String> = match fs::read_dir(self.path(output)) {
            Ok(entries) => entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect(),
            Err(_) => Vec::new(),
        };
        names.retain(|name| name != ".lock");
        names.sort();
        names
    }
}

fn text(error: &ExecError) -> String {
    error.to_string()
}

/// Gives everything below to another user.
fn give(path: &Path, user: u32) -> io::Result<()> {
    chown(path, Some(user), Some(user))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_format_is_the_same_bytes_whoever_builds_it_where_and_when_and_verify_sees_each_changed_byte() {
    let all = ["--formats", "raw,qcow2,qcow2-plain,vhd,ova,tar"];
    let one = Place::make().await;
    one.build("images")
        .args(all)
        .env("TZ", "Asia/Tokyo")
        .run()
        .await
        .unwrap();

    // Another directory, user without any rights, umask, time zone, language, date (400 days later) and host name.
    let other = Place::make().await;
    give(other.0.path(), SOMEBODY_ELSE).unwrap();
    fs::set_permissions(other.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let user = SOMEBODY_ELSE.to_string();
    let as_other = Cmd::new("setpriv")
        .args([
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            "--no-new-privs",
            "--",
        ])
        .args(["faketime", "-f", "+400d"]);
    let build = other
        .build("images")
        .args(all)
        .env("TZ", "America/New_York")
        .env("LC_ALL", "C");
    let build = build.env("HOME", "/nonexistent").through(as_other);
    unshare(CloneFlags::CLONE_NEWUTS).unwrap(); // of this thread, which starts the program
    let mut host_name = File::options().write(true).open("/proc/sys/kernel/hostname").unwrap();
    host_name.write_all(b"elsewhere").unwrap();
    let before = umask(Mode::from_bits_truncate(0o077));
    let built = build.run().await;
    umask(before);
    built.unwrap();

    let sums = fs::read_to_string(one.path("images/SHA256SUMS")).unwrap();
    assert_eq!(sums, fs::read_to_string(other.path("images/SHA256SUMS")).unwrap());
    let names = [
        "sysvm-plain.qcow2",
        "sysvm.ova",
        "sysvm.qcow2",
        "sysvm.raw",
        "sysvm.tar",
        "sysvm.vhd",
    ];
    let expected: Vec<&str> = ["SHA256SUMS", "manifest.json"].into_iter().chain(names).collect();
    assert_eq!(one.made("images"), expected);
    let checked = Cmd::new("sha256sum")
        .args(["--check", "--strict", "--quiet"])
        .arg(other.path("images/SHA256SUMS"));
    checked
        .through(Cmd::new("env").arg("-C").arg(other.path("images")))
        .run()
        .await
        .unwrap();

    // What another user has built is what we would build.
    let images = "images";
    give(other.0.path(), 0).unwrap();
    other.verify(images).run().await.unwrap();
    // One byte of one file of the root file system, in the one image.
    let raw = File::options()
        .read(true)
        .write(true)
        .open(other.path("images/sysvm.raw"))
        .unwrap();
    let at = find(&raw, b"sysvm").expect("the host's name is in the image");
    raw.write_all_at(b"S", at).unwrap();
    let error = text(&other.verify(images).run().await.unwrap_err());
    assert!(error.contains("sysvm.raw"), "{error}");
    assert!(error.contains("etc/hostname"), "{error}");
}

/// Where the contents of `etc/hostname` are: this line at the beginning of a block, with nothing behind it.
fn find(disk: &File, line: &[u8]) -> Option<u64> {
    const BLOCK: usize = 4096;
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while disk.read_exact_at(&mut block, at).is_ok() {
        let (start, rest) = block.split_at(line.len());
        if start == line && rest[0] == b'\n' && rest[1..].iter().all(|byte| *byte == 0) {
            return Some(at);
        }
        at += u64::try_from(BLOCK).unwrap();
    }
    None
}

#[tokio::test]
async fn what_goes_wrong_is_said_leaves_nothing_half_written_and_a_rerun_goes_on() {
    let place = Place::make().await;
    let qcow2 = |output: &str| place.build(output).args(["--formats", "qcow2"]);

    // A program is missing.
    let agent = place.path("programs/agent");
    fs::rename(&agent, place.path("agent")).unwrap();
    let error = text(&qcow2("images").run().await.unwrap_err());
    assert!(
        error.contains(&format!("{} is missing; build our programs first", agent.display())),
        "{error}"
    );
    fs::rename(place.path("agent"), &agent).unwrap();
    assert_eq!(place.made("images"), Vec::<String>::new());

    // A package in the cache is damaged: its name, and what was expected.
    let lock = locked::lock();
    let package = lock
        .packages
        .iter()
        .find(|package| package.name == "dnsmasq-base")
        .unwrap();
    let deb = Cache::open(place.path("cache")).unwrap().path(package);
    let good = fs::read(&deb).unwrap();
    let mut bad = good.clone();
    bad[10_000] ^= 1;
    let _ = files::replace(&deb, bad, 0o644).unwrap();
    let error = text(&qcow2("images").run().await.unwrap_err());
    assert!(error.contains("dnsmasq-base"), "{error}");
    let _ = files::replace(&deb, good, 0o644).unwrap();

    // A package is missing, and the network must not be used.
    fs::rename(&deb, place.path("deb")).unwrap();
    let error = text(&qcow2("images").run().await.unwrap_err());
    assert!(error.contains("dnsmasq-base") && error.contains("--offline"), "{error}");
    fs::rename(place.path("deb"), &deb).unwrap();

    // The disk is full.
    let small = Small::mount(place.path("small"), "100m");
    let error = text(&qcow2("small").run().await.unwrap_err());
    assert!(
        error.to_lowercase().contains("space") || error.contains("disk is full"),
        "{error}"
    );
    assert_eq!(place.made("small"), Vec::<String>::new());
    drop(small);

    // Killed in the middle: nothing has a final name; the next one removes what is left, and makes it.
    let log = place.path("log");
    let mut killed = qcow2("images").spawn(&log).unwrap();
    let is_midway = || {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("Root file system complete")
    };
    while !is_midway() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pid = killed.id().unwrap().try_into().unwrap();
    killpg(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    killed.wait().await.unwrap();
    let left = place.made("images");
    assert!(
        left.iter().all(|name| name.starts_with('.')) && !left.is_empty(),
        "{left:?}"
    );
    qcow2("images").run().await.unwrap();
    assert_eq!(place.made("images"), ["SHA256SUMS", "manifest.json", "sysvm.qcow2"]);

    // A build that fails leaves the images of the one before alone.
    fs::remove_file(&agent).unwrap();
    qcow2("images").run().await.unwrap_err();
    place.verify("images").args(["--checksums-only"]).run().await.unwrap();
}

/// A file system of its own, in memory.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Self {
        fs::create_dir(&at).unwrap();
        let options = format!("size={size}");
        mount(
            Some("tmpfs"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
