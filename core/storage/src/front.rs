//! The storage service: one queue in front, an io_uring or a few threads behind.
#![allow(unsafe_code)]

use crate::fault::{late, no_file};
use crate::files::{self, DIRECT_ALIGN, FileTable, OpenFile, Way};
use crate::fill::{Fill, Filling, Priority};
use crate::mapped;
use crate::meter::{Meter, lock};
use crate::owner::{Batch, Job, Owner};
use crate::pace::Pace;
use crate::piece::{CACHED_BYTES, Piece, Task};
use crate::queue::Queue;
use crate::region::Region;
use crate::registry::Asked;
use crate::ring::Ring;
use crate::service::{Counters, FileFacts, OpenHow, Storage};
use kvern_contract::{FileId, FileRead, FileWrite, Result};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Most bytes of one read that goes through memory of its own.
const OWNED_BYTES: usize = 1 << 20;

/// What moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PathChoice {
    /// A ring; threads where the kernel refuses one.
    #[default]
    Auto,
    /// Threads that sleep in `pread` and `pwrite`.
    Pool,
}

/// How a service works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    /// What moves the bytes.
    pub path: PathChoice,
    /// Threads, where threads do.
    pub threads: usize,
    /// Most operations that the kernel has at once, where a ring does.
    pub depth: usize,
    /// Most bytes of one operation round the page cache; a multiple of 4096. Through it 512 KiB at
    /// most.
    pub piece_bytes: usize,
    /// Most bytes a second whose reads begin; `None`: no limit.
    pub bytes_per_second: Option<u64>,
}
impl Default for ServiceSpec {
    fn default() -> Self {
        let path = PathChoice::Auto;
        ServiceSpec { path, threads: 8, depth: 16, piece_bytes: 4 << 20, bytes_per_second: None }
    }
}

/// File I/O of a process. A request is cut into pieces, which wait in one queue by priority and are
/// moved by a ring on one thread, or by threads; short answers of the kernel are completed.
///
/// A call with a deadline moves bytes through memory of its own, so that an answer that comes late
/// finds nobody to write to; one without reads and writes the caller's memory directly. An
/// operation that never returns keeps its slot or thread; the others go on. Dropping the service
/// waits for nothing: what the system still has is finished into memory that stays until then.
pub struct Service {
    files: FileTable,
    meter: Arc<Meter>,
    queue: Arc<Queue>,
    /// Regions to be registered, where a ring runs.
    asked: Asked,
    bell: Option<Arc<crate::ring::Bell>>,
    refused: Option<String>,
    threads: usize,
    /// Who reads mapped files, once there is one.
    mapped: OnceLock<Crew>,
    pace: Arc<Pace>,
    piece_bytes: usize,
}

/// Threads with a queue of their own.
struct Crew {
    queue: Arc<Queue>,
    threads: usize,
}

impl Crew {
    /// As many of `threads` as the system starts.
    fn start(name: &str, threads: usize, queue: Arc<Queue>, meter: &Arc<Meter>) -> Crew {
        let start = |index: &usize| {
            let (queue, meter) = (queue.clone(), meter.clone());
            let named = std::thread::Builder::new().name(format!("{name}-{index}"));
            named.spawn(move || queue.work(&meter)).is_ok()
        };
        let threads = (0..threads).filter(start).count();
        Crew { queue, threads }
    }
}

impl Service {
    /// Starts the ring's thread, or `spec.threads` threads. Where the system refuses every one,
    /// calls run on their caller's thread, and deadlines are seen only between pieces.
    pub fn new(spec: ServiceSpec) -> Arc<Self> {
        let align = DIRECT_ALIGN as usize;
        let pace = Arc::new(Pace::new(spec.bytes_per_second));
        let mut service = Service {
            files: FileTable::new(),
            meter: Arc::new(Meter::default()),
            queue: Arc::new(Queue::new(pace.clone())),
            asked: Asked::default(),
            bell: None,
            refused: None,
            threads: 0,
            mapped: OnceLock::new(),
            pace,
            piece_bytes: spec.piece_bytes.clamp(align, 1 << 30) / align * align,
        };
        if spec.path == PathChoice::Pool || !service.start_ring(spec.depth) {
            let crew = Crew::start("kvern-io", spec.threads, service.queue.clone(), &service.meter);
            service.threads = crew.threads;
        }
        Arc::new(service)
    }

