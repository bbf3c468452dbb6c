//! Images of others, and others that read ours.

use serde_json::Value;

use super::*;

/// What a driver of QEMU is called.
fn driver(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vhd => "vpc",
        Format::Vmdk | Format::Ova => "vmdk",
    }
}

#[tokio::test]
async fn qemu_finds_no_fault_and_the_same_disk() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    for (name, format, compression) in all().into_iter().filter(|(_, format, _)| *format != Format::Ova) {
        let (driver, path) = (driver(format), dir.path().join(&name));
        convert(&raw, &path, format, compression);
        if matches!(format, Format::Qcow2 | Format::Vmdk) {
            let check = Cmd::new("qemu-img").args(["check", "-f", driver]).arg(&path);
            check.run().await.unwrap();
        }
        let info = Cmd::new("qemu-img")
            .args(["info", "--output=json", "-f", driver])
            .arg(&path);
        let info: Value = serde_json::from_str(&info.run().await.unwrap().text()).unwrap();
        assert_eq!(info["virtual-size"], SIZE, "{name}");
        if format == Format::Qcow2 {
            let compat = if compression == Compression::Zstd {
                "1.1"
            } else {
                "0.10"
            };
            assert_eq!(info["format-specific"]["data"]["compat"], compat, "{name}");
        }
        let compare = Cmd::new("qemu-img").args(["compare", "-f", "raw", "-F", driver]);
        compare.arg(&raw).arg(&path).run().await.unwrap();
    }
}

#[tokio::test]
async fn images_that_qemu_writes_are_read() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let disk = formats::open(&raw).unwrap().disk;
    let images = [
        ("qcow2", Format::Qcow2, "compat=1.1", ""),
        ("qcow2", Format::Qcow2, "compat=0.10", "-c"),
        ("qcow2", Format::Qcow2, "compat=1.1,compression_type=zstd", "-c"),
        ("qcow2", Format::Qcow2, "cluster_size=512", ""),
        ("qcow2", Format::Qcow2, "cluster_size=2M", "-c"),
        ("qcow2", Format::Qcow2, "lazy_refcounts=on,refcount_bits=1", ""),
        ("vpc", Format::Vhd, "subformat=dynamic,force_size=on", ""),
        ("vpc", Format::Vhd, "subformat=fixed,force_size=on", ""),
        ("vmdk", Format::Vmdk, "subformat=streamOptimized", ""),
        ("vmdk", Format::Vmdk, "subformat=monolithicSparse", ""),
        ("vmdk", Format::Vmdk, "subformat=monolithicSparse,zeroed_grain=on", ""),
    ];
    for (driver, format, options, flag) in images {
        let path = dir.path().join("foreign");
        let convert = Cmd::new("qemu-img").args(["convert", "-f", "raw", "-O", driver, "-o", options]);
        let convert = if flag.is_empty() { convert } else { convert.arg(flag) };
        convert.arg(&raw).arg(&path).run().await.unwrap();
        let image = formats::open(&path).unwrap();
        assert_eq!(image.format, format, "{options}");
        assert_same(&*disk, &*image.disk, options);
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn what_qemu_keeps_in_other_files_is_refused() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let path = |name: &str| dir.path().join(name);
    let create = |args: &[&str], name: &str| Cmd::new("qemu-img").arg("create").args(args).arg(path(name));
    create(
        &["-f", "qcow2", "-F", "raw", "-b", &raw.display().to_string()],
        "overlay",
    )
    .run()
    .await
    .unwrap();
    let data = format!("data_file={},data_file_raw=on", path("data").display());
    create(&["-f", "qcow2", "-o", &data], "outside")
        .arg("8M")
        .run()
        .await
        .unwrap();
    create(&["-f", "qcow2", "-o", "extended_l2=on"], "extended")
        .arg("8M")
        .run()
        .await
        .unwrap();
    create(&["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"], "split")
        .arg("8M")
        .run()
        .await
        .unwrap();
    for name in ["overlay", "outside", "extended", "split"] {
        let error = formats::open(&path(name)).err().unwrap().to_string();
        assert!(error.contains("cannot be used: it"), "{name}: {error}");
        assert!(error.ends_with("first (qemu-img convert -O qcow2)"), "{name}: {error}");
    }
}

/// 7-Zip has readers of its own for all of these. It writes the disk that it finds.
#[tokio::test]
async fn seven_zip_finds_the_same_disk() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let disk = formats::open(&raw).unwrap().disk;
    let ours = all().into_iter().filter(|(_, format, how)| {
        // It does not know zstd in qcow2.
        *format != Format::Raw && *how != Compression::Zstd
    });
    for (name, format, compression) in ours {
        let path = dir.path().join(&name);
        convert(&raw, &path, format, compression);
        let out = dir.path().join("out");
        let unpack = |what: &Path, to: &Path| {
            let to = format!("-o{}", to.display());
            Cmd::new("7z").args(["x", "-y", &to, "--"]).arg(what)
        };
        unpack(&path, &out).run().await.unwrap();
        if format == Format::Ova {
            // The archive's members first, then the disk of the one that is a disk.
            let members = names(&out);
            assert_eq!(members, ["systemvm-disk1.vmdk", "systemvm.mf", "systemvm.ovf"]);
            let inner = dir.path().join("inner");
            unpack(&out.join("systemvm-disk1.vmdk"), &inner).run().await.unwrap();
            fs::remove_dir_all(&out).unwrap();
            fs::rename(inner, &out).unwrap();
        }
        let found = names(&out);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        let found = formats::open(&out.join(&found[0])).unwrap();
        assert_eq!(found.format, Format::Raw, "{name}");
        assert_same(&*disk, &*found.disk, &name);
        fs::remove_dir_all(&out).unwrap();
    }
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
