//! Images that lie.

use std::io::Write;

use image_builder::formats::{Image, OpenError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::NamedTempFile;

use super::*;

/// Opens bytes as an image, and reads all of it as writers do, up to a limit: a header may promise any size.
fn read_all(bytes: &[u8]) -> Result<(), String> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let image: Result<Image, OpenError> = formats::open(file.path());
    let disk = image.map_err(|error| error.to_string())?.disk;
    let mut buffer = vec![0; 1 << 16];
    let mut offset = 0;
    for _ in 0..200 {
        let Some(range) = disk.next_data(offset).map_err(|error| error.to_string())? else {
            return Ok(());
        };
        assert!(range.start >= offset && range.start < range.end && range.end <= disk.size());
        let count = usize::try_from((range.end - range.start).min(1 << 16)).unwrap();
        disk.read_at(&mut buffer[..count], range.start)
            .map_err(|error| error.to_string())?;
        offset = range.start + u64::try_from(count).unwrap();
    }
    Ok(())
}

/// Small images of all formats: 9 MiB with a little data at both ends and in the middle.
fn images() -> Vec<Vec<u8>> {
    let dir = TempDir::new().unwrap();
    let raw = dir.path().join("small.raw");
    let file = File::create(&raw).unwrap();
    file.set_len(9 * MIB).unwrap();
    for (seed, offset) in [(1, 0), (2, 5 * MIB), (3, 9 * MIB - 5000)] {
        file.write_all_at(&noise(seed, 5000), offset).unwrap();
    }
    let convert = |(name, format, how): (String, _, _)| {
        let path = dir.path().join(name);
        convert(&raw, &path, format, how);
        fs::read(path).unwrap()
    };
    all()
        .into_iter()
        .filter(|(_, format, _)| *format != Format::Raw)
        .map(convert)
        .collect()
}

#[test]
fn damage_anywhere_neither_panics_nor_loops() {
    let images = images();
    let change = (any::<Index>(), any::<u8>(), 0..3_u8);
    let changes = (0..images.len(), vec(change, 1..8));
    proptest!(ProptestConfig::with_cases(400), |((which, changes) in changes)| {
        let mut bytes = images[which].clone();
        let len = bytes.len();
        for (at, value, region) in changes {
            // Headers are at both ends.
            let offset = match region {
                0 => at.index(2048),
                1 => len - 4096 + at.index(4096),
                _ => at.index(len),
            };
            bytes[offset] = value;
        }
        read_all(&bytes).ok();
    });
}

#[test]
fn an_image_that_ends_early_is_refused_or_fails() {
    let images = images();
    proptest!(ProptestConfig::with_cases(100), |(which in 0..images.len(), at: Index)| {
        let bytes = &images[which];
        let cut = at.index(bytes.len());
        let is_qcow2 = bytes.starts_with(b"QFI");
        let is_ova = bytes[257..262] == *b"ustar";
        // What is left of a qcow2's last refcount block is not needed for reading, nor the second of the two empty blocks
        // that end an archive; of all others every byte is.
        let may_miss = is_qcow2 || (is_ova && cut >= bytes.len() - 512);
        let read = read_all(&bytes[..cut]);
        prop_assert!(read.is_err() || may_miss);
    });
}

#[test]
fn noise_behind_a_magic_is_no_image() {
    let magics: [&[u8]; 4] = [b"QFI\xfb\0\0\0\x03", b"KDMV\x03\0\0\0", b"conectix", b"x.ovf"];
    proptest!(ProptestConfig::with_cases(200), |(magic in 0..magics.len(), mut bytes in vec(any::<u8>(), 600..8000))| {
        bytes[..magics[magic].len()].copy_from_slice(magics[magic]);
        if magic == 3 {
            bytes[5..100].fill(0);
            bytes[257..262].copy_from_slice(b"ustar");
        }
        prop_assert!(read_all(&bytes).is_err());
    });
}

