//! Checksums as CloudStack writes them: `{ALGORITHM}hex` (ssvm.md §3.4).

use std::fmt::{self, Display, Formatter, Write};
use std::str::FromStr;

/// A digest algorithm that CloudStack's management server lets users choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Broken; for old templates only.
    Md5,
    /// Broken; for old templates only.
    Sha1,
    /// SHA-2 with 224 bits.
    Sha224,
    /// SHA-2 with 256 bits.
    Sha256,
    /// SHA-2 with 384 bits.
    Sha384,
    /// SHA-2 with 512 bits: what is computed and reported when nobody gave a checksum.
    Sha512,
}

use Algorithm::{Md5, Sha1, Sha224, Sha256, Sha384, Sha512};

const ALL: [Algorithm; 6] = [Md5, Sha1, Sha224, Sha256, Sha384, Sha512];

/// A checksum is longer than this only by mistake or malice.
const MAX_TEXT: usize = 1024;

impl Algorithm {
    /// Java's name.
    pub fn name(self) -> &'static str {
        match self {
            Md5 => "MD5",
            Sha1 => "SHA-1",
            Sha224 => "SHA-224",
            Sha256 => "SHA-256",
            Sha384 => "SHA-384",
            Sha512 => "SHA-512",
        }
    }

    /// Hexadecimal digits of its result.
    pub fn digits(self) -> usize {
        match self {
            Md5 => 32,
            Sha1 => 40,
            Sha224 => 56,
            Sha256 => 64,
            Sha384 => 96,
            Sha512 => 128,
        }
    }

    /// By its Java name, in either case.
    pub fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }
}

/// The result of a digest, or what somebody says it must be. Two are equal if algorithm and digits are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checksum {
    algorithm: Algorithm,
    /// Lower case. Of the wrong length, or not hexadecimal, if it was given so: then it equals no result.
    hex: String,
}

/// Not a checksum that we could compare with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "checksum {0:?} is of an unknown kind; write it like {{SHA-256}} followed by 64 hexadecimal digits (MD5, SHA-1, SHA-224, SHA-256, SHA-384 and SHA-512 are known)"
)]
pub struct BadChecksum(String);

impl Checksum {
    /// Reads `{ALGORITHM}hex`; either case. Digits alone are MD5, as upstream has it, unless their number is that of
    /// another algorithm. An empty text is for the caller: it means that nothing is compared.
    pub fn parse(text: &str) -> Result<Self, BadChecksum> {
        let trimmed = text.trim();
        let bad = || BadChecksum(trimmed.chars().take(MAX_TEXT).collect());
        if trimmed.is_empty() || trimmed.len() > MAX_TEXT {
            return Err(bad());
        }
        let braced = trimmed.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (algorithm, hex) = match braced {
            Some(("", hex)) => (by_length(hex), hex),
            Some((name, hex)) => (Algorithm::by_name(name.trim()).ok_or_else(bad)?, hex.trim()),
            None => (by_length(trimmed), trimmed),
        };
        Ok(Self {
            algorithm,
            hex: hex.to_ascii_lowercase(),
        })
    }

    pub(crate) fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hex = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(hex, "{byte:02x}"); // a String takes everything
        }
        Self { algorithm, hex }
    }

    /// How it was made.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its digits, lower case.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

fn by_length(digits: &str) -> Algorithm {
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    ALL.into_iter()
        .find(|algorithm| is_hex && algorithm.digits() == digits.len())
        .unwrap_or(Md5)
}

impl FromStr for Checksum {
    type Err = BadChecksum;

    fn from_str(text: &str) -> Result<Self, BadChecksum> {
        Self::parse(text)
    }
}

impl Display for Checksum {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}{}", self.algorithm.name(), self.hex)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::stream::Digest;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../tests/vectors/checksum.json")).unwrap()
    }

    fn digest(algorithm: Algorithm, input: &str) -> Checksum {
        let mut digest = Digest::new(algorithm);
        for byte in input.as_bytes() {
            digest.update(&[*byte]);
        }
        digest.finish()
    }

    #[test]
    fn results_are_those_of_the_vectors() {
        for case in vectors()["digests"].as_array().unwrap() {
            let input = case["input_utf8"].as_str().unwrap();
            for algorithm in ALL {
                let wanted = case["digests"][algorithm.name()].as_str().unwrap();
                assert_eq!(digest(algorithm, input).to_string(), wanted);
            }
        }
    }

    #[test]
    fn texts_are_read_as_the_vectors_say() {
        for case in vectors()["parse"].as_array().unwrap() {
            let Some(text) = case["text"].as_str().filter(|text| !text.is_empty()) else {
                continue; // "nothing to compare" is the caller's
            };
            let checksum = Checksum::parse(text).unwrap();
            assert_eq!(checksum.hex(), case["hex"].as_str().unwrap().to_ascii_lowercase());
            // A bare value of 64 digits cannot be MD5: there the requirement differs from the original (§3.4).
            let wanted = if text.len() == 64 {
                "SHA-256"
            } else {
                case["algorithm"].as_str().unwrap()
            };
            assert_eq!(checksum.algorithm().name(), wanted, "{text}");
        }
    }

    #[test]
    fn verdicts_are_those_of_the_vectors() {
        for case in vectors()["download_verdict"].as_array().unwrap() {
            let content = case["content"].as_str().unwrap();
            let Some(given) = case["given"].as_str() else {
                assert_eq!(digest(Sha512, content).to_string(), case["reported"].as_str().unwrap());
                continue;
            };
            let Ok(expected) = Checksum::parse(given) else {
                assert!(case["answer_at_once"].is_object(), "{given}");
                continue;
            };
            let ok = case["ok"].as_bool().or(case["ok_required"].as_bool()).unwrap();
            assert_eq!(digest(expected.algorithm(), content) == expected, ok, "{given}");
        }
    }

    #[test]
    fn a_bare_value_is_of_the_algorithm_whose_length_it_has() {
        for algorithm in ALL {
            let hex = "A".repeat(algorithm.digits());
            let checksum = Checksum::parse(&hex).unwrap();
            assert_eq!(
                (checksum.algorithm(), checksum.hex()),
                (algorithm, hex.to_lowercase().as_str())
            );
        }
    }

    #[test]
    fn an_unknown_algorithm_is_refused_with_the_known_ones() {
        let text = Checksum::parse("{CRC32}352441c2").unwrap_err().to_string();
        assert!(
            text.starts_with("checksum \"{CRC32}352441c2\" is of an unknown kind"),
            "{text}"
        );
        Checksum::parse(&"a".repeat(5000)).unwrap_err();
        Checksum::parse(" ").unwrap_err();
    }

    proptest::proptest! {
        #[test]
        fn noise_never_panics_and_what_is_read_reads_the_same_again(text in "\\PC{0,80}|\\{[a-zA-Z0-9-]{0,8}\\}[0-9a-fA-F]{0,140}") {
            if let Ok(checksum) = Checksum::parse(&text) {
                let _ = Checksum::parse(&checksum.to_string());
            }
        }
    }
}
