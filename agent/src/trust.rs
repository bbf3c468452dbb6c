//! Whom we take for the management server, and what we show to it: the TLS side of `agent-protocol.md` §1.2.
//!
//! No host name is checked: management servers are addressed by IP, and their certificate carries no names. What counts
//! is that the certificate is one of the trusted CA certificates (a stock server presents the CA itself) or issued by
//! one.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme, version};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::warn;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use crate::keystore::Identity;

/// What to do with a management server while no CA certificate is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrustUnknown {
    /// Talk to it, as the Java agent does: in a stock zone the first connection comes before the certificates.
    Accept,
    Refuse,
}

#[derive(Debug, thiserror::Error)]
pub enum NoClientConfig {
    #[error("no CA certificate has been imported yet, and talking to an unknown management server is switched off")]
    UnknownServer,
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// How to open a connection with what is known now. Made anew for each connection: certificates change underneath.
pub fn client_config(
    identity: Option<&Identity>,
    when_unknown: TrustUnknown,
) -> Result<Arc<ClientConfig>, NoClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let trust = match (identity, when_unknown) {
        (Some(identity), _) => Trust::Pinned(Pins::new(identity)),
        (None, TrustUnknown::Refuse) => return Err(NoClientConfig::UnknownServer),
        (None, TrustUnknown::Accept) => {
            warn!("No CA certificate has been imported yet, so any management server is believed");
            Trust::Anyone
        }
    };
    // A Java server that agrees on TLS 1.3 sends a record outside the framing.
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, provider }));
    let mut config = match identity.and_then(|identity| identity.own.clone()) {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Our own reason in a failed handshake, if that is why it failed. `rustls` shows it only in its `Debug` form.
pub fn refusal(error: &rustls::Error) -> Option<&Untrusted> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.downcast_ref(),
        _ => None,
    }
}

/// Why a management server was not believed. `Debug` is the same text, because that is all `rustls` passes on.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate of {peer} {problem}")]
pub struct Untrusted {
    pub peer: String,
    pub problem: Problem,
}

impl fmt::Debug for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Times are written as RFC 3339, names as X.500.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot be read as X.509")]
    Unreadable,
    #[error("expired on {not_after} (this machine's clock says {now})")]
    Expired { not_after: String, now: String },
    #[error("is not valid before {not_before}, and this machine's clock says {now}; is the clock right?")]
    NotYetValid { not_before: String, now: String },
    #[error("was issued by {issuer}, which is not one of the {trusted} trusted CA certificate(s) in {ca_file}")]
    UnknownIssuer {
        issuer: String,
        trusted: usize,
        ca_file: String,
    },
    #[error(
        "names {issuer} as its issuer, but the CA certificate of that name in {ca_file} has another key; was the \
         management server's CA made anew?"
    )]
    OtherKey { issuer: String, ca_file: String },
    #[error("was issued by {issuer} and does not lead to a CA certificate in {ca_file}: {reason}")]
    BadChain {
        issuer: String,
        ca_file: String,
        reason: webpki::Error,
    },
}

#[derive(Debug)]
enum Trust {
    Anyone,
    Pinned(Pins),
}

/// The certificates a server's certificate must be, or come from.
#[derive(Debug)]
struct Pins {
    ca: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    ca_file: String,
}

impl Pins {
    fn new(identity: &Identity) -> Self {
        // One that cannot be an anchor can still be the server's own certificate.
        let anchors = identity
            .ca
            .iter()
            .filter_map(|ca| Some(anchor_from_trusted_cert(ca).ok()?.to_owned()));
        Self {
            anchors: anchors.collect(),
            ca: identity.ca.clone(),
            ca_file: identity.ca_file.display().to_string(),
        }
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Problem> {
        let (_, certificate) = X509Certificate::from_der(end_entity).map_err(|_| Problem::Unreadable)?;
        let validity = certificate.validity();
        let clock = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if clock > validity.not_after.timestamp() {
            return Err(expired(validity.not_after.to_datetime(), now));
        }
        if clock < validity.not_before.timestamp() {
            return Err(not_yet_valid(validity.not_before.to_datetime(), now));
        }
        if self.ca.contains(end_entity) {
            return Ok(());
        }
        // webpki refuses a CA certificate in a server's place. A stock server presents the CA it signs with.
        if certificate.is_ca() && self.ca.iter().any(|ca| is_issued_by(end_entity, ca)) {
            return Ok(());
        }
        let chain = EndEntityCert::try_from(end_entity).and_then(|end_entity| {
            let usage = KeyUsage::server_auth();
            let algorithms = ring::default_provider().signature_verification_algorithms.all;
            end_entity
                .verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, None, None)
                .map(drop)
        });
        chain.map_err(|error| self.explain(error, &certificate, now))
    }

