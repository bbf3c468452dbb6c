//! A disk in pieces of one size: read and worked on by all processors, handed over in order.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::{Disk, fields};

/// Bytes that a thread reads and works on before it hands over: enough that handing over costs nothing.
const BATCH: u64 = 2 << 20;
/// More threads than this wait for each other.
const MAX_THREADS: usize = 16;

/// One batch of results, by number of the chunk.
type Batch<T> = io::Result<Vec<(u64, T)>>;

/// Calls `work` with each chunk of `size` bytes that is not all zeros, on several threads, and `take` with the results
/// in the disk's order, on this one. A last chunk that the disk does not fill is filled with zeros.
///
/// `worker` is called once per thread, for what it needs. At any time there are at most three batches per thread in
/// memory. What happens depends only on the disk: threads take turns, so no timing decides anything.
pub(super) fn each<T, Work>(
    disk: &dyn Disk,
    size: u64,
    worker: impl Fn() -> io::Result<Work> + Sync,
    take: impl FnMut(u64, T) -> io::Result<()>,
) -> io::Result<()>
where
    T: Send,
    Work: FnMut(&[u8]) -> io::Result<T>,
{
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    each_on(threads.min(MAX_THREADS), disk, size, worker, take)
}

fn each_on<T, Work>(
    threads: usize,
    disk: &dyn Disk,
    size: u64,
    worker: impl Fn() -> io::Result<Work> + Sync,
    mut take: impl FnMut(u64, T) -> io::Result<()>,
) -> io::Result<()>
where
    T: Send,
    Work: FnMut(&[u8]) -> io::Result<T>,
{
    let worker = &worker;
    thread::scope(|scope| {
        let receivers: Vec<Receiver<Batch<T>>> = (0..threads)
            .map(|turn| {
                let (sender, receiver) = sync_channel(1);
                scope.spawn(move || {
                    // When nobody listens any more, something failed elsewhere and was told there.
                    if let Err(error) = walk(disk, size, turn, threads, worker, &sender) {
                        sender.send(Err(error)).ok();
                    }
                });
                receiver
            })
            .collect();
        // Batch 0 is from thread 0, batch 1 from thread 1, and so on: the first that is missing was the last.
        for receiver in receivers.iter().cycle() {
            let Ok(batch) = receiver.recv() else { return Ok(()) };
            for (number, result) in batch? {
                take(number, result)?;
            }
        }
        Ok(())
    })
}

/// Works on every `threads`th batch that has data, from number `turn` on.
fn walk<T, Work>(
    disk: &dyn Disk,
    size: u64,
    turn: usize,
    threads: usize,
    worker: &(impl Fn() -> io::Result<Work> + Sync),
    sender: &SyncSender<Batch<T>>,
) -> io::Result<()>
where
    Work: FnMut(&[u8]) -> io::Result<T>,
{
    let mut work = worker()?;
    let mut chunk = vec![0; fields::size(size)?];
    for batch in Batches::new(disk, size).skip(turn).step_by(threads) {
        let mut results = Vec::new();
        for number in batch? {
            let start = number * size;
            let present = fields::size(size.min(disk.size() - start))?;
            let (data, beyond) = chunk.split_at_mut(present);
            disk.read_at(data, start)?;
            beyond.fill(0);
            if !is_zero(data) {
                results.push((number, work(&chunk)?));
            }
        }
        if sender.send(Ok(results)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Runs of chunks with data in them, none longer than [`BATCH`].
struct Batches<'a> {
    disk: &'a dyn Disk,
    size: u64,
    per_batch: u64,
    next: u64,
    data: Range<u64>,
}

impl<'a> Batches<'a> {
    fn new(disk: &'a dyn Disk, size: u64) -> Self {
        Self {
            disk,
            size,
            per_batch: (BATCH / size).max(1),
            next: 0,
            data: 0..0,
        }
    }

    fn advance(&mut self) -> io::Result<Option<Range<u64>>> {
        if self.next >= self.data.end {
            let offset = self.next * self.size;
            if offset >= self.disk.size() {
                return Ok(None);
            }
            let Some(found) = self.disk.next_data(offset)? else {
                self.next = self.disk.size().div_ceil(self.size);
                return Ok(None);
            };
            self.data = found.start / self.size..found.end.div_ceil(self.size);
            self.next = self.next.max(self.data.start);
        }
        let end = self.data.end.min(self.next + self.per_batch);
        let batch = self.next..end;
        self.next = end;
        Ok(Some(batch))
    }
}

impl Iterator for Batches<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

static ZEROS: [u8; 4096] = [0; 4096];

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
