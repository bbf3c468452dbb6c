//! The token in a console's URL: what the proxy must know, sealed so that the browser cannot read or change it
//! (management.md §8, console-proxy.md §4).

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use protocol::secret::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest;
use serde::Serialize;

/// Keys are written without padding; an administrator may have added it.
const KEYS: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the proxy is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Content<'a> {
    /// VNC host.
    pub client_host_address: &'a str,
    /// VNC port.
    pub client_host_port: u16,
    /// VNC password; also what the proxy shows us as `sid`.
    pub client_host_password: &'a Secret<String>,
    /// UUID of the instance.
    pub client_tag: &'a str,
    /// For the title of the window.
    pub client_display_name: &'a str,
    /// Access ticket.
    pub ticket: &'a Secret<String>,
    /// Console session.
    pub session_uuid: &'a str,
    /// Address of who asked for the console.
    #[serde(rename = "sourceIP", skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<&'a str>,
    /// The caller's own token, which the URL must then repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_security_token: Option<&'a str>,
    /// Always false: for servers that cannot share a screen.
    pub session_requires_new_viewer: bool,
}

/// A setting is not a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "setting {0} is not URL-safe Base64 of 16 bytes; remove it from the database and restart the server to get a new one"
)]
pub struct BadKey(pub &'static str);

/// Key and additional data of all tokens of a zone.
pub struct Sealer {
    key: LessSafeKey,
    additional: [u8; 16],
}

impl Sealer {
    /// From the settings `security.encryption.key` and `security.encryption.iv`.
    ///
    /// # Errors
    /// One of them is not 16 bytes.
    pub fn new(key: &Secret<String>, iv: &Secret<String>) -> Result<Self, BadKey> {
        let bytes = |secret: &Secret<String>, name| -> Result<[u8; 16], BadKey> {
            let decoded = KEYS.decode(secret.expose()).map_err(|_| BadKey(name))?;
            decoded.try_into().map_err(|_| BadKey(name))
        };
        let additional = bytes(iv, "security.encryption.iv")?;
        let key = bytes(key, "security.encryption.key")?;
        let key = digest::digest(&digest::SHA256, &key);
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| BadKey("security.encryption.key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            additional,
        })
    }

    /// The token. A nonce must never be used twice: let it be random.
    pub fn seal(&self, content: &[u8], nonce: [u8; 12]) -> String {
        let mut sealed = content.to_vec();
        let sealing = self.key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(self.additional),
            &mut sealed,
        );
        sealing.expect("a token is far from the limit of 64 GiB");
        let mut token = nonce.to_vec();
        token.append(&mut sealed);
        BASE64_STANDARD.encode(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
        digits
            .chunks(2)
            .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
            .collect()
    }

    fn sealer() -> Sealer {
        let secret = |text: &str| Secret::new(text.to_owned());
        Sealer::new(&secret("AAECAwQFBgcICQoLDA0ODw"), &secret("EBESExQVFhcYGRobHB0eHw==")).unwrap()
    }

    #[test]
    fn tokens_are_those_of_the_vectors() {
        let vectors = include_str!("../../tests/vectors/console/tokens.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let tokens = vectors["tokens"].as_array().unwrap();
        assert!(!tokens.is_empty());
        for case in tokens {
            let text = |member: &str| case[member].as_str().unwrap();
            let nonce = hex(text("nonce_hex")).try_into().unwrap();
            assert_eq!(
                sealer().seal(text("json").as_bytes(), nonce),
                text("token"),
                "{}",
                text("name")
            );
        }
    }

    #[test]
    fn the_token_of_the_management_pages() {
        let content = r#"{"clientHostAddress":"10.0.0.5","clientHostPort":5901,"clientHostPassword":"vncpass1","clientTag":"6d1f2a34-0b8e-4c5d-9e7f-112233445566","sessionUuid":"0f0e0d0c-0b0a-4908-8706-050403020100"}"#;
        let nonce: [u8; 12] = std::array::from_fn(|index| 0x20 + u8::try_from(index).unwrap());
        assert_eq!(
            sealer().seal(content.as_bytes(), nonce),
            "ICEiIyQlJicoKSorlBefva5eqNPm9tf1DgFFlo47/ISjHCvpIpwbi0d1+Ff6jgpktCRiILdolukcJ1+W+T15PefbCjX/RUJgT3trFFhKY7Zd8hO1rlDKpRjFq/c8JUhPg2Lq2VLSyXx2k1iaPqDJzbF60XpCIFyo9cML24dfXeTw0iz/sLO0q2JBujoJX1fsknwh6BkUFhOpjYmA/1LnC/m74Hs7ViJfr9ln7VPjEpippU1CkLXxjROUPQFj/KR7sH4ZftFTKeHSZHZhpe0Dz95k7te4wvcWehg="
        );
    }

    #[test]
    fn a_bad_key_names_its_setting() {
        let secret = |text: &str| Secret::new(text.to_owned());
        let good = "AAECAwQFBgcICQoLDA0ODw";
        let error = |key: &str, iv: &str| Sealer::new(&secret(key), &secret(iv)).err();
        assert_eq!(error("", good), Some(BadKey("security.encryption.key")));
        assert_eq!(error(good, "AAEC"), Some(BadKey("security.encryption.iv")));
    }
}
