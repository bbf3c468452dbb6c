//! Where the bytes of a download go: digest and write, each in a thread of its own, overlapped (ssvm.md §3.8).
//!
//! ```text
//!                    ┌─► digest thread
//!  pump ─► pieces ───┤
//!   (room, bounded)  └─► writer thread ─► decompression ─► sparse file
//! ```
//! A piece is freed when both have used it; the pump waits for room. So a job holds [`ROOM`] bytes at most, whatever the
//! source, the digest or the store do.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use protocol::transfer::ImageFormat;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::blocking::{Lost, Threads};
use crate::checksum::{Algorithm, Checksum};
use crate::image;
use crate::stream::{Compression, Digest, SparseFile, StreamError, Unpack, UnpackLimits};

/// Bytes of one job between source, digest and store. Each job has its own: one whose store hangs must not hold what
/// others need. With 16 jobs at work, their connections and their writers' buffers this makes some 20 MiB.
const ROOM: usize = 512 << 10;

/// Room is counted in these.
const UNIT: usize = 16 << 10;

/// Smaller pieces are put together: each costs a turn of three threads, and pins memory that it was cut from.
const SMALL: usize = 64 << 10;

/// How often what was written is made certain, so that a restart can go on from there.
const SYNC_EVERY: (u64, Duration) = (64 << 20, Duration::from_secs(5));

/// For reading again what an earlier life of this program wrote.
const REREAD: usize = 256 << 10;

/// What to do with the bytes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Digest of the bytes as they come.
    pub algorithm: Algorithm,
    /// What comes may be compressed.
    pub may_be_compressed: bool,
    /// For what is unpacked.
    pub limits: UnpackLimits,
    /// What the image must be; judged by its start as soon as that is here.
    pub format: ImageFormat,
    /// What it may be.
    pub images: image::Limits,
    /// Bytes that stay free on the store.
    pub keep_free: u64,
}

/// All is on disk.
#[derive(Debug)]
pub struct Written {
    /// Of the bytes as they came.
    pub checksum: Checksum,
    /// Length of the file.
    pub size: u64,
}

/// Takes the bytes of one file.
pub struct Sink {
    to_digest: Sender<Message>,
    to_writer: Sender<Message>,
    room: Arc<Semaphore>,
    pending: BytesMut,
    digest: BoxFuture<'static, Result<io::Result<Checksum>, Lost>>,
    writer: BoxFuture<'static, Result<Result<u64, StreamError>, Lost>>,
    synced: Arc<AtomicU64>,
    /// Cancelled when the writer takes no more.
    ended: CancellationToken,
    threads: Threads,
}

#[derive(Clone)]
enum Message {
    Piece(Piece),
    /// All bytes were sent. A channel that closes without it was abandoned.
    End,
}

#[derive(Clone)]
struct Piece {
    bytes: Bytes,
    _room: Arc<OwnedSemaphorePermit>,
}

impl Sink {
    /// Starts writing into `file` behind its first `from` bytes, which are digested again first.
    pub fn start(threads: &Threads, file: Arc<File>, from: u64, plan: Plan) -> Self {
        let (to_digest, digest_input) = channel();
        let (to_writer, writer_input) = channel();
        let synced = Arc::new(AtomicU64::new(from));
        let (read_again, algorithm) = (Arc::clone(&file), plan.algorithm);
        let digest = threads.start("digest", move || digest(&read_again, from, algorithm, &digest_input));
        let (report, ended) = (Arc::clone(&synced), CancellationToken::new());
        let ends = ended.clone().drop_guard();
        let writer = threads.start("store-write", move || {
            let _ends = ends;
            write(&file, from, &plan, writer_input, &report)
        });
        Self {
            to_digest,
            to_writer,
            room: Arc::new(Semaphore::new(ROOM / UNIT)),
            pending: BytesMut::new(),
            digest: Box::pin(digest),
            writer: Box::pin(writer),
            synced,
            ended,
            threads: threads.clone(),
        }
    }

