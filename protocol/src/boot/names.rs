//! Text with a grammar: names of hosts, of interfaces, of log rotation times.

use super::BadValue;

/// Text that was checked: `FromStr` is the only way in.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident: $wanted:literal, $is_good:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The checked text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadValue;

            fn from_str(text: &str) -> Result<Self, BadValue> {
                if $is_good(text) { Ok(Self(text.to_owned())) } else { Err(BadValue::new(text, $wanted)) }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

checked_text! {
    /// A host name or domain, RFC 1123 §2.1; `_` is taken too, because internal zones have it.
    DnsName: "a DNS name; write it like ms1.example", is_dns_name
}
checked_text! {
    /// A network interface as the kernel takes it: 1 to 15 bytes, no `/`, no spaces.
    InterfaceName: "an interface name; write it like eth1", is_interface_name
}
checked_text! {
    /// How often logs rotate, a systemd `OnCalendar=` value: what the management server's setting
    /// `router.logrotate.frequency` takes, a word or `(*|dd):(*|dd):(*|dd)`.
    LogRotation: "hourly, daily, monthly or a time such as *:00:00", is_log_rotation
}

impl DnsName {
    /// The domain of networks that have none of their own.
    pub(super) fn default_domain() -> Self {
        Self("cloudnine.internal".to_owned())
    }
}

impl InterfaceName {
    /// `eth0`, `eth1`, …
    pub fn eth(index: u8) -> Self {
        Self(format!("eth{index}"))
    }
}

impl Default for LogRotation {
    fn default() -> Self {
        Self("hourly".to_owned())
    }
}

fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A numeric last label is a mistyped IPv4 address, RFC 1123 §2.1.
    let ends_in_number = text
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(is_label) && !ends_in_number
}

fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        && !matches!(text, "." | "..")
}

fn is_log_rotation(text: &str) -> bool {
    let is_field = |(field, end): (&str, u8)| {
        field == "*"
            || (field.len() == 2
                && field.bytes().all(|byte| byte.is_ascii_digit())
                && field.parse::<u8>().is_ok_and(|number| number < end))
    };
    let fields: Vec<&str> = text.split(':').collect();
    matches!(text, "hourly" | "daily" | "monthly")
        || (fields.len() == 3 && fields.into_iter().zip([24, 60, 60]).all(is_field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_follow_rfc_1123() {
        let long_label = "a".repeat(64);
        let long_name = ["abcdefg"; 32].join(".");
        for good in ["ms1", "ms-1.cloud.example", "nfs_1.example", "3com.example", "r-4-VM"] {
            assert!(is_dns_name(good), "{good}");
        }
        for bad in [
            "",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-.b",
            "a b",
            "10.0.0.300",
            "ä",
            "a;b",
            &long_label,
            &long_name,
        ] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        assert!(["eth0", "enp0s31f6", "a"].into_iter().all(is_interface_name));
        assert!(
            !["", "..", "eth/0", "eth 0", "abcdefghijklmnop", "eth\u{e4}"]
                .into_iter()
                .any(is_interface_name)
        );
    }

    #[test]
    fn log_rotation_is_a_word_or_a_time() {
        assert!(
            ["hourly", "daily", "monthly", "*:00:00", "03:*:59"]
                .into_iter()
                .all(is_log_rotation)
        );
        assert!(
            !["", "weekly", "*:00", "24:00:00", "1:00:00", "+1:00:00", "*:00:00:00"]
                .into_iter()
                .any(is_log_rotation)
        );
    }

    #[test]
    fn a_bad_name_says_what_was_found_and_what_was_wanted() {
        let error = "eth/0".parse::<InterfaceName>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""eth/0" is not an interface name; write it like eth1"#
        );
    }
}
