//! Passwords of users: PBKDF2-HMAC-SHA512 with its cost beside it, so that the cost may rise later.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use protocol::secret::Secret;
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA512};

use crate::random;

/// OWASP's advice of 2023 for this function; about a tenth of a second.
const ROUNDS: NonZeroU32 = NonZeroU32::new(210_000).expect("it is not 0");
/// Beyond this a hash in the database is not ours.
const MAX_ROUNDS: u32 = 10_000_000;
const SCHEME: &str = "pbkdf2-sha512";
const HASH_LEN: usize = 64;
const SALT_LEN: usize = 16;
/// Characters of a one-time password: 80 bits.
const ONE_TIME_LEN: usize = 16;
/// Characters that a password of a user's own choice must have, at least and at most.
pub const LENGTHS: std::ops::RangeInclusive<usize> = 8..=200;

/// What to keep of a password. Takes a tenth of a second of one core: not for async threads.
pub fn hash(password: &Secret<String>) -> Secret<String> {
    let salt = random::standard(SALT_LEN);
    let mut hash = [0; HASH_LEN];
    pbkdf2::derive(
        PBKDF2_HMAC_SHA512,
        ROUNDS,
        salt.as_bytes(),
        password.expose().as_bytes(),
        &mut hash,
    );
    Secret::new(format!("{SCHEME}${ROUNDS}${salt}${}", STANDARD.encode(hash)))
}

/// Whether it is the password that `hash` was made of. As slow; takes the same time for any password.
pub fn verify(password: &Secret<String>, hash: &Secret<String>) -> bool {
    let mut parts = hash.expose().split('$');
    let (Some(SCHEME), Some(rounds), Some(salt), Some(wanted), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let rounds = rounds
        .parse()
        .ok()
        .filter(|rounds: &NonZeroU32| rounds.get() <= MAX_ROUNDS);
    let (Some(rounds), Ok(wanted)) = (rounds, STANDARD.decode(wanted)) else {
        return false;
    };
    pbkdf2::verify(
        PBKDF2_HMAC_SHA512,
        rounds,
        salt.as_bytes(),
        password.expose().as_bytes(),
        &wanted,
    )
    .is_ok()
}

/// A password for one login.
pub fn one_time() -> Secret<String> {
    Secret::new(random::letters(ONE_TIME_LEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_password_is_good_for_its_own_hash_only() {
        let hash = hash(&secret("correct horse"));
        assert!(verify(&secret("correct horse"), &hash));
        assert!(!verify(&secret("correct horsE"), &hash));
        assert!(!verify(&secret(""), &hash));
    }

    #[test]
    fn what_is_no_hash_of_ours_is_never_good() {
        for hash in [
            "",
            "pbkdf2-sha512$0$a$",
            "pbkdf2-sha512$1$a$!",
            "md5$1$a$",
            "pbkdf2-sha512$4000000000$a$YQ==",
        ] {
            assert!(!verify(&secret("x"), &secret(hash)), "{hash}");
        }
    }
}
