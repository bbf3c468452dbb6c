use super::*;
use ImageFormat::{Iso, Qcow2, Raw, Vhd, Vhdx, Vmdk};

#[test]
fn a_qcow2_that_needs_another_file_is_refused() {
    let shop = Workshop::new();
    let path = shop.at("a.qcow2");
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "/etc/passwd",
            "-F",
            "raw",
            name,
            "1M",
        ],
    );
    let text = "not a valid QCOW2: it has a backing file; make it whole with `qemu-img convert -O qcow2`";
    assert_eq!(refused(&path, Qcow2), text);
    // Without its place and length, the format of the backing file still tells.
    patch(&path, 8, &[0; 12]);
    assert!(refused(&path, Qcow2).contains("names the format of a backing file"));

    let data = shop.at("data.raw");
    let options = format!("data_file={},data_file_raw=on", data.to_str().unwrap());
    let path = shop.create("qcow2", &options, "1M");
    assert!(refused(&path, Qcow2).contains("its data is in another file"));
    // Without the feature bit, the name of the data file still tells.
    patch(&path, 79, &[0]);
    assert!(refused(&path, Qcow2).contains("it names a file with its data"));
}

#[test]
fn encrypted_and_extended_qcow2_are_for_those_who_allow_them() {
    let shop = Workshop::new();
    let path = shop.at("a.qcow2");
    // LUKS inside of qcow2 is in the vectors; QEMU makes it slowly.
    let options = "encrypt.format=aes,encrypt.key-secret=s";
    let secret = "secret,id=s,data=only-a-test";
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        &[
            "create", "-q", "-f", "qcow2", "--object", secret, "-o", options, name, "1M",
        ],
    );
    assert!(refused(&path, Qcow2).contains("it is encrypted"));
    let extended = shop.create("qcow2", "extended_l2=on,cluster_size=128k", "1G");
    assert!(refused(&extended, Qcow2).contains("it has extended L2 entries"));
    let all = Limits {
        allow_encrypted_qcow2: true,
        allow_extended_l2: true,
        ..Limits::default()
    };
    for (path, size) in [(path, 1 << 20), (extended, 1 << 30)] {
        assert_eq!(
            judge(&File::open(path).unwrap(), Qcow2, &all).unwrap().virtual_size,
            size
        );
    }
}

#[test]
fn an_internal_snapshot_is_told() {
    let shop = Workshop::new();
    let path = shop.convert("qcow2", "");
    run("qemu-img", &["snapshot", "-q", "-c", "one", path.to_str().unwrap()]);
    let warnings = judged(&path, Qcow2).unwrap().warnings;
    assert_eq!(
        warnings,
        ["the image has internal snapshots, which nothing here can reach"]
    );
}

#[test]
fn a_vmdk_that_names_another_file_is_refused() {
    let shop = Workshop::new();
    for subformat in ["", "subformat=streamOptimized"] {
        let path = shop.convert("vmdk", subformat);
        let original = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&original[512..]).into_owned();
        let extent = text.lines().find(|line| line.starts_with("RW ")).unwrap().to_owned();
        let at = original
            .windows(extent.len())
            .position(|part| part == extent.as_bytes())
            .unwrap();
        let hostile = [
            "RW 6144 SPARSE \"/etc/group\"",
            "RW 6144 FLAT \"group\" 0",
            "RW 6144 SPARSE \"..\\x\"",
        ];
        for line in hostile {
            let mut bytes = original.clone();
            let line = format!("{line:<width$}", width = extent.len());
            assert_eq!(line.len(), extent.len(), "the extent must fit where the old one was");
            bytes.splice(at..at + extent.len(), line.bytes());
            let path = shop.at("hostile.vmdk");
            platform::files::replace(&path, &bytes, 0o600).map(drop).unwrap();
            assert!(
                refused(&path, Vmdk).contains("an extent that is not allowed"),
                "{}",
                refused(&path, Vmdk)
            );
        }
        let replace = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let at = original
                .windows(from.len())
                .position(|part| part == from.as_bytes())
                .unwrap();
            let mut bytes = original.clone();
            bytes.splice(at..at + from.len(), to.bytes());
            let path = shop.at("hostile.vmdk");
            platform::files::replace(&path, &bytes, 0o600).map(drop).unwrap();
            refused(&path, Vmdk)
        };
        assert_eq!(
            replace("parentCID=ffffffff", "parentCID=0badc0de"),
            "it has a parent disk; merge it into one file"
        );
        assert!(replace("parentCID=ffffffff", "changeTrackPath=\"/").contains("a key that is not allowed"));
        assert!(replace("RW 6144", "RW 9999").contains("its header says 6144 sectors and its descriptor 9999"));
    }
}

