//! The zone's certificate authority: two files, made at the first start or supplied by the administrator.
//!
//! Like the "root" provider of CloudStack (agent-protocol.md §1.2, §1.5), with ECDSA in place of RSA where we choose.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use indexmap::IndexSet;
use platform::files::{self, FileError};
use protocol::secret::Secret;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::parse_x509_certificate;

pub use csr::BadCsr;
pub(crate) use csr::names_and_addresses;
pub use key::BadKey;
use key::CaKey;
pub use serial::{BadSerial, Serial};
pub use server::Presented;

mod csr;
mod key;
mod serial;
mod server;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// Setting `ca.plugin.root.issuer.dn`.
const COMMON_NAME: &str = "ca.cloudstack.apache.org";
/// As the stock server: RootCAProvider.java `caValidityYears`, in years of 365 days.
const CA_VALIDITY: Duration = Duration::days(30 * 365);
/// Everything is valid from here on: the clock of a system VM may be behind ours.
const CLOCK_SKEW: Duration = Duration::hours(12);
/// Default of setting `ca.framework.cert.validity.period`.
pub const VALIDITY_DAYS: NonZeroU16 = NonZeroU16::new(365).expect("365 is not zero");
/// Bytes of `ca.crt` and `ca.key`. A chain of ten RSA certificates has a tenth of this.
const MAX_FILE_LEN: u64 = 256 * 1024;
/// Subject alternative names in one certificate. A VM has a few NICs; a request with more is a mistake or an attack.
const MAX_SANS: usize = 100;
/// RFC 5280 appendix A: ub-common-name.
const MAX_COMMON_NAME_LEN: usize = 64;
/// RFC 1035 §2.3.4.
const MAX_DNS_NAME_LEN: usize = 253;

/// Cheap to clone. Its `Debug` shows the subject only.
#[derive(Clone)]
pub struct Ca {
    inner: Arc<Inner>,
}

struct Inner {
    /// Ours first; more when the administrator's CA is not a root.
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    issuer: Issuer<'static, CaKey>,
    subject: String,
    not_after: OffsetDateTime,
}

/// A wish for a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The VM's host name.
    pub common_name: String,
    /// Host name and instance name.
    pub dns_names: Vec<String>,
    /// Of all NICs: with `ca.plugin.root.auth.strictness`, the agent's connection must come from one of these.
    pub addresses: Vec<IpAddr>,
    /// The certificate ends with the CA at the latest.
    pub validity_days: NonZeroU16,
}

/// What to do with the names in a signing request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CsrNames {
    /// For requests of agents: we know their names and addresses, and an agent must not choose whose it gets.
    Ignored,
    /// For requests of an administrator: its common name in place of ours, its names and addresses beside ours. What
    /// CloudStack does with every request.
    Accepted,
}

/// A certificate that is out in the world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// PEM.
    pub certificate: String,
    /// PEM: the CA's certificate, and those above it.
    pub ca: String,
    pub serial: Serial,
    pub subject: String,
    /// Names, then addresses.
    pub sans: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// A certificate with a key that we made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    pub signed: Signed,
    /// PEM, PKCS#8.
    pub private_key: Secret<String>,
}

