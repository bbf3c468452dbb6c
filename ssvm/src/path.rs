//! Paths that come from commands, URLs and archives (ssvm.md §8.1).
//!
//! Text becomes a [`StorePath`] first; that is opened below the store's root by the kernel, which is told to follow no
//! link and to leave the root by no way. What is done afterwards is done with descriptors.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Bytes of one component: what Linux file systems take.
const MAX_COMPONENT: usize = 255;

/// Bytes of a whole path: `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// For a directory that somebody removes while it is made.
const MAKE_ATTEMPTS: u32 = 100;

/// Directories of a store are made for hypervisor hosts and other SSVMs, which are other users (§2).
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o777);

/// A path relative to the root of a store: no component is empty, `.` or `..`, or has a control character.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StorePath(String);

/// Why a path is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It names the store itself.
    #[error("the path is empty; name something in the store")]
    Empty,
    /// It leads upwards.
    #[error("the path has a component `..`; write it without")]
    Parent,
    /// NUL, newline and the like.
    #[error("the path has a control character; remove it")]
    Control,
    /// No file system takes it.
    #[error("the path has a component of more than {MAX_COMPONENT} bytes, or more than {MAX_PATH} bytes altogether")]
    TooLong,
    /// A single name was wanted.
    #[error("the name has a `/`; only plain names are possible here")]
    NotPlain,
}

impl From<BadPath> for io::Error {
    fn from(bad: BadPath) -> Self {
        Self::new(ErrorKind::InvalidInput, bad)
    }
}

impl StorePath {
    /// Reads a path as commands have it: leading, trailing and double slashes do not count, nor do `.` components.
    pub fn parse(text: &str) -> Result<Self, BadPath> {
        if text.len() > MAX_PATH {
            return Err(BadPath::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(BadPath::Control);
        }
        let components: Vec<_> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if components.contains(&"..") {
            return Err(BadPath::Parent);
        }
        if components.iter().any(|part| part.len() > MAX_COMPONENT) {
            return Err(BadPath::TooLong);
        }
        if components.is_empty() {
            return Err(BadPath::Empty);
        }
        Ok(Self(components.join("/")))
    }

    /// Reads the name of a single file, such as the last part of a URL.
    pub fn parse_name(text: &str) -> Result<Self, BadPath> {
        if text.contains('/') {
            return Err(BadPath::NotPlain);
        }
        Self::parse(text)
    }

    /// Its text, without a slash at either end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> Result<Self, BadPath> {
        let name = Self::parse_name(name)?;
        Self::parse(&format!("{self}/{name}"))
    }

    /// Its parts, from the root on.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The directory that it is in; `None` if that is the root.
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.0.rsplit_once('/')?;
        Some(Self(parent.to_owned()))
    }

    /// Its last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl Display for StorePath {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Opens a directory below `root`, for use with `openat` and the like; with `create`, makes what is missing (mode 0777).
///
/// `root` itself is trusted and may be a link; below it, a link anywhere is an error (`ELOOP`).
pub fn open_directory(root: &Path, relative: &str, create: bool) -> io::Result<File> {
    let path = StorePath::parse(relative)?;
    let root = open_root(root)?;
    match open_at(
        &root,
        path.as_str(),
        OFlag::O_DIRECTORY | OFlag::O_RDONLY,
        Mode::empty(),
    ) {
        // Who cleans up beside us may remove a directory that we have just made, because it is empty.
        Err(error) if create && error.kind() == ErrorKind::NotFound => (0..MAKE_ATTEMPTS)
            .map(|_| make_directories(&root, &path))
            .find(|made| !matches!(made, Err(error) if error.kind() == ErrorKind::NotFound))
            .unwrap_or(Err(error)),
        result => result,
    }
}

/// The same for the root itself.
pub fn open_root(root: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(File::from(open(root, flags, Mode::empty())?))
}

/// Opens a file for reading that lies below the open directory `root`; no link is followed.
pub fn open_file(root: &File, path: &StorePath) -> io::Result<File> {
    // A pipe in the store would wait for its other end.
    open_at(root, path.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())
}

/// Makes a new file below the open directory `root`, for reading and writing. It must not exist.
pub fn create_file(root: &File, path: &StorePath, mode: u32) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    open_at(root, path.as_str(), flags, Mode::from_bits_truncate(mode))
}

/// Removes the empty directory `path` below `root`, and those that it is in as long as they are empty, but none with
/// less than `depth` components.
pub fn remove_empty(root: &Path, path: &StorePath, depth: usize) -> io::Result<()> {
    let mut next = Some(path.clone());
    while let Some(path) = next.filter(|path| path.components().count() >= depth) {
        let holder = match path.parent() {
            None => open_root(root),
            Some(parent) => open_directory(root, parent.as_str(), false),
        };
        let removed = holder.and_then(|holder| {
            let flag = UnlinkatFlags::RemoveDir;
            Ok(unlinkat(&holder, path.file_name(), flag)?)
        });
        match removed {
            // Some file servers say "exists" for "not empty".
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                return Ok(());
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => next = path.parent(),
        }
    }
    Ok(())
}

