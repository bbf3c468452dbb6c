//! What `view`, `diff` and `verify` say of small disks that real programs and our own writers made.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image_builder::diff::Diff;
use image_builder::esp;
use image_builder::formats::{self, Compression, Format};
use image_builder::gpt::{BIOS_BOOT, ESP, Gpt, LINUX_ROOT, Partition, RESERVED_END, SECTOR};
use image_builder::inspect::Report;
use image_builder::lock::Lock;
use image_builder::manifest::{Contents, Manifest};
use image_builder::verify::{self, Mismatch};
use image_builder::view::View;
use platform::exec::Cmd;
use platform::files::replace;
use tempfile::TempDir;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 72 * MIB;
const ESP_AT: u64 = MIB;
const ROOT_AT: u64 = 52 * MIB;
const ROOT_SIZE: u64 = 16 * MIB;
/// What the tests look for in the disk, to change it.
const MOTD: &[u8] = b"what the message of the day says";
const GRUB: &[u8] = b"set timeout=0\nlinux /vmlinuz root=LABEL=root rw quiet\ninitrd /initrd\nboot\n";

/// A directory as `build` fills it: one small disk in all formats, with manifest and digests.
struct Built {
    dir: TempDir,
}

const FORMATS: [(&str, Format, Compression); 5] = [
    ("sysvm.raw", Format::Raw, Compression::None),
    ("sysvm.qcow2", Format::Qcow2, Compression::Zstd),
    ("sysvm-plain.qcow2", Format::Qcow2, Compression::None),
    ("sysvm.vhd", Format::Vhd, Compression::None),
    ("sysvm.ova", Format::Ova, Compression::None),
];

impl Built {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let raw = dir.path().join(".disk");
        disk(&raw).await;
        let image = formats::open(&raw).unwrap();
        for (name, format, compression) in FORMATS {
            let file = File::create(dir.path().join(name)).unwrap();
            formats::write(image.disk.as_ref(), format, compression, &file).unwrap();
        }
        fs::remove_file(raw).unwrap();
        let lock = Lock::new(&[], Vec::new(), Vec::new(), Vec::new());
        let mut manifest = Manifest::new(&lock, "", "00".repeat(32), 0);
        let names = FORMATS.map(|(name, ..)| name.to_owned());
        manifest.add_artefacts(dir.path(), &names).unwrap();
        manifest.write(dir.path()).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same files in another directory.
    fn copy(&self) -> Self {
        let dir = TempDir::new().unwrap();
        for entry in self.dir.path().read_dir().unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        Self { dir }
    }

    /// One of the files, alone in a directory.
    fn only(&self, name: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::copy(self.path(name), dir.path().join(name)).unwrap();
        Self { dir }
    }

