//! Names of interfaces.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// The kernel's limit is 16 bytes with the zero at the end (`IFNAMSIZ`).
const MAX_LEN: usize = 15;
/// What a tap's name needs besides its VM's: a dot and a device of three digits.
const DEVICE_LEN: usize = 4;

/// The name of an interface: 1 to 15 letters, digits and `-`, `_`, `.`. The kernel takes more than that; what it takes
/// besides would have to be escaped in scripts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InterfaceName(String);

/// The text is no such name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a name for an interface; it needs 1 to 15 letters, digits, `-`, `_` and `.`, and a letter first")]
pub struct BadInterfaceName(String);

impl InterfaceName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tap of a VM's device: `s-1-VM.0`, as long as that fits. It is always the same for the same two, and another for
    /// other devices of the VM; that of a VM with a long name has a digest in it.
    pub fn of_tap(vm: &str, device: u8) -> Self {
        Self(format!("{}{device}", tap_prefix(vm)))
    }
}

/// The start of the names of all taps of a VM, and of no other VM's.
pub(super) fn tap_prefix(vm: &str) -> String {
    let fits = vm.len() + DEVICE_LEN <= MAX_LEN && is_good(vm) && !vm.contains('.');
    if fits {
        format!("{vm}.")
    } else {
        format!("tap{:08x}.", fnv1a(vm.as_bytes()))
    }
}

/// Fowler, Noll and Vo: the same in each version of this program, which the standard library's hash is not.
pub(super) fn fnv1a(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

fn is_good(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_LEN).contains(&text.len())
        && text.bytes().all(is_plain)
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
}

impl FromStr for InterfaceName {
    type Err = BadInterfaceName;

    fn from_str(text: &str) -> Result<Self, BadInterfaceName> {
        if is_good(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadInterfaceName(text.chars().take(100).collect()))
        }
    }
}

impl Display for InterfaceName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn taps_tell_whose_they_are_as_long_as_that_fits() {
        assert_eq!(InterfaceName::of_tap("s-1-VM", 0).as_str(), "s-1-VM.0");
        assert_eq!(InterfaceName::of_tap("i-2-1234-VM", 10).as_str(), "i-2-1234-VM.10");
        assert_eq!(InterfaceName::of_tap("i-2-1234567-VM", 3).as_str(), "tapea089df0.3");
    }

    #[test]
    fn what_would_need_an_escape_is_no_name() {
        for bad in ["", "a b", "a;b", "-n", ".", "a/b", "a\"b", "sixteen-bytes-16", "é"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_vm_has_names_for_its_taps(vm in ".{0,40}", device: u8, other: u8) {
            let name = InterfaceName::of_tap(&vm, device);
            prop_assert_eq!(name.as_str().parse::<InterfaceName>(), Ok(name.clone()));
            prop_assert!(name.as_str().starts_with(&tap_prefix(&vm)));
            prop_assert_eq!(InterfaceName::of_tap(&vm, other) == name, other == device);
        }
    }
}
