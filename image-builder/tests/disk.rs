//! Disks, made with the locked tools and looked at with other programs than those that made them.

#![cfg(test)]

mod locked;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use image_builder::disk::{self, DiskError, Made, Parts};
use image_builder::formats::Disk;
use image_builder::gpt::Gpt;
use image_builder::modules::Kernel;
use image_builder::tools::Tools;
use image_builder::tree::{Entry, Node, Tree};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use platform::exec::Cmd;
use platform::logging::chain;
use sha2::{Digest, Sha256};
use stage1::table::{Module, Table};

const EPOCH: u64 = 1_735_689_600;
const SIZE_MIB: u64 = 128;

/// Everything that an ext4 can have: owners, capabilities, hard links, letters that are not ASCII, long names.
fn tree() -> Tree {
    let mut tree = Tree::new();
    let mut insert = |path: &str, entry: Entry| {
        tree.make_parents(path);
        tree.insert(path, entry).unwrap();
    };
    insert("sbin", Entry::symlink("usr/sbin"));
    insert("usr/sbin/init", Entry::file(0o755, vec![1; 300_000]));
    let capable = Entry {
        xattrs: [(
            "security.capability".to_owned(),
            vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )]
        .into(),
        ..Entry::file(0o755, "ping")
    };
    insert("usr/bin/ping", capable);
    let link = Entry {
        node: Node::HardLink("usr/bin/ping".to_owned()),
        ..tree.get("usr/bin/ping").unwrap().clone()
    };
    let mut insert = |path: &str, entry: Entry| {
        tree.make_parents(path);
        tree.insert(path, entry).unwrap();
    };
    insert("usr/bin/ping6", link);
    insert(
        "usr/share/ca-certificates/NetLock_Arany_=Class_Gold=_Főtanúsítvány.crt",
        Entry::file(0o644, "PEM"),
    );
    insert(
        &format!("var/{}/{}", "d".repeat(200), "f".repeat(200)),
        Entry::file(0o600, "x").owned(107, 65534),
    );
    tree
}

fn kernel() -> Kernel {
    let module = Module {
        name: "virtio_blk".to_owned(),
        aliases: vec!["virtio:d00000002v*".to_owned()],
        ..Module::default()
    };
    Kernel {
        version: "6.1".to_owned(),
        vmlinuz: vec![2; 3_000_000].into(),
        table: Table { modules: vec![module] },
        stage1: vec![Bytes::from_static(b"module")],
    }
}

fn make(tools: &Tools, tree: &Tree, path: &Path) -> Result<Made, DiskError> {
    let parts = Parts {
        tree,
        kernel: &kernel(),
        stage1: b"program",
        kernel_command_line: "root=LABEL=root rw",
        build: &[9; 32],
        epoch: EPOCH,
        size_mib: SIZE_MIB,
    };
    disk::write(&parts, tools, path)
}

struct Raw(File);

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// Copies a partition out of the disk: other programs want a file of its own.
fn partition(disk: &Path, index: usize, to: &Path) {
    let mut disk = File::open(disk).unwrap();
    let gpt = Gpt::read(&Raw(disk.try_clone().unwrap())).unwrap();
    let partition = &gpt.partitions[index];
    disk.seek(SeekFrom::Start(partition.offset())).unwrap();
    let mut out = File::create_new(to).unwrap();
    io::copy(&mut disk.take(partition.size()), &mut out).unwrap();
}

fn sha256(path: &Path) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut file = File::open(path).unwrap();
    let mut block = vec![0; 1024 * 1024];
    while let read @ 1.. = file.read(&mut block).unwrap() {
        digest.update(&block[..read]);
    }
    digest.finalize().into()
}

fn names(directory: &Path) -> Vec<String> {
    let list = fs::read_dir(directory).unwrap();
    list.map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn other_programs_find_no_fault_with_a_disk() {
    let tools = locked::tools(EPOCH).await;
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    let made = make(&tools, &tree(), &raw).unwrap();
    assert_eq!(names(dir.path()), ["disk.raw"]);

    let verified = Cmd::new("/usr/sbin/sfdisk")
        .arg("--verify")
        .arg(&raw)
        .run()
        .await
        .unwrap();
    assert!(verified.text().contains("No errors detected"), "{}", verified.text());
    assert_eq!(Gpt::read(&Raw(File::open(&raw).unwrap())).unwrap(), made.gpt);

    let esp = dir.path().join("esp");
    partition(&raw, 1, &esp);
    assert_eq!(sha256(&esp), made.esp_sha256);
    Cmd::new("/usr/sbin/fsck.fat").arg("-n").arg(&esp).run().await.unwrap();

    let root = dir.path().join("root");
    partition(&raw, 2, &root);
    tools.cmd("e2fsck").unwrap().arg("-fn").arg(&root).run().await.unwrap();
    let shown = |request: &str| tools.cmd("debugfs").unwrap().args(["-R", request]).arg(&root);
    let stat = shown("stat /usr/bin/ping6").run().await.unwrap().text();
    assert!(
        stat.contains("Links: 2") && stat.contains("security.capability (20)"),
        "{stat}"
    );
    let stat = shown(&format!("stat /var/{}/{}", "d".repeat(200), "f".repeat(200)))
        .run()
        .await
        .unwrap()
        .text();
    assert!(
        stat.contains("User:   107   Group: 65534") && stat.contains("2025"),
        "{stat}"
    );

    let mut tar = Sha256::new();
    tree().write_tar(EPOCH, &mut Hashing(&mut tar)).unwrap();
    assert_eq!(<[u8; 32]>::from(tar.finalize()), made.tar_sha256);
}

struct Hashing<'a>(&'a mut Sha256);

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_disk_is_the_same_whenever_and_wherever_it_is_made() {
    let tools = locked::tools(EPOCH).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = one.path().join("disk.raw");
    make(&tools, &tree(), &first).unwrap();
    thread::sleep(Duration::from_secs(2)); // FAT counts in two seconds, ext4 in one
    let nested = two.path().join("somewhere else");
    fs::create_dir(&nested).unwrap();
    let second = nested.join("other.img");
    let old = umask(Mode::from_bits_truncate(0o077));
    let made = make(&tools, &tree(), &second);
    umask(old);
    made.unwrap();
    assert_eq!(sha256(&first), sha256(&second));
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_left_on_it() {
    let tools = locked::tools(EPOCH).await;
    // Its mounts are this thread's, and of the programs it starts.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let small = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), small.path(), Some("tmpfs"), flags, Some("size=2m")).unwrap();

    let error = make(&tools, &tree(), &small.path().join("disk.raw")).unwrap_err();
    let left = names(small.path());
    nix::mount::umount(small.path()).unwrap();
    let text = chain(&error).to_string();
    assert!(text.contains("No space left on device"), "{text}");
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn a_disk_too_small_for_its_files_is_told() {
    let tools = locked::tools(EPOCH).await;
    let dir = tempfile::tempdir().unwrap();
    let mut large = tree();
    large
        .insert("large", Entry::file(0o644, vec![3; 90 * 1024 * 1024]))
        .unwrap();
    let error = make(&tools, &large, &dir.path().join("disk.raw")).unwrap_err();
    let text = chain(&error).to_string();
    assert!(text.starts_with("cannot make the root file system: "), "{text}");
    assert!(text.contains("Could not allocate block in ext2 filesystem"), "{text}");
    assert_eq!(names(dir.path()), [""; 0]);
}
