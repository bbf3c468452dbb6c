//! Secrets and ids from the system's random numbers.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Linux fails here only before the first seeding of a booting machine, and then waits instead.
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

fn many(count: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(count + 16);
    while all.len() < count {
        all.extend_from_slice(&bytes::<16>());
    }
    all.truncate(count);
    all
}

/// `count` random bytes in URL-safe base64 without padding: CloudStack's form of keys.
pub(crate) fn url_safe(count: usize) -> String {
    URL_SAFE_NO_PAD.encode(many(count))
}

/// `count` random bytes in base64.
pub(crate) fn standard(count: usize) -> String {
    STANDARD.encode(many(count))
}

/// `count` random letters and digits.
pub(crate) fn letters(count: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789"; // a power of two: no letter is likelier
    many(count)
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect()
}

/// A short id for the log, as upstream's `logid`.
pub(crate) fn log_id() -> String {
    format!("{:08x}", u32::from_be_bytes(bytes()))
}

/// Where an agent's request numbers start: upstream's `r << 48` with r in 0..32766.
pub(crate) fn sequence_base() -> i64 {
    i64::from(u16::from_be_bytes(bytes()) % 32_767) << 48
}

/// Any number.
pub(crate) fn number() -> u32 {
    u32::from_be_bytes(bytes())
}

/// An id for this server, like one made of a MAC address: positive, 48 bits.
pub(crate) fn server_id() -> i64 {
    let mut id = [0; 8];
    id[2..].copy_from_slice(&bytes::<6>());
    id[2] |= 0x02; // a MAC address of our own choice has this bit; and the id is never 0
    i64::from_be_bytes(id)
}

/// For a sealed message: never used twice.
pub(crate) fn nonce() -> [u8; 12] {
    bytes()
}
