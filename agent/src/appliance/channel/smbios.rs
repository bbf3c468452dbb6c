//! OEM strings of the firmware's tables: `-smbios type=11,value=cloudstack-cmdline:…` of QEMU, and what test beds on
//! VirtualBox do (§3.6).

use std::fs;

use platform::files;

use super::ChannelError;
use crate::appliance::root::Root;

/// One structure with all its strings.
const MAX_STRUCTURE: u64 = 1 << 20;
/// Structures of this type that we look at.
const MAX_STRUCTURES: usize = 16;
/// SMBIOS 3, §7.12: OEM Strings.
const OEM_STRINGS: u8 = 11;
/// Type, length, handle.
const HEADER_LEN: usize = 1 + 1 + 2;
/// How a string begins that is boot arguments. Others are the hardware maker's.
const PREFIXES: [&[u8]; 2] = [b"cloudstack-cmdline:", b"cmdline:"];

/// Bytes that are no structure of OEM strings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStructure {
    /// Not even a header, or its length is beyond the bytes.
    #[error("the structure ends after {0} bytes")]
    Short(usize),
    /// Another structure.
    #[error("the structure is of type {0}, not {OEM_STRINGS}")]
    Type(u8),
}

pub(super) fn read(root: &Root) -> Result<Option<Vec<u8>>, ChannelError> {
    let entries = fs::read_dir(root.path("/sys/firmware/dmi/entries"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut structures: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("11-"))
        })
        .take(MAX_STRUCTURES)
        .collect();
    structures.sort();
    for structure in structures {
        let bytes = files::read_limited(structure.join("raw"), MAX_STRUCTURE)?.unwrap_or_default();
        let line = oem_strings(&bytes)?.into_iter().find_map(boot_arguments);
        if let Some(line) = line {
            return Ok(Some(line.to_vec()));
        }
    }
    Ok(None)
}

fn boot_arguments(string: &[u8]) -> Option<&[u8]> {
    PREFIXES.iter().find_map(|prefix| string.strip_prefix(*prefix))
}

/// SMBIOS 3, §6.1.3: strings follow the formatted area, each ended by a NUL, the last by another one.
fn oem_strings(structure: &[u8]) -> Result<Vec<&[u8]>, BadStructure> {
    let short = BadStructure::Short(structure.len());
    let (Some(kind), Some(length)) = (structure.first(), structure.get(1)) else {
        return Err(short);
    };
    if *kind != OEM_STRINGS {
        return Err(BadStructure::Type(*kind));
    }
    let length = usize::from(*length);
    let strings = structure.get(length..).filter(|_| length >= HEADER_LEN).ok_or(short)?;
    let strings = strings.split(|byte| *byte == 0).take_while(|string| !string.is_empty());
    Ok(strings.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_are_those_after_the_formatted_area() {
        let structure = b"\x0b\x05\x00\x0b\x02a,b\0cmdline:type=router name=r-4-VM\0\0";
        let strings = oem_strings(structure).unwrap();
        assert_eq!(strings, [&b"a,b"[..], b"cmdline:type=router name=r-4-VM"]);
        assert_eq!(
            strings.into_iter().find_map(boot_arguments).unwrap(),
            b"type=router name=r-4-VM"
        );
        assert_eq!(oem_strings(b"\x0b\x05\x00\x0b\x00\0\0").unwrap(), [b""; 0]);
    }

    #[test]
    fn what_is_no_such_structure_says_so() {
        assert_eq!(oem_strings(b""), Err(BadStructure::Short(0)));
        assert_eq!(oem_strings(b"\x0b\x09\0"), Err(BadStructure::Short(3)));
        assert_eq!(oem_strings(b"\x0b\x00aaaa"), Err(BadStructure::Short(6)));
        assert_eq!(oem_strings(b"\x01\x1b"), Err(BadStructure::Type(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_strings_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(strings) = oem_strings(&bytes) {
                prop_assert!(strings.iter().map(|string| string.len() + 1).sum::<usize>() <= bytes.len());
            }
        }

        #[test]
        fn strings_come_back(strings in prop::collection::vec("[a-z=, :]{1,40}", 0..9)) {
            let mut bytes = b"\x0b\x05\x00\x0b\x00".to_vec();
            bytes.extend(strings.iter().flat_map(|string| [string.as_bytes(), b"\0"].concat()));
            bytes.push(0);
            let read = oem_strings(&bytes).unwrap();
            prop_assert_eq!(read, strings.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
    }
}
