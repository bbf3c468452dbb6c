//! The hardware address of a NIC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::BadValue;

/// A MAC address. `FromStr` takes either case; `Display` is lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl FromStr for MacAddr {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let octet = |group: &str| {
            let is_hex = group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(group, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        let octets = octets.and_then(|octets| octets.try_into().ok());
        octets
            .map(Self)
            .ok_or_else(|| BadValue::new(text, "a MAC address; write it like 02:00:4c:9f:00:05"))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|octet| format!("{octet:02x}")).join(":"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for MacAddr {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_written_in_lower_case() {
        assert_eq!(
            "02:00:5E:10:00:0a".parse::<MacAddr>().unwrap().to_string(),
            "02:00:5e:10:00:0a"
        );
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:0a:0b",
            "2:0:5e:10:0:a",
            "02-00-5e-10-00-0a",
            "+2:00:5e:10:00:0a",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
        let error = serde_json::from_str::<MacAddr>(r#""x""#).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""x" is not a MAC address; write it like 02:00:4c:9f:00:05"#
        );
    }
}
