//! Console tokens (§4): which screen, and the password to it, sealed by the management server for us alone.

use std::borrow::Cow;

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, KeyInit};
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use protocol::secret::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use serde::Deserialize;

/// Longest token text that is looked at; real ones reach 2 KiB.
const MAX_TEXT: usize = 12 << 10;

/// Bytes of the key, and of the "IV".
const KEY_LEN: usize = 16;

/// Either alphabet is brought into this one first; padding may be there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Opens tokens. Made from what a StartConsoleProxyAgentHttpHandlerCommand brings.
pub struct Keys {
    gcm: LessSafeKey,
    /// The "IV" of the older form is the additional data of the current one.
    iv: [u8; KEY_LEN],
    /// Tokens of servers up to 4.18.0, without any integrity; only where the operator wants them.
    cbc: Option<Aes128>,
}

/// Why there are no keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// Not the JSON that was expected.
    #[error("encryptorPassword is not JSON with base64EncodedKeyBytes and base64EncodedIvBytes")]
    NotJson,
    /// The wrong number of bytes, or no base64.
    #[error("{0} in encryptorPassword is not base64 of 16 bytes")]
    NotAKey(&'static str),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyBytes {
    base64_encoded_key_bytes: Secret<String>,
    base64_encoded_iv_bytes: Secret<String>,
}

impl Keys {
    /// Reads the member `encryptorPassword`.
    ///
    /// # Errors
    /// It is not what servers send.
    pub fn parse(encryptor_password: &str, accepts_cbc: bool) -> Result<Self, BadKeys> {
        let bytes: KeyBytes = serde_json::from_str(encryptor_password).map_err(|_| BadKeys::NotJson)?;
        let key = key_bytes(&bytes.base64_encoded_key_bytes).ok_or(BadKeys::NotAKey("base64EncodedKeyBytes"))?;
        let iv = key_bytes(&bytes.base64_encoded_iv_bytes).ok_or(BadKeys::NotAKey("base64EncodedIvBytes"))?;
        let derived = digest(&SHA256, &key);
        let gcm = UnboundKey::new(&AES_256_GCM, derived.as_ref()).expect("SHA-256 has the length of an AES-256 key");
        Ok(Self {
            gcm: LessSafeKey::new(gcm),
            iv,
            cbc: accepts_cbc.then(|| Aes128::new(&key.into())),
        })
    }

    /// Opens a token as it stands in a raw query string. `None`: it is not one of ours, whatever the reason.
    pub fn open(&self, raw: &str) -> Option<Token> {
        let sealed = decode_base64(&percent_decoded(raw))?;
        let plain = self.open_gcm(sealed.clone()).or_else(|| self.open_cbc(sealed))?;
        serde_json::from_slice(&plain).ok()
    }

    fn open_gcm(&self, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = Nonce::try_assume_unique_for_key(sealed.get(..NONCE_LEN)?).ok()?;
        let body = sealed.get_mut(NONCE_LEN..)?;
        let plain = self.gcm.open_in_place(nonce, Aad::from(self.iv), body).ok()?;
        Some(plain.to_vec())
    }

    /// AES-128-CBC with PKCS#7 padding.
    fn open_cbc(&self, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let aes = self.cbc.as_ref()?;
        let (blocks, []) = sealed.as_chunks_mut::<KEY_LEN>() else {
            return None;
        };
        let mut previous = self.iv;
        for block in blocks {
            let sealed_block = *block;
            let mut opened = sealed_block.into();
            aes.decrypt_block(&mut opened);
            for ((out, opened), previous) in block.iter_mut().zip(opened).zip(previous) {
                *out = opened ^ previous;
            }
            previous = sealed_block;
        }
        let padding = usize::from(*sealed.last()?);
        let end = sealed
            .len()
            .checked_sub(padding)
            .filter(|_| (1..=KEY_LEN).contains(&padding))?;
        let is_padded = sealed.drain(end..).all(|byte| usize::from(byte) == padding);
        is_padded.then_some(sealed)
    }
}

fn key_bytes(text: &Secret<String>) -> Option<[u8; KEY_LEN]> {
    decode_base64(text.expose())?.try_into().ok()
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = Some(text).filter(|text| text.len() <= MAX_TEXT)?;
    BASE64.decode(text.replace('-', "+").replace('_', "/")).ok()
}