#[test]
fn what_names_other_files_or_is_something_else_is_refused_with_the_way_out() {
    let images = images();
    let qcow2 = images
        .iter()
        .find(|bytes| bytes.starts_with(b"QFI\xfb\0\0\0\x03"))
        .unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = qcow2.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        read_all(&image).unwrap_err()
    };
    let vhd = images.iter().find(|bytes| bytes.starts_with(b"conectix")).unwrap();
    let vmdk = images.iter().find(|bytes| bytes.starts_with(b"KDMV")).unwrap();
    let text = String::from_utf8_lossy(&vmdk[512..2048]).replace("parentCID=ffffffff", "parentCID=12345678");
    let mut child = vmdk.clone();
    child[512..2048].copy_from_slice(text.as_bytes());
    let errors = [
        (
            patched(8, &8_u64.to_be_bytes()),
            "it is an overlay of another image; flatten it first (qemu-img convert -O qcow2)",
        ),
        (patched(32, &[0, 0, 0, 2]), "it is encrypted"),
        (
            patched(79, &[4]),
            "its data is in another file; convert it first (qemu-img convert -O qcow2)",
        ),
        (
            patched(79, &[2]),
            "QEMU has marked it as corrupt; repair it first (qemu-img check -r all)",
        ),
        (
            patched(72, &[1]),
            "it has features that are not known here (0x100000000000000)",
        ),
        (
            patched(20, &[0, 0, 0, 40]),
            "its clusters have 2^40 bytes; 2^9 to 2^21 are possible",
        ),
        (
            patched(24, &u64::MAX.to_be_bytes()),
            "its size of 18446744073709551615 bytes is not a multiple of 512",
        ),
        (
            read_all(&vhd[..vhd.len() - 512]).unwrap_err(),
            "it has no footer at its end; was it transferred completely?",
        ),
        (
            read_all(&child).unwrap_err(),
            "it is an overlay of another VMDK; flatten it first (qemu-img convert -O qcow2)",
        ),
        (
            read_all(b"BZh91AY&SY").unwrap_err(),
            "it is compressed with bzip2; unpack it first (bunzip2)",
        ),
        (
            read_all(b"vhdxfile").unwrap_err(),
            "it is a VHDX; convert it first (qemu-img convert -O qcow2)",
        ),
        (read_all(b"").unwrap_err(), "it is empty"),
        (
            read_all(&[1; 700]).unwrap_err(),
            "its size of 700 bytes is not a multiple of 512",
        ),
    ];
    for (error, wanted) in errors {
        assert!(error.ends_with(&format!(": {wanted}")), "{error} instead of {wanted}");
    }
}

#[test]
fn an_ova_whose_disk_was_changed_is_not_what_its_manifest_says() {
    let mut ova = images().into_iter().find(|bytes| bytes[257..262] == *b"ustar").unwrap();
    let file = NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&ova, 0).unwrap();
    formats::check_manifest(file.path()).unwrap();
    let at = ova.len() - 2000; // in the disk's tail of zeros
    ova[at] ^= 1;
    file.as_file().write_all_at(&ova, 0).unwrap();
    let error = formats::check_manifest(file.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("systemvm-disk1.vmdk is not what its manifest says"),
        "{error}"
    );
}

/// Parts of a disk: where, how long, and what.
fn parts() -> impl Strategy<Value = Vec<(u64, usize, u64)>> {
    vec((0..6 * MIB, 1..200_000_usize, 0..5_u64), 0..6)
}

#[test]
fn any_disk_comes_back_from_any_format() {
    let dir = TempDir::new().unwrap();
    proptest!(ProptestConfig::with_cases(24), |(sectors in 1..12_000_u64, parts in parts())| {
        let raw = dir.path().join("any.raw");
        let file = File::create(&raw).unwrap();
        let size = sectors * 512;
        for (offset, len, seed) in parts {
            let offset = offset % size;
            let len = len.min(usize::try_from(size - offset).unwrap());
            let bytes = if seed == 0 { vec![7; len] } else { noise(seed, len) };
            file.write_all_at(&bytes, offset).unwrap();
        }
        file.set_len(size).unwrap();
        let disk = formats::open(&raw).unwrap().disk;
        for (name, format, how) in all() {
            let path = dir.path().join(name);
            convert(&raw, &path, format, how);
            let image = formats::open(&path).unwrap();
            prop_assert_eq!(image.format, format);
            assert_same(&*disk, &*image.disk, &format!("{format} {how:?}"));
            fs::remove_file(path).unwrap();
        }
    });
}
