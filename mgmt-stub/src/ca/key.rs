//! The CA's key, for certificates (rcgen) and for handshakes (rustls) alike.

use std::fmt;
use std::sync::Arc;

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;

/// rustls reads PKCS#8, PKCS#1 and SEC1, RSA and ECDSA; rcgen with `ring` reads PKCS#8 only. So rustls holds the key and
/// signs for rcgen.
pub(super) struct CaKey {
    key: Arc<dyn SigningKey>,
    public: SubjectPublicKeyInfo,
    scheme: SignatureScheme,
}

#[derive(Debug, thiserror::Error)]
pub enum BadKey {
    #[error("expected one private key in PEM (PKCS#8, PKCS#1 or SEC1) without a pass phrase")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("expected an RSA key of 2048 to 4096 bits, or an ECDSA key on P-256 or P-384")]
    Kind,
}

impl CaKey {
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, BadKey> {
        let key = any_supported_type(&PrivateKeyDer::from_pem_slice(pem).map_err(BadKey::Pem)?);
        let key = key.map_err(|_| BadKey::Kind)?;
        let public = key.public_key().ok_or(BadKey::Kind)?;
        let public = SubjectPublicKeyInfo::from_der(&public).map_err(|_| BadKey::Kind)?;
        let algorithm = public.algorithm();
        let known = [
            (&rcgen::PKCS_RSA_SHA256, SignatureScheme::RSA_PKCS1_SHA256),
            (&rcgen::PKCS_ECDSA_P256_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, SignatureScheme::ECDSA_NISTP384_SHA384),
        ];
        let found = known.into_iter().find(|(known, _)| *known == algorithm);
        let (_, scheme) = found.ok_or(BadKey::Kind)?;
        Ok(Self { key, public, scheme })
    }

    pub(super) fn for_handshakes(&self) -> Arc<dyn SigningKey> {
        self.key.clone()
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl rcgen::SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = self.key.choose_scheme(&[self.scheme]);
        let signer = signer.ok_or(rcgen::Error::UnsupportedSignatureAlgorithm)?;
        signer.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaKey({:?})", self.scheme)
    }
}
