use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use ext4_view::{Ext4, Ext4Read};
use platform::exec::Cmd;
use platform::files::replace;
use proptest::prelude::*;

use super::*;

/// A disk in memory.
struct Memory(Vec<u8>);

impl Disk for Memory {
    fn size(&self) -> u64 {
        length_of(&self.0)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        let part = self.0.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Ext4Read for Memory {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read_at(buffer, offset)?)
    }
}

/// Files of every kind that an image has, and of every kind of inode that they become.
fn fill(root: &Path) {
    let file = |path: &str, contents: &[u8], mode| {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        let _ = replace(root.join(path), contents, mode).unwrap();
    };
    file("etc/shadow", b"root:*:20089::::::\n", 0o640);
    file("usr/bin/ping", &vec![7; 200_000], 0o755);
    file("usr/bin/mount", b"set-user-id", 0o4755);
    file("empty", b"", 0o644);
    file("with-dash/x", b"between", 0o644);
    file("with/x", b"and slash", 0o644);
    file("ü/ö", "not ASCII".as_bytes(), 0o600);
    for number in 0..600 {
        file(&format!("indexed/{number:040}"), b"", 0o644);
    }
    fs::set_permissions(root.join("indexed"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(root.join("usr/bin/ping"), root.join("usr/bin/a-ping")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink(format!("/{}", "long/".repeat(40)), root.join("far")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 300_000).unwrap();
    sparse.write_all_at(b"middle", 150_000).unwrap();
}

/// What the real mke2fs makes of that, with what only debugfs can set when the test is not root.
async fn image(block_size: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir(&root).unwrap();
    fill(&root);
    File::create(&image).unwrap().set_len(12 << 20).unwrap();
    let make = Cmd::new("/usr/sbin/mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            "root",
            "-b",
            block_size,
            "-E",
            "root_owner=0:0",
            "-d",
        ])
        .arg(&root)
        .arg(&image);
    make.run().await.unwrap();
    let commands = "ea_set usr/bin/ping security.capability \"cap\"\n\
        ea_set usr/bin/mount user.many \"a value that is too long for an inode, so that it gets a block of its own: \
        0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\"\n\
        set_inode_field etc/shadow uid 100000\n\
        set_inode_field etc/shadow gid 42\n";
    let set = Cmd::new("/usr/sbin/debugfs")
        .args(["-w", "-f", "-"])
        .arg(&image)
        .stdin(commands);
    set.run().await.unwrap();
    fs::read(&image).unwrap()
}

/// Checks against another reader everything that it shows.
fn compare(other: &Ext4, path: &str, tree: &Tree, seen: &mut usize) {
    for entry in other.read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let name = name.as_str().unwrap();
        if matches!(name, "." | ".." | "lost+found") {
            continue;
        }
        let below = format!("{path}/{name}").trim_start_matches('/').to_owned();
        let (ours, theirs) = (tree.get(&below).expect(&below), entry.metadata().unwrap());
        assert_eq!(ours.mode, u32::from(theirs.mode() & 0o7777), "{below}");
        if theirs.is_dir() {
            assert_eq!(ours.node, Node::Directory);
            compare(other, &format!("/{below}"), tree, seen);
        } else if theirs.is_symlink() {
            let target = other.read_link(entry.path().as_path()).unwrap();
            assert_eq!(ours.node, Node::Symlink(target.to_str().unwrap().to_owned()));
        } else {
            assert!(
                tree.contents(&below).unwrap() == &other.read(entry.path().as_path()).unwrap(),
                "{below}"
            );
        }
        if below != "etc/shadow" {
            assert_eq!((ours.uid, ours.gid), (theirs.uid(), theirs.gid()), "{below}");
        }
        *seen += 1;
    }
}

#[tokio::test]
async fn what_mke2fs_wrote_is_read_as_another_reader_reads_it() {
    for block_size in ["1024", "4096"] {
        let bytes = image(block_size).await;
        let (label, tree) = read(&Memory(bytes.clone())).unwrap();
        assert_eq!(label, "root");
        tree.check().unwrap();

        let other = Ext4::load(Box::new(Memory(bytes))).unwrap();
        let mut seen = 0;
        compare(&other, "/", &tree, &mut seen);
        assert_eq!(seen, tree.len());
        assert!(seen > 600);

        // What the other reader does not show.
        assert_eq!(
            tree.get("usr/bin/a-ping").unwrap().xattrs["security.capability"],
            b"cap"
        );
        assert!(tree.get("usr/bin/mount").unwrap().xattrs["user.many"].starts_with(b"a value that is too long"));
        assert_eq!(
            tree.get("usr/bin/ping").unwrap().node,
            Node::HardLink("usr/bin/a-ping".to_owned())
        );
        let shadow = tree.get("etc/shadow").unwrap();
        assert_eq!((shadow.uid, shadow.gid, shadow.mode), (100_000, 42, 0o640));
    }
}

#[tokio::test]
async fn damage_is_an_error_or_another_tree_and_never_a_panic() {
    let bytes = image("1024").await;
    // Superblock, group descriptors, inode tables and the first directories are near the beginning.
    let places = 1024..bytes.len() / 8;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let flips = proptest::collection::vec((places, any::<u8>()), 1..40);
    let result = runner.run(&flips, |flips| {
        let mut damaged = bytes.clone();
        for (place, value) in flips {
            damaged[place] = value;
        }
        if let Ok((_, tree)) = read(&Memory(damaged)) {
            prop_assert!(tree.len() <= MAX_ENTRIES);
        }
        Ok(())
    });
    result.unwrap();
}

#[tokio::test]
async fn every_byte_of_the_superblock_may_be_anything() {
    let bytes = image("4096").await;
    for place in 1024..2048 {
        for value in [0, 1, 0x7F, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[place] = value;
            let _ = read(&Memory(damaged));
        }
    }
}

#[test]
fn something_else_is_said_to_be_something_else() {
    let error = read(&Memory(vec![0; 1 << 20])).unwrap_err().to_string();
    assert_eq!(error, "there is no ext4 file system");
    assert!(read(&Memory(Vec::new())).is_err());
}
