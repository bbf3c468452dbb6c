use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use protocol::transfer::ImageFormat;
use serde_json::Value;
use ssvm::image::{Limits, judge, ova};
use ssvm::path::open_root;

use super::*;

fn vectors(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// The members of the sample, with real disks.
fn members() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(vectors("ovf/sample.ovf"), directory.path().join("demo.ovf")).unwrap();
    for (name, size) in [("demo-disk1.vmdk", "10M"), ("demo-disk2.vmdk", "2G")] {
        let options = "subformat=streamOptimized";
        run(
            directory.path(),
            "qemu-img",
            &["create", "-q", "-f", "vmdk", "-o", options, name, size],
        );
    }
    fs::create_dir(directory.path().join("files")).unwrap();
    run(directory.path(), "genisoimage", &["-quiet", "-o", "tools.iso", "files"]);
    fs::remove_dir(directory.path().join("files")).unwrap();
    directory
}

fn pack(directory: &TempDir, options: &[&str], names: &[&str]) -> File {
    let archive = tempfile::Builder::new().suffix(".ova").tempfile().unwrap();
    let mut args = options.to_vec();
    args.extend(["-cf", archive.path().to_str().unwrap()]);
    args.extend(names);
    run(directory.path(), "tar", &args);
    archive.into_file()
}

const ALL: [&str; 4] = ["demo.ovf", "demo-disk1.vmdk", "demo-disk2.vmdk", "tools.iso"];

fn refused(file: &File) -> String {
    judge(file, ImageFormat::Ova, &Limits::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn an_ova_counts_as_its_disks_and_unpacks() {
    let directory = members();
    for options in [
        &["--format=ustar"][..],
        &["--format=gnu"],
        &["--format=pax"],
        &["--format=v7"],
    ] {
        let names = if options == ["--format=ustar"] {
            ALL.map(|name| format!("./{name}"))
        } else {
            ALL.map(str::to_owned)
        };
        let archive = pack(&directory, options, &names.each_ref().map(String::as_str));
        if options == ["--format=v7"] {
            assert!(refused(&archive).starts_with("found "), "there is no ustar mark in it");
            continue;
        }
        let judged = judge(&archive, ImageFormat::Ova, &Limits::default()).unwrap();
        assert_eq!(judged.virtual_size, 2_157_969_408);
        judge(&archive, ImageFormat::Tar, &Limits::default()).unwrap();

        let target = tempfile::tempdir().unwrap();
        let root = open_root(target.path()).unwrap();
        let unpacked = ova::unpack(&archive, &root, &Limits::default(), 0).unwrap();
        for name in ALL {
            let (found, wanted) = (target.path().join(name), directory.path().join(name));
            assert!(fs::read(&found).unwrap() == fs::read(wanted).unwrap(), "{name}");
            assert_eq!(fs::metadata(found).unwrap().mode() & 0o7777, 0o666);
        }
        assert_eq!(unpacked.files.len(), 4);
        // Again: what is there is neither replaced nor removed.
        ova::unpack(&archive, &root, &Limits::default(), 0).unwrap_err();
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 4);
    }
}

#[test]
fn the_server_is_told_what_the_vectors_say() {
    let directory = members();
    let archive = pack(&directory, &[], &ALL);
    let target = tempfile::tempdir().unwrap();
    let unpacked = ova::unpack(&archive, &open_root(target.path()).unwrap(), &Limits::default(), 0).unwrap();
    let expected: Value = serde_json::from_reader(File::open(vectors("ovf/expected.json")).unwrap()).unwrap();
    // Lengths as in the vector, which has no real files.
    let mut sizes = BTreeMap::from([
        ("demo-disk1.vmdk", 69120),
        ("demo-disk2.vmdk", 70000),
        ("tools.iso", 40960),
    ])
    .into_iter()
    .map(|(name, size)| (name.to_owned(), size))
    .collect::<BTreeMap<_, _>>();
    let told = unpacked.descriptor.information("/d", &sizes, None).unwrap();
    let found = without_nulls(&serde_json::to_value(&told).unwrap());
    assert_eq!(found["disks"], without_nulls(&expected["disks_all_configurations"]));
    assert_eq!(found["networks"], expected["networks"]);
    assert_eq!(found["properties"], without_nulls(&expected["properties"]));
    assert_eq!(found["guestOsInfo"], expected["guestOsInfo"]);
    let hardware = (&found["hardwareSection"], &expected["hardwareSection"]);
    assert_eq!(
        hardware.0["minimiumHardwareVersion"],
        hardware.1["minimiumHardwareVersion"]
    );
    let names = |items: &Value| {
        items
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["elementName"].clone())
            .collect::<Value>()
    };
    assert_eq!(
        names(&hardware.0["commonHardwareItems"]),
        hardware.1["commonHardwareItems"]
    );
    for (found, wanted) in hardware.0["configurations"]
        .as_array()
        .unwrap()
        .iter()
        .zip(hardware.1["configurations"].as_array().unwrap())
    {
        for key in ["id", "label", "description", "index"] {
            assert_eq!(found[key], wanted[key]);
        }
        assert_eq!(names(&found["hardwareItems"]), wanted["hardwareItems"]);
    }
    let item = hardware.0["commonHardwareItems"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["elementName"] == "disk 1");
    for (key, value) in hardware.1["one_item_in_full"].as_object().unwrap() {
        assert_eq!(&item.unwrap()[key], value, "{key}");
    }
    let licence = told.eula_sections.as_ref().unwrap()[0]
        .compressed_license
        .as_ref()
        .unwrap();
    let text = filter("gzip", &["-dc"], &licence.expose()[..]);
    assert_eq!(text, b"use as you like");
    for (wanted, ids) in [
        ("small", "disks_configuration_small"),
        ("big", "disks_configuration_big"),
    ] {
        let disks = unpacked
            .descriptor
            .information("/d", &sizes, Some(wanted))
            .unwrap()
            .disks
            .unwrap();
        let found: Value = disks.into_iter().map(|disk| disk.disk_id.unwrap()).collect();
        assert_eq!(found, expected[ids]);
    }
    sizes.remove("demo-disk2.vmdk");
    let error = unpacked.descriptor.information("/d", &sizes, None).unwrap_err();
    assert_eq!(error.to_string(), expected["errors"][0]["error"]);
}

