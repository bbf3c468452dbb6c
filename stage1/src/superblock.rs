//! Which file system a block device holds: by its own words, so that no udev is needed.

/// How many bytes from a device's start are looked at.
pub const LENGTH: usize = 2048;
/// Both keep it at the same place.
const START: usize = 1024;

/// What identifies a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Its kind.
    pub kind: FileSystem,
    /// In the order it is written in.
    pub uuid: [u8; 16],
    /// Without the zeros at the end; may be empty.
    pub label: String,
}

/// A kind of file system that can be a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2 and ext3, too: the same driver mounts them.
    Ext4,
    /// Read-only, compressed.
    Erofs,
}

impl FileSystem {
    /// As mount(2) wants it; `fs-` and this is the alias of its kernel module.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
        }
    }
}

impl Superblock {
    /// Looks for one in the first [`LENGTH`] bytes of a device. Linux fs/ext4/ext4.h: ext4_super_block, fs/erofs/erofs_fs.h:
    /// erofs_super_block.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        let block = bytes.get(START..)?;
        let (kind, uuid, label) = if block.get(56..58)? == [0x53, 0xEF] {
            (FileSystem::Ext4, 104, 120)
        } else if block.get(..4)? == [0xE2, 0xE1, 0xF5, 0xE0] {
            (FileSystem::Erofs, 48, 64)
        } else {
            return None;
        };
        let label = block.get(label..label + 16)?.split(|byte| *byte == 0).next()?;
        Some(Self {
            kind,
            uuid: block.get(uuid..uuid + 16)?.try_into().ok()?,
            label: String::from_utf8_lossy(label).into_owned(),
        })
    }
}

/// Reads `6d0c6b3e-97f3-4c2d-8a55-0123456789ab`.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let has_dashes = text.len() == 36 && [8, 13, 18, 23].into_iter().all(|at| text.as_bytes()[at] == b'-');
    let digits = text.replace('-', "");
    let is_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (has_dashes && is_hex).then_some(number.to_be_bytes())
}

/// As [`parse_uuid`] reads it.
pub fn format_uuid(uuid: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(uuid));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ext4_superblock_is_found_by_its_magic_number() {
        let mut bytes = [0; LENGTH];
        assert_eq!(Superblock::find(&bytes), None);
        bytes[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xEF]);
        bytes[1024 + 104..1024 + 120].copy_from_slice(&[3; 16]);
        bytes[1024 + 120..1024 + 124].copy_from_slice(b"root");
        let wanted = Superblock {
            kind: FileSystem::Ext4,
            uuid: [3; 16],
            label: "root".to_owned(),
        };
        assert_eq!(Superblock::find(&bytes), Some(wanted));
    }

    #[test]
    fn an_erofs_superblock_is_found_by_its_magic_number() {
        let mut bytes = [0; LENGTH];
        bytes[1024..1028].copy_from_slice(&[0xE2, 0xE1, 0xF5, 0xE0]);
        bytes[1024 + 48..1024 + 64].copy_from_slice(&[4; 16]);
        bytes[1024 + 64..1024 + 80].copy_from_slice(b"sixteen-letters!");
        let found = Superblock::find(&bytes).unwrap();
        assert_eq!(
            (found.kind, found.uuid, found.label.as_str()),
            (FileSystem::Erofs, [4; 16], "sixteen-letters!")
        );
    }

    proptest! {
        #[test]
        fn noise_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..LENGTH)) {
            let _ = Superblock::find(&bytes);
        }

        #[test]
        fn a_uuid_is_read_as_it_is_written(uuid: [u8; 16]) {
            prop_assert_eq!(parse_uuid(&format_uuid(uuid)), Some(uuid));
        }

        #[test]
        fn other_text_is_no_uuid(text: String) {
            prop_assert_eq!(parse_uuid(&text), None);
        }
    }
}