/// The value of `name` in a raw query string: what stands between the first `name=` and the next `&`, untouched (§4).
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// `%41` is `A`; a plus is a plus. What is no escape stays as it is.
pub fn percent_decoded(raw: &str) -> Cow<'_, str> {
    if !raw.contains('%') {
        return Cow::Borrowed(raw);
    }
    let hex = |digits: Option<&[u8]>| -> Option<u8> {
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (bytes, mut decoded, mut at) = (raw.as_bytes(), Vec::with_capacity(raw.len()), 0);
    while let Some(byte) = bytes.get(at) {
        if let Some(value) = hex(bytes.get(at + 1..at + 3)).filter(|_| *byte == b'%') {
            decoded.push(value);
            at += 3;
        } else {
            decoded.push(*byte);
            at += 1;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

/// What is in a token. Empty texts count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Token {
    /// Address of the hypervisor; for Hyper-V the VM's GUID.
    #[serde(deserialize_with = "non_empty")]
    pub client_host_address: Option<String>,
    /// VNC port; -1 for XenServer.
    pub client_host_port: Option<i32>,
    /// VNC password of the VM, called sid elsewhere.
    pub client_host_password: Option<Secret<String>>,
    /// UUID of the VM.
    #[serde(deserialize_with = "non_empty")]
    pub client_tag: Option<String>,
    /// Name of the VM for its user.
    pub client_display_name: Option<String>,
    /// The management server's proof that it made this a minute ago.
    pub ticket: Option<Secret<String>>,
    /// XenServer: URL of the console.
    #[serde(deserialize_with = "non_empty")]
    pub client_tunnel_url: Option<String>,
    /// XenServer: session of its API.
    pub client_tunnel_session: Option<Secret<String>>,
    /// Hyper-V: its host.
    #[serde(rename = "hypervHost", deserialize_with = "non_empty")]
    pub hyperv_host: Option<String>,
    /// Address from which the endpoint was created.
    #[serde(rename = "sourceIP")]
    pub source_ip: Option<String>,
    /// VMware: where its screen is; holds a ticket.
    pub websocket_url: Option<Secret<String>>,
    /// The session, to be used once.
    #[serde(deserialize_with = "non_empty")]
    pub session_uuid: Option<String>,
    /// Several viewers of this VM may look at the same time.
    pub session_requires_new_viewer: bool,
    /// What the browser must show besides.
    pub extra_security_token: Option<Secret<String>>,
}

fn non_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Which way leads to the screen (§7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// RFB over TCP.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// XenServer: RFB behind HTTP CONNECT.
    Tunnel {
        /// `https://<host>/console?uuid=…`
        url: String,
        /// Cookie.
        session: Secret<String>,
    },
    /// VMware: RFB in another WebSocket.
    WebSocket(Secret<String>),
    /// Hyper-V: RDP, which we do not speak.
    HyperV,
}

impl Token {
    /// The way to the screen. `None`: the token lacks what every token has.
    pub fn target(&self) -> Option<Target> {
        let present = |secret: &Option<Secret<String>>| secret.clone().filter(|text| !text.expose().trim().is_empty());
        let (host, port) = (self.client_host_address.clone()?, self.client_host_port?);
        self.client_host_password.as_ref()?;
        Some(if let Some(url) = present(&self.websocket_url) {
            Target::WebSocket(url)
        } else if let (Some(url), Some(session)) =
            (self.client_tunnel_url.clone(), present(&self.client_tunnel_session))
        {
            Target::Tunnel { url, session }
        } else if self.hyperv_host.is_some() {
            Target::HyperV
        } else {
            let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
            Target::Tcp { host, port }
        })
    }

    /// Whether the browser shows the extra token, if one is asked for. Takes as long for a wrong one as for the right.
    pub fn admits_extra(&self, query: &str) -> bool {
        let Some(wanted) = self
            .extra_security_token
            .as_ref()
            .filter(|extra| !extra.expose().is_empty())
        else {
            return true;
        };
        let shown = query_value(query, "extra").unwrap_or_default();
        let same = |shown: &str| {
            digest(&SHA256, shown.as_bytes()).as_ref() == digest(&SHA256, wanted.expose().as_bytes()).as_ref()
        };
        // Stock servers put it into the URL unescaped; a browser or a front end may have escaped it.
        same(shown) | same(&percent_decoded(shown))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../tests/vectors/tokens.json")).unwrap()
    }

    fn keys(accepts_cbc: bool) -> Keys {
        Keys::parse(vectors()["encryptor_password"].as_str().unwrap(), accepts_cbc).unwrap()
    }

    fn text<'a>(value: &'a Value, name: &str) -> &'a str {
        value[name].as_str().unwrap()
    }

    #[test]
    fn every_issued_token_opens_to_its_fields() {
        for vector in vectors()["tokens"].as_array().unwrap() {
            let token = keys(false).open(text(vector, "token")).unwrap();
            let wanted: Token = serde_json::from_value(vector["fields"].clone()).unwrap();
            assert_eq!(token, wanted, "{}", vector["name"]);
            assert!(token.target().is_some(), "{}", vector["name"]);
        }
    }

    #[test]
    fn each_accepted_spelling_opens_and_each_bad_one_does_not() {
        let vectors = vectors();
        let first: Token = serde_json::from_value(vectors["tokens"][0]["fields"].clone()).unwrap();
        for vector in vectors["must_open_to_the_first_token"].as_array().unwrap() {
            let opened = keys(false).open(text(vector, "token_in_query"));
            assert_eq!(opened.as_ref(), Some(&first), "{}", vector["why"]);
        }
        for vector in vectors["must_be_refused"].as_array().unwrap() {
            for accepts_cbc in [false, true] {
                let opened = keys(accepts_cbc).open(text(vector, "token_in_query"));
                assert_eq!(opened, None, "{}", vector["why"]);
            }
        }
    }

    #[test]
    fn tokens_of_old_servers_open_only_where_the_operator_says_so() {
        for vector in vectors()["tokens"].as_array().unwrap() {
            let old = text(vector, "token_cbc_before_4_18_1");
            assert_eq!(keys(false).open(old), None);
            let wanted: Token = serde_json::from_value(vector["fields"].clone()).unwrap();
            assert_eq!(keys(true).open(old), Some(wanted), "{}", vector["name"]);
        }
    }

    #[test]
    fn the_way_follows_the_fields() {
        let opened = |at: usize| {
            keys(false)
                .open(text(&vectors()["tokens"][at], "token"))
                .unwrap()
                .target()
                .unwrap()
        };
        assert_eq!(
            opened(0),
            Target::Tcp {
                host: "192.168.10.21".into(),
                port: 5901
            }
        );
        assert!(
            matches!(opened(1), Target::Tunnel { url, .. } if url.starts_with("https://192.168.10.30/console?uuid="))
        );
        assert!(matches!(opened(2), Target::WebSocket(_)));
        let hyperv = Token {
            client_host_address: Some("guid".into()),
            client_host_port: Some(2179),
            client_host_password: Some(Secret::default()),
            hyperv_host: Some("h".into()),
            ..Token::default()
        };
        assert_eq!(hyperv.target(), Some(Target::HyperV));
        assert_eq!(Token::default().target(), None);
    }

    #[test]
    fn an_extra_token_must_be_shown_escaped_or_not() {
        let token = keys(false).open(text(&vectors()["tokens"][2], "token")).unwrap();
        assert!(token.admits_extra("token=x&extra=s3cr3t+extra"));
        assert!(token.admits_extra("extra=s3cr3t%2Bextra&token=x"));
        for wrong in [
            "",
            "extra=",
            "extra=s3cr3t extra",
            "extras=s3cr3t+extra",
            "extra=S3cr3t+extra",
        ] {
            assert!(!token.admits_extra(wrong), "{wrong}");
        }
        assert!(Token::default().admits_extra("extra=whatever"));
    }

    #[test]
    fn keys_that_are_none_are_refused_by_name() {
        assert_eq!(Keys::parse("secret", false).err(), Some(BadKeys::NotJson));
        let short = r#"{"base64EncodedKeyBytes":"AAEC","base64EncodedIvBytes":"EBESExQVFhcYGRobHB0eHw"}"#;
        assert_eq!(
            Keys::parse(short, false).err(),
            Some(BadKeys::NotAKey("base64EncodedKeyBytes"))
        );
    }

    #[test]
    fn no_secret_of_a_token_is_ever_printed() {
        for vector in vectors()["tokens"].as_array().unwrap() {
            let token = keys(false).open(text(vector, "token")).unwrap();
            let printed = format!("{token:?} {:?}", token.target());
            let secrets = [
                &token.client_host_password,
                &token.ticket,
                &token.client_tunnel_session,
                &token.websocket_url,
            ];
            for secret in secrets.into_iter().flatten() {
                assert!(!printed.contains(secret.expose()), "{printed}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_query_is_refused_without_a_panic(query in ".{0,200}") {
            let value = query_value(&query, "token").unwrap_or(&query);
            prop_assert_eq!(keys(true).open(value), None);
        }

        #[test]
        fn escaping_is_undone(text in "[a-zA-Z0-9+/= %]{0,40}") {
            let escaped = text.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02x}"));
            prop_assert_eq!(percent_decoded(&escaped), text);
        }
    }
}
