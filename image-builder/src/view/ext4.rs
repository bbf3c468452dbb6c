//! Reads a whole ext4 file system into a [`Tree`], with what libraries leave out: extended attributes (file capabilities)
//! and which names are the same file.
//!
//! Nothing in the disk is believed: every number is compared with a limit before it is used, and whatever the bytes are,
//! the answer is a tree or an error (Linux Documentation/filesystems/ext4).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use crate::formats::Disk;
use crate::tree::{Entry, Node, Tree, TreeError};
use crate::view::{MAX_CONTENTS, MAX_ENTRIES};

/// Where the superblock is, whatever the block size.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;
const ROOT_INODE: u32 = 2;
/// `filetype extent 64bit flex_bg metadata_csum_seed large_dir`: all that does not change how we read.
const KNOWN_FEATURES: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000 | 0x4000;
const NEEDS_RECOVERY: u32 = 0x4;
const IS_64_BIT: u32 = 0x80;
/// Inode flags.
const HAS_EXTENTS: u32 = 0x0008_0000;
const UNREADABLE: u32 = 0x1000_0000 /* inline data */ | 0x0020_0000 /* attribute */ | 0x800 /* encrypted */;
/// The extent tree of a file of 16 TiB is no deeper.
const MAX_DEPTH: u16 = 5;
/// Bytes; a million entries need no more.
const MAX_DIRECTORIES: u64 = 256 << 20;
/// Linux `XATTR_SIZE_MAX`.
const MAX_ATTRIBUTES: usize = 64 << 10;
/// Linux `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Why a file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// There is something else.
    #[error("there is no ext4 file system")]
    NotExt4,
    /// It was in use when the disk was copied.
    #[error("it was not unmounted cleanly; run e2fsck on a copy of it first")]
    NotClean,
    /// Something that our images do not use.
    #[error("it uses {0}, which this program does not read")]
    Unknown(String),
    /// It contradicts itself.
    #[error("it is damaged: {0}; e2fsck -fn says more")]
    Damaged(String),
    /// More than any image of ours.
    #[error("it has {0}, more than any system VM image")]
    TooLarge(String),
    /// The disk below cannot be read.
    #[error("it cannot be read")]
    Disk(#[from] io::Error),
    /// A name that cannot be.
    #[error("it is damaged")]
    Tree(#[from] TreeError),
}

/// Label and contents of the file system at the beginning of `disk`. An empty `lost+found` is left out: file systems have
/// it, trees do not.
///
/// # Errors
/// It is none, it is damaged, or it uses a feature that our images do not.
pub(super) fn read(disk: &dyn Disk) -> Result<(String, Tree), Ext4Error> {
    let file_system = FileSystem::open(disk)?;
    let mut tree = file_system.tree()?;
    if tree.below("lost+found/").next().is_none() {
        tree.remove("lost+found");
    }
    Ok((file_system.label, tree))
}

/// Whether there is an ext4 file system at the beginning of `disk`.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn is_one(disk: &dyn Disk) -> io::Result<bool> {
    if disk.size() < SUPERBLOCK * 2 {
        return Ok(false);
    }
    let mut magic = [0; 2];
    disk.read_at(&mut magic, SUPERBLOCK + 0x38)?;
    Ok(u16::from_le_bytes(magic) == MAGIC)
}

struct FileSystem<'a> {
    disk: &'a dyn Disk,
    label: String,
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u64,
    /// The first block of each group's inodes.
    inode_tables: Vec<u64>,
}

struct Inode {
    raw: Vec<u8>,
    mode: u16,
    size: u64,
    flags: u32,
}

