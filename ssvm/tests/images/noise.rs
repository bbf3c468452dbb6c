use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use ImageFormat::{Iso, Ova, Qcow2, Raw, Tar, Vhd, Vhdx, Vmdk};

const ALL: [ImageFormat; 8] = [Qcow2, Vhd, Vhdx, Vmdk, Iso, Ova, Tar, Raw];

/// Headers are in the first 320 KiB of all these, or in the last 2 KiB.
static REAL: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let shop = Workshop::new();
    let mut images: Vec<_> = [
        ("qcow2", ""),
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("vmdk", "subformat=streamOptimized"),
    ]
    .into_iter()
    .map(|(format, options)| fs::read(shop.convert(format, options)).unwrap())
    .collect();
    let vhdx = fs::read(shop.create("vhdx", "", "1M")).unwrap();
    images.push(vhdx[..(3 << 20).min(vhdx.len())].to_vec());
    images
});

fn never_panics(bytes: &[u8], spread: Option<(u64, &[u8])>) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    if let Some((at, more)) = spread {
        file.write_all_at(more, at).unwrap();
    }
    for format in ALL {
        let limits = Limits::default();
        let judged = judge(&file, format, &limits);
        for length in [file.metadata().unwrap().len(), 1 << 20] {
            let start = judge_start(&file, length, format, &limits);
            assert!(judged.is_err() || start.is_ok(), "{format:?}: {start:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0_u64..300_000, more in prop::collection::vec(any::<u8>(), 0..600)) {
        never_panics(&bytes, Some((at, &more)));
    }

    #[test]
    fn real_images_with_wrong_bytes_never_panic(which in 0..5_usize, at in 0..1100_usize, is_region in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 1..9), cut in any::<Option<u16>>()) {
        let mut image = REAL[which].clone();
        // VHDX has its tables from 192 KiB and from 2 MiB on.
        let at = match (which, is_region) {
            (4, true) => (192 << 10) + at,
            (4, false) => (2 << 20) + at,
            (_, true) => image.len() - 1200 + at,
            _ => at,
        };
        let end = (at + bytes.len()).min(image.len());
        let start = at.min(end);
        image[start..end].copy_from_slice(&bytes[..end - start]);
        image.truncate(cut.map_or(image.len(), |cut| image.len().min(usize::from(cut) * 64)));
        never_panics(&image, None);
    }
}
