//! The management servers an agent may connect to, in the order to try.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{BadValue, DnsName};

/// `host[,host...][@algorithm]`. The algorithm is the management server's business; the agent stores it and sends it
/// back (`docs/boot-arguments.md`, key `host`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostList {
    /// IPv4 addresses, IPv6 addresses without brackets, or DNS names; at least one.
    pub hosts: Vec<String>,
    /// Such as `static`, `roundrobin` or `shuffle`.
    pub algorithm: Option<String>,
}

/// What is wrong with a list of hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHostList {
    /// `@…@`: an image shipped with a template that nobody filled in.
    #[error("{0:?} is a placeholder that was not replaced by a list of hosts")]
    Placeholder(String),
    /// Nothing but commas.
    #[error("the list of hosts is empty; write it like 192.0.2.10,ms2.example")]
    Empty,
    /// One of the hosts.
    #[error(transparent)]
    Host(BadValue),
    /// What follows `@`.
    #[error(transparent)]
    Algorithm(BadValue),
}

impl FromStr for HostList {
    type Err = BadHostList;

    fn from_str(text: &str) -> Result<Self, BadHostList> {
        if text.starts_with('@') && text.ends_with('@') {
            return Err(BadHostList::Placeholder(text.to_owned()));
        }
        let (hosts, algorithm) = text.split_once('@').unwrap_or((text, ""));
        let hosts = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
        let hosts: Result<Vec<_>, _> = hosts.map(|host| host.parse::<Host>().map(|host| host.0)).collect();
        let hosts = hosts.map_err(BadHostList::Host)?;
        if hosts.is_empty() {
            return Err(BadHostList::Empty);
        }
        if !algorithm.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BadHostList::Algorithm(BadValue::new(
                algorithm,
                "the name of a load-balancing algorithm",
            )));
        }
        Ok(Self {
            hosts,
            algorithm: (!algorithm.is_empty()).then(|| algorithm.to_owned()),
        })
    }
}

impl fmt::Display for HostList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hosts.join(","))?;
        self.algorithm
            .iter()
            .try_for_each(|algorithm| write!(f, "@{algorithm}"))
    }
}

/// One checked host. Java writes an IPv6 address taken from a URL in brackets; they are removed.
pub(super) struct Host(pub(super) String);

impl FromStr for Host {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if bare.parse::<IpAddr>().is_ok() || text.parse::<DnsName>().is_ok() {
            return Ok(Self(bare.to_owned()));
        }
        Err(BadValue::new(
            text,
            "a host; write it like 192.0.2.10, 2001:db8::10 or ms1.example",
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_keep_their_order_and_their_algorithm() {
        let list: HostList = "192.0.2.10,ms2.example,[2001:db8::10]@roundrobin".parse().unwrap();
        assert_eq!(list.hosts, ["192.0.2.10", "ms2.example", "2001:db8::10"]);
        assert_eq!(list.to_string(), "192.0.2.10,ms2.example,2001:db8::10@roundrobin");
        assert_eq!("a@".parse::<HostList>().unwrap().algorithm, None);
    }

    #[test]
    fn an_error_names_the_bad_host() {
        let error = |text: &str| text.parse::<HostList>().unwrap_err().to_string();
        assert_eq!(
            error("192.0.2.10,10.0.0.300"),
            r#""10.0.0.300" is not a host; write it like 192.0.2.10, 2001:db8::10 or ms1.example"#
        );
        assert_eq!(
            error("@HOST@"),
            r#""@HOST@" is a placeholder that was not replaced by a list of hosts"#
        );
        assert_eq!(
            error(",@static"),
            "the list of hosts is empty; write it like 192.0.2.10,ms2.example"
        );
        assert_eq!(error("a@b@c"), r#""b@c" is not the name of a load-balancing algorithm"#);
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_written_back_the_same(text in "[a-c0-9.:,@\\[\\]]{0,16}") {
            if let Ok(list) = text.parse::<HostList>() {
                prop_assert_eq!(list.to_string().parse::<HostList>().unwrap(), list);
            }
        }
    }
}
