//! Makes bundles, also such as nobody should.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use agent::appliance::root::Root;
use agent::appliance::upgrade::bundle::{BadBundle, Bundle};
use agent::appliance::upgrade::keys::TrustedKeys;
use agent::appliance::upgrade::store::{Side, Store};
use flate2::{Compression, GzBuilder};
use minisign::KeyPair;
use platform::bundle::{Contents, Digest, FORMAT, MANIFEST, Manifest, PROGRAMS, SIGNATURE, Version};
use platform::files::replace;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// A member of a tar archive.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) kind: EntryType,
    pub(crate) contents: Vec<u8>,
}

pub(crate) fn member(name: &str, contents: impl Into<Vec<u8>>) -> Member {
    Member {
        name: name.to_owned(),
        kind: EntryType::Regular,
        contents: contents.into(),
    }
}

/// A machine's disk, the keys of whoever makes bundles for it, and a place to put them.
pub(crate) struct Fixture {
    pub(crate) root: Root,
    pub(crate) store: Store,
    pub(crate) key: KeyPair,
    pub(crate) dir: tempfile::TempDir,
}

/// Image 0.1.0 with the programs `agent` and `ssvm`.
pub(crate) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path().join("root"));
    for directory in ["/etc/sysvm/upgrade-keys", "/usr/lib/sysvm/bin", "/var/lib/sysvm"] {
        fs::create_dir_all(root.path(directory)).unwrap();
    }
    let key = KeyPair::generate_unencrypted_keypair().unwrap();
    let public = format!("untrusted comment: a test\n{}\n", key.pk.to_base64());
    let _ = replace(root.path("/etc/sysvm/upgrade-keys/test.pub"), public, 0o644).unwrap();
    let _ = replace(root.path("/etc/sysvm-release"), "0.1.0\n", 0o644).unwrap();
    for name in ["agent", "ssvm"] {
        let _ = replace(root.path("/usr/lib/sysvm/bin").join(name), "of the image", 0o755).unwrap();
    }
    let store = Store::new(root.clone());
    store.switch(&Side::Image).unwrap();
    Fixture { root, store, key, dir }
}

impl Fixture {
    pub(crate) fn write(&self, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join("bundle.sysvm");
        let _ = replace(&path, bytes, 0o644).unwrap();
        path
    }

    pub(crate) fn open(&self, bytes: impl AsRef<[u8]>) -> Result<Bundle, BadBundle> {
        Bundle::open(&self.write(bytes), &TrustedKeys::read(&self.root).unwrap())
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> String {
        let signature = minisign::sign(Some(&self.key.pk), &self.key.sk, Cursor::new(bytes), None, None);
        signature.unwrap().into_string()
    }

    /// A bundle with these packed bytes, and a manifest as it would be for `programs`, changed by `change`.
    pub(crate) fn bundle_of(
        &self,
        programs: &BTreeMap<&str, Vec<u8>>,
        packed: Vec<u8>,
        change: impl FnOnce(&mut Manifest),
    ) -> Vec<u8> {
        let version: Version = "0.1.1".parse().unwrap();
        let mut manifest = Manifest {
            format: FORMAT,
            version,
            image: version.compatible(),
            programs: programs
                .iter()
                .map(|(name, contents)| (name.parse().unwrap(), describe(contents)))
                .collect(),
            packed: describe(&packed),
        };
        change(&mut manifest);
        let json = serde_json::to_vec(&manifest).unwrap();
        let signature = self.sign(&json);
        tar(&[
            member(MANIFEST, json),
            member(SIGNATURE, signature),
            member(PROGRAMS, packed),
        ])
    }

    /// A good one.
    pub(crate) fn bundle(&self, programs: &BTreeMap<&str, Vec<u8>>) -> Vec<u8> {
        let members: Vec<_> = programs
            .iter()
            .map(|(name, contents)| member(name, contents.clone()))
            .collect();
        self.bundle_of(programs, gzip(&tar(&members)), |_| {})
    }

    /// The same, on the machine's disk.
    pub(crate) fn add(&self, marker: &str) -> Side {
        let mut bundle = self.open(self.bundle(&programs(marker))).unwrap();
        self.store.add(&mut bundle).unwrap()
    }

    /// What a unit would run.
    pub(crate) fn runs(&self) -> String {
        let side = self.store.current().unwrap();
        let agent = fs::read_to_string(self.store.directory(&side).join("agent")).unwrap();
        let ssvm = fs::read_to_string(self.store.directory(&side).join("ssvm")).unwrap();
        assert_eq!(agent, ssvm, "a mixture of programs");
        agent
    }
}

pub(crate) fn programs(marker: &str) -> BTreeMap<&'static str, Vec<u8>> {
    [("agent", marker.into()), ("ssvm", marker.into())].into()
}

pub(crate) fn describe(bytes: &[u8]) -> Contents {
    Contents {
        size: u64::try_from(bytes.len()).unwrap(),
        sha256: Digest::of(Sha256::digest(bytes)).unwrap(),
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn tar(members: &[Member]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for Member { name, kind, contents } in members {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(u64::try_from(contents.len()).unwrap());
        // Not by `set_path`, which refuses what we want to try.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        if kind.is_symlink() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        archive.append(&header, contents.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}