impl<'a> FileSystem<'a> {
    fn open(disk: &'a dyn Disk) -> Result<Self, Ext4Error> {
        if !is_one(disk)? {
            return Err(Ext4Error::NotExt4);
        }
        let mut raw = vec![0; 1024];
        disk.read_at(&mut raw, SUPERBLOCK)?;
        let sb = Raw(&raw);
        let incompatible = sb.u32(0x60)?;
        if incompatible & NEEDS_RECOVERY != 0 {
            return Err(Ext4Error::NotClean);
        }
        let unknown = incompatible & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(Ext4Error::Unknown(format!("incompatible features {unknown:#x}")));
        }
        let block_size = match sb.u32(0x18)? {
            log @ 0..=6 => 1024_u64 << log,
            log => return Err(damaged(format!("its block size is 2^{log} KiB"))),
        };
        let is_64_bit = incompatible & IS_64_BIT != 0;
        let blocks = u64::from(sb.u32(0x4)?) | if is_64_bit { u64::from(sb.u32(0x150)?) << 32 } else { 0 };
        if blocks.checked_mul(block_size).is_none_or(|size| size > disk.size()) {
            return Err(damaged(format!(
                "it has {blocks} blocks of {block_size} bytes, more than fit into {} bytes",
                disk.size()
            )));
        }
        let (first, per_group) = (u64::from(sb.u32(0x14)?), u64::from(sb.u32(0x20)?));
        let (inodes, inodes_per_group) = (sb.u32(0)?, sb.u32(0x28)?);
        let inode_size = u64::from(sb.u16(0x58)?);
        let descriptor = if is_64_bit { usize::from(sb.u16(0xFE)?) } else { 32 };
        let is_possible = per_group > 0
            && per_group <= block_size * 8
            && inodes_per_group > 0
            && u64::from(inodes_per_group) <= block_size * 8
            && first < blocks
            && (128..=block_size).contains(&inode_size)
            && inode_size.is_power_of_two()
            && (32..=1024).contains(&descriptor);
        if !is_possible {
            return Err(damaged("its superblock contradicts itself".to_owned()));
        }
        let groups = size_of_table((blocks - first).div_ceil(per_group))?;
        if u64::from(inodes) > u64::from(inodes_per_group) * u64::try_from(groups).unwrap_or(u64::MAX) {
            return Err(damaged(format!("it has {inodes} inodes, more than its groups hold")));
        }
        let mut table = vec![0; groups * descriptor];
        disk.read_at(&mut table, (first + 1) * block_size)?;
        let mut inode_tables = Vec::with_capacity(groups);
        for group in table.chunks_exact(descriptor) {
            let high = if descriptor >= 64 { Raw(group).u32(0x28)? } else { 0 };
            inode_tables.push(u64::from(high) << 32 | u64::from(Raw(group).u32(0x8)?));
        }
        let label = raw[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            disk,
            label: String::from_utf8_lossy(label).into_owned(),
            block_size,
            blocks,
            inodes,
            inodes_per_group,
            inode_size,
            inode_tables,
        })
    }

    fn tree(&self) -> Result<Tree, Ext4Error> {
        let names = self.names()?;
        let mut tree = Tree::new();
        // Names come in the order of their bytes: the first name of a file carries its contents, as in our tars.
        let mut first_names = HashMap::<u32, String>::new();
        let mut total = 0_u64;
        for (path, number) in names {
            let inode = self.inode(number)?;
            let name = path.as_str();
            if total.saturating_add(inode.size) > MAX_CONTENTS {
                return Err(Ext4Error::TooLarge(format!("more than {MAX_CONTENTS} bytes in files")));
            }
            let node = match inode.mode & 0xF000 {
                0x4000 => Node::Directory,
                0x8000 => {
                    if let Some(first) = first_names.get(&number) {
                        Node::HardLink(first.clone())
                    } else {
                        total = total.saturating_add(inode.size);
                        first_names.insert(number, path.clone());
                        Node::File(self.contents(&inode, name)?.into())
                    }
                }
                0xA000 => Node::Symlink(self.target(&inode, name)?),
                kind => {
                    return Err(TreeError::BadKind {
                        path,
                        kind: format!("file of type {kind:#x}"),
                    }
                    .into());
                }
            };
            let raw = Raw(&inode.raw);
            let xattrs = self.xattrs(&inode, name)?;
            total = xattrs
                .values()
                .fold(total, |total, value| total.saturating_add(length_of(value)));
            let entry = Entry {
                mode: u32::from(inode.mode & 0o7777),
                uid: u32::from(raw.u16(0x2)?) | u32::from(raw.u16(0x78)?) << 16,
                gid: u32::from(raw.u16(0x18)?) | u32::from(raw.u16(0x7A)?) << 16,
                xattrs,
                node,
            };
            tree.insert(path, entry)?;
        }
        Ok(tree)
    }

    /// Every path with its inode, sorted by path.
    fn names(&self) -> Result<BTreeMap<String, u32>, Ext4Error> {
        let mut names = BTreeMap::new();
        let mut directories = BTreeSet::from([ROOT_INODE]);
        let mut left = vec![(String::new(), ROOT_INODE)];
        let mut total = 0_u64;
        while let Some((path, number)) = left.pop() {
            let shown = if path.is_empty() { "/" } else { &path };
            let inode = self.inode(number)?;
            if inode.mode & 0xF000 != 0x4000 {
                return Err(damaged(format!("{shown} is no directory")));
            }
            total = total.saturating_add(inode.size);
            if total > MAX_DIRECTORIES {
                return Err(Ext4Error::TooLarge(format!(
                    "more than {MAX_DIRECTORIES} bytes in directories"
                )));
            }
            let data = self.contents(&inode, shown)?;
            for (name, kind, number) in self.directory(&data, shown)? {
                let below = if path.is_empty() {
                    name
                } else {
                    format!("{path}/{name}")
                };
                if below.len() > MAX_PATH {
                    return Err(damaged(format!("{below:.60}… is longer than any path")));
                }
                // 2 in a directory means directory; each has one parent, so a second is a loop.
                if kind == 2 {
                    if !directories.insert(number) {
                        return Err(damaged(format!("the directory {below} is in two places")));
                    }
                    left.push((below.clone(), number));
                }
                if names.insert(below, number).is_some() {
                    return Err(damaged(format!("{shown} has the same name twice")));
                }
                if names.len() > MAX_ENTRIES {
                    return Err(Ext4Error::TooLarge(format!("more than {MAX_ENTRIES} files")));
                }
            }
        }
        Ok(names)
    }

    /// Name, type and inode of what is in a directory, from its blocks. Indexed directories (`dir_index`) are read as
    /// plain ones: their index looks like unused room.
    fn directory(&self, data: &[u8], path: &str) -> Result<Vec<(String, u8, u32)>, Ext4Error> {
        let mut entries = Vec::new();
        for block in data.chunks(usize_of(self.block_size)?) {
            let mut rest = block;
            while !rest.is_empty() {
                let raw = Raw(rest);
                let (number, length) = (raw.u32(0)?, usize::from(raw.u16(4)?));
                // With 64 KiB blocks, the length of a whole block does not fit.
                let length = if matches!(length, 0 | 0xFFFF) {
                    rest.len()
                } else {
                    length
                };
                let (name, kind) = (usize::from(raw.u8(6)?), raw.u8(7)?);
                if length < 8 || length > rest.len() || 8 + name > length {
                    return Err(damaged(format!("an entry of the directory {path} does not fit")));
                }
                if number != 0 {
                    let name = std::str::from_utf8(&rest[8..8 + name])
                        .map_err(|_| damaged(format!("a name in {path} is not UTF-8")))?;
                    if !matches!(name, "." | "..") {
                        if name.is_empty() || name.contains(['/', '\0']) {
                            return Err(damaged(format!("{path} has a file with the name {name:?}")));
                        }
                        entries.push((name.to_owned(), kind, number));
                    }
                }
                rest = &rest[length..];
            }
        }
        Ok(entries)
    }

    fn inode(&self, number: u32) -> Result<Inode, Ext4Error> {
        if number == 0 || number > self.inodes {
            return Err(damaged(format!("it names inode {number} of {}", self.inodes)));
        }
        let (group, index) = (
            (number - 1) / self.inodes_per_group,
            (number - 1) % self.inodes_per_group,
        );
        let table = usize::try_from(group)
            .ok()
            .and_then(|group| self.inode_tables.get(group));
        let table = *table.ok_or_else(|| damaged(format!("inode {number} is in no group")))?;
        let offset = u64::from(index) * self.inode_size;
        let mut raw = vec![0; usize_of(self.inode_size)?];
        self.read_blocks(&mut raw, table, offset)?;
        let read = Raw(&raw);
        let flags = read.u32(0x20)?;
        if flags & UNREADABLE != 0 {
            return Err(Ext4Error::Unknown(format!(
                "flags {:#x} in inode {number}",
                flags & UNREADABLE
            )));
        }
        let (mode, size) = (
            read.u16(0)?,
            u64::from(read.u32(0x4)?) | u64::from(read.u32(0x6C)?) << 32,
        );
        Ok(Inode { raw, mode, size, flags })
    }

    fn target(&self, inode: &Inode, path: &str) -> Result<String, Ext4Error> {
        /// A target of up to 59 bytes is where other files have their extents.
        const FAST: u64 = 60;
        let bytes = match usize::try_from(inode.size) {
            Ok(length @ 1..) if inode.size < FAST => inode.raw[0x28..0x28 + length].to_vec(),
            Ok(1..=MAX_PATH) => self.contents(inode, path)?,
            _ => return Err(damaged(format!("the link {path} has {} bytes", inode.size))),
        };
        String::from_utf8(bytes).map_err(|_| damaged(format!("the target of {path} is not UTF-8")))
    }

    /// What a file holds. Holes are zeros.
    fn contents(&self, inode: &Inode, path: &str) -> Result<Vec<u8>, Ext4Error> {
        if inode.size > MAX_CONTENTS {
            return Err(Ext4Error::TooLarge(format!("{} bytes in {path}", inode.size)));
        }
        if inode.size == 0 {
            return Ok(Vec::new());
        }
        if inode.flags & HAS_EXTENTS == 0 {
            return Err(Ext4Error::Unknown(format!("blocks without extents in {path}")));
        }
        let mut contents = vec![0; usize_of(inode.size)?];
        self.extents(&inode.raw[0x28..0x28 + 60], None, path, &mut 0, &mut contents)?;
        Ok(contents)
    }

    /// Fills `contents` from a node of the extent tree. `next` is the first block of the file that may come now: extents
    /// are in order, do not overlap and end with the file, so whoever wrote them cannot make us read much more than that.
    fn extents(
        &self,
        node: &[u8],
        depth: Option<u16>,
        path: &str,
        next: &mut u64,
        contents: &mut [u8],
    ) -> Result<(), Ext4Error> {
        let bad = || damaged(format!("the extents of {path} make no sense"));
        let raw = Raw(node);
        let (magic, count, here) = (raw.u16(0)?, usize::from(raw.u16(2)?), raw.u16(6)?);
        // Each level is one nearer to the data than the level above, so this ends.
        let is_possible = magic == 0xF30A
            && here <= MAX_DEPTH
            && depth.is_none_or(|depth| here == depth && count > 0)
            && 12 + count * 12 <= node.len();
        if !is_possible {
            return Err(bad());
        }
        let size = length_of(contents);
        for entry in node[12..12 + count * 12].chunks_exact(12) {
            let entry = Raw(entry);
            let first = u64::from(entry.u32(0)?);
            if first < *next || first * self.block_size >= size {
                return Err(bad());
            }
            if here > 0 {
                let mut block = vec![0; usize_of(self.block_size)?];
                let child = u64::from(entry.u32(4)?) | u64::from(entry.u16(8)?) << 32;
                self.read_blocks(&mut block, child, 0)?;
                self.extents(&block, Some(here - 1), path, next, contents)?;
                continue;
            }
            // Above 32768: reserved, never written, reads as zeros.
            let (length, is_written) = match u64::from(entry.u16(4)?) {
                0 => return Err(bad()),
                length @ ..=32768 => (length, true),
                length => (length - 32768, false),
            };
            *next = first + length;
            let (from, to) = (first * self.block_size, (*next * self.block_size).min(size));
            if is_written {
                let start = u64::from(entry.u32(8)?) | u64::from(entry.u16(6)?) << 32;
                self.read_blocks(&mut contents[usize_of(from)?..usize_of(to)?], start, 0)?;
            }
        }
        Ok(())
    }

    fn xattrs(&self, inode: &Inode, path: &str) -> Result<BTreeMap<String, Vec<u8>>, Ext4Error> {
        const MAGIC: u32 = 0xEA02_0000;
        let mut found = BTreeMap::new();
        let raw = Raw(&inode.raw);
        if inode.raw.len() > 128 {
            let start = 128 + usize::from(raw.u16(0x80)?);
            if let Some(room) = inode.raw.get(start..)
                && room.len() > 8
                && Raw(room).u32(0)? == MAGIC
            {
                attributes(&room[4..], &room[4..], path, &mut found)?;
            }
        }
        let block = u64::from(raw.u32(0x68)?) | u64::from(raw.u16(0x76)?) << 32;
        if block != 0 {
            let mut room = vec![0; usize_of(self.block_size)?];
            self.read_blocks(&mut room, block, 0)?;
            if Raw(&room).u32(0)? != MAGIC {
                return Err(damaged(format!("the attributes of {path} are missing")));
            }
            attributes(&room[32..], &room, path, &mut found)?;
        }
        Ok(found)
    }

    /// Reads from `offset` bytes behind the start of `block`.
    fn read_blocks(&self, into: &mut [u8], block: u64, offset: u64) -> Result<(), Ext4Error> {
        let end = offset
            .checked_add(length_of(into))
            .map(|end| end.div_ceil(self.block_size));
        if block == 0
            || end
                .and_then(|end| end.checked_add(block))
                .is_none_or(|end| end > self.blocks)
        {
            return Err(damaged(format!("it names block {block} of {}", self.blocks)));
        }
        Ok(self.disk.read_at(into, block * self.block_size + offset)?)
    }
}