#[test]
fn a_footer_that_says_something_else_is_refused() {
    let shop = Workshop::new();
    let path = shop.convert("vmdk", "subformat=streamOptimized");
    let mut bytes = fs::read(&path).unwrap();
    // As VMware writes it: the header leaves the grain directory's place to a footer.
    let header: Vec<u8> = bytes[..512].to_vec();
    bytes[56..64].copy_from_slice(&[0xff; 8]);
    bytes.truncate(bytes.len() - 512); // the end marker
    let mut marker = [0; 512];
    (marker[0], marker[12]) = (1, 3);
    bytes.extend(marker);
    bytes.extend(&header);
    bytes.extend([0; 512]);
    platform::files::replace(&path, &bytes, 0o600).map(drop).unwrap();
    assert_eq!(judged(&path, Vmdk).unwrap().virtual_size, 3 << 20);
    let in_footer = u64::try_from(bytes.len()).unwrap() - 1024;
    patch(&path, in_footer + 12, &[0xff]); // another capacity
    assert_eq!(refused(&path, Vmdk), "its footer differs from its header");
    patch(&path, in_footer, b"XXXX");
    assert_eq!(refused(&path, Vmdk), "its footer is missing; it is cut off");
}

#[test]
fn flat_and_split_vmdks_are_refused() {
    let shop = Workshop::new();
    let text = "found a VMDK text descriptor without the data it describes";
    assert_eq!(
        refused(&shop.create("vmdk", "subformat=monolithicFlat", "1M"), Vmdk),
        text
    );
    assert_eq!(
        refused(&shop.create("vmdk", "subformat=twoGbMaxExtentSparse", "1M"), Vmdk),
        text
    );
    assert_eq!(
        refused(&shop.create("vmdk", "subformat=monolithicFlat", "1M"), Raw),
        text
    );
}

#[test]
fn a_differencing_vhd_is_refused() {
    let shop = Workshop::new();
    let path = shop.convert("vpc", "");
    let mut footer = fs::read(&path).unwrap()[..512].to_vec();
    footer[63] = 4;
    // The sum grows by one, so its complement shrinks by one.
    let sum = u32::from_be_bytes(footer[64..68].try_into().unwrap()) - 1;
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    let length = fs::metadata(&path).unwrap().len();
    patch(&path, length - 512, &footer);
    let text = "it is a differencing VHD, which needs its parent; merge it into one file";
    assert_eq!(refused(&path, Vhd), text);
    patch(&path, 0, &footer);
    assert_eq!(refused(&path, Vhd), text);
    patch(&path, 48, &[1]);
    patch(&path, 60, &[0, 0, 0, 3]);
    assert!(refused(&path, Vhd).contains("differencing") || refused(&path, Vhd).contains("checksum"));
}

#[test]
fn a_differencing_vhdx_is_refused() {
    let shop = Workshop::new();
    let path = shop.convert("vhdx", "");
    let bytes = fs::read(&path).unwrap();
    let file_parameters = [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d];
    let entry = bytes.windows(8).position(|part| part == file_parameters).unwrap();
    let table = bytes.windows(8).position(|part| part == b"metadata").unwrap();
    let offset = u32::from_le_bytes(bytes[entry + 16..entry + 20].try_into().unwrap());
    patch(&path, u64::try_from(table).unwrap() + u64::from(offset) + 4, &[2]);
    assert_eq!(
        refused(&path, Vhdx),
        "it is a differencing VHDX, which needs its parent; merge it into one file"
    );
    let path = shop.convert("vhdx", "");
    for header in [64 << 10, 128 << 10] {
        patch(&path, header + 48, &[1]); // a log that is still to be applied
    }
    assert!(refused(&path, Vhdx).starts_with("it was not closed cleanly"));
}

#[test]
fn what_is_two_formats_at_once_is_neither() {
    let shop = Workshop::new();
    let path = shop.convert("qcow2", "");
    patch(&path, 32769, b"CD001");
    let text = "found a QCOW2 disk image that is also an ISO 9660 or UDF image";
    assert_eq!(refused(&path, Qcow2), text);
    assert_eq!(
        refused(&path, Iso),
        "found an ISO 9660 or UDF image that is also a QCOW2 disk image"
    );
    assert_eq!(refused(&path, Raw), text);

    let path = shop.convert("qcow2", "");
    let footer = fs::read(shop.convert("vpc", "subformat=fixed")).unwrap();
    let footer = &footer[footer.len() - 512..];
    let length = fs::metadata(&path).unwrap().len();
    patch(&path, length, footer);
    for format in [Qcow2, Vhd, Raw] {
        assert!(matches!(judged(&path, format), Err(Refusal::Mismatch(_))));
    }
}

#[test]
fn an_image_that_is_cut_off_is_refused() {
    let shop = Workshop::new();
    for (format, name, options) in [
        (Qcow2, "qcow2", ""),
        (Vhd, "vpc", ""),
        (Vhd, "vpc", "subformat=fixed"),
        (Vhdx, "vhdx", ""),
        (Vmdk, "vmdk", ""),
    ] {
        let path = shop.convert(name, options);
        judged(&path, format).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        judged(&path, format).unwrap_err();
    }
}
