//! Which addresses this machine's network interfaces have now.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use platform::files;

use super::root::Root;

/// Bytes of a file of `/sys`.
const MAX_FILE: u64 = 4096;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// Its MAC address, in lower case with colons.
    pub mac: String,
    /// It is up, and its cable is plugged in.
    pub is_up: bool,
    /// Its addresses, without those that it gave itself (fe80::/10).
    pub addresses: Vec<IpAddr>,
}

/// All interfaces but loopback, in order of their names.
///
/// # Errors
/// The kernel does not tell.
pub fn interfaces(root: &Root) -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in getifaddrs()?.filter(|entry| !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)) {
        let interface = found.entry(entry.interface_name.clone()).or_insert_with(|| {
            let file = format!("/sys/class/net/{}/address", entry.interface_name);
            let mac = files::read_limited(root.path(file), MAX_FILE).ok().flatten();
            Interface {
                mac: String::from_utf8_lossy(&mac.unwrap_or_default()).trim().to_owned(),
                name: entry.interface_name.clone(),
                ..Interface::default()
            }
        });
        interface.is_up = entry
            .flags
            .contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        let address = entry.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        });
        let is_own = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        interface.addresses.extend(address.filter(|address| !is_own(address)));
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_left_out_and_names_are_in_order() {
        let found = interfaces(&Root::default()).unwrap();
        assert!(found.iter().all(|interface| interface.name != "lo"));
        assert!(found.is_sorted_by_key(|interface| interface.name.clone()));
        assert!(
            found
                .iter()
                .all(|interface| !interface.addresses.contains(&IpAddr::from([127, 0, 0, 1])))
        );
    }
}
