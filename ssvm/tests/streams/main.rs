//! Compressed files by the real programs, and those that are made to hurt.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod bombs;
mod ova;
mod store;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread;

use platform::exec::Cmd;
use ssvm::stream::{Compression, SparseFile, StreamError, Unpack, UnpackLimits};
use tempfile::TempDir;

const GENEROUS: UnpackLimits = UnpackLimits {
    max_bytes: 1 << 30,
    max_ratio: 1000,
};

/// Runs a filter over `input`.
fn filter(program: &str, args: &[&str], input: impl Read + Send) -> Vec<u8> {
    let mut pipe = Cmd::new(program).args(args).pipe().unwrap();
    let (mut to, mut from) = (pipe.input.take().unwrap(), pipe.output.take().unwrap());
    let mut output = Vec::new();
    thread::scope(|scope| {
        let mut input = input;
        scope.spawn(move || io::copy(&mut input, &mut to).unwrap());
        from.read_to_end(&mut output).unwrap();
    });
    pipe.finish().unwrap();
    output
}

/// Runs a program for what it does to files in `directory`.
fn run(directory: &Path, program: &str, args: &[&str]) {
    let moved = ["-C", directory.to_str().unwrap(), program];
    let mut pipe = Cmd::new("env").args(moved).args(args).pipe().unwrap();
    drop(pipe.input.take());
    io::copy(&mut pipe.output.take().unwrap(), &mut io::sink()).unwrap();
    pipe.finish().unwrap();
}

/// Something like a disk: a bit of data, zeros, more data.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 5_000_001];
    for (at, byte) in bytes[1_000_000..2_500_000].iter_mut().enumerate() {
        *byte = (at * at / 251 % 256).try_into().unwrap();
    }
    *bytes.last_mut().unwrap() = 7;
    bytes
}

/// Gives a few bytes at a time, as a slow network does.
struct Dribble<'a>(&'a [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1 + self.0.len() % 1500);
        self.0.read(&mut buffer[..length])
    }
}

/// Unpacks by what the content says, into a file that is given back.
fn unpack(bytes: &[u8], limits: &UnpackLimits) -> (Result<u64, StreamError>, File) {
    let compression = Compression::detect(bytes).expect("it is compressed");
    let file = tempfile::tempfile().unwrap();
    let sparse = SparseFile::resume(file.try_clone().unwrap(), 0).unwrap();
    (Unpack::new(compression, limits).run(&mut Dribble(bytes), sparse), file)
}

