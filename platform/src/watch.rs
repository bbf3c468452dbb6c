//! Hearing of files that others have finished writing into a directory.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A directory, and what has been written into it since [`Watch::new`].
#[derive(Debug)]
pub struct Watch {
    directory: PathBuf,
    events: AsyncFd<Events>,
    waiting: Vec<Written>,
}

/// Something was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// A file of this name was closed by a program that could write to it, or has got this name.
    File(OsString),
    /// More than the kernel counts: any file may have been.
    Many,
}

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch the directory {directory}")]
pub struct WatchError {
    directory: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Everything that is written into the directory from now on is told, also before the first [`Watch::next`]. Must be
    /// called on a tokio runtime.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, WatchError> {
        let directory = directory.into();
        match open(&directory) {
            Ok(events) => Ok(Self {
                directory,
                events,
                waiting: Vec::new(),
            }),
            Err(source) => Err(WatchError { directory, source }),
        }
    }

    /// The next file. May be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Written, WatchError> {
        while self.waiting.is_empty() {
            let mut ready = self.events.readable().await.map_err(|source| self.failed(source))?;
            match ready.try_io(|events| Ok(events.get_ref().0.read_events()?)) {
                Ok(Ok(events)) => {
                    for event in events.into_iter().rev() {
                        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                            self.waiting.push(Written::Many);
                        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            return Err(self.failed(io::Error::new(ErrorKind::NotFound, "it was removed")));
                        } else if let Some(name) = event.name {
                            self.waiting.push(Written::File(name));
                        }
                    }
                }
                Ok(Err(source)) => return Err(self.failed(source)),
                Err(_would_block) => {}
            }
        }
        Ok(self.waiting.pop().expect("the loop ends when there is one"))
    }

    fn failed(&self, source: io::Error) -> WatchError {
        WatchError {
            directory: self.directory.clone(),
            source,
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is `unsafe`, against types whose descriptor changes; ours has one, and owns it"
)]
fn open(directory: &Path) -> io::Result<AsyncFd<Events>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(directory, flags)?;
    AsyncFd::new(Events(inotify))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn next(watch: &mut Watch) -> Written {
        timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_file_is_told_when_its_writer_closes_it_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(directory.path()).unwrap();
        let mut file = File::create(directory.path().join("cmdline")).unwrap();
        file.write_all(b"type=").unwrap();
        timeout(Duration::from_millis(50), watch.next())
            .await
            .expect_err("it is still open");
        drop(file);
        assert_eq!(next(&mut watch).await, Written::File("cmdline".into()));

        let file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(directory.path().join("cmdline"));
        drop(file.unwrap());
        assert_eq!(next(&mut watch).await, Written::File("cmdline".into()));
    }

    #[tokio::test]
    async fn files_are_told_in_their_order_with_the_names_they_get() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(directory.path()).unwrap();
        File::create(directory.path().join("a")).unwrap();
        std::fs::rename(directory.path().join("a"), directory.path().join("b")).unwrap();
        assert_eq!(next(&mut watch).await, Written::File("a".into()));
        assert_eq!(next(&mut watch).await, Written::File("b".into()));
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_or_goes_away_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = Watch::new(&missing).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot watch the directory {}", missing.display())
        );

        let mut watch = Watch::new(directory.path()).unwrap();
        directory.close().unwrap();
        timeout(Duration::from_secs(10), watch.next())
            .await
            .unwrap()
            .unwrap_err();
    }
}
