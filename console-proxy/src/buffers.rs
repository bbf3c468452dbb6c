//! Memory that only moving bytes occupy: a session that waits holds no buffer, however many sessions there are.

use std::future::poll_fn;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::ready;

use tokio::io::{AsyncRead, ReadBuf};

use crate::ws::MAX_HEADER;

/// Bytes that are read at once, at most.
pub const CHUNK: usize = 64 << 10;

/// Buffers that are kept for the next use; more are given back to the system.
const MAX_KEPT: usize = 32;

/// Buffers that are not in use. Cheap to clone; clones share them.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// One buffer in use: room for the header of a frame, then up to [`CHUNK`] bytes.
pub struct Buffer {
    bytes: Vec<u8>,
    /// Of the chunk.
    filled: usize,
    pool: Buffers,
}

impl Buffers {
    fn take(&self) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; MAX_HEADER + CHUNK]),
            filled: 0,
            pool: self.clone(),
        }
    }

    /// Reads what is there, and waits without a buffer while nothing is. An empty one: the peer has closed.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn read(&self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Buffer> {
        poll_fn(|context| {
            let mut buffer = self.take();
            let mut free = ReadBuf::new(&mut buffer.bytes[MAX_HEADER..]);
            let read = Pin::new(&mut *from).poll_read(context, &mut free);
            let filled = free.filled().len();
            ready!(read)?; // gives the buffer back while there is nothing
            buffer.filled = filled;
            Ok(buffer).into()
        })
        .await
    }

    /// A buffer with these bytes, [`CHUNK`] at most.
    pub fn copy(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.take();
        buffer.filled = bytes.len().min(CHUNK);
        let filled = buffer.filled;
        buffer.copy_from_slice(&bytes[..filled]);
        buffer
    }

    #[cfg(test)]
    fn kept(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl Buffer {
    /// Forgets what comes behind `length`.
    pub fn truncate(&mut self, length: usize) {
        self.filled = self.filled.min(length);
    }

    /// The chunk with `header` in front of it, in one piece.
    pub fn with_header(&mut self, header: &[u8]) -> &[u8] {
        let start = MAX_HEADER - header.len();
        self.bytes[start..MAX_HEADER].copy_from_slice(header);
        &self.bytes[start..MAX_HEADER + self.filled]
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[MAX_HEADER..MAX_HEADER + self.filled]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[MAX_HEADER..MAX_HEADER + self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_holds_no_buffer_and_whoever_reads_gives_it_back() {
        let buffers = Buffers::default();
        let (mut near, mut far) = tokio::io::duplex(64);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(10), buffers.read(&mut near));
        assert!(waiting.await.is_err());
        assert_eq!(buffers.kept(), 1);
        far.write_all(b"screen").await.unwrap();
        let mut buffer = buffers.read(&mut near).await.unwrap();
        assert_eq!(buffers.kept(), 0);
        assert_eq!(&*buffer, b"screen");
        assert_eq!(buffer.with_header(b"\x82\x06"), b"\x82\x06screen");
        buffer.truncate(3);
        assert_eq!(&*buffer, b"scr");
        drop(buffer);
        assert_eq!(buffers.kept(), 1);
        drop(far);
        assert!(buffers.read(&mut near).await.unwrap().is_empty());
    }
}
