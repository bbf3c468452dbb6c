//! The VNC protocol (RFC 6143), as far as a proxy must speak it: it logs in at the host, offers the browser a harmless
//! door, and knows how long messages are. Pictures pass through unread.

pub mod facade;
pub mod handshake;
pub mod scan;

use std::fmt;

/// A version of the protocol that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `RFB 003.003`
    V3,
    /// `RFB 003.007`
    V7,
    /// `RFB 003.008`
    V8,
}

/// Length of `RFB xxx.yyy\n`.
pub const VERSION_LEN: usize = 12;

impl Version {
    /// The version to speak with a peer that offers this one (§7.2): unknown ones of 3.x count as 3.3, 3.889 (Apple) and
    /// all above 3.8 as 3.8. `None`: this is not RFB.
    pub fn offered(line: [u8; VERSION_LEN]) -> Option<Self> {
        let [b'R', b'F', b'B', b' ', major @ .., b'.', a, b, c, b'\n'] = line else {
            return None;
        };
        let number = |digits: [u8; 3]| -> Option<u32> {
            let digits = Some(digits).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
            Some(
                digits
                    .iter()
                    .fold(0, |number, digit| number * 10 + u32::from(digit - b'0')),
            )
        };
        Some(match (number(major)?, number([a, b, c])?) {
            (3, 7) => Self::V7,
            (3, 8..) | (4.., _) => Self::V8,
            _ => Self::V3,
        })
    }

    /// As it is sent.
    pub const fn line(self) -> &'static [u8; VERSION_LEN] {
        match self {
            Self::V3 => b"RFB 003.003\n",
            Self::V7 => b"RFB 003.007\n",
            Self::V8 => b"RFB 003.008\n",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V3 => "3.3",
            Self::V7 => "3.7",
            Self::V8 => "3.8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offer_leads_to_one_of_three_versions() {
        let offered = |line: &[u8; VERSION_LEN]| Version::offered(*line);
        assert_eq!(offered(b"RFB 003.003\n"), Some(Version::V3));
        assert_eq!(offered(b"RFB 003.005\n"), Some(Version::V3));
        assert_eq!(offered(b"RFB 003.007\n"), Some(Version::V7));
        assert_eq!(offered(b"RFB 003.008\n"), Some(Version::V8));
        assert_eq!(offered(b"RFB 003.889\n"), Some(Version::V8));
        assert_eq!(offered(b"RFB 004.001\n"), Some(Version::V8));
        assert_eq!(offered(b"HTTP/1.1 400"), None);
        assert_eq!(offered(b"RFB 003.00x\n"), None);
    }
}