/// null stands for an absent member: that is how Gson writes it.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(without_nulls).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        value => value.clone(),
    }
}

#[test]
fn a_manifest_is_believed_only_when_it_is_true() {
    let directory = members();
    let printed = filter(
        "sha256sum",
        &[],
        File::open(directory.path().join("demo-disk1.vmdk")).unwrap(),
    );
    let digits = String::from_utf8_lossy(&printed).split(' ').next().unwrap().to_owned();
    let write = |text: String| {
        platform::files::replace(directory.path().join("demo.mf"), text, 0o644)
            .map(drop)
            .unwrap();
    };
    let mut names = ALL.to_vec();
    names.push("demo.mf");
    write(format!("SHA256(demo-disk1.vmdk)= {digits}\n"));
    let target = tempfile::tempdir().unwrap();
    ova::unpack(
        &pack(&directory, &[], &names),
        &open_root(target.path()).unwrap(),
        &Limits::default(),
        0,
    )
    .unwrap();

    write(format!(
        "SHA256(demo-disk1.vmdk)= {}\n",
        digits.replace(['0', '1', '2'], "f")
    ));
    let target = tempfile::tempdir().unwrap();
    let error = ova::unpack(
        &pack(&directory, &[], &names),
        &open_root(target.path()).unwrap(),
        &Limits::default(),
        0,
    );
    let error = format!("{:?}", error.unwrap_err());
    assert!(
        error.contains("its member \\\"demo-disk1.vmdk\\\" has the digest {SHA-256}"),
        "{error}"
    );
    assert_eq!(
        fs::read_dir(target.path()).unwrap().count(),
        0,
        "what was unpacked is removed again"
    );
}

#[test]
fn members_that_lead_elsewhere_are_refused() {
    let list: Value = serde_json::from_reader(File::open(vectors("paths.json")).unwrap()).unwrap();
    let directory = members();
    for case in list["archive_members"].as_array().unwrap() {
        let (member, ok) = (case["member"].as_str().unwrap(), case["ok"].as_bool().unwrap());
        let path = directory.path().join("extra");
        let _ = fs::remove_file(&path);
        match case["type"].as_str() {
            None => fs::copy(directory.path().join("demo-disk1.vmdk"), &path)
                .map(drop)
                .unwrap(),
            Some("symlink") => symlink("/etc/passwd", &path).unwrap(),
            Some("hardlink") => fs::hard_link(directory.path().join("demo.ovf"), &path).unwrap(),
            Some("char device") => run(directory.path(), "mknod", &["extra", "c", "1", "3"]),
            Some(other) => panic!("what is {other}?"),
        }
        let renamed = format!("--transform=s|^extra$|{member}|");
        let mut names = ALL.to_vec();
        names.push("extra");
        let archive = pack(&directory, &["-P", &renamed], &names);
        let found = judge(&archive, ImageFormat::Ova, &Limits::default());
        assert_eq!(found.is_ok(), ok, "{case}: {found:?}");
    }
}

#[test]
fn an_ova_that_breaks_a_rule_is_refused() {
    let directory = members();
    assert_eq!(
        refused(&pack(&directory, &[], &ALL[1..])),
        "it must have exactly one .ovf file in it"
    );
    assert_eq!(
        refused(&pack(&directory, &[], &["demo.ovf", "demo-disk1.vmdk", "tools.iso"])),
        "One of the attached disk or ISOs as stated on OVF does not exists demo-disk2.vmdk"
    );
    let twice = [&ALL[..], &["demo.ovf"]].concat();
    assert_eq!(
        refused(&pack(&directory, &["--hard-dereference"], &twice)),
        "it has a member \"demo.ovf\" twice"
    );

    let whole = pack(&directory, &[], &ALL);
    let cut = tempfile::tempfile().unwrap();
    io::copy(&mut whole.take(70_000), &mut cut.try_clone().unwrap()).unwrap();
    assert!(refused(&cut).contains("cut off"), "{}", refused(&cut));

    // A disk that names another file of the host.
    let disk = directory.path().join("demo-disk1.vmdk");
    let text = fs::read(&disk).unwrap();
    let at = text.windows(8).position(|part| part == b"SPARSE \"").unwrap() + 8;
    let mut hostile = text;
    hostile[at] = b'/';
    platform::files::replace(&disk, &hostile, 0o644).map(drop).unwrap();
    let error = refused(&pack(&directory, &[], &ALL));
    assert!(
        error.starts_with("in its disk \"demo-disk1.vmdk\": its descriptor has an extent"),
        "{error}"
    );

    run(
        directory.path(),
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "demo-disk1.vmdk", "10M"],
    );
    let error = refused(&pack(&directory, &[], &ALL));
    assert_eq!(
        error,
        "its member \"demo-disk1.vmdk\" is no sparse VMDK, but a QCOW2 disk image"
    );
}
