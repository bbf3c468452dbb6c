use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};

use agent::appliance::upgrade::bundle::Bundle;
use agent::appliance::upgrade::keys::TrustedKeys;
use agent::appliance::upgrade::store::Side;
use minisign::KeyPair;
use platform::bundle::{MANIFEST, MAX_BYTES, Manifest, PROGRAMS, SIGNATURE};
use platform::files::replace;
use platform::logging::chain;
use proptest::prelude::*;
use tar::EntryType;

use crate::maker::{Fixture, Member, describe, fixture, gzip, member, programs, tar};

/// Why a bundle is not taken. Nothing of it is left.
fn refused(fixture: &Fixture, bytes: &[u8]) -> String {
    let error = match fixture.open(bytes) {
        Err(error) => chain(&error).to_string(),
        Ok(mut bundle) => {
            let error = fixture.store.add(&mut bundle).unwrap_err();
            chain(&error).to_string()
        }
    };
    let left = fs::read_dir(fixture.root.path("/var/lib/sysvm/bundles"));
    assert_eq!(left.into_iter().flatten().count(), 0, "{error}");
    error.replace(&fixture.dir.path().display().to_string(), "")
}

#[test]
fn a_good_bundle_is_unpacked_as_it_was_made() {
    let fixture = fixture();
    let mut bundle = fixture.open(fixture.bundle(&programs("new"))).unwrap();
    assert_eq!(bundle.signed_by, "test.pub");
    let side = fixture.store.add(&mut bundle).unwrap();
    assert_eq!(fixture.store.version(&side).unwrap().to_string(), "0.1.1");
    assert_eq!(fixture.runs(), "of the image", "nothing runs before the switch");
    fixture.store.switch(&side).unwrap();
    assert_eq!(fixture.runs(), "new");
    let directory = fixture.store.directory(&side);
    for (name, mode) in [
        ("agent", 0o755),
        ("ssvm", 0o755),
        (MANIFEST, 0o644),
        (SIGNATURE, 0o644),
        (".", 0o755),
    ] {
        assert_eq!(
            fs::metadata(directory.join(name)).unwrap().mode() & 0o7777,
            mode,
            "{name}"
        );
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 4);
    // The same again is the same.
    assert_eq!(fixture.add("new"), side);
}

#[test]
fn nobody_but_the_owner_of_a_trusted_key_makes_bundles() {
    let fixture = fixture();
    let good = fixture.bundle(&programs("new"));
    let stranger = Fixture {
        key: KeyPair::generate_unencrypted_keypair().unwrap(),
        ..self::fixture()
    };
    assert_eq!(
        refused(&fixture, &stranger.bundle(&programs("new"))),
        "the bundle is signed with a key that this image does not trust; it trusts test.pub"
    );
    let json = b"{}".to_vec();
    let unsigned = tar(&[member(MANIFEST, json.clone()), member(SIGNATURE, "none")]);
    assert!(refused(&fixture, &unsigned).starts_with("the bundle's signature is none in minisign's format"));
    let of_another = tar(&[member(MANIFEST, json), member(SIGNATURE, fixture.sign(b"{ }"))]);
    assert_eq!(
        refused(&fixture, &of_another),
        "the bundle's signature is wrong: its manifest has changed since it was signed with test.pub"
    );

    fs::remove_file(fixture.root.path("/etc/sysvm/upgrade-keys/test.pub")).unwrap();
    assert_eq!(
        refused(&fixture, &good),
        "this image trusts no key, so it takes no bundle; build one that does: put the public key into \
         EXTRA/etc/sysvm/upgrade-keys/NAME.pub and give `--extra EXTRA` to `image-builder build`"
    );
    let _ = replace(fixture.root.path("/etc/sysvm/upgrade-keys/bad.pub"), "no key", 0o644).unwrap();
    assert!(TrustedKeys::read(&fixture.root).is_err());
}

