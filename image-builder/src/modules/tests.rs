use super::modinfo::tests::module;
use super::*;

const DIRECTORY: &str = "usr/lib/modules/6.1";

fn tree(modules: &[(&str, &[&str])]) -> Tree {
    let mut tree = Tree::new();
    let mut insert = |path: String, contents: Vec<u8>| {
        tree.make_parents(&path);
        tree.insert(path, Entry::file(0o644, contents)).unwrap();
    };
    insert(
        format!("{DIRECTORY}/modules.builtin"),
        b"kernel/fs/fuse/fuse.ko\nkernel/crypto/md5.ko\n".to_vec(),
    );
    insert(
        format!("{DIRECTORY}/modules.builtin.modinfo"),
        b"md5.alias=crypto-md5\0md5.license=GPL\0".to_vec(),
    );
    for (path, records) in modules {
        insert(format!("{DIRECTORY}/kernel/{path}.ko"), module(records));
    }
    tree
}

fn ext4() -> Tree {
    tree(&[
        ("arch/x86/crc32c-intel", &["alias=crypto-crc32c", "alias=cpu:type:x86*"]),
        ("crypto/crc32c_generic", &["alias=crypto-crc32c"]),
        ("drivers/block/virtio_blk", &["alias=virtio:d00000002v*", "depends="]),
        ("drivers/net/e1000", &["depends="]),
        (
            "fs/ext4/ext4",
            &["alias=fs-ext4", "softdep=pre: crypto-crc32c", "depends=jbd2"],
        ),
        ("fs/jbd2/jbd2", &["softdep=pre: crypto-crc32c"]),
        ("net/sched/sch_htb", &[]),
        ("net/sched/sch_old", &["softdep=pre: crypto-md5 post: e1000"]),
    ])
}

fn lists(stage1: &[&str], root: &[&str], folders: &[&str]) -> Lists {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Lists {
        stage1: owned(stage1),
        root: owned(root),
        folders: owned(folders),
    }
}

const CRC: [&str; 2] = ["crc32c_generic", "crc32c-intel"];

fn error(tree: &Tree, lists: &Lists) -> String {
    choose(tree, lists).err().unwrap().to_string()
}

#[test]
fn the_table_has_what_modules_need_before_them() {
    let choice = choose(
        &ext4(),
        &lists(&["virtio_blk", "ext4", "fuse", CRC[0], CRC[1]], &[], &[]),
    )
    .unwrap();
    let wanted = "module virtio_blk\nalias virtio:d00000002v*\nmodule crc32c_generic\nalias crypto-crc32c\n\
                  module crc32c_intel\nalias crypto-crc32c\nalias cpu:type:x86*\n\
                  module jbd2 soft crc32c_generic crc32c_intel\n\
                  module ext4 needs jbd2 soft crc32c_generic crc32c_intel\nalias fs-ext4\n";
    assert_eq!(choice.table.render(), wanted);
    assert_eq!(Table::parse(wanted).unwrap(), choice.table);
    assert_eq!(choice.stage1.len(), 5);
}

#[test]
fn the_root_has_listed_folders_and_what_their_modules_like() {
    let choice = choose(&ext4(), &lists(&[], &[], &["kernel/net/sched"])).unwrap();
    let names: Vec<_> = choice
        .paths
        .iter()
        .map(|path| path.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(names, ["e1000.ko", "sch_htb.ko", "sch_old.ko"]);

    let mut tree = ext4();
    prune(&mut tree, &choice.directory, &choice.paths);
    let inside = format!("{DIRECTORY}/kernel/");
    let folders = tree.below(&inside).filter(|(_, entry)| entry.node == Node::Directory);
    let folders: Vec<_> = folders.map(|(path, _)| path.strip_prefix(DIRECTORY).unwrap()).collect();
    assert_eq!(
        folders,
        [
            "/kernel/drivers",
            "/kernel/drivers/net",
            "/kernel/net",
            "/kernel/net/sched"
        ]
    );
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    assert_eq!(
        error(&ext4(), &lists(&["virtio-blk", "nvme"], &["pcnet32"], &[])),
        "kernel 6.1 has no module nvme, pcnet32, which the recipe lists"
    );
    assert_eq!(
        error(&ext4(), &lists(&[], &[], &["kernel/sound"])),
        "kernel 6.1 has no modules in kernel/sound, which the recipe lists"
    );
    assert_eq!(
        error(&ext4(), &lists(&["ext4"], &[], &[])),
        "module ext4 wants crypto-crc32c to be loaded before it; list a module that provides it in the recipe"
    );
    assert_eq!(
        error(&tree(&[("a", &["depends=b"])]), &lists(&["a"], &[], &[])),
        "module a needs b, which kernel 6.1 does not have"
    );
    assert_eq!(
        error(&Tree::new(), &lists(&[], &[], &[])),
        "the image needs exactly one kernel, and has []; which packages of the recipe bring them?"
    );
}

#[test]
fn modules_that_need_each_other_are_refused() {
    let tree = tree(&[("a", &["depends=b"]), ("b", &["depends=a"])]);
    assert_eq!(error(&tree, &lists(&["a"], &[], &[])), "module a needs itself");
}
