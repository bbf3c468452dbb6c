use std::time::{Duration, Instant};

use super::*;
use ImageFormat::{Iso, Ova, Qcow2, Raw, Tar, Vdi, Vhd, Vhdx, Vmdk};

const ALL: [ImageFormat; 7] = [Qcow2, Vhd, Vhdx, Vmdk, Iso, Ova, Raw];

#[test]
fn every_format_of_qemu_is_known_by_its_content_and_only_as_itself() {
    let shop = Workshop::new();
    let made = [
        (Qcow2, "qcow2", shop.convert("qcow2", "")),
        (Qcow2, "qcow2", shop.convert("qcow2", "compat=0.10")),
        (
            Qcow2,
            "qcow2",
            shop.convert("qcow2", "compression_type=zstd,cluster_size=2M"),
        ),
        (Qcow2, "qcow2", shop.create("qcow2", "cluster_size=512", "20M")),
        (
            Qcow2,
            "qcow2",
            shop.create("qcow2", "preallocation=metadata,lazy_refcounts=on", "1G"),
        ),
        (Vhd, "vpc", shop.convert("vpc", "")),
        (Vhd, "vpc", shop.convert("vpc", "subformat=fixed")),
        (Vhd, "vpc", shop.create("vpc", "force_size=on", "10M")),
        (Vhdx, "vhdx", shop.convert("vhdx", "")),
        (Vhdx, "vhdx", shop.convert("vhdx", "subformat=fixed")),
        (Vmdk, "vmdk", shop.convert("vmdk", "")),
        (Vmdk, "vmdk", shop.convert("vmdk", "subformat=streamOptimized")),
        (Raw, "raw", shop.convert("raw", "")),
    ];
    for (format, name, path) in &made {
        let found = judged(path, *format).unwrap_or_else(|refusal| panic!("{format:?} {path:?}: {refusal}"));
        assert_eq!(
            (found.format, found.virtual_size),
            (*format, virtual_size(path, name)),
            "{path:?}"
        );
        assert_eq!(found.warnings, Vec::<&str>::new());
        for other in ALL.iter().filter(|other| *other != format) {
            let refusal = judged(path, *other).unwrap_err();
            assert!(
                matches!(refusal, Refusal::Mismatch(_)),
                "{path:?} as {other:?}: {refusal}"
            );
        }
    }
}

#[test]
fn formats_that_nothing_here_can_use_are_refused_by_name() {
    let shop = Workshop::new();
    let made = [
        (shop.convert("vdi", ""), "found a VirtualBox VDI disk image"),
        (shop.convert("qed", ""), "found a QED disk image"),
        (shop.convert("parallels", ""), "found a Parallels disk image"),
        (shop.convert("qcow", ""), "found a QCOW2 disk image"),
    ];
    for (path, text) in &made {
        for format in ALL.iter().filter(|format| **format != Qcow2) {
            assert_eq!(refused(path, *format), *text);
        }
    }
    assert!(refused(&made[0].0, Vdi).starts_with("images of format Vdi cannot be used"));
    assert_eq!(
        refused(&made[3].0, Qcow2),
        "not a valid QCOW2: its version is 1; only 2 and 3 are known"
    );
}

#[test]
fn luks_is_for_those_who_allow_it() {
    let shop = Workshop::new();
    let path = shop.at("a.luks");
    let secret = "secret,id=s,data=only-a-test";
    let size_and_speed = "key-secret=s,iter-time=10";
    let made = path.to_str().unwrap();
    let args = [
        "create",
        "-q",
        "-f",
        "luks",
        "--object",
        secret,
        "-o",
        size_and_speed,
        made,
        "1M",
    ];
    // It measures how fast this machine is, and gives up when the clock shows nothing, as it may on a busy one.
    assert!(
        (0..20).any(|_| try_run("qemu-img", &args).is_ok()),
        "qemu-img makes no LUKS container"
    );
    assert_eq!(refused(&path, Raw), "found a LUKS encrypted volume");
    let allowed = Limits {
        allow_luks: true,
        ..Limits::default()
    };
    let file = File::open(&path).unwrap();
    assert_eq!(
        judge(&file, Raw, &allowed).unwrap().virtual_size,
        file.metadata().unwrap().len()
    );
}