/// Reads attribute entries; their values are at offsets in `values`.
fn attributes(
    entries: &[u8],
    values: &[u8],
    path: &str,
    found: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), Ext4Error> {
    let bad = || damaged(format!("the attributes of {path} make no sense"));
    let mut rest = entries;
    while Raw(rest).u32(0).is_ok_and(|next| next != 0) {
        let raw = Raw(rest);
        let (length, index) = (usize::from(raw.u8(0)?), raw.u8(1)?);
        let prefix = match index {
            0 => "",
            1 => "user.",
            2 => "system.posix_acl_access",
            3 => "system.posix_acl_default",
            4 => "trusted.",
            6 => "security.",
            7 => "system.",
            8 => "system.richacl",
            _ => return Err(bad()),
        };
        if raw.u32(4)? != 0 {
            return Err(Ext4Error::Unknown(format!(
                "an attribute with an inode of its own at {path}"
            )));
        }
        let (offset, size) = (usize::from(raw.u16(2)?), usize_of(u64::from(raw.u32(8)?))?);
        let end = offset.checked_add(size).ok_or_else(bad)?;
        if found.values().map(Vec::len).sum::<usize>().saturating_add(size) > MAX_ATTRIBUTES {
            return Err(bad());
        }
        let value = if size == 0 {
            &[]
        } else {
            values.get(offset..end).ok_or_else(bad)?
        };
        let name = rest.get(16..16 + length).ok_or_else(bad)?;
        let name = std::str::from_utf8(name).map_err(|_| bad())?;
        found.insert(format!("{prefix}{name}"), value.to_vec());
        rest = rest.get((16 + length).next_multiple_of(4)..).ok_or_else(bad)?;
    }
    Ok(())
}

/// Little-endian numbers at offsets.
struct Raw<'a>(&'a [u8]);

impl Raw<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], Ext4Error> {
        let bytes = self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| damaged("a structure ends early".to_owned()))
    }

    fn u8(&self, at: usize) -> Result<u8, Ext4Error> {
        self.bytes::<1>(at).map(|[byte]| byte)
    }

    fn u16(&self, at: usize) -> Result<u16, Ext4Error> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Ext4Error> {
        self.bytes(at).map(u32::from_le_bytes)
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn damaged(what: String) -> Ext4Error {
    Ext4Error::Damaged(what)
}

fn usize_of(length: u64) -> Result<usize, Ext4Error> {
    usize::try_from(length).map_err(|_| Ext4Error::TooLarge(format!("a part of {length} bytes")))
}

fn size_of_table(groups: u64) -> Result<usize, Ext4Error> {
    /// 8 TiB in groups of 128 MiB.
    const MAX_GROUPS: u64 = 65536;
    match usize::try_from(groups) {
        Ok(count) if groups <= MAX_GROUPS => Ok(count),
        _ => Err(Ext4Error::TooLarge(format!("{groups} block groups"))),
    }
}

#[cfg(test)]
mod tests;
