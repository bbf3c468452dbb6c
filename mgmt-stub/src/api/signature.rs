//! Signed requests (management.md §17.2).
//!
//! Real clients differ in the order of names and in whether `~` is encoded, so four variants are good.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use protocol::secret::Secret;
use sha1::Sha1;
use time::OffsetDateTime;

use super::date;
use super::form::{Pair, encode};

/// Whether the signature among `pairs` is one of the others, made with this key, and its time has not passed.
pub(crate) fn is_good(pairs: &[Pair], secret: &Secret<String>, now: OffsetDateTime) -> bool {
    let find = |name: &str| {
        pairs
            .iter()
            .find(|pair| pair.name.eq_ignore_ascii_case(name))
            .map(|pair| &*pair.value)
    };
    let Some(signature) = find("signature").and_then(|text| STANDARD.decode(text).ok()) else {
        return false;
    };
    if find("signatureversion") == Some("3") && find("expires").and_then(date::parse).is_none_or(|end| end <= now) {
        return false;
    }
    let mut signed: Vec<&Pair> = pairs
        .iter()
        .filter(|pair| !pair.name.eq_ignore_ascii_case("signature"))
        .collect();
    signed.sort_by(|a, b| a.name.cmp(&b.name));
    if fits(&signed, secret, &signature) {
        return true;
    }
    signed.sort_by_cached_key(|pair| pair.name.to_lowercase());
    fits(&signed, secret, &signature)
}

/// In this order, with `~` encoded or not.
fn fits(sorted: &[&Pair], secret: &Secret<String>, signature: &[u8]) -> bool {
    let encoded = to_sign(sorted);
    let literal = encoded.replace("%7e", "~");
    let is_made_of = |text: &str| {
        let mut hmac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
        hmac.update(text.as_bytes());
        hmac.verify_slice(signature).is_ok() // in constant time
    };
    is_made_of(&encoded) || literal != encoded && is_made_of(&literal)
}

/// The text that is signed.
fn to_sign(sorted: &[&Pair]) -> String {
    let mut text = String::new();
    for pair in sorted {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(&pair.name);
        text.push('=');
        encode(&pair.value, &mut text);
    }
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::super::form;
    use super::*;

    const LONG: &str = "apikey=keyexample&command=deployVirtualMachine&details[0].cpuNumber=2\
        &displayname=caf%C3%A9%20~x%2Fy%3Dz%26w&expires=2026-11-20T12%3A00%3A00%2B0000&name=Web%20Server%201*\
        &networkids=a1%2Cb2&response=json&signatureversion=3&zoneid=1746ef10-8fa6-40c1-9c82-c3956bf75db8";
    const LONG_SIGNATURE: &str = "9uGCbJnnjDZMd59niOEDn1deznE=";

    fn good_at(query: &str, signature: &str, now: &str) -> bool {
        let mut pairs = Vec::new();
        form::parse(query.as_bytes(), &mut pairs).unwrap();
        pairs.push(Pair {
            name: "signature".into(),
            value: signature.into(),
        });
        is_good(&pairs, &Secret::new("SECRETEXAMPLE".into()), date::parse(now).unwrap())
    }

    fn good(query: &str, signature: &str) -> bool {
        good_at(query, signature, "2026-11-20T11:59:59Z")
    }

    #[test]
    fn the_vectors_are_good_in_any_order() {
        let short = "apikey=keyexample&command=listUsers&response=json";
        assert!(good(short, "qkOWndTnYe716lLQ2fBsehAj3tU="));
        assert!(good(
            "response=json&command=listUsers&apikey=keyexample",
            "qkOWndTnYe716lLQ2fBsehAj3tU="
        ));
        assert!(good(LONG, LONG_SIGNATURE));
        assert!(
            good(LONG, "bjGVSpo+BcvGAEukaFeOuA6AEV0="),
            "with a literal ~, as cs makes it"
        );
    }

    #[test]
    fn names_may_be_sorted_in_either_case() {
        // Raw order has B before a, the other a before B; both signatures are HMACs of their own text.
        let query = "a=1&B=2";
        let signature_of = |text: &str| {
            let mut hmac = Hmac::<Sha1>::new_from_slice(b"SECRETEXAMPLE").unwrap();
            hmac.update(text.as_bytes());
            STANDARD.encode(hmac.finalize().into_bytes())
        };
        assert!(good(query, &signature_of("b=2&a=1")));
        assert!(good(query, &signature_of("a=1&b=2")));
        assert!(!good(query, &signature_of("a=1&b=3")));
    }

    #[test]
    fn any_change_makes_it_bad() {
        assert!(!good(&LONG.replace("a1", "a2"), LONG_SIGNATURE));
        assert!(!good(&LONG.replace("cpuNumber=2", "cpuNumber=3"), LONG_SIGNATURE));
        assert!(!good(&format!("{LONG}&x=1"), LONG_SIGNATURE));
        assert!(!good(LONG, "9uGCbJnnjDZMd59niOEDn1dezng="));
        assert!(!good(LONG, "9uGCbJnnjDZMd59niOE="), "part of a signature");
        assert!(!good(LONG, ""));
        assert!(!good(LONG, "no base64!"));
    }

    #[test]
    fn version_3_ends_with_its_time() {
        assert!(!good_at(LONG, LONG_SIGNATURE, "2026-11-20T12:00:00Z"));
        assert!(!good_at(LONG, LONG_SIGNATURE, "2027-01-01"));
        assert!(!good(
            "apikey=keyexample&command=listUsers&response=json&signatureversion=3",
            LONG_SIGNATURE
        ));
    }
}
