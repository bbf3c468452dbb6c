//! Certificate authorities and a management server's end of TLS, for tests.

pub(crate) mod conf;

use std::io::Write;
use std::net::IpAddr;
use std::ops::DerefMut;
use std::path::Path;
use std::sync::Arc;

use platform::exec::{Cmd, ExecError};
use platform::files;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection, SideData,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What every clock in these tests says.
pub(crate) const NOW: &str = "2026-07-01T12:00:00Z";
pub(crate) const PEER: &str = "10.1.1.2";

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .map(Result::unwrap)
            .collect()
    }
}

pub(crate) struct Authority {
    pub(crate) pair: Pair,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// As a stock management server makes its own, but with a key that is quick to make.
    pub(crate) fn new(name: &str) -> Self {
        Self::from_params(authority_params(name))
    }

    pub(crate) fn from_params(params: CertificateParams) -> Self {
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self::from_issuer(issuer)
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::from_issuer(CertifiedIssuer::signed_by(authority_params(name), key, &self.issuer).unwrap())
    }

    fn from_issuer(issuer: CertifiedIssuer<'static, KeyPair>) -> Self {
        let pair = Pair {
            certificate: issuer.pem(),
            key: issuer.key().serialize_pem(),
        };
        Self { pair, issuer }
    }

    pub(crate) fn issue(&self, name: &str) -> Pair {
        self.issue_params(&params(name))
    }

    /// As the management server does: the request's key and names under a subject of its own choice.
    pub(crate) fn answer(&self, request: &str) -> String {
        let request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.signed_by(&self.issuer).unwrap().pem()
    }

    pub(crate) fn issue_params(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

pub(crate) fn authority_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Valid on [`NOW`], for half a year each way.
pub(crate) fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::IpAddress(IpAddr::from([10, 1, 1, 7]))];
    params.not_before = date("2026-01-01T00:00:00Z");
    params.not_after = date("2026-12-31T23:59:59Z");
    params
}

pub(crate) fn date(rfc3339: &str) -> OffsetDateTime {
    OffsetDateTime::parse(rfc3339, &Rfc3339).unwrap()
}

/// A management server that wants a client certificate, takes none for an answer, and checks one against `clients`.
/// Without `clients` it does not ask.
pub(crate) fn server(shown: &Pair, clients: &[CertificateDer<'static>]) -> ServerConfig {
    server_with_key(shown, &shown.key, clients)
}

/// The same, with a key that may be another's.
pub(crate) fn server_with_key(shown: &Pair, key: &str, clients: &[CertificateDer<'static>]) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if clients.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        assert_eq!(roots.add_parsable_certificates(clients.to_vec()), (clients.len(), 0));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
    };
    let key = ring::sign::any_supported_type(&PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
    builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(shown.chain(), key))))
}

/// Shakes hands in memory, at [`NOW`]. Returns both ends, or why the client gave up.
pub(crate) fn shake(client: &ClientConfig, mut server: ServerConfig) -> Result<Ends, rustls::Error> {
    let mut client = client.clone();
    client.time_provider = Arc::new(Clock);
    server.time_provider = Arc::new(Clock);
    shake_today(client, server)
}

/// The same, by the real clock.
pub(crate) fn shake_today(client: ClientConfig, server: ServerConfig) -> Result<Ends, rustls::Error> {
    let mut client = ClientConnection::new(Arc::new(client), PEER.try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        carry(&mut client, &mut server)?;
        carry(&mut server, &mut client)?;
    }
    Ok((client, server))
}

pub(crate) type Ends = (ClientConnection, ServerConnection);

fn carry<A, B, S, T>(from: &mut A, to: &mut B) -> Result<(), rustls::Error>
where
    A: DerefMut<Target = ConnectionCommon<S>>,
    B: DerefMut<Target = ConnectionCommon<T>>,
    S: SideData,
    T: SideData,
{
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = &*wire;
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(date(NOW).unix_timestamp()).unwrap();
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

pub(crate) fn put(path: impl AsRef<Path>, text: &str) {
    let _ = files::replace(path, text, 0o644).unwrap();
}

/// Runs `openssl` with words separated by blanks. `None`: it is not installed, and no one insists on all tests.
pub(crate) async fn openssl(directory: &Path, command: &str) -> Option<String> {
    let words = command
        .split(' ')
        .map(|word| word.replace("DIR", directory.to_str().unwrap()));
    match Cmd::new("openssl").args(words).run().await {
        Ok(output) => Some(output.text()),
        Err(ExecError::Start { .. }) if std::env::var_os("REQUIRE_ALL_TESTS").is_none() => {
            std::io::stderr().write_all(b"skipped: openssl is not installed\n").ok();
            None
        }
        Err(error) => panic!("{error}"),
    }
}