#[test]
fn a_real_iso_is_an_iso_and_no_raw_disk() {
    let shop = Workshop::new();
    fs::create_dir(shop.at("files")).unwrap();
    File::create(shop.at("files/readme.txt")).unwrap();
    for (name, options) in [("plain.iso", &["-J", "-R"][..]), ("udf.iso", &["-udf", "-R"])] {
        let (path, files) = (shop.at(name), shop.at("files"));
        let mut args = vec!["-quiet", "-o", path.to_str().unwrap()];
        args.extend(options);
        args.push(files.to_str().unwrap());
        run("genisoimage", &args);
        let length = fs::metadata(&path).unwrap().len();
        assert_eq!(judged(&path, Iso).unwrap().virtual_size, length);
        assert_eq!(refused(&path, Raw), "found an ISO 9660 or UDF image");
        // Hybrid: the same with a boot sector.
        patch(&path, 510, &[0x55, 0xaa]);
        assert_eq!(judged(&path, Iso).unwrap().virtual_size, length);
    }
}

#[test]
fn a_disk_with_a_partition_table_passes_as_raw_and_as_iso() {
    let shop = Workshop::new();
    let path = shop.convert("raw", "");
    let entry = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0];
    patch(&path, 446, &entry);
    patch(&path, 510, &[0x55, 0xaa]);
    judged(&path, Raw).unwrap();
    judged(&path, Iso).unwrap();
    patch(&path, 446 + 12, &[0xff; 4]); // longer than the file
    assert_eq!(refused(&path, Iso), "found a raw disk with a boot sector");
}

#[test]
fn what_is_no_image_is_called_by_its_name() {
    let shop = Workshop::new();
    let path = shop.at("file");
    let cases: [(&[u8], &str); 6] = [
        (
            b"\n <!DOCTYPE html><html>404</html>",
            "found a web page (HTML or XML), not an image; give the address of the file itself",
        ),
        (
            b"<HTML>",
            "found a web page (HTML or XML), not an image; give the address of the file itself",
        ),
        (
            b"404 page not found\n",
            "found text, not an image; check what the URL gives",
        ),
        (
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
            "found gzip compressed data; end the file's name in its compression, such as .gz",
        ),
        (b"\x01\x02\x03", "found data of no known image format (raw?)"),
        (b"", "the file is empty; check what the URL gives"),
    ];
    for (content, text) in cases {
        let _ = fs::remove_file(&path);
        File::create(&path).unwrap().write_all_at(content, 0).unwrap();
        for format in [Qcow2, Vhd, Vhdx, Vmdk, Iso, Ova, Tar] {
            assert_eq!(refused(&path, format), text);
        }
    }
    File::create(&path)
        .unwrap()
        .write_all_at(b"<!doctype html>", 0)
        .unwrap();
    assert!(refused(&path, Raw).starts_with("found a web page"));
}

#[test]
fn a_large_image_is_judged_in_milliseconds() {
    let shop = Workshop::new();
    let made = [
        (Raw, shop.at("a.raw")),
        (Qcow2, shop.create("qcow2", "", "40T")),
        (Vhdx, shop.create("vhdx", "", "1T")),
    ];
    File::create(&made[0].1).unwrap().set_len(1 << 40).unwrap();
    for (format, path) in &made {
        let started = Instant::now();
        judged(path, *format).unwrap();
        assert!(
            started.elapsed() < Duration::from_millis(500),
            "{format:?}: {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn an_operator_limits_the_virtual_size() {
    let shop = Workshop::new();
    let limits = Limits {
        max_virtual_size: 1 << 20,
        ..Limits::default()
    };
    for (format, name) in [
        (Qcow2, "qcow2"),
        (Vhd, "vpc"),
        (Vhdx, "vhdx"),
        (Vmdk, "vmdk"),
        (Raw, "raw"),
    ] {
        let file = File::open(shop.convert(name, "")).unwrap();
        let text = judge(&file, format, &limits).unwrap_err().to_string();
        assert!(text.contains("at most 1048576 are allowed"), "{text}");
    }
}