    fn explain(&self, error: webpki::Error, certificate: &X509Certificate<'_>, now: UnixTime) -> Problem {
        let issuer = printable(certificate.issuer());
        let ca_file = self.ca_file.clone();
        match error {
            webpki::Error::CertExpired { not_after, .. } => expired(date(not_after), now),
            webpki::Error::CertNotValidYet { not_before, .. } => not_yet_valid(date(not_before), now),
            webpki::Error::UnknownIssuer
            | webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::CaUsedAsEndEntity => {
                if self.ca.iter().any(|ca| has_subject(ca, certificate.issuer())) {
                    Problem::OtherKey { issuer, ca_file }
                } else {
                    let trusted = self.ca.len();
                    Problem::UnknownIssuer {
                        issuer,
                        trusted,
                        ca_file,
                    }
                }
            }
            reason => Problem::BadChain {
                issuer,
                ca_file,
                reason,
            },
        }
    }
}

fn expired(not_after: OffsetDateTime, now: UnixTime) -> Problem {
    let (not_after, now) = (rfc3339(not_after), rfc3339(date(now)));
    Problem::Expired { not_after, now }
}

fn not_yet_valid(not_before: OffsetDateTime, now: UnixTime) -> Problem {
    let (not_before, now) = (rfc3339(not_before), rfc3339(date(now)));
    Problem::NotYetValid { not_before, now }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let checked = match &self.trust {
            Trust::Anyone => Ok(()),
            Trust::Pinned(pins) => pins.check(end_entity, intermediates, now),
        };
        checked.map(|()| ServerCertVerified::assertion()).map_err(|problem| {
            let peer = server_name.to_str().into_owned();
            CertificateError::Other(OtherError(Arc::new(Untrusted { peer, problem }))).into()
        })
    }

    /// Also without pins: the server must have the key of the certificate it shows.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// A CloudStack chain has one or two links; a longer walk is a circle.
const MAX_CHAIN: usize = 8;

/// Whether the first certificate of `chain` is one of `ca`, or was issued by one, possibly through the rest of `chain`.
/// Dates do not count: an import must not depend on this machine's clock.
pub(crate) fn leads_to(chain: &[CertificateDer<'_>], ca: &[CertificateDer<'_>]) -> bool {
    let mut link = chain.first();
    for _ in 0..MAX_CHAIN {
        let Some(certificate) = link else { return false };
        if ca.contains(certificate) || ca.iter().any(|ca| is_issued_by(certificate, ca)) {
            return true;
        }
        link = chain
            .iter()
            .find(|next| *next != certificate && is_issued_by(certificate, next));
    }
    false
}

/// Whether `issuer` has the name that `certificate` gives for its issuer, and the key that signed it.
fn is_issued_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) = (
        X509Certificate::from_der(certificate),
        X509Certificate::from_der(issuer),
    ) else {
        return false;
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && ring::default_provider()
            .signature_verification_algorithms
            .all
            .iter()
            .any(|algorithm| {
                let (key, signature) = (&issuer.public_key().subject_public_key, &certificate.signature_value);
                let signed = certificate.tbs_certificate.as_ref();
                algorithm.verify_signature(&key.data, signed, &signature.data).is_ok()
            })
}

fn has_subject(certificate: &CertificateDer<'_>, name: &X509Name<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, found)| found.subject().as_raw() == name.as_raw())
}

/// A name as a certificate's maker wrote it, fit for one line of a log.
pub(crate) fn printable(name: &X509Name<'_>) -> String {
    name.to_string().replace(char::is_control, "?")
}

pub(crate) fn rfc3339(date: OffsetDateTime) -> String {
    date.format(&Rfc3339)
        .unwrap_or_else(|_| format!("year {}", date.year())) // it has four digits for the year
}

fn date(time: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