    fn flip(&self, name: &str, offset: u64) {
        let file = File::options().read(true).write(true).open(self.path(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    fn find(&self, name: &str, needle: &[u8]) -> u64 {
        let bytes = fs::read(self.path(name)).unwrap();
        let place = bytes.windows(needle.len()).position(|window| window == needle);
        u64::try_from(place.expect("it is in there")).unwrap()
    }
}

/// A disk laid out as ours: GPT, EFI system partition, ext4 from the real mke2fs.
async fn disk(path: &Path) {
    let dir = TempDir::new().unwrap();
    let (root, ext4) = (dir.path().join("root"), dir.path().join("ext4"));
    let status = "Package: kmod\nStatus: install ok installed\nVersion: 34-2\nArchitecture: amd64\n";
    let modules = "usr/lib/modules/6.12.1-amd64/kernel/ext4.ko.xz";
    for (file, contents) in [
        ("etc/motd", MOTD),
        ("var/lib/dpkg/status", status.as_bytes()),
        (modules, b"module"),
    ] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        let _ = replace(root.join(file), contents, 0o644).unwrap();
    }
    File::create(&ext4).unwrap().set_len(ROOT_SIZE).unwrap();
    let make = Cmd::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root"]);
    let make = make.args(["-E", "root_owner=0:0", "-d"]).arg(&root).arg(&ext4);
    make.run().await.unwrap();

    let part = |kind, start: u64, size: u64, name: &str| Partition {
        kind,
        id: Uuid::from_u128(u128::from(start)),
        first: start / SECTOR,
        last: (start + size) / SECTOR - 1,
        name: name.to_owned(),
    };
    let gpt = Gpt {
        id: Uuid::from_u128(7),
        sectors: SIZE / SECTOR,
        partitions: vec![
            part(BIOS_BOOT, 34 * SECTOR, MIB - 34 * SECTOR, "bios"),
            part(ESP, ESP_AT, esp::SIZE, "esp"),
            part(LINUX_ROOT, ROOT_AT, ROOT_SIZE, "root"),
        ],
    };
    let boot = esp::make(0x1234_5678, &[("grub/grub.cfg", GRUB), ("vmlinuz", b"kernel")]).unwrap();
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&gpt.start().unwrap(), 0).unwrap();
    file.write_all_at(&boot, ESP_AT).unwrap();
    file.write_all_at(&fs::read(ext4).unwrap(), ROOT_AT).unwrap();
    file.write_all_at(&gpt.end().unwrap(), SIZE - RESERVED_END * SECTOR)
        .unwrap();
}

fn told(mismatches: &[Mismatch]) -> Vec<String> {
    mismatches
        .iter()
        .map(|mismatch| format!("{}: {}", mismatch.name, mismatch.reasons.join(" | ")))
        .collect()
}

#[tokio::test]
async fn every_format_shows_the_same_image() {
    let built = Built::new().await;
    let raw = View::open(&built.path("sysvm.raw")).unwrap();
    assert_eq!(raw.tree.contents("etc/motd").unwrap(), MOTD);
    let disk = raw.disk.as_ref().unwrap();
    assert_eq!(disk.esp.keys().collect::<Vec<_>>(), ["grub/grub.cfg", "vmlinuz"]);
    assert_eq!((disk.size, disk.root_label.as_str()), (SIZE, "root"));
    for (name, format, _) in FORMATS {
        let view = View::open(&built.path(name)).unwrap();
        assert_eq!(Diff::of_images(&raw, &view).unwrap(), Diff::default(), "{name}");
        let report = Report::of(&built.path(name), 3, false).unwrap();
        assert_eq!(report.format, format.to_string());
        assert_eq!(report.kernel.command_line.as_deref(), Some("root=LABEL=root rw quiet"));
        assert_eq!(report.kernel.version.as_deref(), Some("6.12.1-amd64"));
        assert_eq!(report.packages[0].name, "kmod");
        let kinds: Vec<_> = report
            .disk
            .unwrap()
            .partitions
            .into_iter()
            .map(|part| part.kind)
            .collect();
        assert_eq!(kinds, ["BIOS boot", "EFI system", "root"]);
    }
}

#[tokio::test]
async fn a_changed_byte_is_found_and_placed() {
    let built = Built::new().await;
    assert_eq!(verify::checksums(built.dir.path()).unwrap(), []);
    assert_eq!(verify::compare(built.copy().dir.path(), built.dir.path()).unwrap(), []);
    let digest = |bytes: &[u8]| format!("{} bytes, sha256 {}", bytes.len(), Contents::of(bytes).sha256);
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[0] ^= 1;
        bytes
    };
    let raw = "sysvm.raw";
    let motd = format!("contents: {} -> {}", digest(MOTD), digest(&flipped(MOTD)));
    let cases = [
        (
            built.find(raw, MOTD),
            format!("root file system: ~ etc/motd | root file system:     {motd}"),
        ),
        (
            built.find(raw, GRUB),
            format!(
                "EFI system partition: ~ grub/grub.cfg  sha256 {} -> sha256 {}",
                Contents::of(GRUB).sha256,
                Contents::of(&flipped(GRUB)).sha256
            ),
        ),
        (100, "disk, byte 100: GRUB's boot sector".to_owned()),
        (
            2 * SECTOR + 200,
            "partition table: the list of partitions of the partition table is damaged: its checksum is wrong"
                .to_owned(),
        ),
        (
            SIZE - 1,
            format!("disk, byte {}: the backup of the partition table", SIZE - 1),
        ),
        (
            20 * 1024,
            "disk, byte 20480: byte 3072 of GRUB's core in the BIOS boot partition".to_owned(),
        ),
        (
            ROOT_AT + ROOT_SIZE - 1,
            format!(
                "disk, byte {}: block {} of the root file system, outside of its files",
                ROOT_AT + ROOT_SIZE - 1,
                (ROOT_SIZE - 1) / 4096
            ),
        ),
        (
            SIZE - 2 * MIB,
            format!("disk, byte {}: space that no partition uses", SIZE - 2 * MIB),
        ),
    ];
    let (given, expected) = (built.only(raw), built.only(raw));
    for (offset, reason) in cases {
        given.flip(raw, offset);
        let found = verify::compare(given.dir.path(), expected.dir.path()).unwrap();
        assert_eq!(told(&found), [format!("{raw}: {reason}")]);
        given.flip(raw, offset);
    }
    assert_eq!(verify::compare(given.dir.path(), expected.dir.path()).unwrap(), []);

