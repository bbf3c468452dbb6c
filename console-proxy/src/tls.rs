//! The certificate that browsers see (§12): the management server's, or one of our own making.

use std::path::Path;
use std::sync::Arc;

use platform::files;
use protocol::secret::Secret;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::keystore::{self, BadKeyStore};

/// Browsers refuse certificates that are valid for longer.
const VALIDITY: Duration = Duration::days(397);

/// A certificate is made anew this long before its end.
const RENEWAL: Duration = Duration::days(30);

/// Files of certificate and key are a few KiB.
const MAX_PEM: u64 = 64 << 10;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum NoTls {
    /// JKS.
    #[error("the key store of the management server cannot be used")]
    KeyStore(#[from] BadKeyStore),
    /// Key and certificate do not fit, or are of a kind that we do not have.
    #[error("the certificate for browsers cannot be used")]
    Certificate(#[from] rustls::Error),
    /// Not X.509.
    #[error("a certificate for browsers is not X.509")]
    NotX509,
    /// Our own.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// Where our own is kept.
    #[error(transparent)]
    File(#[from] files::FileError),
}

/// A configuration for listeners, and when its certificate ends (seconds of the Unix epoch).
pub struct Tls {
    /// For both kinds of listeners.
    pub config: Arc<ServerConfig>,
    /// End of the certificate.
    pub not_after: i64,
}

/// From the key store that came with a StartConsoleProxyAgentHttpHandlerCommand.
///
/// # Errors
/// It cannot be used.
pub fn from_key_store(bytes: &Secret<Vec<u8>>, password: &Secret<String>) -> Result<Tls, NoTls> {
    let entry = keystore::read(bytes.expose(), password.expose())?;
    let chain = ordered(&entry.chain)?;
    configure(chain, PrivatePkcs8KeyDer::from(entry.key.expose().clone()).into())
}

/// A certificate of our own, kept in `directory` so that a browser's exception lives as long as the certificate.
///
/// # Errors
/// It cannot be kept.
pub fn self_signed(directory: &Path, names: &[String]) -> Result<Tls, NoTls> {
    let (certificate_file, key_file) = (directory.join("browser.crt"), directory.join("browser.key"));
    if let Some(tls) = load(&certificate_file, &key_file) {
        return Ok(tls);
    }
    let mut params = CertificateParams::new(names.to_vec())?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1); // clocks differ
    params.not_after = now + VALIDITY - Duration::days(1);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "console proxy");
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let _ = files::replace(&key_file, key.serialize_pem(), 0o600)?;
    let _ = files::replace(&certificate_file, certificate.pem(), 0o644)?;
    configure(
        vec![certificate.der().clone()],
        PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    )
}

/// What an earlier run left; `None`: make a new one.
fn load(certificate: &Path, key: &Path) -> Option<Tls> {
    let certificate = files::read_limited(certificate, MAX_PEM).ok()??;
    let key = files::read_limited(key, MAX_PEM).ok()??;
    let chain = vec![CertificateDer::from_pem_slice(&certificate).ok()?];
    let tls = configure(chain, PrivateKeyDer::from_pem_slice(&key).ok()?).ok()?;
    let is_fresh = tls.not_after > (OffsetDateTime::now_utc() + RENEWAL).unix_timestamp();
    is_fresh.then_some(tls)
}

fn configure(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Tls, NoTls> {
    let not_after = parse(chain.first().ok_or(NoTls::NotX509)?)?
        .validity()
        .not_after
        .timestamp();
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new()?;
    Ok(Tls {
        config: Arc::new(config),
        not_after,
    })
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, NoTls> {
    X509Certificate::from_der(certificate)
        .map(|(_, certificate)| certificate)
        .map_err(|_| NoTls::NotX509)
}

/// The leaf, then whoever signed the one before; without the root, which browsers have or do not believe.
fn ordered(chain: &[Vec<u8>]) -> Result<Vec<CertificateDer<'static>>, NoTls> {
    let parsed: Vec<_> = chain
        .iter()
        .map(|certificate| parse(certificate))
        .collect::<Result<_, _>>()?;
    let is_self_signed = |at: usize| parsed[at].subject() == parsed[at].issuer();
    let mut order = vec![0];
    loop {
        let last = order[order.len() - 1];
        let issuer = parsed.get(last).ok_or(NoTls::NotX509)?.issuer();
        let next = (0..parsed.len()).find(|at| !order.contains(at) && parsed[*at].subject() == issuer);
        let Some(next) = next.filter(|_| !is_self_signed(last)) else {
            break;
        };
        order.push(next);
    }
    if !order.is_sorted() || order.len() < parsed.len() {
        warn!(
            ?order,
            certificates = parsed.len(),
            "The chain of the key store does not link as it stands, sorted it"
        );
    }
    if order.len() > 1 && is_self_signed(order[order.len() - 1]) {
        order.pop();
    }
    Ok(order
        .into_iter()
        .map(|at| CertificateDer::from(chain[at].clone()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: &[u8] = include_bytes!("../tests/vectors/cpvm.jks");
    const PASSWORD: &str = "q83vASNFZ4mrze8BI0VniQ==";

    #[test]
    fn a_chain_is_sorted_and_loses_its_root() {
        let chain = keystore::read(STORE, PASSWORD).unwrap().chain;
        let wanted: Vec<_> = chain[..2].iter().cloned().map(CertificateDer::from).collect();
        assert_eq!(ordered(&chain).unwrap(), wanted);
        let [leaf, intermediate, root] = <[_; 3]>::try_from(chain).unwrap();
        assert_eq!(ordered(&[leaf, root, intermediate]).unwrap(), wanted);
        assert!(ordered(&[]).is_err());
    }

    #[test]
    fn the_servers_key_store_becomes_a_configuration() {
        let tls = from_key_store(&Secret::new(STORE.to_vec()), &Secret::new(PASSWORD.into())).unwrap();
        assert!(tls.not_after > 1_700_000_000);
        assert!(from_key_store(&Secret::new(STORE.to_vec()), &Secret::new("no".into())).is_err());
    }

    #[test]
    fn our_own_certificate_survives_a_restart_unless_it_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["127.0.0.1".to_owned(), "console.example.com".to_owned()];
        let make = || {
            self_signed(directory.path(), &names).unwrap();
            std::fs::read(directory.path().join("browser.crt")).unwrap()
        };
        let first = make();
        assert_eq!(make(), first);
        let _ = files::replace(directory.path().join("browser.key"), "no key", 0o600).unwrap();
        assert_ne!(make(), first);
    }
}
