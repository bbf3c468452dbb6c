//! Hyper-V: a pair that the host gives to the guest, which `hv_kvp_daemon` keeps in a file of records (§3.5).

use platform::files;

use super::ChannelError;
use crate::appliance::root::Root;

/// Debian's daemon writes the first, CloudStack's own template reads the second.
const POOLS: [&str; 2] = ["/var/lib/hyperv/.kvp_pool_0", "/var/opt/hyperv/.kvp_pool_0"];
const KEY: &[u8] = b"cloudstack-vm-userdata";
/// Linux, include/uapi/linux/hyperv.h: HV_KVP_EXCHANGE_MAX_KEY_SIZE, HV_KVP_EXCHANGE_MAX_VALUE_SIZE. Padded with NULs.
const KEY_LEN: usize = 512;
const VALUE_LEN: usize = 2048;
const RECORD_LEN: usize = KEY_LEN + VALUE_LEN;
/// 409 records; CloudStack makes one.
const MAX_POOL: u64 = 1 << 20;

/// Bytes that are no pool.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} bytes are no multiple of {RECORD_LEN}, the size of a record: it is being written, or something else wrote it"
)]
pub struct BadPool(usize);

pub(super) fn read(root: &Root) -> Result<Option<Vec<u8>>, ChannelError> {
    for path in POOLS {
        let Some(pool) = files::read_limited(root.path(path), MAX_POOL)? else {
            continue;
        };
        let value = value(&pool, KEY).map_err(|source| ChannelError::Pool {
            path: path.into(),
            source,
        })?;
        if let Some(line) = value {
            return Ok(Some(line.to_vec()));
        }
    }
    Ok(None)
}

fn value<'a>(pool: &'a [u8], key: &[u8]) -> Result<Option<&'a [u8]>, BadPool> {
    let (records, rest) = pool.as_chunks::<RECORD_LEN>();
    if !rest.is_empty() {
        return Err(BadPool(pool.len()));
    }
    let pairs = records.iter().map(|record| record.split_at(KEY_LEN));
    let mut values = pairs.filter(|(name, _)| unpadded(name) == key);
    Ok(values.next().map(|(_, value)| unpadded(value)))
}

fn unpadded(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut record = key.to_vec();
        record.resize(KEY_LEN, 0);
        record.extend(value);
        record.resize(RECORD_LEN, 0);
        record
    }

    #[test]
    fn the_value_is_found_among_others() {
        let pool = [record(b"other", b"1"), record(KEY, b" type=router name=r-4-VM")].concat();
        assert_eq!(value(&pool, KEY).unwrap().unwrap(), b" type=router name=r-4-VM");
        assert_eq!(value(&pool[..RECORD_LEN], KEY), Ok(None));
        assert_eq!(value(&[], KEY), Ok(None));
    }

    #[test]
    fn a_pool_that_is_being_written_is_refused() {
        let error = value(&record(KEY, b"type=router")[..2000], KEY).unwrap_err();
        assert_eq!(
            error.to_string(),
            "2000 bytes are no multiple of 2560, the size of a record: it is being written, or something else wrote it"
        );
    }

    #[test]
    fn a_value_without_padding_is_taken_whole() {
        let full = vec![b'x'; VALUE_LEN];
        assert_eq!(value(&record(KEY, &full), KEY).unwrap().unwrap(), full);
    }

    proptest! {
        #[test]
        fn pairs_come_back(pairs in prop::collection::btree_map("[a-z-]{1,30}", "[a-z =]{1,200}", 0..4), noise in any::<u8>()) {
            let pool: Vec<u8> = pairs.iter().flat_map(|(key, value)| record(key.as_bytes(), value.as_bytes())).collect();
            for (key, wanted) in &pairs {
                prop_assert_eq!(value(&pool, key.as_bytes()), Ok(Some(wanted.as_bytes())));
            }
            let longer = [&pool[..], &[noise]].concat();
            prop_assert_eq!(value(&longer, KEY), Err(BadPool(longer.len())));
        }
    }
}
