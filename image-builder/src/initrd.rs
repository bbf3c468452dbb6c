//! The initial RAM file system: our first program and the drivers of disks, compressed.

use std::io;

use bytes::Bytes;
use stage1::cpio::{Archive, Node};

use crate::modules::Kernel;

/// What the kernel or [`stage1`] needs to be there.
const DIRECTORIES: [&str; 7] = ["dev", "modules", "proc", "run", "sys", "sysroot", "tmp"];
/// One thread makes one order of bytes, whatever the machine.
const LEVEL: i32 = 19;

/// Makes it, with `program` as `/init`.
///
/// # Errors
/// It cannot be compressed.
pub fn make(kernel: &Kernel, program: &[u8]) -> io::Result<Bytes> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.add(directory, &Node::Directory);
    }
    // The kernel opens it for us before there is a devtmpfs.
    archive.add("dev/console", &Node::Device { major: 5, minor: 1 });
    archive.add("init", &Node::Program(program));
    for (module, contents) in kernel.table.modules.iter().zip(&kernel.stage1) {
        archive.add(&format!("modules/{}.ko", module.name), &Node::File(contents));
    }
    archive.add("modules/table", &Node::File(kernel.table.render().as_bytes()));
    Ok(zstd::bulk::compress(&archive.finish(), LEVEL)?.into())
}