#[test]
fn what_is_signed_must_make_sense() {
    let fixture = fixture();
    let text = |json: &str| {
        tar(&[
            member(MANIFEST, json),
            member(SIGNATURE, fixture.sign(json.as_bytes())),
            member(PROGRAMS, "x"),
        ])
    };
    assert!(refused(&fixture, &text("{}")).starts_with("the bundle's manifest cannot be used: it cannot be read: "));
    assert_eq!(
        refused(&fixture, &text("{\"format\": 7, \"later\": true}")),
        "the bundle's manifest cannot be used: it has version 7 of the format, and this program knows 1"
    );
    let name = |name: &str| {
        let digest = "0".repeat(64);
        text(&format!(
            "{{\"format\": 1, \"version\": \"0.1.1\", \"image\": {{\"at_least\": \"0.1.0\", \"below\": \"0.2.0\"}}, \
             \"programs\": {{{name:?}: {{\"size\": 1, \"sha256\": \"{digest}\"}}}}, \
             \"packed\": {{\"size\": 1, \"sha256\": \"{digest}\"}}}}"
        ))
    };
    for bad in ["../agent", "/etc/passwd", "agent/x", "..", ""] {
        let error = refused(&fixture, &name(bad));
        assert!(error.contains("is not the name of a program"), "{error}");
    }
    let bomb = fixture.bundle_of(&programs("new"), vec![1], |manifest| {
        manifest.packed.size = MAX_BYTES + 1;
    });
    assert!(refused(&fixture, &bomb).ends_with("more than the 536870912 that are allowed"));
}

#[test]
fn members_that_should_not_be_there_are_refused() {
    let fixture = fixture();
    let wanted = programs("new");
    let good: Vec<Member> = wanted
        .iter()
        .map(|(name, contents)| member(name, contents.clone()))
        .collect();
    let inside = |members: &[Member]| refused(&fixture, &fixture.bundle_of(&wanted, gzip(&tar(members)), |_| {}));
    let of = |kind, name: &str| Member {
        name: name.to_owned(),
        kind,
        contents: Vec::new(),
    };
    let shape =
        |why: &str| format!("this is no bundle: {why}; is the file whole, and did `image-builder bundle` write it?");

    let traversal = [member("../../../../usr/bin/agent", "new"), good[1].clone()];
    assert_eq!(
        inside(&traversal),
        shape("\"../../../../usr/bin/agent\" is where agent should be")
    );
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Fifo,
        EntryType::Char,
    ] {
        assert_eq!(inside(&[of(kind, "agent")]), shape("agent is no plain file in it"));
    }
    // GNU's and POSIX's ways to give the next member another name.
    let long = Member {
        contents: b"../../etc/passwd\0".to_vec(),
        ..of(EntryType::GNULongName, "././@LongLink")
    };
    assert_eq!(
        inside(&[long, good[0].clone(), good[1].clone()]),
        shape("\"././@LongLink\" is where agent should be")
    );
    let pax = Member {
        contents: b"24 path=../../etc/passwd\n".to_vec(),
        ..of(EntryType::XHeader, "agent")
    };
    assert_eq!(inside(&[pax, good[0].clone()]), shape("agent is no plain file in it"));
    assert_eq!(inside(&good[..1]), shape("ssvm is missing"));
    let more = [good.as_slice(), &[member("third", "x")]].concat();
    assert_eq!(inside(&more), shape("there is more in it than there should be"));
    let larger = [member("agent", vec![0; 1 << 20]), good[1].clone()];
    assert_eq!(inside(&larger), shape("agent has 1048576 bytes, not 3"));
    let other = [member("agent", "odd"), good[1].clone()];
    assert_eq!(
        inside(&other),
        "agent of the bundle is not what was signed; upload it again"
    );

    let json = b"{}";
    let signed = fixture.sign(json);
    for (members, why) in [
        (vec![member("x", "y")], "\"x\" is where manifest.json should be"),
        (
            vec![of(EntryType::Symlink, MANIFEST)],
            "manifest.json is no plain file in it",
        ),
        (
            vec![member(MANIFEST, json.to_vec())],
            "manifest.json.minisig is missing",
        ),
        (
            vec![member(MANIFEST, vec![b' '; 70_000]), member(SIGNATURE, signed)],
            "manifest.json has 70000 bytes, more than 65536",
        ),
    ] {
        assert_eq!(refused(&fixture, &tar(&members)), shape(why));
    }
}

