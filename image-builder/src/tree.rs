//! A root file system in memory: what packages, recipe and programs become before it is written anywhere.
//!
//! There are no times in it (all are the recipe's epoch), no device nodes, and one order: that of the paths' bytes. So the
//! same contents are the same tar, whoever made them and in whatever order (image-pipeline.md §6).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use bytes::Bytes;

/// Files, directories and links by path. Paths have neither a leading nor a trailing slash: `usr/bin/agent`. The root is
/// not an entry of its own: it belongs to root and has mode 0755.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Entry>);

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permissions with set-user-id, set-group-id and sticky bit: at most `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes by full name: `security.capability`.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// What it is.
    pub node: Node,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file, with its contents.
    File(Bytes),
    /// A symbolic link, with its target as it is written in it.
    Symlink(String),
    /// Another name of the file at this path in the tree.
    HardLink(String),
}

/// Why something cannot be in a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// `..`, an empty component, a leading slash.
    #[error("{0:?} is not a path below the root; write it like usr/bin/agent")]
    BadPath(String),
    /// Something that an image must not contain.
    #[error("{path} is a {kind}; only files, directories and links can be in an image")]
    BadKind {
        /// Its path.
        path: String,
        /// Device, socket …
        kind: String,
    },
    /// A hard link to nothing, or to no file.
    #[error("{path} is a hard link to {target}, which is no file of this tree")]
    BadLink {
        /// Its path.
        path: String,
        /// What it names.
        target: String,
    },
    /// The parent is missing or no directory.
    #[error("{0} is not inside of a directory of this tree")]
    NoParent(String),
    /// The archive cannot be read or written.
    #[error("cannot read or write the archive")]
    Archive(#[from] io::Error),
}

impl Entry {
    /// A directory of root's.
    pub fn directory(mode: u32) -> Self {
        Self::of(mode, Node::Directory)
    }

    /// A file of root's.
    pub fn file(mode: u32, contents: impl Into<Bytes>) -> Self {
        Self::of(mode, Node::File(contents.into()))
    }

    /// A symbolic link.
    pub fn symlink(target: impl Into<String>) -> Self {
        Self::of(0o777, Node::Symlink(target.into()))
    }

    /// The same with another owner.
    #[must_use]
    pub fn owned(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    fn of(mode: u32, node: Node) -> Self {
        let xattrs = BTreeMap::new();
        Self {
            mode,
            uid: 0,
            gid: 0,
            xattrs,
            node,
        }
    }
}

impl Tree {
    /// Nothing but the root.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an entry there, whatever was there before. Its parent need not exist yet: see [`Tree::check`].
    ///
    /// # Errors
    /// The path is not one.
    pub fn insert(&mut self, path: impl Into<String>, entry: Entry) -> Result<(), TreeError> {
        let path = path.into();
        check_path(&path)?;
        self.0.insert(path, entry);
        Ok(())
    }

    /// Makes the directories above `path` that are missing, with mode 0755.
    pub fn make_parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let parent = self.0.entry(path[..end].to_owned());
            parent.or_insert_with(|| Entry::directory(0o755));
        }
    }

    /// The entry at a path, links not followed.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.0.get(path)
    }

    /// The entry at a path, to change it.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Entry> {
        self.0.get_mut(path)
    }

    /// Takes one entry out, and not what is below it.
    pub fn remove(&mut self, path: &str) -> Option<Entry> {
        self.0.remove(path)
    }

    /// All entries in the order of their paths' bytes: parents come before what they contain.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// All entries whose path begins with `prefix` (which is no path: give `usr/bin/` for what is in that directory).
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        let from = self.0.range(prefix.to_owned()..);
        from.take_while(move |(path, _)| path.starts_with(prefix))
            .map(|(path, entry)| (path.as_str(), entry))
    }

    /// Keeps what `keep` says. Directories are not asked about.
    pub fn retain_files(&mut self, mut keep: impl FnMut(&str, &Entry) -> bool) {
        self.0
            .retain(|path, entry| entry.node == Node::Directory || keep(path, entry));
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The contents of a file, following hard links and symbolic links (in the last component and on the way).
    pub fn contents(&self, path: &str) -> Option<&Bytes> {
        match &self.0.get(&self.resolve(path)?)?.node {
            Node::File(contents) => Some(contents),
            Node::HardLink(target) => self.contents(target),
            _ => None,
        }
    }

    /// Where a path leads to when all symbolic links are followed inside of this tree.
    pub fn resolve(&self, path: &str) -> Option<String> {
        /// As the kernel (path_resolution(7)).
        const MAX_LINKS: usize = 40;
        let mut left: Vec<String> = components(path).rev().map(str::to_owned).collect();
        let (mut done, mut links) = (Vec::<String>::new(), 0);
        while let Some(component) = left.pop() {
            if component == ".." {
                done.pop();
                continue;
            }
            done.push(component);
            let here = done.join("/");
            match &self.0.get(&here)?.node {
                Node::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    left.extend(components(target).rev().map(str::to_owned));
                }
                Node::Directory => {}
                Node::File(_) | Node::HardLink(_) if left.is_empty() => {}
                Node::File(_) | Node::HardLink(_) => return None,
            }
        }
        Some(done.join("/"))
    }

    /// Whether everything is inside of a directory, and every hard link names a file.
    ///
    /// # Errors
    /// The first entry that does not fit.
    pub fn check(&self) -> Result<(), TreeError> {
        for (path, entry) in &self.0 {
            if let Some((parent, _)) = path.rsplit_once('/')
                && self.0.get(parent).is_none_or(|parent| parent.node != Node::Directory)
            {
                return Err(TreeError::NoParent(path.clone()));
            }
            if let Node::HardLink(target) = &entry.node
                && !matches!(
                    self.0.get(target),
                    Some(Entry {
                        node: Node::File(_),
                        ..
                    })
                )
            {
                return Err(TreeError::BadLink {
                    path: path.clone(),
                    target: target.clone(),
                });
            }
        }
        Ok(())
    }

    /// Writes the one tar that this tree is: PAX where ustar is too narrow, `./` before each path, all times `epoch`
    /// (seconds since 1970), no names of users, and each file's contents at the first of its names.
    ///
    /// # Errors
    /// The tree is not whole ([`Tree::check`]), or the output cannot be written.
    pub fn write_tar(&self, epoch: u64, output: impl Write) -> Result<(), TreeError> {
        self.check()?;
        let first_names = self.first_names();
        let mut tar = tar::Builder::new(output);
        append(&mut tar, epoch, "./", &Entry::directory(0o755), &Body::Nothing)?;
        for (path, entry) in &self.0 {
            let body = match &entry.node {
                Node::Directory => Body::Nothing,
                Node::Symlink(target) => Body::Link(tar::EntryType::Symlink, target.clone()),
                Node::File(contents) => match first_names.get(path.as_str()) {
                    Some(first) if *first != path => Body::Link(tar::EntryType::Link, format!("./{first}")),
                    _ => Body::Contents(contents),
                },
                Node::HardLink(target) => match first_names.get(target.as_str()) {
                    Some(first) if *first == path => {
                        Body::Contents(self.contents(target).ok_or_else(|| TreeError::NoParent(path.clone()))?)
                    }
                    first => Body::Link(tar::EntryType::Link, format!("./{}", first.copied().unwrap_or(target))),
                },
            };
            let slash = if entry.node == Node::Directory { "/" } else { "" };
            append(&mut tar, epoch, &format!("./{path}{slash}"), entry, &body)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    /// Reads a tar. Times and names of users are dropped; a leading `./` is, too.
    ///
    /// # Errors
    /// It is none, or something in it cannot be in an image.
    pub fn read_tar(input: impl Read) -> Result<Self, TreeError> {
        let mut tree = Self::new();
        let mut archive = tar::Archive::new(input);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = text(&entry.path_bytes())?;
            let path = clean(&path).to_owned();
            if path.is_empty() {
                continue;
            }
            let kind = entry.header().entry_type();
            let target = entry.link_name_bytes().map(|name| text(&name)).transpose()?;
            let node = match (kind, target) {
                (tar::EntryType::Directory, _) => Node::Directory,
                (tar::EntryType::Symlink, Some(target)) => Node::Symlink(target),
                (tar::EntryType::Link, Some(target)) => Node::HardLink(clean(&target).to_owned()),
                (tar::EntryType::Regular | tar::EntryType::Continuous, _) => {
                    let mut contents = Vec::new();
                    entry.read_to_end(&mut contents)?;
                    Node::File(contents.into())
                }
                (kind, _) => {
                    return Err(TreeError::BadKind {
                        path,
                        kind: format!("{kind:?}").to_lowercase(),
                    });
                }
            };
            let mut xattrs = BTreeMap::new();
            for extension in entry.pax_extensions()?.into_iter().flatten() {
                let extension = extension?;
                if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR)) {
                    xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
                }
            }
            let header = entry.header();
            let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("a user's number is too large"));
            let read = Entry {
                mode: header.mode()? & 0o7777,
                uid: id(header.uid()?)?,
                gid: id(header.gid()?)?,
                xattrs,
                node,
            };
            tree.insert(path, read)?;
        }
        Ok(tree)
    }

    /// For each file that has several names: its path in the tree, and the first of its names.
    fn first_names(&self) -> BTreeMap<&str, &str> {
        let mut first = BTreeMap::new();
        for (path, entry) in &self.0 {
            if let Node::HardLink(target) = &entry.node {
                let name: &mut &str = first.entry(target.as_str()).or_insert(target.as_str());
                *name = (*name).min(path.as_str());
            }
        }
        first
    }
}

/// The prefix of an extended attribute's record, as GNU tar and libarchive write it.
const XATTR: &str = "SCHILY.xattr.";

enum Body<'a> {
    Nothing,
    Contents(&'a Bytes),
    Link(tar::EntryType, String),
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    epoch: u64,
    path: &str,
    entry: &Entry,
    body: &Body<'_>,
) -> Result<(), TreeError> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(u64::from(entry.uid));
    header.set_gid(u64::from(entry.gid));
    header.set_mtime(epoch);
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    if header.set_path(path).is_err() {
        records.push(("path".to_owned(), path.as_bytes().to_vec()));
        header.set_path("./long")?;
    }
    let contents: &[u8] = match body {
        Body::Nothing => {
            header.set_entry_type(tar::EntryType::Directory);
            &[]
        }
        Body::Contents(contents) => contents,
        Body::Link(kind, target) => {
            header.set_entry_type(*kind);
            if header.set_link_name_literal(target).is_err() {
                records.push(("linkpath".to_owned(), target.as_bytes().to_vec()));
            }
            &[]
        }
    };
    if !matches!(body, Body::Link(tar::EntryType::Link, _)) {
        let xattrs = entry.xattrs.iter();
        records.extend(xattrs.map(|(name, value)| (format!("{XATTR}{name}"), value.clone())));
    }
    header.set_size(u64::try_from(contents.len()).map_err(io::Error::other)?);
    header.set_cksum();
    if !records.is_empty() {
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        tar.append_pax_extensions(records)?;
    }
    tar.append(&header, contents)?;
    Ok(())
}

fn check_path(path: &str) -> Result<(), TreeError> {
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    if path.split('/').all(is_name) {
        Ok(())
    } else {
        Err(TreeError::BadPath(path.to_owned()))
    }
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

fn clean(path: &str) -> &str {
    let path = path
        .strip_prefix('.')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        .unwrap_or(path);
    path.trim_matches('/')
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| io::Error::other(format!("a path is not UTF-8: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::new();
        tree.insert("usr", Entry::directory(0o755)).unwrap();
        tree.insert("usr/bin", Entry::directory(0o755)).unwrap();
        tree.insert("bin", Entry::symlink("usr/bin")).unwrap();
        let ping = Entry {
            xattrs: [("security.capability".to_owned(), vec![1, 0, 0, 2, 0, 255])].into(),
            ..Entry::file(0o755, "ping")
        };
        tree.insert("usr/bin/ping", ping).unwrap();
        let link = Entry {
            node: Node::HardLink("usr/bin/ping".to_owned()),
            ..tree.get("usr/bin/ping").unwrap().clone()
        };
        tree.insert("usr/bin/a-ping", link).unwrap();
        let long = format!("usr/{}/{}", "d".repeat(120), "f".repeat(120));
        tree.make_parents(&long);
        tree.insert(long, Entry::file(0o600, "x").owned(100, 101)).unwrap();
        tree
    }

    fn tar_of(tree: &Tree) -> Vec<u8> {
        let mut tar = Vec::new();
        tree.write_tar(1_700_000_000, &mut tar).unwrap();
        tar
    }

    #[test]
    fn what_is_written_is_read_again_and_written_the_same() {
        let first = tar_of(&sample());
        let read = Tree::read_tar(first.as_slice()).unwrap();
        assert_eq!(
            read.get("usr/bin/ping").unwrap().node,
            Node::HardLink("usr/bin/a-ping".to_owned())
        );
        assert_eq!(read.contents("bin/ping").unwrap(), "ping");
        assert_eq!(read.len(), sample().len());
        assert_eq!(tar_of(&read), first);
    }

    #[test]
    fn symbolic_links_are_followed_inside_of_the_tree() {
        let mut tree = sample();
        tree.insert("loop", Entry::symlink("loop")).unwrap();
        tree.insert("out", Entry::symlink("../../../usr/./bin")).unwrap();
        assert_eq!(tree.resolve("out/ping"), Some("usr/bin/ping".to_owned()));
        assert_eq!(tree.resolve("/bin/a-ping/"), Some("usr/bin/a-ping".to_owned()));
        assert_eq!(tree.resolve("loop"), None);
        assert_eq!(tree.resolve("bin/ping/x"), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut tree = Tree::new();
        for path in ["", "/usr", "usr/", "usr//bin", "../etc", "usr/./bin"] {
            assert!(tree.insert(path, Entry::directory(0o755)).is_err(), "{path}");
        }
        tree.insert("usr/bin", Entry::directory(0o755)).unwrap();
        assert_eq!(
            tree.check().unwrap_err().to_string(),
            "usr/bin is not inside of a directory of this tree"
        );
    }
}
