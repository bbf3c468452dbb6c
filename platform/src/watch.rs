//! Waiting for files to be written in a directory, without looking again and again.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use crate::files::{FileError, failed};

/// A directory whose new and rewritten files are noticed.
#[derive(Debug)]
pub struct Watch(AsyncFd<Events>);

/// Which files were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// By name: each was closed after writing, or moved here. A name may be there more than once.
    Files(Vec<OsString>),
    /// So many that the kernel does not say which, or the directory itself is gone: look at all.
    Unknown,
}

#[derive(Debug)]
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, because of types whose descriptor changes or closes; that of `Events` does not"
    )]
    /// From now on. Needs a runtime with I/O. Whoever wants to miss nothing looks at the files after this, not before.
    pub fn directory(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let start = || {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
            inotify.add_watch(path, written)?;
            AsyncFd::new(Events(inotify))
        };
        start().map(Self).map_err(failed("watch the directory", path))
    }

    /// Waits until files are written. May be dropped and called again.
    pub async fn written(&self) -> io::Result<Written> {
        loop {
            let mut ready = self.0.readable().await?;
            let Ok(read) = ready.try_io(|events| Ok(events.get_ref().0.read_events()?)) else {
                continue; // a false alarm
            };
            // Events without a name are about the queue or the directory itself.
            let names: Option<Vec<_>> = read?.into_iter().map(|event| event.name).collect();
            return Ok(names.map_or(Written::Unknown, Written::Files));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::files::replace;

    #[tokio::test]
    async fn a_file_is_noticed_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::directory(directory.path()).unwrap();
        let _ = replace(directory.path().join("moved-here"), "text", 0o600).unwrap();
        let mut names = Vec::new();
        while !names.iter().any(|name| name == "moved-here") {
            match watch.written().await.unwrap() {
                Written::Files(more) => names.extend(more),
                Written::Unknown => panic!("two events are not too many"),
            }
        }
        let open = std::fs::File::create(directory.path().join("closed")).unwrap();
        timeout(Duration::from_millis(20), watch.written()).await.unwrap_err();
        drop(open);
        assert_eq!(watch.written().await.unwrap(), Written::Files(vec!["closed".into()]));
    }

    #[tokio::test]
    async fn a_missing_directory_is_named() {
        let error = Watch::directory("/nowhere/at/all").unwrap_err();
        assert_eq!(error.to_string(), "cannot watch the directory /nowhere/at/all");
    }
}