    built.flip(raw, SIZE / 2);
    let names: Vec<_> = verify::checksums(built.dir.path())
        .unwrap()
        .into_iter()
        .map(|found| found.name)
        .collect();
    assert_eq!(names, [raw]);
}

#[tokio::test]
async fn damage_in_a_format_is_told_and_never_a_panic() {
    let built = Built::new().await;
    for (name, ..) in &FORMATS[1..] {
        let (given, expected) = (built.only(name), built.only(name));
        let size = fs::metadata(given.path(name)).unwrap().len();
        for part in 0..40 {
            let offset = size * part / 40;
            given.flip(name, offset);
            let found = verify::compare(given.dir.path(), expected.dir.path()).unwrap();
            assert_eq!(found.len(), 1, "{name} {part}");
            assert_eq!(found[0].name, *name);
            assert!(!found[0].reasons.is_empty());
            given.flip(name, offset);
        }
    }
}

#[tokio::test]
async fn a_missing_file_and_a_changed_manifest_are_named() {
    let built = Built::new().await;
    let given = built.copy();
    fs::remove_file(given.path("sysvm.vhd")).unwrap();
    let manifest = fs::read_to_string(given.path("manifest.json")).unwrap();
    let _ = replace(
        given.path("manifest.json"),
        manifest.replace("\"epoch\": 0", "\"epoch\": 1"),
        0o644,
    )
    .unwrap();
    let found = verify::compare(given.dir.path(), built.dir.path()).unwrap();
    let expected = [
        "manifest.json: line 4 is \"\\\"epoch\\\": 1,\" instead of \"\\\"epoch\\\": 0,\"",
        "sysvm.vhd: it is missing",
    ];
    assert_eq!(told(&found), expected);
    assert_eq!(told(&verify::checksums(given.dir.path()).unwrap()).len(), 2);
}

#[tokio::test]
async fn a_damaged_boot_partition_is_an_error_and_never_a_panic() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    disk(&path).await;
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // The boot sector, the beginning of both FATs, and the root directory behind them.
    let interesting = (0..64).chain([510, 511]).chain((512..1024).step_by(7));
    let root = 512 + 2 * 98 * 512;
    for offset in interesting.chain((root..root + 512).step_by(5)) {
        let mut old = [0];
        file.read_exact_at(&mut old, ESP_AT + offset).unwrap();
        for value in [0, 1, 0x80, 0xFF] {
            file.write_all_at(&[value], ESP_AT + offset).unwrap();
            if let Ok(view) = View::open(&path) {
                assert!(view.disk.is_some());
            }
        }
        file.write_all_at(&old, ESP_AT + offset).unwrap();
    }
    assert_eq!(View::open(&path).unwrap().disk.unwrap().esp.len(), 2);
}
