//! The addresses a router may hand out.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::BadValue;

/// `first` or `first:last` on the line; `Display` is dnsmasq's spelling, with a comma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhcpRange {
    /// Stock servers send only this one.
    pub first: Ipv4Addr,
    /// Not before `first`.
    pub last: Option<Ipv4Addr>,
}

impl FromStr for DhcpRange {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let mut ends = text.splitn(2, [':', ',']).map(|end| end.parse::<Ipv4Addr>().ok());
        let range = match (ends.next().flatten(), ends.next()) {
            (Some(first), None) => Some(Self { first, last: None }),
            (Some(first), Some(Some(last))) if first <= last => Some(Self {
                first,
                last: Some(last),
            }),
            _ => None,
        };
        range.ok_or_else(|| BadValue::new(text, "a DHCP range; write it like 10.1.1.1 or 10.1.1.1:10.1.1.99"))
    }
}

impl fmt::Display for DhcpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.last.iter().try_for_each(|last| write!(f, ",{last}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_written_the_way_dnsmasq_reads_it() {
        for (text, written) in [("10.1.1.1", "10.1.1.1"), ("10.1.1.1:10.1.1.99", "10.1.1.1,10.1.1.99")] {
            assert_eq!(text.parse::<DhcpRange>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn ends_in_the_wrong_order_or_more_than_two_are_refused() {
        for bad in ["", "x", "10.1.1.9:10.1.1.1", "10.1.1.1:", "10.1.1.1:10.1.1.2:10.1.1.3"] {
            assert!(bad.parse::<DhcpRange>().is_err(), "{bad}");
        }
    }
}
