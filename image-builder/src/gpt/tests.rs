use proptest::prelude::*;

use super::*;

/// A disk in memory.
struct Memory(Vec<u8>);

impl Disk for Memory {
    fn size(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buffer.len());
        let bytes = end
            .and_then(|end| self.0.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

fn written(gpt: &Gpt) -> Memory {
    let mut bytes = gpt.start().unwrap();
    let end = gpt.end().unwrap();
    bytes.resize(usize::try_from(gpt.sectors * SECTOR).unwrap() - end.len(), 0);
    bytes.extend(end);
    Memory(bytes)
}

fn partitions() -> impl Strategy<Value = Gpt> {
    let partition = (any::<u128>(), 1..u128::MAX, 0..50_u64, 0..50_u64, "[^\0]{0,18}");
    let list = prop::collection::vec(partition, 0..10);
    (any::<u128>(), list, 0..3000_u64).prop_map(|(id, list, left)| {
        let mut free = RESERVED_START;
        let partitions = list.into_iter().map(|(id, kind, gap, more, name)| {
            let (first, last) = (free + gap, free + gap + more);
            free = last + 1;
            Partition {
                kind: Uuid::from_u128(kind),
                id: Uuid::from_u128(id),
                first,
                last,
                name,
            }
        });
        let partitions: Vec<_> = partitions.collect();
        let id = Uuid::from_u128(id);
        let sectors = free + left + RESERVED_END + 1;
        Gpt {
            id,
            sectors,
            partitions,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_table_is_read_as_it_was_written(gpt in partitions()) {
        prop_assert_eq!(Gpt::read(&written(&gpt)).unwrap(), gpt);
    }

    #[test]
    fn a_changed_byte_is_found(gpt in partitions(), at in 512..17_408_usize, flip in 1..=255_u8) {
        let mut disk = written(&gpt);
        // The header's own sector goes on after it, with zeros that nobody reads.
        prop_assume!(!(604..1024).contains(&at));
        disk.0[at] ^= flip;
        prop_assert!(Gpt::read(&disk).is_err());
    }

    #[test]
    fn noise_is_read_without_a_panic(mut noise in prop::collection::vec(any::<u8>(), 512..4096)) {
        let _ = Gpt::read(&Memory(noise.clone()));
        noise.resize(noise.len().max(1200), 0);
        noise[512..520].copy_from_slice(SIGNATURE);
        noise[524..528].copy_from_slice(&92_u32.to_le_bytes());
        noise[528..532].fill(0);
        let checksum = crc32fast::hash(&noise[512..604]);
        noise[528..532].copy_from_slice(&checksum.to_le_bytes());
        let _ = Gpt::read(&Memory(noise));
    }
}

#[test]
fn partitions_that_overlap_or_leave_the_disk_are_refused() {
    let partition = |first, last| Partition {
        kind: ESP,
        id: Uuid::from_u128(1),
        first,
        last,
        name: "esp".to_owned(),
    };
    let table = |partitions| Gpt {
        id: Uuid::from_u128(2),
        sectors: 1000,
        partitions,
    };
    assert!(table(vec![partition(34, 500), partition(501, 966)]).check().is_ok());
    for partitions in [
        vec![partition(33, 500)],
        vec![partition(34, 967)],
        vec![partition(40, 39)],
        vec![partition(34, 500), partition(500, 600)],
    ] {
        let error = table(partitions).check().unwrap_err().to_string();
        assert!(error.contains("where it cannot be"), "{error}");
    }
}

#[test]
fn a_disk_without_one_has_none() {
    assert_eq!(
        Gpt::read(&Memory(vec![0; 4096])).unwrap_err().to_string(),
        "the disk has no GPT partition table"
    );
}
