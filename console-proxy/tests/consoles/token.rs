//! Tokens as the management server seals them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// As the command StartConsoleProxyAgentHttpHandler brings it.
pub(crate) const ENCRYPTOR: &str =
    r#"{"base64EncodedKeyBytes":"AAECAwQFBgcICQoLDA0ODw","base64EncodedIvBytes":"EBESExQVFhcYGRobHB0eHw"}"#;

pub(crate) const KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const IV: [u8; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];

pub(crate) const VM: &str = "6a1f3a52-0c8e-4a2e-9f3c-2f6f5a1b7c10";
pub(crate) const PASSWORD: &str = "Wm9vVmVyeVNlY3JldA";
pub(crate) const TICKET: &str = "dGlja2V0LXNlY3JldA==";

/// The content of a token for a host on this machine.
pub(crate) fn content(port: u16, session: &str) -> Value {
    json!({
        "clientHostAddress": "127.0.0.1",
        "clientHostPort": port,
        "clientHostPassword": PASSWORD,
        "clientTag": VM,
        "clientDisplayName": "web-01",
        "ticket": TICKET,
        "sourceIP": "203.0.113.7",
        "sessionUuid": session,
    })
}

pub(crate) fn seal(content: &Value) -> String {
    seal_with(KEY, content)
}

pub(crate) fn seal_with(key: [u8; 16], content: &Value) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, digest(&SHA256, &key).as_ref()).unwrap());
    let nonce = [7; 12]; // a token of a test needs no fresh one
    let mut sealed = content.to_string().into_bytes();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(IV), &mut sealed)
        .unwrap();
    STANDARD.encode([&nonce[..], &sealed].concat())
}
