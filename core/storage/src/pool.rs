//! Storage by positional reads and writes on a few threads.
#![allow(unsafe_code)]

use crate::fault::{late, no_file};
use crate::files::{self, FileTable, OpenFile};
use crate::fill::{self, Fill, Filling, Priority};
use crate::meter::Meter;
use crate::region::Region;
use crate::service::{Counters, FileFacts, OpenHow, Storage};
use crate::worker::{Piece, Queue, Task};
use kvern_contract::{FileId, FileRead, FileWrite, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes of one operation: long enough for a drive's full rate, short enough to spread over
/// the threads.
const PIECE_BYTES: usize = 8 << 20;

/// Most bytes of one read that goes through memory of its own.
const OWNED_BYTES: usize = 1 << 20;

/// Threads that sleep in `pread` and `pwrite`. A request is cut into pieces of at most 8 MiB, which
/// all threads share; short answers of the kernel are completed in a loop.
///
/// A call with a deadline moves bytes through memory of its own, so that an answer that comes late
/// finds nobody to write to; one without reads and writes the caller's memory directly. An
/// operation that never returns keeps its thread; the others go on. Dropping the pool lets idle
/// threads go and waits for none.
pub struct PreadPool {
    files: FileTable,
    meter: Arc<Meter>,
    queue: Arc<Queue>,
    threads: usize,
}
impl PreadPool {
    /// Starts `threads` threads. Where the system refuses every one, calls run on their caller's
    /// thread, and deadlines are seen only between pieces.
    pub fn new(threads: usize) -> Arc<Self> {
        let meter = Arc::new(Meter::default());
        let queue = Arc::new(Queue::default());
        let mut started = 0;
        for index in 0..threads {
            let (queue, meter) = (queue.clone(), meter.clone());
            let named = std::thread::Builder::new().name(format!("kvern-io-{index}"));
            started += usize::from(named.spawn(move || queue.work(&meter)).is_ok());
        }
        Arc::new(PreadPool { files: FileTable::new(), meter, queue, threads: started })
    }

    fn file(&self, operation: &str, id: FileId) -> Result<Arc<OpenFile>> {
        self.files.get(id).ok_or_else(|| no_file(operation, id))
    }

    /// Reads straight into the caller's memory, however long it takes.
    fn read_waiting(&self, reads: &mut [FileRead<'_>]) {
        let mut pieces = Vec::new();
        for (request, read) in reads.iter_mut().enumerate() {
            read.done = Ok(());
            let file = match self.file("storage/read", read.file) {
                Ok(file) => file,
                Err(error) => {
                    read.done = Err(error);
                    continue;
                }
            };
            if file.is_memory() {
                read.done = file.read(&self.meter, read.offset, read.into);
                continue;
            }
            let mut at = 0;
            for part in read.into.chunks_mut(PIECE_BYTES) {
                let offset = read.offset.saturating_add(at as u64);
                let bytes = part.len();
                // SAFETY: this function returns only after every piece has answered, and touches no
                // `into` before.
                let task = unsafe { Task::read_lent(part) };
                pieces.push(Piece { file: file.clone(), offset, request, at, task });
                at += bytes;
            }
        }
        // One piece is not worth a wake-up of another thread.
        if let [piece] = pieces.as_slice() {
            let (request, file) = (piece.request, piece.file.clone());
            drop(pieces);
            let read = &mut reads[request];
            read.done = file.read(&self.meter, read.offset, read.into);
            return;
        }
        let batch = self.start(pieces);
        while let Some(answers) = batch.next(None) {
            for answer in answers {
                if let Err(error) = answer.done {
                    reads[answer.request].done = Err(error);
                }
            }
        }
    }

    /// Reads through memory of the operations' own, and copies what comes in time.
    fn read_until(&self, reads: &mut [FileRead<'_>], within: Duration, until: Instant) {
        let mut left = vec![0usize; reads.len()];
        let mut pieces = Vec::new();
        for (request, read) in reads.iter_mut().enumerate() {
            read.done = Ok(());
            match self.file("storage/read", read.file) {
                Err(error) => read.done = Err(error),
                Ok(file) if file.is_memory() => {
                    read.done = file.read(&self.meter, read.offset, read.into);
                }
                Ok(file) => {
                    for (at, bytes) in cuts(read.into.len(), OWNED_BYTES) {
                        let offset = read.offset.saturating_add(at as u64);
                        let task = Task::ReadOwned { bytes };
                        pieces.push(Piece { file: file.clone(), offset, request, at, task });
                        left[request] += 1;
                    }
                }
            }
        }
        let batch = self.start(pieces);
        while let Some(answers) = batch.next(Some(until)) {
            for answer in answers {
                let read = &mut reads[answer.request];
                left[answer.request] -= 1;
                match answer.done {
                    Ok(Some(own)) => {
                        read.into[answer.at..answer.at + own.len()].copy_from_slice(&own);
                        self.queue.recycle(own);
                    }
                    Ok(None) => {}
                    Err(error) => read.done = Err(error),
                }
            }
        }
        batch.give_up();
        for (read, left) in reads.iter_mut().zip(left) {
            if left > 0 && read.done.is_ok() {
                read.done = Err(late("storage/read", within));
            }
        }
    }

    fn start(&self, pieces: Vec<Piece>) -> Arc<crate::worker::Batch> {
        let batch = self.queue.submit(pieces);
        if self.threads == 0 {
            self.queue.drain(&self.meter);
        }
        batch
    }
}

/// Start and length of each piece of a request.
fn cuts(bytes: usize, piece: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(piece).map(move |at| (at, piece.min(bytes - at)))
}

/// When `within` ends; `None` for ever.
fn end_of(within: Duration) -> Option<Instant> {
    if within == Duration::MAX { None } else { Instant::now().checked_add(within) }
}

impl Storage for PreadPool {
    fn open(&self, path: &Path, how: OpenHow) -> Result<FileId> {
        Ok(self.files.add(OpenFile::open(path, how)?))
    }
    fn open_memory(&self, name: &str, bytes: &'static [u8]) -> Result<FileId> {
        Ok(self.files.add(OpenFile::memory(name, bytes)))
    }
    fn close(&self, file: FileId) {
        self.files.close(file);
    }
    fn bytes(&self, file: FileId) -> Result<u64> {
        self.file("storage/bytes", file)?.bytes()
    }
    fn facts(&self, file: FileId) -> Result<FileFacts> {
        self.bytes(file)?;
        Ok(FileFacts { align: 1, ..FileFacts::default() })
    }
    fn unchanged(&self, file: FileId) -> Result<()> {
        self.bytes(file).map(|_| ())
    }
    fn register(&self, _: &Arc<Region>) {}
    fn fill(&self, fills: Vec<Fill>, _: Priority) -> Filling {
        fill::at_once(self, fills)
    }
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        files::list(dir)
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        match end_of(within) {
            None => self.read_waiting(reads),
            Some(until) => self.read_until(reads, within, until),
        }
        reads.iter().find_map(|read| read.done.as_ref().err()).map_or(Ok(()), |e| Err(e.clone()))
    }
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        let until = end_of(within);
        let mut pieces = Vec::new();
        for (request, write) in writes.iter().enumerate() {
            let file = self.file("storage/write", write.file)?;
            for (at, bytes) in cuts(write.bytes.len(), PIECE_BYTES) {
                let part = &write.bytes[at..at + bytes];
                let task = match until {
                    Some(_) => Task::WriteOwned(part.to_vec()),
                    // SAFETY: without a deadline this call waits below for every piece of the
                    // batch.
                    None => unsafe { Task::write_shown(part) },
                };
                let offset = write.offset.saturating_add(at as u64);
                pieces.push(Piece { file: file.clone(), offset, request, at, task });
            }
        }
        if let (None, [piece]) = (until, pieces.as_slice()) {
            return piece.file.write(&self.meter, piece.offset, writes[piece.request].bytes);
        }
        let mut left = pieces.len();
        let batch = self.start(pieces);
        let mut first = Ok(());
        while let Some(answers) = batch.next(until) {
            for answer in answers {
                left -= 1;
                first = first.and(answer.done.map(|_| ()));
            }
        }
        batch.give_up();
        if left > 0 { first.and(Err(late("storage/write", within))) } else { first }
    }
    fn sync(&self, files: &[FileId]) -> Result<()> {
        for &file in files {
            self.file("storage/sync", file)?.sync(&self.meter)?;
        }
        Ok(())
    }
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        files::publish(path, bytes, &self.meter)
    }
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        self.file("storage/truncate", file)?.truncate(bytes)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path)
            .map_err(|error| crate::fault::at_path("storage/remove", path, &error))
    }
    fn counters(&self) -> Counters {
        self.meter.counters()
    }
    fn path_kind(&self) -> &'static str {
        if self.threads == 0 { "pread" } else { "pread-pool" }
    }
}
impl Drop for PreadPool {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Gate;
    use kvern_contract::ErrorKind;
    use std::sync::atomic::Ordering::Relaxed;

