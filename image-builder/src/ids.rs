//! Names that must be unlike those of any other image, and the same whenever this image is built again.

use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

/// Made from a build's id: the digest of everything that goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Of the partition table.
    pub disk: Uuid,
    /// Of the partition with GRUB's core image.
    pub bios_boot: Uuid,
    /// Of the EFI system partition.
    pub esp: Uuid,
    /// Of the root partition.
    pub root: Uuid,
    /// Of the root file system.
    pub file_system: Uuid,
    /// What the root file system's directory hashes begin with.
    pub hash_seed: Uuid,
    /// The serial number of the FAT file system, never 0.
    pub fat: u32,
}

impl Ids {
    /// The ids of a build.
    pub fn of(build: &[u8; 32]) -> Self {
        let uuid = |name: &str| {
            let digest = digest(build, name);
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&digest[..16]);
            Builder::from_custom_bytes(bytes).into_uuid()
        };
        let [a, b, c, d, ..] = digest(build, "fat");
        Self {
            disk: uuid("disk"),
            bios_boot: uuid("bios boot partition"),
            esp: uuid("efi system partition"),
            root: uuid("root partition"),
            file_system: uuid("root file system"),
            hash_seed: uuid("root file system hashes"),
            fat: u32::from_le_bytes([a, b, c, d]).max(1),
        }
    }
}

fn digest(build: &[u8; 32], name: &str) -> [u8; 32] {
    Sha256::new().chain_update(build).chain_update(name).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_is_its_own_and_is_the_builds() {
        let ids = Ids::of(&[1; 32]);
        let all = [
            ids.disk,
            ids.bios_boot,
            ids.esp,
            ids.root,
            ids.file_system,
            ids.hash_seed,
        ];
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(Ids::of(&[1; 32]), ids);
        let other = Ids::of(&[2; 32]);
        assert!(other.disk != ids.disk && other.fat != ids.fat);
        // RFC 9562 §5.8: a UUID whose bits mean nothing to others.
        assert_eq!(ids.disk.get_version_num(), 8);
    }
}