/// Why there is no CA. A person has to look at the two files.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot create the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{certificate} is there, but {key} is missing; restore it, or remove both to get a new CA")]
    KeyMissing { certificate: PathBuf, key: PathBuf },
    #[error("cannot use {path}")]
    Key { path: PathBuf, source: BadKey },
    #[error("cannot use {path}: {problem}")]
    Certificate { path: PathBuf, problem: &'static str },
    #[error("{path} is valid from {from} to {to} only, and now it is {now}")]
    Dates {
        path: PathBuf,
        from: OffsetDateTime,
        to: OffsetDateTime,
        now: OffsetDateTime,
    },
    #[error("cannot make a CA")]
    Issue(#[from] IssueError),
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(
        "{0:?} cannot be the common name of a certificate; it needs 1 to {MAX_COMMON_NAME_LEN} printable characters"
    )]
    CommonName(String),
    #[error("{0:?} is not a host name")]
    DnsName(String),
    #[error("{0} names and addresses are too many for one certificate; the limit is {MAX_SANS}")]
    TooManyNames(usize),
    #[error(transparent)]
    Csr(#[from] BadCsr),
    #[error("cannot sign the certificate")]
    Sign(#[from] rcgen::Error),
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

impl Ca {
    /// Uses `ca.crt` and `ca.key` in `dir`, or makes them. Blocks.
    ///
    /// An administrator's own CA may be RSA or ECDSA, with those that signed it below it in `ca.crt`.
    pub fn open_or_create(dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let (certificate_path, key_path) = (dir.join(CERTIFICATE), dir.join(KEY));
        let certificate = files::read_limited(&certificate_path, MAX_FILE_LEN)?;
        let key = files::read_limited(&key_path, MAX_FILE_LEN)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                warn_if_readable_by_others(&key_path);
                Self::load(&certificate_path, &certificate, read_key(&key_path, &key)?)
            }
            (Some(_), None) => Err(OpenError::KeyMissing {
                certificate: certificate_path,
                key: key_path,
            }),
            (None, key) => {
                let path = dir.to_owned();
                let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                created.map_err(|source| OpenError::Directory { path, source })?;
                // The certificate comes last: a key alone is a start that was interrupted, and nobody trusts it yet.
                let key = match key {
                    Some(key) => key,
                    None => KeyPair::generate()
                        .map_err(IssueError::Sign)?
                        .serialize_pem()
                        .into_bytes(),
                };
                let _ = files::replace(&key_path, &key, 0o600)?;
                let key = read_key(&key_path, &key)?;
                let certificate = self_signed(&key)?;
                let _ = files::replace(&certificate_path, &certificate, 0o644)?;
                tracing::info!(path = %certificate_path.display(), "CA created");
                Self::load(&certificate_path, certificate.as_bytes(), key)
            }
        }
    }

    fn load(path: &Path, pem: &[u8], key: CaKey) -> Result<Self, OpenError> {
        let bad = |problem| OpenError::Certificate {
            path: path.to_owned(),
            problem,
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|_| bad("it is not PEM"))?;
        let parsed: Result<Vec<_>, _> = chain.iter().map(|der| parse_x509_certificate(der)).collect();
        let parsed = parsed.map_err(|_| bad("it holds a damaged certificate"))?;
        let parsed: Vec<_> = parsed.into_iter().map(|(_, certificate)| certificate).collect();
        let own = parsed.first().ok_or_else(|| bad("it holds no certificate in PEM"))?;

        let now = OffsetDateTime::now_utc();
        let (from, to) = validity(own);
        if own.public_key().raw != key.subject_public_key_info() {
            return Err(bad("its first certificate does not belong to the key in ca.key"));
        }
        if !own.is_ca() {
            return Err(bad("its first certificate is not a CA (basicConstraints CA:TRUE)"));
        }
        if own
            .key_usage()
            .is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.key_cert_sign()))
        {
            return Err(bad(
                "its first certificate may not sign certificates (keyUsage without keyCertSign)",
            ));
        }
        if !(from..=to).contains(&now) {
            let path = path.to_owned();
            return Err(OpenError::Dates { path, from, to, now });
        }
        if parsed.windows(2).any(|pair| !is_signed_by(&pair[0], &pair[1])) {
            return Err(bad("each certificate must be followed by the one that signed it"));
        }

        let issuer = Issuer::from_ca_cert_der(&chain[0], key).map_err(|_| bad("its subject is of an unusual form"))?;
        let ca = Self {
            inner: Arc::new(Inner {
                pem: chain.iter().map(|der| certificate_pem(der)).collect(),
                issuer,
                subject: own.subject().to_string(),
                not_after: to,
                chain: chain.clone(),
            }),
        };
        // rcgen rewrites names; one with an attribute twice (DC=example,DC=org) comes out shorter, and then nobody would
        // accept what we sign.
        let (_, probe) = ca.sign(
            ca.inner.issuer.key(),
            &Request::new("probe".to_owned(), Vec::new(), Vec::new()),
        )?;
        let same =
            parse_x509_certificate(&probe).is_ok_and(|(_, probe)| probe.issuer().as_raw() == own.subject().as_raw());
        same.then_some(ca)
            .ok_or_else(|| bad("its subject has the same attribute twice, which this program cannot write"))
    }

    /// PEM: the CA's certificate, and those above it.
    pub fn pem(&self) -> &str {
        &self.inner.pem
    }

    /// The certificate that signs.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.inner.chain[0]
    }

    pub fn subject(&self) -> &str {
        &self.inner.subject
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.inner.not_after
    }

    /// A new key, ECDSA on P-256, and a certificate for it.
    pub fn issue(&self, request: &Request) -> Result<Issued, IssueError> {
        let key = KeyPair::generate()?;
        let (signed, _) = self.sign(&key, request)?;
        Ok(Issued {
            signed,
            private_key: Secret::new(key.serialize_pem()),
        })
    }

    /// A certificate for the key of a PKCS#10 request in PEM.
    pub fn sign_csr(&self, csr: &str, request: &Request, names: CsrNames) -> Result<Signed, IssueError> {
        let csr = csr::Csr::from_pem(csr)?;
        let mut request = request.clone();
        if names == CsrNames::Accepted {
            request.common_name = csr.common_name.unwrap_or(request.common_name);
            request.dns_names.extend(csr.names);
            request.addresses.extend(csr.addresses);
        }
        Ok(self.sign(&csr.public_key, &request)?.0)
    }

    /// X.509 v3 with AKI, SKI, CA:FALSE and the names; no key usages, as the stock server.
    fn sign(
        &self,
        public_key: &impl PublicKeyData,
        request: &Request,
    ) -> Result<(Signed, CertificateDer<'static>), IssueError> {
        let names: IndexSet<&String> = request.dns_names.iter().collect();
        let addresses: IndexSet<&IpAddr> = request.addresses.iter().collect();
        let count = names.len() + addresses.len();
        if count > MAX_SANS {
            return Err(IssueError::TooManyNames(count));
        }
        let dns_names: Result<Vec<_>, _> = names.iter().map(|name| dns_name(name)).collect();
        let now = whole_seconds(OffsetDateTime::now_utc());
        let serial = Serial::random()?;

        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(serial.octets()));
        params.distinguished_name = common_name(&request.common_name)?;
        params.subject_alt_names = dns_names?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|address| SanType::IpAddress(**address)));
        params.not_before = now - CLOCK_SKEW;
        params.not_after = (now + Duration::days(request.validity_days.get().into())).min(self.inner.not_after);
        params.is_ca = IsCa::ExplicitNoCa; // for rcgen this means: write SKI, too
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(public_key, &self.inner.issuer)?;

        let sans = names
            .iter()
            .map(ToString::to_string)
            .chain(addresses.iter().map(ToString::to_string));
        let signed = Signed {
            certificate: certificate.pem(),
            ca: self.inner.pem.clone(),
            serial,
            subject: format!("CN={}", request.common_name),
            sans: sans.collect(),
            not_before: params.not_before,
            not_after: params.not_after,
        };
        Ok((signed, certificate.into()))
    }
}