    /// Reads from a stuck file until a worker is truly inside the operation; what the last call
    /// left.
    fn read_stuck(pool: &PreadPool, gate: &Arc<Gate>) -> Vec<u8> {
        let file = pool.files.add(OpenFile::stuck(gate.clone()));
        let mut buffer = vec![0x11; 4096];
        while gate.entered.load(Relaxed) == 0 {
            let mut reads = [FileRead { file, offset: 0, into: &mut buffer, done: Ok(()) }];
            let answer = pool.read_batch(&mut reads, Duration::from_millis(5));
            assert_eq!(answer.unwrap_err().kind, ErrorKind::Timeout);
            assert_eq!(reads[0].done.as_ref().unwrap_err().kind, ErrorKind::Timeout);
        }
        buffer
    }

    #[test]
    fn a_read_that_never_completes_times_out_and_never_touches_the_buffer() {
        let pool = PreadPool::new(2);
        let gate = Arc::new(Gate::default());
        let buffer = read_stuck(&pool, &gate);
        gate.open.store(true, Relaxed);
        while gate.left.load(Relaxed) < gate.entered.load(Relaxed) {
            std::thread::yield_now();
        }
        assert!(buffer.iter().all(|&byte| byte == 0x11));
    }

    #[test]
    fn a_read_of_nothing_in_another_file_leaves_a_lone_piece_its_file() {
        let pool = PreadPool::new(2);
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, byte: u8| {
            std::fs::write(dir.path().join(name), [byte; 4096]).unwrap();
            pool.open(&dir.path().join(name), OpenHow::Read).unwrap()
        };
        let (a, b) = (open("a", b'a'), open("b", b'b'));
        for order in [[a, b], [b, a]] {
            let (mut full, mut none) = ([0; 4096], [0; 0]);
            let mut into: [&mut [u8]; 2] = [&mut full, &mut none];
            if order[0] == b {
                into.reverse();
            }
            let mut reads: Vec<_> = (order.into_iter().zip(into))
                .map(|(file, into)| FileRead { file, offset: 0, into, done: Ok(()) })
                .collect();
            pool.read_batch(&mut reads, Duration::MAX).unwrap();
            assert!(full.iter().all(|&byte| byte == b'a'), "read {}", full[0]);
        }
    }

    #[test]
    fn a_stuck_thread_leaves_the_others_working() {
        let pool = PreadPool::new(8);
        let gate = Arc::new(Gate::default());
        read_stuck(&pool, &gate);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"efgh").unwrap();
        let file = pool.open(&dir.path().join("f"), OpenHow::Read).unwrap();
        let (mut a, mut b) = ([0; 2], [0; 2]);
        let mut reads = [
            FileRead { file, offset: 0, into: &mut a, done: Ok(()) },
            FileRead { file, offset: 2, into: &mut b, done: Ok(()) },
        ];
        pool.read_batch(&mut reads, Duration::MAX).unwrap();
        assert_eq!((&a, &b), (b"ef", b"gh"));
        gate.open.store(true, Relaxed);
    }
}