    /// Threads alone, as `spec.path` Pool.
    pub fn pool(threads: usize) -> Arc<Self> {
        Service::new(ServiceSpec { path: PathChoice::Pool, threads, ..ServiceSpec::default() })
    }

    /// Why no ring runs, where the kernel refused one.
    pub fn path_reason(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    fn start_ring(&mut self, depth: usize) -> bool {
        let made = Ring::new(depth, self.queue.clone(), self.meter.clone(), self.asked.clone());
        let started = made.and_then(|(ring, bell)| {
            let named = std::thread::Builder::new().name("kvern-io".into());
            named.spawn(move || ring.run()).map(|_| bell)
        });
        match started {
            Ok(bell) => {
                let rope = bell.clone();
                self.queue.tell(move || rope.ring());
                self.bell = Some(bell);
                true
            }
            Err(error) => {
                self.refused = Some(format!("io_uring refused: {error}"));
                false
            }
        }
    }

    /// Starts fills of mapped files.
    fn start_mapped(&self, pieces: Vec<(Piece, Owner)>, priority: Priority) {
        if pieces.is_empty() {
            return;
        }
        let crew = self.mapped.get_or_init(|| {
            let queue = Arc::new(Queue::new(self.pace.clone()));
            Crew::start("kvern-map", mapped::THREADS, queue, &self.meter)
        });
        crew.queue.push(pieces, priority);
        if crew.threads == 0 {
            crew.queue.drain(&self.meter);
        }
    }

    /// Whether calls run on their caller's thread.
    fn is_alone(&self) -> bool {
        self.threads == 0 && self.bell.is_none()
    }

    /// Where a read is cut, and by which way each piece comes: what is aligned round the page
    /// cache, at most a block at each end through it.
    fn cuts_of(&self, file: &OpenFile, offset: u64, address: usize, bytes: usize) -> Cuts {
        let whole = |from: usize, to: usize, way| {
            let part = move |(at, bytes)| (from + at, bytes, way);
            let most = match way {
                Way::Direct => self.piece_bytes,
                Way::Cached | Way::Mapped => self.piece_bytes.min(CACHED_BYTES),
            };
            cuts(to - from, most).map(part).collect::<Vec<_>>()
        };
        let align = DIRECT_ALIGN;
        let congruent = offset % align == address as u64 % align;
        if !(file.facts().direct && congruent) {
            return whole(0, bytes, Way::Cached);
        }
        let head = (offset.next_multiple_of(align) - offset).min(bytes as u64) as usize;
        let end = offset.saturating_add(bytes as u64);
        let tail = ((end / align * align).saturating_sub(offset) as usize).clamp(head, bytes);
        let mut out = whole(0, head, Way::Cached);
        out.extend(whole(head, tail, Way::Direct));
        out.extend(whole(tail, bytes, Way::Cached));
        out
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
            let address = read.into.as_ptr().addr();
            let mut rest = &mut read.into[..];
            for (at, bytes, way) in self.cuts_of(&file, read.offset, address, rest.len()) {
                let offset = read.offset.saturating_add(at as u64);
                let (part, after) = rest.split_at_mut(bytes);
                rest = after;
                // SAFETY: this function returns only after every piece has answered, and touches no
                // `into` before.
                let task = unsafe { Task::read_lent(part) };
                pieces.push(Piece { file: file.clone(), way, offset, request, at, task });
            }
        }
        // One piece is not worth a wake-up of another thread.
        if let [piece] = pieces.as_slice() {
            let (request, file, way) = (piece.request, piece.file.clone(), piece.way);
            drop(pieces);
            let read = &mut reads[request];
            read.done = file.read_by(way, &self.meter, read.offset, read.into);
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
                        let (way, task) = (Way::Cached, Task::ReadOwned { bytes });
                        pieces.push(Piece { file: file.clone(), way, offset, request, at, task });
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

    fn start(&self, pieces: Vec<Piece>) -> Arc<Batch> {
        let batch = self.queue.submit(pieces);
        if self.is_alone() {
            self.queue.drain(&self.meter);
        }
        batch
    }
}

/// Start, length and way of each piece of a read.
type Cuts = Vec<(usize, usize, Way)>;

/// Start and length of each piece of a request.
fn cuts(bytes: usize, piece: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(piece).map(move |at| (at, piece.min(bytes - at)))
}

/// When `within` ends; `None` for ever.
fn end_of(within: Duration) -> Option<Instant> {
    if within == Duration::MAX { None } else { Instant::now().checked_add(within) }
}

impl Storage for Service {
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
        Ok(self.file("storage/facts", file)?.facts())
    }
    fn unchanged(&self, file: FileId) -> Result<()> {
        self.file("storage/unchanged", file)?.unchanged()
    }
    fn register(&self, region: &Arc<Region>) {
        if let Some(bell) = &self.bell {
            let rope = bell.clone();
            region.at_end(move || rope.ring());
            lock(&self.asked).push(Arc::downgrade(region));
            bell.ring();
        }
    }
    fn fill(&self, fills: Vec<Fill>, priority: Priority) -> Filling {
        let files: Vec<_> = fills.iter().map(|f| self.file("storage/read", f.file)).collect();
        let names = files.iter().map(|file| file.as_ref().map_or("no file".into(), |f| f.name()));
        let reads = names.zip(fills.iter().map(|fill| fill.offset));
        let (filling, tickets) = Filling::new(reads, self.meter.clone());
        let (mut pieces, mut pages) = (Vec::new(), Vec::new());
        for ((ticket, fill), file) in tickets.into_iter().zip(fills).zip(files) {
            let Fill { offset, mut into, .. } = fill;
            let file = match file {
                Ok(file) => file,
                Err(error) => {
                    ticket.answer(Err(error));
                    continue;
                }
            };
            if file.is_memory() || into.is_empty() {
                let done = file.read(&self.meter, offset, &mut into);
                ticket.answer(done.map(|()| into));
                continue;
            }
            let long = mapped::cuts(offset, into.len()).filter(|_| file.is_mapped());
            match long {
                Some(cuts) => pages.extend(Job::start(into, ticket, &file, offset, &cuts)),
                None => {
                    let cuts = self.cuts_of(&file, offset, into.as_ptr().addr(), into.len());
                    pieces.extend(Job::start(into, ticket, &file, offset, &cuts));
                }
            }
        }
        self.start_mapped(pages, priority);
        self.queue.push(pieces, priority);
        if self.is_alone() {
            self.queue.drain(&self.meter);
        }
        filling
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
            for (at, bytes) in cuts(write.bytes.len(), self.piece_bytes.min(CACHED_BYTES)) {
                let part = &write.bytes[at..at + bytes];
                let task = match until {
                    Some(_) => Task::WriteOwned(part.to_vec()),
                    // SAFETY: without a deadline this call waits below for every piece of the
                    // batch.
                    None => unsafe { Task::write_shown(part) },
                };
                let offset = write.offset.saturating_add(at as u64);
                let way = Way::Cached;
                pieces.push(Piece { file: file.clone(), way, offset, request, at, task });
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
        match (&self.bell, self.threads) {
            (Some(_), _) => "io_uring",
            (None, 0) => "pread",
            (None, _) => "pread-pool",
        }
    }
}
impl Drop for Service {
    fn drop(&mut self) {
        self.queue.stop();
        if let Some(crew) = self.mapped.get() {
            crew.queue.stop();
        }
    }
}

#[cfg(test)]
mod tests;
