//! `image-builder convert` and `publish`, as they are used.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Builder;

use super::others::names;
use super::*;

fn image_builder() -> Cmd {
    Cmd::new(env!("CARGO_BIN_EXE_image-builder"))
}

#[tokio::test]
async fn convert_takes_the_format_from_the_name() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let path = |name: &str| dir.path().join(name);
    image_builder()
        .arg("convert")
        .arg(&raw)
        .arg(path("a.ova"))
        .run()
        .await
        .unwrap();
    image_builder()
        .arg("convert")
        .args([path("a.ova"), path("b.img")])
        .run()
        .await
        .unwrap();
    assert_eq!(formats::open(&path("a.ova")).unwrap().format, Format::Ova);
    assert!(digest(&raw) == digest(&path("b.img")));
    assert_eq!(
        fs::metadata(path("b.img")).unwrap().permissions().mode() & 0o7777,
        0o644
    );
    assert_eq!(names(dir.path()), ["a.ova", "b.img", "sample.raw"]);

    let error = image_builder()
        .arg("convert")
        .args([&raw, &path("c")])
        .run()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("c does not end in a format's name; give --format"),
        "{error}"
    );
    let bad = image_builder()
        .arg("convert")
        .args([&raw, &path("c.vhd")])
        .args(["--compression", "zlib"]);
    let error = bad.run().await.unwrap_err().to_string();
    assert!(
        error.ends_with("--compression is for qcow2, and this is vhd; leave it out"),
        "{error}"
    );
}

/// Runs in a thread of its own, which sees a file system of half a MiB at the directory it is given.
fn on_a_small_disk<T: Send>(work: impl AsyncFnOnce(&Path) -> T + Send) -> T {
    let directory = TempDir::new().unwrap();
    let path = directory.path().to_owned();
    let in_namespace = move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests need root for a mount name space");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=512k")).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work(&path))
    };
    std::thread::scope(|scope| scope.spawn(in_namespace).join().unwrap())
}

#[test]
fn of_a_full_disk_it_is_said_and_nothing_is_left() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    for format in Format::ALL {
        on_a_small_disk(async |small| {
            let out = small.join(format!("image.{format}"));
            let error = image_builder()
                .arg("convert")
                .args([&raw, &out])
                .run()
                .await
                .unwrap_err()
                .to_string();
            let wanted = format!(
                "error: converting {}: cannot write {}; free some space there, or choose another place: \
                 No space left on device (os error 28)",
                raw.display(),
                out.display()
            );
            assert!(error.ends_with(&wanted), "{error}");
            assert_eq!(names(small), [""; 0]);
        });
    }
}

#[tokio::test]
async fn when_stopped_nothing_is_left() {
    let dir = TempDir::new().unwrap();
    // Noise takes bzip2 seconds.
    let raw = dir.path().join("noise.raw");
    let file = File::create(&raw).unwrap();
    let some = noise(9, 1 << 20);
    for turn in 0..96 {
        file.write_all_at(&some, turn * MIB).unwrap();
    }
    let out = dir.path().join("out");
    let publish = image_builder().arg("publish").arg(&raw).arg("--out").arg(&out);
    let running = publish.spawn(dir.path().join("log")).unwrap();
    let started = Instant::now();
    while !out.exists() || names(&out).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30), "nothing was begun");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.stop(Duration::from_secs(20)).await;
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("stopped before it was done"), "{log}");
    assert_eq!(names(&out), [""; 0]);
}

#[tokio::test]
async fn published_files_are_what_a_server_and_its_scripts_unpack() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let out = dir.path().join("out");
    let publish = image_builder().arg("publish").arg(&raw).arg("--out").arg(&out);
    let publish = publish.args([
        "--cloudstack-version",
        "4.22.0",
        "--base-url",
        "https://example.org/systemvm",
    ]);
    let printed = publish.run().await.unwrap().text();
    let wanted = [
        "metadata.ini",
        "sha512sum.txt",
        "systemvmtemplate-4.22.0-x86_64-hyperv.vhd.zip",
        "systemvmtemplate-4.22.0-x86_64-kvm.qcow2.bz2",
        "systemvmtemplate-4.22.0-x86_64-vmware.ova",
        "systemvmtemplate-4.22.0-x86_64-xen.vhd.bz2",
    ];
    assert_eq!(names(&out), wanted);
    let mut lines: Vec<_> = printed.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, wanted);

    // As a person checks them, in the directory.
    let check =
        Cmd::new("env")
            .arg("-C")
            .arg(&out)
            .args(["sha512sum", "--check", "--strict", "--quiet", "sha512sum.txt"]);
    check.run().await.unwrap();
    let sums = fs::read_to_string(out.join("sha512sum.txt")).unwrap();
    let metadata = fs::read_to_string(out.join("metadata.ini")).unwrap();
    for section in metadata.split("\n\n").skip(1) {
        let value = |key: &str| {
            section
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{key} = ")))
                .unwrap()
        };
        assert!(
            sums.contains(&format!("{}  {}\n", value("checksum"), value("filename"))),
            "{section}"
        );
        let url = format!("https://example.org/systemvm/4.22/{}", value("filename"));
        assert_eq!(value("downloadurl"), url);
    }

    // As the scripts of secondary storage unpack them.
    let disk = formats::open(&raw).unwrap().disk;
    Cmd::new("bunzip2")
        .args([out.join(wanted[3]), out.join(wanted[5])])
        .run()
        .await
        .unwrap();
    Cmd::new("unzip")
        .arg("-q")
        .arg(out.join(wanted[2]))
        .arg("-d")
        .arg(&out)
        .run()
        .await
        .unwrap();
    let unpacked = [
        (wanted[2].trim_end_matches(".zip"), Format::Vhd),
        (wanted[3].trim_end_matches(".bz2"), Format::Qcow2),
        (wanted[4], Format::Ova),
    ];
    for (name, format) in unpacked {
        let image = formats::open(&out.join(name)).unwrap();
        assert_eq!(image.format, format);
        assert_same(&*disk, &*image.disk, name);
    }
    assert!(digest(&out.join(unpacked[0].0)) == digest(&out.join(wanted[5].trim_end_matches(".bz2"))));
}

#[tokio::test]
async fn publishing_again_elsewhere_gives_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let qcow2 = dir.path().join("other.qcow2");
    convert(&raw, &qcow2, Format::Qcow2, Compression::Zstd);
    let (one, other) = (dir.path().join("one"), dir.path().join("sub/other"));
    image_builder()
        .arg("publish")
        .arg(&raw)
        .arg("--out")
        .arg(&one)
        .run()
        .await
        .unwrap();
    // From another format, on one processor, in another time zone and directory.
    let again = Cmd::new("taskset").args(["-c", "0", "env", "-C", "/", "TZ=Asia/Tokyo"]);
    let again = again.arg(env!("CARGO_BIN_EXE_image-builder"));
    again
        .arg("publish")
        .arg(&qcow2)
        .arg("--out")
        .arg(&other)
        .run()
        .await
        .unwrap();
    assert_eq!(names(&one), names(&other));
    for name in names(&one) {
        assert!(digest(&one.join(&name)) == digest(&other.join(&name)), "{name}");
    }
}
