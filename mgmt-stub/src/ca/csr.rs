//! Certificate signing requests: what we believe of them, which is little.

use std::net::IpAddr;

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// A PKCS#10 request whose sender has the private key. Wishes for anything but names (to be a CA, for instance) are not
/// even read. rcgen's own reader refuses requests with other extensions, and Java's `keytool` always sends some.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Csr {
    pub(super) public_key: SubjectPublicKeyInfo,
    pub(super) common_name: Option<String>,
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
}

/// A request with 4096-bit RSA and a hundred names has less than half of this.
const MAX_LEN: usize = 16 * 1024;
const MIN_RSA_BITS: usize = 2048;

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadCsr {
    #[error("the signing request has {0} bytes; the limit is {MAX_LEN}")]
    TooLong(usize),
    #[error("expected a signing request in PEM (BEGIN CERTIFICATE REQUEST)")]
    Pem,
    #[error("the signing request is damaged")]
    Damaged,
    #[error("the signing request is not signed with the key it holds")]
    Signature,
    #[error("the key of the signing request must be RSA of 2048 bits or more, or ECDSA on P-256 or P-384")]
    Key,
}

impl Csr {
    pub(super) fn from_pem(pem: &str) -> Result<Self, BadCsr> {
        if pem.len() > MAX_LEN {
            return Err(BadCsr::TooLong(pem.len()));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| BadCsr::Pem)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| BadCsr::Damaged)?;
        if !rest.is_empty() {
            return Err(BadCsr::Damaged);
        }
        request.verify_signature().map_err(|_| BadCsr::Signature)?;

        let info = &request.certification_request_info;
        if let Ok(PublicKey::RSA(key)) = info.subject_pki.parsed()
            && key.key_size() < MIN_RSA_BITS
        {
            return Err(BadCsr::Key);
        }
        let mut csr = Self {
            public_key: SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| BadCsr::Key)?,
            common_name: info
                .subject
                .iter_common_name()
                .find_map(|name| Some(name.as_str().ok()?.to_owned())),
            names: Vec::new(),
            addresses: Vec::new(),
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(sans) = extension {
                let (names, addresses) = names_and_addresses(&sans.general_names);
                csr.names.extend(names);
                csr.addresses.extend(addresses);
            }
        }
        Ok(csr)
    }
}

/// The two kinds of subject alternative names that CloudStack uses; others do not concern us.
pub(crate) fn names_and_addresses(sans: &[GeneralName<'_>]) -> (Vec<String>, Vec<IpAddr>) {
    let names = sans.iter().filter_map(|san| match san {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let addresses = sans.iter().filter_map(|san| match san {
        GeneralName::IPAddress(octets) => address(octets),
        _ => None,
    });
    (names.collect(), addresses.collect())
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(octets).map(IpAddr::from);
    v4.or(v6).ok()
}
