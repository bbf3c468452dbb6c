//! PEM texts as they arrive: plain, encoded for a shell argument, or base64 of that; and what they hold.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::KeyStoreError;

/// Of one file or text. The CA certificates of all of Mozilla's roots take 230 kB.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// A PEM text.
pub(super) struct Text<'a> {
    pub(super) origin: Origin,
    pub(super) pem: Cow<'a, str>,
}

/// Where a PEM text comes from, for errors about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A peer passed it: "the certificate given".
    Given(&'static str),
    File(PathBuf),
}

impl Origin {
    pub(super) fn fix(&self) -> &'static str {
        match self {
            Self::Given(_) => "",
            Self::File(_) => "; import the certificate again",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(name) => write!(f, "the {name} given"),
            Self::File(path) => fmt::Display::fmt(&path.display(), f),
        }
    }
}

impl<'a> Text<'a> {
    /// Undoes what a peer may have done to a PEM text: newline is `^` and blank is `~` (utils/…/KeyStoreUtils.java),
    /// and base64 around it on the boot line of older servers. Neither character is part of PEM.
    pub(super) fn given(name: &'static str, text: &'a str) -> Result<Self, KeyStoreError> {
        let origin = Origin::Given(name);
        if text.len() > MAX_BYTES {
            return Err(KeyStoreError::TooLong { origin });
        }
        let text = match from_base64(text) {
            Some(decoded) if decoded.contains("-----BEGIN") => Cow::Owned(decoded),
            _ => Cow::Borrowed(text),
        };
        let pem = if text.contains(['^', '~']) {
            text.replace('^', "\n").replace('~', " ").into()
        } else {
            text
        };
        Ok(Self { origin, pem })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pem.trim().is_empty()
    }

    /// As it is written to a file.
    pub(super) fn contents(&self) -> String {
        format!("{}\n", self.pem.trim())
    }

    /// Every certificate in it, at least one, each of them readable.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, KeyStoreError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(self.pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| self.damaged(&error))?;
        if certificates.is_empty() {
            return Err(self.lacks("certificate (-----BEGIN CERTIFICATE-----)"));
        }
        match certificates
            .iter()
            .position(|der| X509Certificate::from_der(der).is_err())
        {
            Some(index) => Err(KeyStoreError::NotX509 {
                origin: self.origin.clone(),
                number: index + 1,
            }),
            None => Ok(certificates),
        }
    }

    /// The first private key in it: PKCS#8, PKCS#1 or SEC1.
    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, KeyStoreError> {
        PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).map_err(|error| match error {
            pem::Error::NoItemsFound if self.pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
                self.lacks("usable private key: it is protected with a pass phrase, give it without")
            }
            pem::Error::NoItemsFound => self.lacks("private key (-----BEGIN PRIVATE KEY-----)"),
            error => self.damaged(&error),
        })
    }

    fn lacks(&self, wanted: &'static str) -> KeyStoreError {
        KeyStoreError::Lacks {
            origin: self.origin.clone(),
            wanted,
        }
    }

    /// The error's own text quotes the line, which can be the key itself.
    fn damaged(&self, error: &pem::Error) -> KeyStoreError {
        let reason = match error {
            pem::Error::IllegalSectionStart { .. } | pem::Error::MissingSectionEnd { .. } => {
                "its BEGIN or END line is incomplete; was it cut off, or were its line ends lost?"
            }
            pem::Error::Base64Decode(_) => "its lines are not base64",
            _ => "its structure is broken",
        };
        KeyStoreError::Damaged {
            origin: self.origin.clone(),
            reason,
        }
    }
}

/// RFC 4648 §4, padded or not, in lines or not. `None` when it is something else.
fn from_base64(text: &str) -> Option<String> {
    let (mut bytes, mut buffer, mut bits) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0_u32);
    for byte in text.trim_end_matches(['=', '\r', '\n', ' ']).bytes() {
        let sextet = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\r' | b'\n' => continue,
            _ => return None,
        };
        buffer = (buffer << 6 | u32::from(sextet)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(buffer >> bits & 0xff).expect("masked to eight bits"));
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----\n";

    #[test]
    fn plain_encoded_and_base64_texts_are_the_same_pem() {
        let encoded = "-----BEGIN~PRIVATE~KEY-----^AAEC^-----END~PRIVATE~KEY-----^";
        let base64 = "LS0tLS1CRUdJTn5QUklWQVRFfktFWS0tLS0tXkFBRUNeLS0tLS1FTkR+UFJJVkFURX5LRVktLS0tLV4=";
        let (line, rest) = base64.split_at(40);
        let (in_lines, bare) = (format!("{line}\n{rest}\n"), base64.trim_end_matches('='));
        for text in [PEM, encoded, base64, &in_lines, bare] {
            assert_eq!(Text::given("private key", text).unwrap().pem, PEM, "{text}");
        }
    }

    #[test]
    fn an_error_about_a_key_does_not_quote_it() {
        let incomplete = "is damaged: its BEGIN or END line is incomplete; was it cut off, or were its line ends lost?";
        let encrypted = PEM.replace("PRIVATE", "ENCRYPTED PRIVATE");
        for (pem, reason) in [
            ("", "holds no private key (-----BEGIN PRIVATE KEY-----)"),
            (
                &*encrypted,
                "holds no usable private key: it is protected with a pass phrase, give it without",
            ),
            (&PEM.replace('\n', ""), incomplete),
            (&PEM.replace("KEY-----\n", "KEY--\n"), incomplete),
            (&PEM[..40], incomplete),
            (&PEM.replace("AAEC", "AAEC!"), "is damaged: its lines are not base64"),
        ] {
            let error = Text::given("private key", pem).unwrap().private_key().unwrap_err();
            assert_eq!(error.to_string(), format!("the private key given {reason}"));
            assert!(!format!("{error:?}").contains("AAEC"));
        }
    }

    proptest! {
        #[test]
        fn noise_does_not_panic(text in any::<String>(), section in "[A-Za-z0-9+/=^~\n ]{0,80}") {
            let certificate = format!("-----BEGIN CERTIFICATE-----\n{section}\n-----END CERTIFICATE-----");
            for text in [text, section, certificate.replace("CERTIFICATE", "EC PRIVATE KEY"), certificate] {
                let text = Text::given("certificate", &text).unwrap();
                text.certificates().ok();
                text.private_key().ok();
            }
        }
    }
}
