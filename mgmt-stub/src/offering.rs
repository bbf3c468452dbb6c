//! Service offerings: how big a VM of a user is (management.md §11.1). Their ids are made of their names (UUID version
//! 5), so that they never change.

use std::sync::LazyLock;

use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid};

/// How big a VM is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceOffering {
    /// In the API.
    pub id: Uuid,
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub display_text: &'static str,
    /// Processors.
    pub cpus: u32,
    /// MHz of each. Told to clients only: nothing holds a VM to it.
    pub cpu_mhz: u32,
    /// Memory.
    pub memory_mib: u32,
}

/// All of them.
pub static ALL: LazyLock<[ServiceOffering; 2]> = LazyLock::new(|| {
    let offering = |name, display_text, cpu_mhz, memory_mib| ServiceOffering {
        id: id_of(name),
        name,
        display_text,
        cpus: 1,
        cpu_mhz,
        memory_mib,
    };
    [
        offering("Small Instance", "1 processor, 512 MiB of memory", 500, 512),
        offering("Medium Instance", "1 processor, 1 GiB of memory", 1000, 1024),
    ]
});

/// The offering with this id.
pub fn find(id: Uuid) -> Option<&'static ServiceOffering> {
    ALL.iter().find(|offering| offering.id == id)
}

fn id_of(name: &str) -> Uuid {
    /// Ours, made once.
    const NAMESPACE: Uuid = Uuid::from_u128(0x9d0c_5a4e_1f0b_4c58_8a3d_6f1e_2b7c_90d4);
    let mut hash = Sha1::new();
    hash.update(NAMESPACE.as_bytes());
    hash.update(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Builder::from_sha1_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_for_ever_and_found() {
        let ids = ALL.clone().map(|offering| offering.id.to_string());
        assert_eq!(
            ids,
            [
                "62137f70-f43e-56a3-99a0-fe81901d91d4",
                "f5ba21fb-42c2-5211-8f96-192d98a7f393"
            ]
        );
        assert_eq!(find(ALL[1].id).map(|offering| offering.memory_mib), Some(1024));
        assert_eq!(find(Uuid::nil()), None);
    }
}
