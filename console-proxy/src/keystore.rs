//! The management server's key store for browsers (§12): a Java key store, JKS version 2. SHA-1 is the format's choice.

use protocol::secret::Secret;
use sha1::{Digest, Sha1};

const MAGIC: u32 = 0xfeed_feed;
const DIGEST_LEN: usize = 20;

/// Entries and certificates that are read at most; real ones have a handful.
const MAX_COUNT: u32 = 100;

/// `SEQUENCE { OID 1.3.6.1.4.1.42.2.17.1.1, NULL }`: Sun's own way to protect a key.
const KEY_PROTECTOR: [u8; 16] = [
    0x30, 0x0e, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x2a, 0x02, 0x11, 0x01, 0x01, 0x05, 0x00,
];

/// A private key and the certificates that go with it.
#[derive(Debug)]
pub struct KeyEntry {
    /// Lower case.
    pub alias: String,
    /// PKCS#8.
    pub key: Secret<Vec<u8>>,
    /// X.509 in DER; the key's own first.
    pub chain: Vec<Vec<u8>>,
}

/// Why a key store cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyStore {
    /// Another kind of file, such as PKCS#12.
    #[error("it is no Java key store (JKS) of version 2")]
    NotJks,
    /// It ends too early, or holds what no key store holds.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The check at its end fails.
    #[error("its digest is wrong: it is damaged, or the password is not the right one")]
    WrongDigest,
    /// The check of the key fails.
    #[error("its key cannot be opened with the password of the key store")]
    WrongKeyPassword,
    /// Only certificates.
    #[error("there is no private key in it")]
    NoKey,
}

/// The first key of a key store whose keys have the store's password.
///
/// # Errors
/// The file is not what it should be, or the password is wrong.
pub fn read(bytes: &[u8], password: &str) -> Result<KeyEntry, BadKeyStore> {
    let password: Vec<u8> = password.encode_utf16().flat_map(u16::to_be_bytes).collect();
    if !bytes.starts_with(&MAGIC.to_be_bytes()) || bytes.get(4..8) != Some(&[0, 0, 0, 2]) {
        return Err(BadKeyStore::NotJks);
    }
    let (content, digest) = bytes
        .split_last_chunk::<DIGEST_LEN>()
        .ok_or(BadKeyStore::Damaged("it is too short"))?;
    if sha1(&[&password, b"Mighty Aphrodite", content]) != *digest {
        return Err(BadKeyStore::WrongDigest);
    }
    let mut reader = Reader(content.get(8..).ok_or(BadKeyStore::Damaged("it is too short"))?);
    for _ in 0..reader.count()? {
        let tag = reader.u32()?;
        let alias = reader.utf()?.to_owned();
        reader.take(8)?; // when it was made
        match tag {
            1 => {
                let sealed = reader.blob()?;
                let chain: Result<_, _> = (0..reader.count()?).map(|_| reader.certificate()).collect();
                let key = Secret::new(open_key(sealed, &password)?);
                return Ok(KeyEntry {
                    alias,
                    key,
                    chain: chain?,
                });
            }
            2 => drop(reader.certificate()?),
            _ => return Err(BadKeyStore::Damaged("it has an entry of an unknown kind")),
        }
    }
    Err(BadKeyStore::NoKey)
}

/// EncryptedPrivateKeyInfo with the key protector: salt, the key under a stream of digests, and a digest to check it.
fn open_key(sealed: &[u8], password: &[u8]) -> Result<Vec<u8>, BadKeyStore> {
    let damaged = BadKeyStore::Damaged("its key is not protected the way Java does");
    let outer = der(sealed, 0x30).ok_or(damaged)?;
    let octets = outer.strip_prefix(&KEY_PROTECTOR).ok_or(damaged)?;
    let octets = der(octets, 0x04).ok_or(damaged)?;
    let (salt, rest) = octets.split_first_chunk::<DIGEST_LEN>().ok_or(damaged)?;
    let (data, check) = rest.split_last_chunk::<DIGEST_LEN>().ok_or(damaged)?;
    let mut key = data.to_vec();
    let mut stream = *salt;
    for chunk in key.chunks_mut(DIGEST_LEN) {
        stream = sha1(&[password, &stream]);
        for (byte, pad) in chunk.iter_mut().zip(stream) {
            *byte ^= pad;
        }
    }
    if sha1(&[password, &key]) != *check {
        return Err(BadKeyStore::WrongKeyPassword);
    }
    Ok(key)
}

