//! This machine's certificate, its private key and the CA certificates it trusts, as PEM files in one directory; no
//! Java key store. Written by the management server over ssh (`keystore-cert-import`) or over the link, and read at
//! each connect.
//!
//! An import replaces three files, and a crash may come between any two of them. The order makes every state readable:
//!
//! ```text
//! after writing       certificate  CA   key  key.new   `load` gives
//! (before)            old          old  old  –         old pair, old CA
//! the key beside      old          old  old  new       old pair, old CA: the old key fits
//! the CA              old          new  old  new       old pair, new CA
//! the certificate     new          new  old  new       new pair, new CA: only the new key fits
//! rename of the key   new          new  new  –         new pair, new CA
//! ```
//!
//! A key made for a signing request waits in the same `key.new` until its certificate comes, if it ever does. Whoever
//! writes here first finishes what a crash left (`settle`). Writers and readers lock the directory.

mod args;
mod pem;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use platform::exec::Cmd;
use platform::files::{self, FileError};
use protocol::secret::Secret;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::InconsistentKeys;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tracing::info;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::args::{CertImportArgs, ImportMode, Machine, SetupArgs, keystore_cert_import, keystore_setup};
pub use self::pem::Origin;
use self::pem::Text;
use crate::properties::{Properties, lock_directory_of};
use crate::trust::{leads_to, printable, rfc3339};

/// Where the stock scripts put the CA certificate for other programs of this machine.
pub const SYSTEM_CA: &str = "/usr/local/share/ca-certificates/cloudstack/ca.crt";

/// Not used by us; kept for a machine that goes back to the Java agent.
const PASSPHRASE: &str = "keystore.passphrase";

const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// Where everything is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyStore {
    pub properties: PathBuf,
    pub certificate: PathBuf,
    pub ca: PathBuf,
    pub key: PathBuf,
    pub request: PathBuf,
    /// Where an import also leaves the CA certificates, usually [`SYSTEM_CA`].
    pub system_ca: Option<PathBuf>,
}

/// What is known at one moment: whom to trust, and who we are.
#[derive(Clone)]
pub struct Identity {
    /// Where `ca` was read, for messages.
    pub ca_file: PathBuf,
    /// At least one.
    pub ca: Vec<CertificateDer<'static>>,
    /// Our certificate chain with its key; `None` until one was imported.
    pub own: Option<Arc<CertifiedKey>>,
}

/// What an import did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Import {
    /// Nothing: none was given and this file is missing, too. Success for the original script.
    Skipped { missing: PathBuf },
    Done {
        /// Our name in the certificate, such as `CN=v-2-VM`.
        subject: String,
        /// RFC 3339.
        not_after: String,
        /// What remains to be run, in this order, for the rest of the machine to notice.
        commands: Vec<Cmd>,
    },
}

