//! TLS as the management server speaks it on port 8250.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use platform::logging::chain;
use rustls::crypto::ring;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS12;
use rustls::{ServerConfig, sign};
use time::{Duration, OffsetDateTime};

use super::{Ca, IssueError, Request};

/// What agents get to see. All of them accept both (agent-protocol.md §1.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Presented {
    /// A certificate of its own, issued for these names and addresses: the CA's key stays out of handshakes.
    Leaf { names: Vec<String>, addresses: Vec<IpAddr> },
    /// The CA certificate itself, as the stock server does.
    CaCertificate,
}

/// The server's own certificate is renewed this long before it ends, at the next handshake, unless the CA ends with it.
const RENEW_BEFORE: Duration = Duration::days(15);

impl Ca {
    /// TLS 1.2 only, without resumption: agent-protocol.md §1.2. Connections that are open keep their certificate.
    pub fn server_config(
        &self,
        presented: Presented,
        client_auth: Arc<dyn ClientCertVerifier>,
    ) -> Result<Arc<ServerConfig>, IssueError> {
        let resolver: Arc<dyn ResolvesServerCert> = match presented {
            Presented::Leaf { names, addresses } => Arc::new(OwnLeaf::issue(self, names, addresses)?),
            Presented::CaCertificate => {
                let pair = CertifiedKey::new(self.inner.chain.clone(), self.inner.issuer.key().for_handshakes());
                Arc::new(SingleCertAndKey::from(pair))
            }
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS12])
            .map_err(IssueError::Tls)?
            .with_client_cert_verifier(client_auth)
            .with_cert_resolver(resolver);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0; // and TLS 1.2 tickets are off unless one sets a ticketer
        Ok(Arc::new(config))
    }
}

/// The server's certificate and key, in memory only: each start and each renewal makes new ones.
#[derive(Debug)]
struct OwnLeaf {
    ca: Ca,
    request: Request,
    current: Mutex<Leaf>,
}

#[derive(Clone, Debug)]
struct Leaf {
    not_after: OffsetDateTime,
    pair: Arc<CertifiedKey>,
}

impl OwnLeaf {
    fn issue(ca: &Ca, dns_names: Vec<String>, addresses: Vec<IpAddr>) -> Result<Self, IssueError> {
        let common_name = dns_names
            .first()
            .cloned()
            .unwrap_or_else(|| "management server".to_owned());
        let request = Request::new(common_name, dns_names, addresses);
        let current = Mutex::new(leaf(ca, &request)?);
        let ca = ca.clone();
        Ok(Self { ca, request, current })
    }

    fn at(&self, now: OffsetDateTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner); // each value in it is whole
        if current.not_after < self.ca.not_after() && current.not_after - now < RENEW_BEFORE {
            match leaf(&self.ca, &self.request) {
                Ok(renewed) => *current = renewed,
                Err(error) => tracing::error!(error = %chain(&error), "Server certificate not renewed"),
            }
        }
        current.pair.clone()
    }
}

impl ResolvesServerCert for OwnLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(OffsetDateTime::now_utc()))
    }
}

fn leaf(ca: &Ca, request: &Request) -> Result<Leaf, IssueError> {
    let key = rcgen::KeyPair::generate()?;
    let (signed, der) = ca.sign(&key, request)?;
    let signing_key: Arc<dyn sign::SigningKey> =
        any_supported_type(&PrivatePkcs8KeyDer::from(key.serialize_der()).into()).map_err(IssueError::Tls)?;
    let chain = std::iter::once(der).chain(ca.inner.chain.iter().cloned()).collect();
    Ok(Leaf {
        not_after: signed.not_after,
        pair: Arc::new(CertifiedKey::new(chain, signing_key)),
    })
}

#[cfg(test)]
mod tests {
    use platform::files::replace;

    use super::*;

    #[test]
    fn the_servers_certificate_is_renewed_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let own = OwnLeaf::issue(&ca, vec!["localhost".to_owned()], Vec::new()).unwrap();
        let now = OffsetDateTime::now_utc();
        let first = own.at(now);
        assert!(Arc::ptr_eq(&first, &own.at(now + Duration::days(349))));
        assert!(!Arc::ptr_eq(&first, &own.at(now + Duration::days(351))));
    }

    #[test]
    fn a_certificate_that_ends_with_its_ca_is_not_renewed() {
        let (dir, now) = (tempfile::tempdir().unwrap(), OffsetDateTime::now_utc());
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(10));
        let _ = replace(
            dir.path().join("ca.crt"),
            params.self_signed(&key).unwrap().pem(),
            0o644,
        )
        .unwrap();
        let _ = replace(dir.path().join("ca.key"), key.serialize_pem(), 0o600).unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();

        let own = OwnLeaf::issue(&ca, vec!["localhost".to_owned()], Vec::new()).unwrap();
        assert!(Arc::ptr_eq(&own.at(now), &own.at(now + Duration::days(9))));
    }
}