fn contents(mut file: File) -> Vec<u8> {
    use std::io::Seek;
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The same disk, packed in every way.
static PACKED: LazyLock<Vec<(&'static str, Vec<u8>)>> = LazyLock::new(pack);

fn pack() -> Vec<(&'static str, Vec<u8>)> {
    let disk = disk();
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("disk.raw"))
        .unwrap()
        .write_all(&disk)
        .unwrap();
    run(directory.path(), "zip", &["-q", "known.zip", "disk.raw"]);
    run(directory.path(), "zip", &["-q", "-0", "stored.zip", "disk.raw"]);
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::rename(directory.path().join("disk.raw"), directory.path().join("sub/disk.raw")).unwrap();
    run(directory.path(), "zip", &["-q", "-r", "sub.zip", "sub"]);
    let zip = |name: &str| fs::read(directory.path().join(name)).unwrap();
    let (first, second) = disk.split_at(2_000_000);
    let two = |program: &str| [filter(program, &["-c"], first), filter(program, &["-c"], second)].concat();
    vec![
        ("gzip", filter("gzip", &["-c"], &disk[..])),
        ("gzip in two members", two("gzip")),
        ("bzip2", filter("bzip2", &["-c"], &disk[..])),
        ("bzip2 in two streams", two("bzip2")),
        ("xz", filter("xz", &["-c"], &disk[..])),
        ("xz in two streams", two("xz")),
        (
            "xz, largest preset",
            filter("xz", &["-c", "-9", "--threads=1"], &disk[..]),
        ),
        ("zip", zip("known.zip")),
        ("zip, stored", zip("stored.zip")),
        ("zip, in a directory", zip("sub.zip")),
        (
            "zip, sizes behind the data",
            filter("zip", &["-q", "-", "-"], &disk[..]),
        ),
    ]
}

#[test]
fn what_the_real_programs_pack_comes_out_again() {
    for (name, bytes) in &*PACKED {
        let (result, file) = unpack(bytes, &GENEROUS);
        let length = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let blocks = file.metadata().unwrap().blocks();
        let found = contents(file);
        assert_eq!(length, 5_000_001, "{name}");
        assert!(found == disk(), "{name}");
        assert!(
            blocks * 512 < 2 << 20,
            "{name} takes {blocks} blocks: zeros were written"
        );
    }
}

#[test]
fn what_is_cut_off_or_damaged_is_no_image() {
    for (name, bytes) in &*PACKED {
        for end in [bytes.len() / 2, bytes.len() - bytes.len().min(30)] {
            let (result, _) = unpack(&bytes[..end], &GENEROUS);
            let error = result.expect_err(name);
            assert!(error.is_content() && !error.is_no_space(), "{name}: {error:?}");
        }
        let mut damaged = bytes.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        let error = unpack(&damaged, &GENEROUS).0.expect_err(name);
        assert!(error.is_content(), "{name}: {error:?}");
    }
}

#[test]
fn a_source_that_fails_is_not_damaged_data() {
    struct Fails<'a>(&'a [u8]);
    impl Read for Fails<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("cable pulled")),
                read => Ok(read),
            }
        }
    }
    for (name, bytes) in &*PACKED {
        let sparse = SparseFile::resume(tempfile::tempfile().unwrap(), 0).unwrap();
        let compression = Compression::detect(bytes).unwrap();
        let half = &bytes[..bytes.len() / 2];
        let error = Unpack::new(compression, &GENEROUS)
            .run(&mut Fails(half), sparse)
            .expect_err(name);
        assert!(
            matches!(&error, StreamError::Source(source) if source.to_string() == "cable pulled"),
            "{name}: {error:?}"
        );
        assert!(!error.is_content());
    }
}

#[test]
fn archives_that_are_not_one_image_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        File::create(directory.path().join(name))
            .unwrap()
            .write_all(&[1; 5000])
            .unwrap();
    }
    fs::create_dir(directory.path().join("empty")).unwrap();
    run(directory.path(), "zip", &["-q", "two.zip", "a", "b"]);
    run(directory.path(), "zip", &["-q", "-P", "password", "locked.zip", "a"]);
    run(directory.path(), "zip", &["-q", "-r", "none.zip", "empty"]);
    run(directory.path(), "zip", &["-q", "-Z", "bzip2", "other.zip", "a"]);
    for (name, text) in [
        (
            "two.zip",
            "it has more than one file in it; publish an archive with the image alone",
        ),
        ("locked.zip", "it is encrypted; publish it without a password"),
        ("none.zip", "there is no file in it"),
        (
            "other.zip",
            "its file is compressed by method 12; only store (0) and deflate (8) are known",
        ),
    ] {
        let error = unpack(&fs::read(directory.path().join(name)).unwrap(), &GENEROUS)
            .0
            .unwrap_err();
        assert_eq!(error.to_string(), format!("the zip file cannot be used: {text}"));
    }
}

#[test]
fn a_zip_whose_directory_says_something_else_is_refused() {
    let (_, zip) = PACKED.iter().find(|(name, _)| *name == "zip").unwrap();
    let central = zip.windows(4).rposition(|part| part == b"PK\x01\x02").unwrap();
    let mut other_size = zip.clone();
    other_size[central + 24] ^= 1;
    let error = unpack(&other_size, &GENEROUS).0.unwrap_err();
    assert!(matches!(error, StreamError::Zip(_)), "{error:?}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn noise_behind_a_magic_never_panics(which in 0..3_usize, noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let magic: [&[u8]; 3] = [b"\x1f\x8b\x08\x00", b"BZh91AY&SY", b"PK\x03\x04\x14\x00\x08\x00\x08\x00"];
        let bytes = [magic[which], &noise].concat();
        let _ = unpack(&bytes, &GENEROUS);
    }
}
