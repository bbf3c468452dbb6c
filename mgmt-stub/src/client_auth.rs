//! Which client certificates the management server accepts on port 8250 (agent-protocol.md §1.2, management.md §13.4).
//!
//! The stock server believes any certificate by its serial and names alone. We verify what is presented; what must be
//! presented is for the settings to say.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use time::{Duration, OffsetDateTime};
use x509_parser::parse_x509_certificate;

use crate::ca::{Ca, Serial, names_and_addresses};

/// Setting `ca.plugin.root.auth.strictness`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// `false`: an agent may come without a certificate. One that it presents must be good all the same.
    Optional,
    /// `true`: a certificate is needed, and must be for the address that the agent comes from.
    Required,
}

/// Setting `ca.plugin.root.allow.expired.cert`: certificates that are good but for their age.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expired {
    /// `true`: an agent that was switched off for a year gets in, and its certificate is renewed.
    Accepted,
    Refused,
}

/// For [`Ca::server_config`].
pub fn verifier(
    ca: &Ca,
    strictness: Strictness,
    expired: Expired,
) -> Result<Arc<dyn ClientCertVerifier>, BadTrustAnchor> {
    let mut roots = RootCertStore::empty();
    roots
        .add(ca.certificate().clone())
        .map_err(|error| BadTrustAnchor(error.into()))?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
    let builder = match strictness {
        Strictness::Optional => builder.allow_unauthenticated(),
        Strictness::Required => builder,
    };
    let chain = builder.build().map_err(|error| BadTrustAnchor(error.into()))?;
    Ok(Arc::new(Verifier { chain, expired }))
}

#[derive(Debug, thiserror::Error)]
#[error("client certificates cannot be verified with this CA")]
pub struct BadTrustAnchor(#[source] Box<dyn std::error::Error + Send + Sync>);

/// Whether a certificate that passed the handshake may be used from this address. `revoked`: see
/// [`crate::store::Store::is_revoked`]. Without strictness neither matters, because no certificate would do, too.
pub fn check_peer(
    certificate: &PresentedCertificate,
    peer: IpAddr,
    revoked: bool,
    strictness: Strictness,
) -> Result<(), BadPeer> {
    let subject = || certificate.subject.clone();
    let peer = peer.to_canonical();
    match strictness {
        Strictness::Optional => Ok(()),
        Strictness::Required if revoked => Err(BadPeer::Revoked {
            subject: subject(),
            serial: certificate.serial.clone(),
        }),
        Strictness::Required
            if certificate
                .addresses
                .iter()
                .any(|address| address.to_canonical() == peer) =>
        {
            Ok(())
        }
        Strictness::Required => Err(BadPeer::OtherAddress {
            subject: subject(),
            peer,
            addresses: certificate.addresses.clone(),
        }),
    }
}

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPeer {
    #[error("the client certificate of {subject:?} (serial {serial}) is revoked")]
    Revoked { subject: String, serial: Serial },
    #[error(
        "the client certificate of {subject:?} is for {addresses:?}, but the connection comes from {peer}; is there NAT \
         between them?"
    )]
    OtherAddress {
        subject: String,
        peer: IpAddr,
        addresses: Vec<IpAddr>,
    },
}

/// What we want to know of a certificate that an agent presents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresentedCertificate {
    pub serial: Serial,
    /// Such as `CN=s-1-VM`. Show it with `{:?}`: before the handshake is done, a stranger wrote it.
    pub subject: String,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("the client certificate is damaged")]
pub struct BadCertificate;

/// Enough to recognise a subject by, and little enough for a log.
const MAX_SUBJECT_LEN: usize = 200;

impl PresentedCertificate {
    pub fn parse(der: &[u8]) -> Result<Self, BadCertificate> {
        let (rest, certificate) = parse_x509_certificate(der).map_err(|_| BadCertificate)?;
        if !rest.is_empty() {
            return Err(BadCertificate);
        }
        let sans = certificate.subject_alternative_name().map_err(|_| BadCertificate)?;
        let (names, addresses) =
            sans.map_or_else(Default::default, |sans| names_and_addresses(&sans.value.general_names));
        Ok(Self {
            serial: Serial::from_octets(certificate.raw_serial()),
            subject: certificate
                .subject()
                .to_string()
                .chars()
                .take(MAX_SUBJECT_LEN)
                .collect(),
            names,
            addresses,
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
        })
    }

    /// The subject's common name.
    pub fn common_name(&self) -> Option<&str> {
        self.subject.split(',').find_map(|part| part.trim().strip_prefix("CN="))
    }

    /// Renew it when this is true of `ca.framework.cert.expiry.alert.period` (15 days).
    pub fn expires_within(&self, period: Duration, now: OffsetDateTime) -> bool {
        self.not_after - now < period
    }
}

/// webpki's verifier, with a clock that stops for certificates that are only too old.
#[derive(Debug)]
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    expired: Expired,
}

/// What a failed handshake says to our log. The peer is only told that its certificate was not good.
pub fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(refused))) => refused.to_string(),
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the client does not have the key of the certificate it presents".to_owned()
        }
        rustls::Error::NoCertificatesPresented => {
            "the client has no certificate, and ca.plugin.root.auth.strictness is true".to_owned()
        }
        other => other.to_string(),
    }
}

/// Travels through rustls to [`explain`].
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("the client certificate of {subject:?} (serial {serial}) is refused: {problem}")]
struct Refused {
    subject: String,
    serial: Serial,
    problem: String,
}

impl ClientCertVerifier for Verifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let presented = PresentedCertificate::parse(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let verify_at = match self.expired {
            Expired::Accepted => unix_time(presented.not_after).map_or(now, |not_after| now.min(not_after)),
            Expired::Refused => now,
        };
        let verified = self.chain.verify_client_cert(end_entity, intermediates, verify_at);
        verified.map_err(|error| refuse(presented, &error))
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn refuse(presented: PresentedCertificate, error: &rustls::Error) -> rustls::Error {
    use rustls::Error::InvalidCertificate;
    let problem = match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "it was not issued by this management server's CA".to_owned()
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => format!(
            "it ended at {}, and ca.plugin.root.allow.expired.cert is false",
            presented.not_after
        ),
        InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            format!("it begins at {}; are the clocks right?", presented.not_before)
        }
        other => other.to_string(),
    };
    let PresentedCertificate { serial, subject, .. } = presented;
    let refused = Refused {
        subject,
        serial,
        problem,
    };
    CertificateError::Other(OtherError(Arc::new(refused))).into()
}

fn unix_time(moment: OffsetDateTime) -> Option<UnixTime> {
    let seconds = u64::try_from(moment.unix_timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests;