fn sha1(parts: &[&[u8]]) -> [u8; DIGEST_LEN] {
    let mut sha1 = Sha1::new();
    for part in parts {
        sha1.update(part);
    }
    sha1.finalize().into()
}

/// The content of a DER value that begins `bytes` and has this tag.
fn der(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let [found, first, rest @ ..] = bytes else {
        return None;
    };
    let (length, content) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, content) = rest
            .split_at_checked(usize::from(first & 0x7f))
            .filter(|(digits, _)| digits.len() <= 4)?;
        (
            digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)),
            content,
        )
    };
    content.get(..length).filter(|_| *found == tag)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadKeyStore> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(BadKeyStore::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, BadKeyStore> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn count(&mut self) -> Result<u32, BadKeyStore> {
        let count = self.u32()?;
        Some(count)
            .filter(|count| *count <= MAX_COUNT)
            .ok_or(BadKeyStore::Damaged("it has too many entries"))
    }

    fn blob(&mut self) -> Result<&'a [u8], BadKeyStore> {
        let length = usize::try_from(self.u32()?).map_err(|_| BadKeyStore::Damaged("it ends too early"))?;
        self.take(length)
    }

    fn utf(&mut self) -> Result<&'a str, BadKeyStore> {
        let length = u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes"));
        let bytes = self.take(usize::from(length))?;
        str::from_utf8(bytes).map_err(|_| BadKeyStore::Damaged("a name in it is no text"))
    }

    fn certificate(&mut self) -> Result<Vec<u8>, BadKeyStore> {
        if self.utf()? != "X.509" {
            return Err(BadKeyStore::Damaged("a certificate in it is not of X.509"));
        }
        Ok(self.blob()?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use sha2::Sha256;

    use super::*;

    const STORE: &[u8] = include_bytes!("../tests/vectors/cpvm.jks");

    fn vector() -> Value {
        serde_json::from_str(include_str!("../tests/vectors/keystore.json")).unwrap()
    }

    fn password() -> String {
        vector()["keystore_password"].as_str().unwrap().to_owned()
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes)
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }

    #[test]
    fn the_servers_key_store_gives_its_key_and_chain() {
        let entry = read(STORE, &password()).unwrap();
        let wanted = &vector()["entries"][2];
        assert_eq!(entry.alias, wanted["alias"].as_str().unwrap());
        assert_eq!(sha256(entry.key.expose()), wanted["pkcs8_sha256"].as_str().unwrap());
        let chain: Vec<String> = entry.chain.iter().map(|certificate| sha256(certificate)).collect();
        assert_eq!(serde_json::to_value(chain).unwrap(), wanted["chain_sha256"]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(read(STORE, "wrong").unwrap_err(), BadKeyStore::WrongDigest);
        assert_eq!(read(b"PK\x03\x04", "").unwrap_err(), BadKeyStore::NotJks);
        assert_eq!(
            read(&STORE[..8], &password()).unwrap_err(),
            BadKeyStore::Damaged("it is too short")
        );
        let mut damaged = STORE.to_vec();
        damaged[1000] ^= 1;
        assert_eq!(read(&damaged, &password()).unwrap_err(), BadKeyStore::WrongDigest);
        assert!(format!("{:?}", read(STORE, &password()).unwrap()).contains("key: ***"));
    }

    /// With a right digest behind whatever stands before it.
    fn signed(content: &[u8]) -> Vec<u8> {
        let content = [&[0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2], content].concat();
        let digest = sha1(&[&[0, b'p'], b"Mighty Aphrodite", &content]);
        [content, digest.to_vec()].concat()
    }

    #[test]
    fn absurd_lengths_are_not_believed() {
        assert_eq!(read(&signed(&[0, 0, 0, 0]), "p").unwrap_err(), BadKeyStore::NoKey);
        assert_eq!(
            read(&signed(&[0xff; 4]), "p").unwrap_err(),
            BadKeyStore::Damaged("it has too many entries")
        );
        let endless = [&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0][..], &[0; 8], &[0xff; 4]].concat();
        assert_eq!(
            read(&signed(&endless), "p").unwrap_err(),
            BadKeyStore::Damaged("it ends too early")
        );
    }

    proptest! {
        #[test]
        fn noise_behind_a_right_digest_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&signed(&noise), "p");
            let _ = read(&signed(&[&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0][..], &[0; 8], &noise].concat()), "p");
        }

        #[test]
        fn a_key_of_noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = open_key(&noise, b"p");
            let sealed = [&[0x30, 0x7f][..], &KEY_PROTECTOR, &noise].concat();
            let _ = open_key(&sealed, b"p");
        }
    }
}