impl Request {
    /// Valid for a year.
    pub fn new(common_name: String, dns_names: Vec<String>, addresses: Vec<IpAddr>) -> Self {
        Self {
            common_name,
            dns_names,
            addresses,
            validity_days: VALIDITY_DAYS,
        }
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.inner.subject)
    }
}

/// The certificate of a new CA, in PEM: agent-protocol.md §1.2.
fn self_signed(key: &CaKey) -> Result<String, IssueError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(Serial::random()?.octets()));
    params.distinguished_name = common_name(COMMON_NAME)?;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + CA_VALIDITY;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

fn common_name(name: &str) -> Result<DistinguishedName, IssueError> {
    let fits = (1..=MAX_COMMON_NAME_LEN).contains(&name.chars().count()) && !name.contains(char::is_control);
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    fits.then_some(subject)
        .ok_or_else(|| IssueError::CommonName(name.to_owned()))
}

fn dns_name(name: &str) -> Result<SanType, IssueError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte);
    let fits = (1..=MAX_DNS_NAME_LEN).contains(&name.len()) && name.bytes().all(plain);
    let name = fits.then(|| Ia5String::try_from(name).ok()).flatten().ok_or(name);
    name.map(SanType::DnsName)
        .map_err(|name| IssueError::DnsName(name.to_owned()))
}

fn read_key(path: &Path, pem: &[u8]) -> Result<CaKey, OpenError> {
    let path = path.to_owned();
    CaKey::from_pem(pem).map_err(|source| OpenError::Key { path, source })
}

fn validity(certificate: &X509Certificate<'_>) -> (OffsetDateTime, OffsetDateTime) {
    let validity = certificate.validity();
    (validity.not_before.to_datetime(), validity.not_after.to_datetime())
}

/// A signature of a kind that `ring` cannot verify is believed: the agents decide about certificates above ours.
fn is_signed_by(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())) != Err(X509Error::SignatureVerificationError)
}

/// Written anew, because what else an administrator's file holds is not for agents.
fn certificate_pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while let Some((line, more)) = rest.split_at_checked(64) {
        pem.extend([line, "\n"]);
        rest = more;
    }
    if !rest.is_empty() {
        pem.extend([rest, "\n"]);
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// Certificates have no fractions of seconds.
fn whole_seconds(moment: OffsetDateTime) -> OffsetDateTime {
    moment.replace_nanosecond(0).unwrap_or(moment)
}

fn warn_if_readable_by_others(key: &Path) {
    if let Ok(found) = fs::metadata(key)
        && found.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(path = %key.display(), "Others may read the CA's key; chmod 600 is enough for us");
    }
}

#[cfg(test)]
mod tests;
