//! Where a browser finds a console (management.md §7 "URL root", console-proxy.md §3.2).

use std::fmt::Write;
use std::net::IpAddr;

/// What decides.
#[derive(Clone, Debug, Default)]
pub struct UrlSettings {
    /// `consoleproxy.sslEnabled`; counts only with a domain.
    pub ssl_enabled: bool,
    /// `consoleproxy.url.domain`.
    pub domain: String,
    /// `consoleproxy.static.publicIp` and `consoleproxy.static.port`.
    pub fixed: Option<(IpAddr, u16)>,
}

/// Where a console is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    /// A name or an address.
    pub host: String,
    /// Port of the page.
    pub port: u16,
    /// https and wss.
    pub is_secure: bool,
}

impl Root {
    /// Of a proxy with this address. `page_port` is for a proxy that serves its page on a port of its own; in a system
    /// VM it is 80 or 443.
    pub fn new(settings: &UrlSettings, proxy: IpAddr, page_port: Option<u16>) -> Self {
        let domain = settings.domain.trim();
        let is_secure = settings.ssl_enabled && !domain.is_empty();
        let address = settings.fixed.map_or(proxy, |(address, _)| address);
        let host = match (domain, domain.strip_prefix('*'), address) {
            ("", _, IpAddr::V6(address)) => format!("[{address}]"),
            ("", _, IpAddr::V4(address)) => address.to_string(),
            (_, Some(rest), address) => address.to_string().replace(['.', ':'], "-") + rest,
            (domain, None, _) => domain.to_owned(),
        };
        let usual = if is_secure { 443 } else { 80 };
        let port = settings.fixed.map(|(_, port)| port).or(page_port).unwrap_or(usual);
        Self { host, port, is_secure }
    }

    /// Without a slash at the end.
    pub fn prefix(&self) -> String {
        match (self.is_secure, self.port) {
            (true, 443) => format!("https://{}", self.host),
            (false, 80) => format!("http://{}", self.host),
            (true, port) => format!("https://{}:{port}", self.host),
            (false, port) => format!("http://{}:{port}", self.host),
        }
    }

    /// The page of a console. Values are percent-encoded: a token has `+` and `/`.
    pub fn page(&self, websocket_port: u16, token: &str, extra: Option<&str>) -> String {
        let mut url = format!(
            "{}/resource/noVNC/vnc.html?autoconnect=true&show_dot=true&port={websocket_port}&token={}",
            self.prefix(),
            percent_encoded(token)
        );
        if let Some(extra) = extra {
            url.push_str("&extra=");
            url.push_str(&percent_encoded(extra));
        }
        url
    }
}

/// RFC 3986 §2.3: all but unreserved characters.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let written = write!(encoded, "%{byte:02X}");
            written.expect("a String takes everything");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_those_of_the_vectors() {
        let vectors = include_str!("../../tests/vectors/console/urls.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let cases = vectors["root_url"].as_array().unwrap();
        assert_eq!(cases.len(), 7);
        for case in cases {
            let ip = |member: &str| case[member].as_str().and_then(|ip| ip.parse().ok());
            let fixed: Option<IpAddr> = ip("static_public_ip");
            let port = case["static_port"].as_u64().and_then(|port| u16::try_from(port).ok());
            let settings = UrlSettings {
                ssl_enabled: case["ssl"].as_bool().unwrap(),
                domain: case["url_domain"].as_str().unwrap().to_owned(),
                fixed: fixed.zip(port),
            };
            let proxy = ip("proxy_ip").or(fixed).unwrap();
            assert_eq!(
                Root::new(&settings, proxy, None).prefix(),
                case["final_prefix"],
                "{case}"
            );
        }
    }

    #[test]
    fn a_process_serves_its_page_on_a_port_of_its_own() {
        let root = Root::new(&UrlSettings::default(), "127.0.0.1".parse().unwrap(), Some(6080));
        assert_eq!(
            root.page(6080, "a+/=", Some("x y")),
            "http://127.0.0.1:6080/resource/noVNC/vnc.html?autoconnect=true&show_dot=true&port=6080&token=a%2B%2F%3D&extra=x%20y"
        );
        let root = Root::new(&UrlSettings::default(), "2001:db8::1".parse().unwrap(), None);
        assert_eq!(root.prefix(), "http://[2001:db8::1]");
    }
}
