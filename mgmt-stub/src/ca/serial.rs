//! Serial numbers of certificates.

use std::fmt;
use std::str::FromStr;

/// The number a CA gave a certificate. Written in lower-case hexadecimal without leading zeros, so that one number has
/// one text, whoever issued or presented it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

/// RFC 5280 §4.1.2.2: conforming CAs use at most 20 octets.
const OURS_LEN: usize = 20;
/// Others do not always conform; this is for what we believe, not for what we make.
const MAX_LEN: usize = 64;

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a certificate's serial number; write it in hexadecimal, such as 4f00a1")]
pub struct BadSerial(String);

impl Serial {
    /// Positive, exactly 20 octets, and nobody's guess.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut octets = [0; OURS_LEN];
        getrandom::fill(&mut octets)?;
        octets[0] = octets[0] & 0x3f | 0x40; // the sign bit is clear, and a leading zero is not dropped
        Ok(Self(octets.to_vec()))
    }

    /// From the octets of the certificate.
    pub(crate) fn from_octets(octets: &[u8]) -> Self {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        Self(octets[zeros..].to_vec())
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("00");
        }
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// Also takes upper case, leading zeros and the colons that `openssl` prints.
impl FromStr for Serial {
    type Err = BadSerial;

    fn from_str(text: &str) -> Result<Self, BadSerial> {
        let bad = || BadSerial(text.to_owned());
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        if digits.is_empty() || digits.len() > 2 * MAX_LEN {
            return Err(bad());
        }
        // From the right: an odd first digit stands alone.
        let octets = digits.rchunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
            u8::from_str_radix(pair, 16).ok()
        });
        let mut octets: Vec<u8> = octets.collect::<Option<_>>().ok_or_else(bad)?;
        octets.reverse();
        Ok(Self::from_octets(&octets))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_number_has_one_text() {
        for text in ["a1b2", "A1:B2", "0a1b2", "00:00:a1:b2"] {
            assert_eq!(text.parse::<Serial>().unwrap().to_string(), "a1b2");
        }
        assert_eq!("f".parse::<Serial>().unwrap().to_string(), "0f");
        assert_eq!("0".parse::<Serial>().unwrap(), Serial::from_octets(&[]));
        for text in ["", ":", "xyz", "+1", "1-", "ä", &"1".repeat(129)] {
            assert_eq!(text.parse::<Serial>(), Err(BadSerial(text.to_owned())));
        }
    }

    #[test]
    fn ours_are_positive_and_have_twenty_octets() {
        for _ in 0..1000 {
            let serial = Serial::random().unwrap();
            assert_eq!(serial.octets().len(), 20);
            assert!((0x40..0x80).contains(&serial.octets()[0]), "{serial}");
        }
    }

    proptest! {
        #[test]
        fn serials_are_read_as_they_are_written(octets in proptest::collection::vec(any::<u8>(), 0..MAX_LEN)) {
            let serial = Serial::from_octets(&octets);
            prop_assert_eq!(serial.to_string().parse(), Ok(serial));
        }

        #[test]
        fn noise_is_refused_or_read_but_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Serial>();
        }
    }
}
