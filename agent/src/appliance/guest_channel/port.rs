//! The virtio-serial port: a character device that tells whether the host listens, in its own way.
//!
//! While no host has the other end open, reading gives 0 bytes at once, and writing would block (Linux,
//! drivers/char/virtio_console.c). When a host comes, nothing is signalled; when it goes, the device reports a hang-up, which
//! stays in tokio's view of a descriptor. So the device is looked at once a second until a host is there, and is registered anew
//! for each host.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

/// Between two looks whether a host is there.
const LOOK: Duration = Duration::from_secs(1);

/// Why the port cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use {path}; the VM needs a virtio-serial port of the name org.sysvm.agent.0, and only one program can have it open"
)]
pub struct NoPort {
    path: PathBuf,
    source: io::Error,
}

/// The device.
#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    file: File,
}

/// The device while a host is there.
#[derive(Debug)]
pub(super) struct Port {
    file: AsyncFd<File>,
    /// What arrived while we looked whether somebody is there.
    first: Option<u8>,
}

impl Device {
    pub(super) fn open(path: &Path) -> Result<Self, NoPort> {
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits())
            .open(path);
        let file = opened.map_err(|source| NoPort {
            path: path.to_owned(),
            source,
        })?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// Waits until a host is there.
    pub(super) async fn connected(&self) -> Result<Port, NoPort> {
        let mut byte = [0];
        loop {
            let first = match (&self.file).read(&mut byte) {
                Ok(0) => {
                    sleep(LOOK).await;
                    continue;
                }
                Ok(_) => Some(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error)),
            };
            let file = self.file.try_clone().map_err(|error| self.failed(error))?;
            let file = register(file).map_err(|error| self.failed(error))?;
            return Ok(Port { file, first });
        }
    }

    fn failed(&self, source: io::Error) -> NoPort {
        NoPort {
            path: self.path.clone(),
            source,
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that change their descriptor; a File does not"
)]
fn register(file: File) -> io::Result<AsyncFd<File>> {
    AsyncFd::new(file)
}

impl AsyncRead for Port {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(first) = self.first.take() {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut guard = ready!(self.file.poll_read_ready(cx))?;
            let has_gone = guard.ready().is_read_closed();
            let read = guard.try_io(|file| file.get_ref().read(buffer.initialize_unfilled()));
            match read {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // Another host is there already: it is served anew.
                Err(_would_block) if has_gone => return Poll::Ready(Ok(())),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.file.poll_write_ready(cx))?;
            let has_gone = guard.ready().is_write_closed();
            match guard.try_io(|file| file.get_ref().write(bytes)) {
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) if has_gone => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
