//! Every format, written by us and read by others, and the other way round.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image_builder::formats::{self, Compression, Disk, Format};
use platform::exec::Cmd;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

mod commands;
mod hostile;
mod others;
mod ovf;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Of the sample.
const SIZE: u64 = 70 * MIB + 3 * 512;

/// Bytes that look random, from a number: tests must not differ from run to run.
fn noise(mut seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(seed >> 29).to_le_bytes()[..4]);
    }
    bytes.truncate(count);
    bytes
}

/// A disk of 70 MiB and three sectors that has everything writers must cope with: parts that compress well, badly and
/// not at all, data on the borders of clusters, blocks and tables, and at the very end; stored zeros; large holes.
fn sample(dir: &Path) -> PathBuf {
    let path = dir.join("sample.raw");
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let text = "the quick brown fox jumps over the lazy dog, again and again. ".repeat(20_000);
    let put = |bytes: &[u8], offset: u64| file.write_all_at(bytes, offset).unwrap();
    put(&noise(1, 512), 0);
    put(text.as_bytes(), 100 * KIB + 7);
    put(&noise(2, 300_000), 3 * MIB - 1000);
    put(&vec![0; 200_000], 9 * MIB);
    for turn in 0..40 {
        let half = noise(turn, 20_000).into_iter().chain(std::iter::repeat_n(b'x', 45_536));
        put(&half.collect::<Vec<u8>>(), 31 * MIB + turn * 64 * KIB);
    }
    put(&noise(4, 64 * 1024), 35 * MIB + 64 * KIB);
    put(&noise(5, 4), 64 * MIB - 2);
    put(&noise(6, 700), SIZE - 700);
    path
}

fn convert(from: &Path, to: &Path, format: Format, compression: Compression) {
    let image = formats::open(from).unwrap();
    let file = File::create_new(to).unwrap();
    formats::write(&*image.disk, format, compression, &file).unwrap();
}

/// Every format and compression, with a name for its file.
fn all() -> Vec<(String, Format, Compression)> {
    let others = [Format::Raw, Format::Vhd, Format::Vmdk, Format::Ova].map(|format| (format, Compression::None));
    let qcow2s = [Compression::Zstd, Compression::Zlib, Compression::None].map(|how| (Format::Qcow2, how));
    let name = |(format, how)| (format!("{how:?}.{format}").to_lowercase(), format, how);
    others.into_iter().chain(qcow2s).map(name).collect()
}

fn digest(path: &Path) -> Vec<u8> {
    let (mut file, mut digest) = (File::open(path).unwrap(), Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).unwrap();
        if count == 0 {
            return digest.finalize().to_vec();
        }
        digest.update(&buffer[..count]);
    }
}

fn assert_same(left: &dyn Disk, right: &dyn Disk, what: &str) {
    assert_eq!(left.size(), right.size(), "{what}");
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < left.size() {
        let count = usize::try_from((left.size() - offset).min(MIB)).unwrap();
        left.read_at(&mut one[..count], offset).unwrap();
        right.read_at(&mut other[..count], offset).unwrap();
        assert!(one[..count] == other[..count], "{what}: the MiB at {offset} differs");
        offset += MIB;
    }
}

#[test]
fn every_format_gives_back_the_disk_and_hides_no_data() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    let disk = formats::open(&raw).unwrap().disk;
    for (name, format, compression) in all() {
        let path = dir.path().join(&name);
        convert(&raw, &path, format, compression);
        let image = formats::open(&path).unwrap();
        assert_eq!(image.format, format);
        assert_same(&*disk, &*image.disk, &name);

        let mut offset = 0;
        let mut hole = vec![0; 1 << 20];
        while let Some(range) = image.disk.next_data(offset).unwrap() {
            let is_good = range.start >= offset && range.end > range.start && range.end <= disk.size();
            assert!(is_good, "{name}: {range:?}");
            while offset < range.start {
                let count = usize::try_from((range.start - offset).min(MIB)).unwrap();
                disk.read_at(&mut hole[..count], offset).unwrap();
                assert!(hole[..count].iter().all(|byte| *byte == 0), "{name}: data at {offset}");
                offset += u64::try_from(count).unwrap();
            }
            offset = range.end;
        }
        assert!(offset == disk.size(), "{name}: the disk's last bytes are data");
    }
}

#[test]
fn from_whatever_format_the_bytes_are_the_same() {
    let dir = TempDir::new().unwrap();
    let raw = sample(dir.path());
    for (name, format, compression) in all() {
        convert(&raw, &dir.path().join(name), format, compression);
    }
    let again = dir.path().join("again");
    for (index, (name, format, compression)) in all().into_iter().enumerate() {
        let first = digest(&dir.path().join(&name));
        // Two sources for each, so that each is a source twice: all pairs take too long.
        for step in [1, 3] {
            let (source, ..) = &all()[(index + step) % all().len()];
            convert(&dir.path().join(source), &again, format, compression);
            assert!(first == digest(&again), "{name} from {source}");
            fs::remove_file(&again).unwrap();
        }
    }
}
