//! A system VM's directory of certificates.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::keystore::{Import, KeyStore, keystore_cert_import};
use protocol::secret::Secret;
use tempfile::TempDir;

use super::{Pair, put};

pub(crate) const AFTER_IMPORT: [&str; 4] = ["agent.properties", "cloud.ca.crt", "cloud.crt", "cloud.key"];

/// A `conf` directory as it is in the image.
pub(crate) struct Conf(pub(crate) TempDir);

impl Conf {
    pub(crate) fn new() -> Self {
        let conf = Self(tempfile::tempdir().unwrap());
        put(conf.path("agent.properties"), "# ours\nhost=10.1.1.2\n");
        conf
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn store(&self) -> KeyStore {
        KeyStore::in_directory(&self.0)
    }

    pub(crate) fn import(&self, own: &Pair, ca: &Pair) -> Import {
        self.store()
            .setup_certificate(&own.certificate, &Secret::new(own.key.clone()), &ca.certificate)
            .unwrap()
    }

    /// The ten arguments as the management server passes them.
    pub(crate) fn arguments(&self, mode: &str, certificate: &str, ca: &str, key: &str) -> Vec<String> {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        let encoded = |pem: &str| pem.replace('\n', "^").replace(' ', "~");
        vec![
            path("agent.properties"),
            "pass16".to_owned(),
            path("cloud.jks"),
            mode.to_owned(),
            path("cloud.crt"),
            encoded(certificate),
            path("cloud.ca.crt"),
            encoded(ca),
            path("cloud.key"),
            encoded(key),
        ]
    }

    pub(crate) async fn run_import(&self, arguments: &[String]) -> Result<Import, String> {
        let system_ca = self.path("system/cloudstack/ca.crt");
        let imported = keystore_cert_import(arguments, Some(&system_ca), Duration::ZERO).await;
        imported.map_err(|error| error.to_string())
    }

    /// Our name, when what is on disk makes an identity with a certificate.
    pub(crate) fn own(&self) -> Option<String> {
        let own = self.store().load().unwrap()?.own?;
        own.keys_match().unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&own.cert[0]).unwrap();
        Some(certificate.subject().to_string())
    }

    pub(crate) fn request(&self) -> String {
        self.store()
            .setup_keystore(&Secret::new("pass16".to_owned()), 365, "v-2-VM", &[])
            .unwrap()
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}