    /// Returns when the writer takes no more, before everything was given: [`Sink::finish`] tells why.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.ended.clone().cancelled_owned()
    }

    /// Bytes of the source that are on disk for certain, and from which a restart can go on.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Takes bytes; waits while digest or store are busy.
    ///
    /// # Errors
    /// The writer has ended: [`Sink::finish`] tells why.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Ended> {
        if self.pending.is_empty() && bytes.len() >= SMALL {
            return self.send(bytes).await;
        }
        self.pending.extend_from_slice(&bytes);
        if self.pending.len() >= SMALL {
            let bytes = self.pending.split().freeze();
            return self.send(bytes).await;
        }
        Ok(())
    }

    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Ended> {
        while bytes.has_remaining() {
            let part = bytes.split_to(bytes.len().min(ROOM / 4));
            let units = u32::try_from(part.len().div_ceil(UNIT)).map_err(|_| Ended)?;
            let room = Arc::clone(&self.room)
                .acquire_many_owned(units)
                .await
                .map_err(|_| Ended)?;
            let piece = Message::Piece(Piece {
                bytes: part,
                _room: Arc::new(room),
            });
            self.to_digest.send(piece.clone()).map_err(|_| Ended)?;
            self.to_writer.send(piece).map_err(|_| Ended)?;
        }
        Ok(())
    }

    /// Everything was given: waits until it is on disk.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn finish(mut self) -> Result<Written, StreamError> {
        let pending = self.pending.split().freeze();
        let sent = match self.send(pending).await {
            Ok(()) => self
                .to_writer
                .send(Message::End)
                .and(self.to_digest.send(Message::End))
                .is_ok(),
            Err(Ended) => false,
        };
        let size = self.writer.await.map_err(StreamError::other)??;
        let checksum = self
            .digest
            .await
            .map_err(StreamError::other)?
            .map_err(StreamError::from)?;
        if !sent {
            return Err(StreamError::other(Lost)); // both say they are done although they did not get everything
        }
        Ok(Written { checksum, size })
    }

    /// Drops everything and begins again. The old threads have ended before new ones touch the file.
    pub async fn start_again(&mut self, file: Arc<File>, plan: Plan) {
        // Channels that close without an end mean: abandoned.
        (self.to_digest, self.to_writer) = (channel().0, channel().0);
        let _ = tokio::join!(&mut self.digest, &mut self.writer);
        *self = Self::start(&self.threads.clone(), file, 0, plan);
    }
}

/// The writer does not take more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

fn digest(file: &File, from: u64, algorithm: Algorithm, input: &Receiver<Message>) -> io::Result<Checksum> {
    let mut digest = Digest::new(algorithm);
    let mut again = vec![0; if from > 0 { REREAD } else { 0 }];
    let mut at = 0;
    while at < from {
        let wanted = usize::try_from(from - at).map_or(REREAD, |left| left.min(REREAD));
        let read = file.read_at(&mut again[..wanted], at)?;
        if read == 0 {
            // Zeros at the end were not written: a hole, or behind the end of the file.
            again[..wanted].fill(0);
            digest.update(&again[..wanted]);
            at += u64::try_from(wanted).unwrap_or(0);
            continue;
        }
        digest.update(&again[..read]);
        at += u64::try_from(read).unwrap_or(0);
    }
    drop(again);
    loop {
        match input.recv() {
            Ok(Message::Piece(piece)) => digest.update(&piece.bytes),
            Ok(Message::End) => return Ok(digest.finish()),
            Err(_) => return Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

fn write(
    file: &Arc<File>,
    from: u64,
    plan: &Plan,
    input: Receiver<Message>,
    synced: &AtomicU64,
) -> Result<u64, StreamError> {
    let mut pieces = Pieces::new(input);
    let (format, images) = (plan.format, plan.images.clone());
    let mut output = SparseFile::resume(file.try_clone()?, from)?
        .looked_at(move |file, length| Ok(image::judge_start(file, length, format, &images)?))
        .keeping_free(plan.keep_free);
    if from == 0
        && plan.may_be_compressed
        && let Some(compression) = Compression::detect(pieces.first()?)
    {
        return Unpack::new(compression, &plan.limits).run(&mut pieces, output);
    }
    let (mut at, mut last) = (from, (from, Instant::now()));
    while let Some(bytes) = pieces.next()? {
        output.write(&bytes)?;
        at += u64::try_from(bytes.len()).unwrap_or(0);
        if at - last.0 >= SYNC_EVERY.0 || last.1.elapsed() >= SYNC_EVERY.1 {
            output.sync()?;
            synced.store(at, Ordering::Release);
            last = (at, Instant::now());
        }
    }
    output.finish()
}

/// The bytes of a channel, as a reader.
struct Pieces {
    input: Receiver<Message>,
    current: Option<Piece>,
    is_at_end: bool,
}

impl Pieces {
    fn new(input: Receiver<Message>) -> Self {
        Self {
            input,
            current: None,
            is_at_end: false,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        while !self.is_at_end && self.current.as_ref().is_none_or(|piece| piece.bytes.is_empty()) {
            self.current = None; // its room is free before we wait
            match self.input.recv() {
                Ok(Message::Piece(piece)) => self.current = Some(piece),
                Ok(Message::End) => self.is_at_end = true,
                Err(_) => return Err(io::Error::other("abandoned")),
            }
        }
        Ok(())
    }

    /// The first piece, without taking it. Only the last piece of a file is smaller than [`SMALL`].
    fn first(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(self.current.as_ref().map_or(&[], |piece| &piece.bytes))
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.fill()?;
        Ok(self.current.as_mut().map(|piece| piece.bytes.split_off(0)))
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let Some(piece) = &mut self.current else { return Ok(0) };
        let length = buffer.len().min(piece.bytes.len());
        piece.bytes.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