fn make_directories(root: &File, path: &StorePath) -> io::Result<File> {
    let mut directory = root.try_clone()?;
    for component in path.components() {
        match mkdirat(&directory, component, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        directory = open_at(
            &directory,
            component,
            OFlag::O_DIRECTORY | OFlag::O_RDONLY,
            Mode::empty(),
        )?;
    }
    Ok(directory)
}

fn open_at(root: &File, relative: &str, flags: OFlag, mode: Mode) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).mode(mode).resolve(resolve);
    match openat2(root, relative, how) {
        // Linux before 5.6, or a sandbox that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => open_by_component(root, relative, flags, mode),
        result => Ok(File::from(result?)),
    }
}

/// The same by hand. `relative` comes from a [`StorePath`], so there is no `..` in it.
fn open_by_component(root: &File, relative: &str, flags: OFlag, mode: Mode) -> io::Result<File> {
    let Some((directories, last)) = relative.rsplit_once('/') else {
        return Ok(File::from(openat(root, relative, flags, mode)?));
    };
    let mut directory = root.try_clone()?;
    for component in directories.split('/') {
        let step = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        directory = File::from(openat(&directory, component, step, Mode::empty())?);
    }
    Ok(File::from(openat(&directory, last, flags, mode)?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use serde_json::Value;

    use super::*;

    fn cases() -> Vec<(String, bool, Option<String>)> {
        let vectors: Value = serde_json::from_str(include_str!("../tests/vectors/paths.json")).unwrap();
        let case = |case: &Value| {
            (
                case["path"].as_str().unwrap().to_owned(),
                case["ok"].as_bool().unwrap(),
                case["clean"].as_str().map(str::to_owned),
            )
        };
        vectors["cases"].as_array().unwrap().iter().map(case).collect()
    }

    #[test]
    fn paths_are_judged_as_the_vectors_say() {
        let store = tempfile::tempdir().unwrap();
        symlink("/etc", store.path().join("link")).unwrap();
        assert!(cases().len() > 15);
        for (text, ok, clean) in cases() {
            let opened = open_directory(store.path(), &text, true);
            assert_eq!(opened.is_ok(), ok, "{text:?}: {opened:?}");
            if let Some(clean) = clean {
                assert_eq!(StorePath::parse(&text).unwrap().as_str(), clean);
                assert!(store.path().join(clean).is_dir());
            }
        }
        assert!(!Path::new("/etc/x").exists());
    }

    #[test]
    fn a_link_is_followed_nowhere_by_neither_way() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join("real")).unwrap();
        File::create(store.path().join("real/file")).unwrap();
        symlink("real", store.path().join("link")).unwrap();
        symlink("file", store.path().join("real/last")).unwrap();
        let root = open_root(store.path()).unwrap();
        for (path, ok) in [("real/file", true), ("link/file", false), ("real/last", false)] {
            let parsed = StorePath::parse(path).unwrap();
            assert_eq!(open_file(&root, &parsed).is_ok(), ok, "{path}");
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
            assert_eq!(
                open_by_component(&root, path, flags, Mode::empty()).is_ok(),
                ok,
                "{path}"
            );
        }
        let error = open_directory(store.path(), "link/new", true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ELOOP));
    }

    #[test]
    fn a_new_file_never_replaces_one() {
        let store = tempfile::tempdir().unwrap();
        let root = open_root(store.path()).unwrap();
        let path = StorePath::parse_name("a").unwrap();
        create_file(&root, &path, 0o600).unwrap();
        assert_eq!(
            create_file(&root, &path, 0o600).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(StorePath::parse_name("a/b"), Err(BadPath::NotPlain));
    }

    #[test]
    fn empty_directories_are_removed_as_far_up_as_they_may() {
        let store = tempfile::tempdir().unwrap();
        let path = |text: &str| StorePath::parse(text).unwrap();
        open_directory(store.path(), "template/tmpl/2/207", true).unwrap();
        open_directory(store.path(), "template/tmpl/3/208", true).unwrap();
        File::create(store.path().join("template/tmpl/3/other")).unwrap();
        for name in ["template/tmpl/2/207", "template/tmpl/3/208", "template/tmpl/4/209"] {
            remove_empty(store.path(), &path(name), 3).unwrap();
        }
        assert!(!store.path().join("template/tmpl/2").exists());
        assert!(!store.path().join("template/tmpl/3/208").exists());
        assert!(store.path().join("template/tmpl/3/other").exists());
        remove_empty(store.path(), &path("template/tmpl/3"), 3).unwrap();
        assert!(store.path().join("template/tmpl/3").exists());
    }

    #[test]
    fn directories_are_made_while_others_remove_empty_ones() {
        let store = tempfile::tempdir().unwrap();
        let path = StorePath::parse("template/tmpl/2/1").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    remove_empty(store.path(), &path, 3).unwrap();
                }
            });
            for _ in 0..2000 {
                open_directory(store.path(), "template/tmpl/2/2", true).unwrap();
                fs::remove_dir(store.path().join("template/tmpl/2/2")).unwrap();
            }
        });
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_stays_below_the_root(text in "[a./\\x00-\\x20\u{e9}]{0,40}") {
            if let Ok(path) = StorePath::parse(&text) {
                assert!(path.components().all(|part| !matches!(part, "" | "." | "..")));
                assert_eq!(StorePath::parse(path.as_str()), Ok(path.clone()));
            }
        }
    }
}