/// What is wrong with the files or with what should become of them. Never quotes a key or a pass phrase.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{origin} is not text{}", origin.fix())]
    NotText { origin: Origin },
    #[error("{origin} is longer than a certificate or key can be")]
    TooLong { origin: Origin },
    #[error("{origin} holds no {wanted}{}", origin.fix())]
    Lacks { origin: Origin, wanted: &'static str },
    #[error("{origin} is damaged: {reason}{}", origin.fix())]
    Damaged { origin: Origin, reason: &'static str },
    #[error("certificate {number} of {origin} cannot be read as X.509{}", origin.fix())]
    NotX509 { origin: Origin, number: usize },
    #[error("{origin} cannot be used for TLS{}", origin.fix())]
    Unusable { origin: Origin, source: rustls::Error },
    #[error("{certificate} ({subject}) does not belong to {keys}{}", certificate.fix())]
    KeyMismatch {
        certificate: Origin,
        subject: String,
        keys: String,
    },
    #[error("there is no private key for {certificate} ({subject}) in {key}; import the certificate with its key")]
    NoKey {
        certificate: Origin,
        subject: String,
        key: PathBuf,
    },
    #[error("{certificate} ({subject}) was issued by {issuer}, which is none of the certificates in {ca}")]
    NotIssued {
        certificate: Origin,
        subject: String,
        issuer: String,
        ca: Origin,
    },
    #[error("{path} does not exist, so this machine was not set up as a system VM yet")]
    NoProperties { path: PathBuf },
    #[error("{path} did not appear within {waited:?}; is this a system VM?")]
    NoDirectory { path: PathBuf, waited: Duration },
    #[error("cannot make a signing request for {name:?}")]
    Request { name: String, source: rcgen::Error },
    #[error("cannot list this machine's addresses")]
    Addresses { source: io::Error },
    #[error("{0}")]
    Usage(String),
}

impl KeyStore {
    /// The names that the stock scripts and the management server use.
    pub fn in_directory(directory: impl AsRef<Path>) -> Self {
        let file = |name| directory.as_ref().join(name);
        Self {
            properties: file("agent.properties"),
            certificate: file("cloud.crt"),
            ca: file("cloud.ca.crt"),
            key: file("cloud.key"),
            request: file("cloud.csr"),
            system_ca: None,
        }
    }

    #[must_use]
    pub fn with_system_ca(self, path: impl Into<PathBuf>) -> Self {
        Self {
            system_ca: Some(path.into()),
            ..self
        }
    }

    /// Reads what is there now. `None` as long as no CA certificate was imported: then nobody can be told from anybody.
    /// One that is there and cannot be reached is an error, or else a damaged disk would make us trust everybody.
    pub fn load(&self) -> Result<Option<Identity>, KeyStoreError> {
        if !is_there(&self.ca)? {
            return Ok(None);
        }
        // In the middle of an import we could read a pair that never was.
        let _lock = lock_directory_of(&self.key, File::lock_shared)?;
        let ca = read(&self.ca)?.ok_or_else(|| cannot("open", &self.ca)(ErrorKind::NotFound.into()))?;
        let own = self.own()?;
        Ok(Some(Identity {
            ca_file: self.ca.clone(),
            ca: ca.certificates()?,
            own: own.map(|(own, _)| Arc::new(own)),
        }))
    }

    /// Makes a key and a request for its certificate, for SetupKeyStoreCommand. Returns the request as PEM. The key in
    /// use stays so until the certificate arrives. `validity_days` is a wish that no request can carry: the issuer
    /// decides.
    pub fn setup_keystore(
        &self,
        password: &Secret<String>,
        validity_days: i64,
        fqdn: &str,
        addresses: &[IpAddr],
    ) -> Result<String, KeyStoreError> {
        self.keep_passphrase(password)?;
        let refused = |source| KeyStoreError::Request {
            name: fqdn.to_owned(),
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused)?;
        let request = request(fqdn, addresses)
            .serialize_request(&key)
            .and_then(|request| request.pem());
        let request = request.map_err(refused)?;

        let directory = lock_directory_of(&self.key, File::lock)?;
        self.settle(&directory)?;
        let _ = files::replace(self.waiting_key(), key.serialize_pem(), PRIVATE)?;
        let _ = files::replace(&self.request, &request, PUBLIC)?;
        info!(fqdn, ?addresses, validity_days, path = %self.request.display(), "Certificate requested");
        Ok(request)
    }

    /// Takes a certificate into use, for SetupCertificateCommand. Without a private key it must belong to one we have.
    /// Nothing is written before everything fits together.
    pub fn setup_certificate(
        &self,
        certificate: &str,
        private_key: &Secret<String>,
        ca_certificates: &str,
    ) -> Result<Import, KeyStoreError> {
        let directory = lock_directory_of(&self.key, File::lock)?;
        self.settle(&directory)?;
        let missing = |path: &Path| Ok(Import::Skipped { missing: path.into() });
        let Some(certificate) = given_or_present("certificate", certificate, &self.certificate)? else {
            return missing(&self.certificate);
        };
        let Some(ca) = given_or_present("CA certificate", ca_certificates, &self.ca)? else {
            return missing(&self.ca);
        };
        let given_key = Text::given("private key", private_key.expose())?;

        let chain = certificate.certificates()?;
        let facts = Facts::of(&chain);
        if !leads_to(&chain, &ca.certificates()?) {
            return Err(KeyStoreError::NotIssued {
                certificate: certificate.origin,
                subject: facts.subject,
                issuer: facts.issuer,
                ca: ca.origin,
            });
        }
        let takes_waiting_key = if given_key.is_empty() {
            let (_, fits) = self.pair(&certificate.origin, &chain)?;
            fits == self.waiting_key()
        } else {
            if fit(&chain, &given_key)?.is_none() {
                return Err(KeyStoreError::KeyMismatch {
                    certificate: certificate.origin,
                    subject: facts.subject,
                    keys: given_key.origin.to_string(),
                });
            }
            let _ = files::replace(self.waiting_key(), given_key.contents(), PRIVATE)?;
            true
        };

        let _ = files::replace(&self.ca, ca.contents(), PUBLIC)?;
        let _ = files::replace(&self.certificate, certificate.contents(), PUBLIC)?;
        if takes_waiting_key {
            self.take_waiting_key(&directory)?;
        }
        info!(
            subject = facts.subject,
            issuer = facts.issuer,
            not_after = facts.not_after,
            "Certificate imported"
        );
        Ok(Import::Done {
            subject: facts.subject,
            not_after: facts.not_after,
            commands: self.publish_ca(&ca)?,
        })
    }

    /// For the rest of the machine. Gives the command even when the file is as it was: the last run may have been cut
    /// short.
    fn publish_ca(&self, ca: &Text<'_>) -> Result<Vec<Cmd>, KeyStoreError> {
        let Some(path) = &self.system_ca else {
            return Ok(Vec::new());
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|source| FileError::Io {
                operation: "create the directory",
                path: directory.to_owned(),
                source,
            })?;
        }
        let _ = files::replace(path, ca.contents(), PUBLIC)?;
        Ok(vec![Cmd::new("update-ca-certificates")])
    }

    /// Stores the pass phrase unless there is one. Says whether there is a file to store it in.
    fn keep_passphrase(&self, offered: &Secret<String>) -> Result<bool, KeyStoreError> {
        let exists = is_there(&self.properties)?;
        if exists {
            let _ = Properties::edit(&self.properties, |properties| {
                let is_free = properties.get(PASSPHRASE).is_none_or(|found| found.trim().is_empty());
                if is_free && !offered.expose().is_empty() {
                    properties.set(PASSPHRASE, offered.expose());
                }
            })?;
        }
        Ok(exists)
    }

    /// The certificate with the key that fits, and where that key is.
    fn own(&self) -> Result<Option<(CertifiedKey, PathBuf)>, KeyStoreError> {
        let Some(certificate) = read(&self.certificate)? else {
            return Ok(None);
        };
        self.pair(&certificate.origin, &certificate.certificates()?).map(Some)
    }

    fn pair(
        &self,
        certificate: &Origin,
        chain: &[CertificateDer<'static>],
    ) -> Result<(CertifiedKey, PathBuf), KeyStoreError> {
        let waiting = self.waiting_key();
        let (mut misfits, mut broken) = (Vec::new(), Ok(()));
        for path in [&self.key, &waiting] {
            let Some(key) = read(path)? else { continue };
            match fit(chain, &key) {
                Ok(Some(pair)) => return Ok((pair, path.clone())),
                Ok(None) => misfits.push(key.origin.to_string()),
                Err(error) => broken = broken.and(Err(error)),
            }
        }
        broken?;
        let (certificate, subject) = (certificate.clone(), Facts::of(chain).subject);
        if misfits.is_empty() {
            return Err(KeyStoreError::NoKey {
                certificate,
                subject,
                key: self.key.clone(),
            });
        }
        Err(KeyStoreError::KeyMismatch {
            certificate,
            subject,
            keys: misfits.join(" or "),
        })
    }

    /// Finishes an import that ended between the certificate and its key.
    fn settle(&self, directory: &File) -> Result<(), KeyStoreError> {
        match self.own() {
            Ok(Some((_, key))) if key == self.waiting_key() => self.take_waiting_key(directory),
            _ => Ok(()), // whatever is wrong is about to be replaced
        }
    }

    fn take_waiting_key(&self, directory: &File) -> Result<(), KeyStoreError> {
        let taken = fs::rename(self.waiting_key(), &self.key).and_then(|()| directory.sync_all());
        Ok(taken.map_err(|source| FileError::Io {
            operation: "replace",
            path: self.key.clone(),
            source,
        })?)
    }

    /// `cloud.key.new`
    fn waiting_key(&self) -> PathBuf {
        let mut path = self.key.clone().into_os_string();
        path.push(".new");
        path.into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("ca_file", &self.ca_file)
            .field("trusted", &self.ca.len())
            .field("own", &self.own.as_ref().map(|own| Facts::of(&own.cert)))
            .finish()
    }
}

/// What a person wants to know of a certificate.
#[derive(Debug)]
struct Facts {
    subject: String,
    issuer: String,
    not_after: String,
}

impl Facts {
    fn of(chain: &[CertificateDer<'_>]) -> Self {
        let first = chain.first().and_then(|der| X509Certificate::from_der(der).ok());
        let (_, certificate) = first.expect("Text::certificates gives at least one, all of them readable");
        Self {
            subject: printable(certificate.subject()),
            issuer: printable(certificate.issuer()),
            not_after: rfc3339(certificate.validity().not_after.to_datetime()),
        }
    }
}

/// As `keytool` writes it: names from the country down to `CN`.
fn request(fqdn: &str, addresses: &[IpAddr]) -> CertificateParams {
    let mut name = DistinguishedName::new();
    for part in [
        DnType::CountryName,
        DnType::OrganizationName,
        DnType::OrganizationalUnitName,
    ] {
        name.push(part, "cloudstack");
    }
    name.push(DnType::CommonName, fqdn);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.subject_alt_names = addresses
        .iter()
        .filter(|ip| is_reachable(**ip))
        .map(|ip| SanType::IpAddress(*ip))
        .collect();
    params
}

/// Not this machine's alone. The link-local control network of a hypervisor is.
fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

fn given_or_present<'a>(name: &'static str, text: &'a str, path: &Path) -> Result<Option<Text<'a>>, KeyStoreError> {
    let given = Text::given(name, text)?;
    if given.is_empty() { read(path) } else { Ok(Some(given)) }
}

/// A link that leads nowhere is there, and an error.
fn is_there(path: &Path) -> Result<bool, FileError> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Ok(_) => fs::metadata(path),
        error => error,
    };
    found.map(|_| true).map_err(cannot("look at", path))
}