#[test]
fn a_bomb_goes_off_nowhere() {
    let fixture = fixture();
    // 64 MiB of zeros behind the last program, which the manifest knows nothing of.
    let wanted = programs("new");
    let members: Vec<_> = wanted
        .iter()
        .map(|(name, contents)| member(name, contents.clone()))
        .collect();
    let mut bomb = tar(&members);
    bomb.resize(64 << 20, 0);
    let packed = gzip(&bomb);
    assert!(packed.len() < 1 << 20);
    let mut bundle = fixture.open(fixture.bundle_of(&wanted, packed, |_| {})).unwrap();
    let side = fixture.store.add(&mut bundle).unwrap();
    let directory = fixture.store.directory(&side);
    assert_eq!(fs::metadata(directory.join("agent")).unwrap().len(), 3);
    assert_eq!(fs::read_dir(directory).unwrap().count(), 4);

    // What the manifest admits to is compared with the disk before a byte is written.
    let huge = fixture.bundle_of(&wanted, gzip(b""), |manifest| {
        let agent = manifest.programs.values_mut().next().unwrap();
        agent.size = MAX_BYTES - 3;
    });
    let error = fixture
        .store
        .add(&mut fixture.open(huge).unwrap())
        .unwrap_err()
        .to_string();
    // On a disk with room it is the packed programs that are wrong.
    assert!(
        error.starts_with("the bundle needs 511 MiB of the disk and 300 MiB must stay free")
            || error.starts_with("this is no bundle: agent is missing"),
        "{error}"
    );
}

#[test]
fn only_a_file_is_a_bundle() {
    let fixture = fixture();
    let good = fixture.write(fixture.bundle(&programs("new")));
    let keys = TrustedKeys::read(&fixture.root).unwrap();
    let link = fixture.dir.path().join("link");
    symlink(&good, &link).unwrap();
    for path in [&link, &fixture.dir.path().to_path_buf()] {
        assert_eq!(
            Bundle::open(path, &keys).unwrap_err().to_string(),
            format!(
                "{} is no file; name the .sysvm file that `image-builder bundle` wrote",
                path.display()
            )
        );
    }
    let missing = fixture.dir.path().join("missing");
    assert!(
        Bundle::open(&missing, &keys)
            .unwrap_err()
            .to_string()
            .starts_with("cannot read ")
    );
}

#[test]
fn a_file_that_changes_after_it_was_checked_is_not_unpacked() {
    let fixture = fixture();
    let bytes = fixture.bundle(&programs("new"));
    let path = fixture.write(&bytes);
    let mut bundle = Bundle::open(&path, &TrustedKeys::read(&fixture.root).unwrap()).unwrap();
    let other = fixture.bundle(&programs("odd"));
    // In place: the descriptor that was checked sees it.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all(&other)
        .unwrap();
    let error = fixture.store.add(&mut bundle).unwrap_err().to_string();
    assert!(
        error.contains("is not what was signed") || error.contains("this is no bundle"),
        "{error}"
    );
    assert!(matches!(fixture.store.current().unwrap(), Side::Image));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_truncated_bundle_is_refused(at: proptest::sample::Index) {
        let fixture = fixture();
        let bytes = fixture.bundle(&programs("new"));
        // The end of a tar archive is 1024 zeros that say nothing, and padding.
        let all = bytes.len() - 2048;
        let length = at.index(all);
        let _ = refused(&fixture, &bytes[..length]);
    }

    #[test]
    fn a_changed_byte_is_refused_or_changes_nothing(at: proptest::sample::Index, with in 1u8..) {
        let fixture = fixture();
        let mut bytes = fixture.bundle(&programs("new"));
        let position = at.index(bytes.len());
        bytes[position] ^= with;
        if let Ok(mut bundle) = fixture.open(&bytes) {
            let side = fixture.store.add(&mut bundle).unwrap();
            fixture.store.switch(&side).unwrap();
            prop_assert_eq!(fixture.runs(), "new");
        }
    }

    #[test]
    fn noise_is_no_bundle(noise: Vec<u8>) {
        let fixture = fixture();
        let _ = refused(&fixture, &noise);
    }

    #[test]
    fn signed_noise_is_no_bundle_either(noise: Vec<u8>, wanted in proptest::collection::btree_map("[a-z]{1,8}", any::<Vec<u8>>(), 1..4)) {
        let fixture = fixture();
        let wanted: BTreeMap<&str, Vec<u8>> = wanted.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let change = |manifest: &mut Manifest| manifest.packed = describe(&noise);
        let _ = refused(&fixture, &fixture.bundle_of(&wanted, noise.clone(), change));
    }
}