fn cannot(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io {
        operation,
        path,
        source,
    }
}

fn read(path: &Path) -> Result<Option<Text<'static>>, KeyStoreError> {
    let limit = u64::try_from(pem::MAX_BYTES).unwrap_or(u64::MAX);
    let Some(bytes) = files::read_limited(path, limit)? else {
        return Ok(None);
    };
    let origin = Origin::File(path.to_owned());
    match String::from_utf8(bytes) {
        Ok(pem) => Ok(Some(Text {
            origin,
            pem: pem.into(),
        })),
        Err(_) => Err(KeyStoreError::NotText { origin }),
    }
}

/// The chain with its key; `None` when they do not belong together.
fn fit(chain: &[CertificateDer<'static>], key: &Text<'_>) -> Result<Option<CertifiedKey>, KeyStoreError> {
    match CertifiedKey::from_der(chain.to_owned(), key.private_key()?, &ring::default_provider()) {
        Ok(pair) => Ok(Some(pair)),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Ok(None),
        Err(source) => Err(KeyStoreError::Unusable {
            origin: key.origin.clone(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use platform::logging::chain;

    use super::*;

    #[test]
    fn only_a_key_store_that_is_not_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::in_directory(dir.path());
        let elsewhere = KeyStore::in_directory(dir.path().join("missing"));
        for absent in [&store, &elsewhere] {
            assert!(absent.load().unwrap().is_none());
            assert!(!absent.keep_passphrase(&Secret::default()).unwrap());
        }

        let problem = |path: &Path, reason: &str| Some(format!("cannot look at {}: {reason}", path.display()));
        let told = |store: &KeyStore| {
            let load = store.load().err().map(|error| chain(&error).to_string());
            let keep = store.keep_passphrase(&Secret::default()).err();
            (load, keep.map(|error| chain(&error).to_string()))
        };
        for (target, reason) in [
            ("gone", "No such file or directory (os error 2)"),
            ("loop", "Too many levels of symbolic links (os error 40)"),
        ] {
            let link = dir.path().join(target);
            symlink(if target == "loop" { "loop" } else { "nowhere" }, &link).unwrap();
            let linked = KeyStore {
                ca: link.clone(),
                properties: link.clone(),
                ..store.clone()
            };
            assert_eq!(told(&linked), (problem(&link, reason), problem(&link, reason)));
        }

        let _ = files::replace(dir.path().join("file"), "", PUBLIC).unwrap();
        let behind_a_file = KeyStore::in_directory(dir.path().join("file"));
        let reason = "Not a directory (os error 20)";
        let wanted = (
            problem(&behind_a_file.ca, reason),
            problem(&behind_a_file.properties, reason),
        );
        assert_eq!(told(&behind_a_file), wanted);
    }
}
