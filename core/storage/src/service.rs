//! The storage service: the one door through which file bytes pass.

use crate::fill::{Fill, Filling, Priority};
use crate::region::Region;
use kvern_contract::{FileId, FileRead, FileWrite, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenHow {
    /// It must be there.
    Read,
    /// It must be there, and reads go round the page cache where the file system does that: asked
    /// with a real read, since some accept it at open and refuse the first transfer. Where it does
    /// not, as `Passing`.
    Direct,
    /// It must be there, and reads go through the page cache, which cannot keep it: where the
    /// system maps files in huge pages, long fills take them one by one and drop them.
    Passing,
    /// Read and write; created if absent, with its directories (mode 0700).
    Write,
}

/// How the bytes of an open file are reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileFacts {
    /// What offset, address and length of a read should be multiples of: 1 unless `direct`.
    pub align: u64,
    /// Reads go round the page cache.
    pub direct: bool,
    /// Why not, where that was asked for.
    pub refused: Option<String>,
    /// Long fills come by mapped huge pages, which do not stay in the page cache.
    pub mapped: bool,
}

/// What moved since the service started; counted where the bytes move, so that a read answered from
/// the page cache counts like any other, and one that was never issued does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Bytes that files gave.
    pub bytes_read: u64,
    /// Bytes that files took.
    pub bytes_written: u64,
    /// Positional reads issued; a long request is several.
    pub reads: u64,
    /// Positional writes issued.
    pub writes: u64,
    /// Files and directories synced.
    pub syncs: u64,
    /// Time during which at least one read was under way: `bytes_read / read_time` is the rate that
    /// was reached.
    pub read_time: Duration,
    /// Time during which at least one write was under way.
    pub write_time: Duration,
    /// Bytes copied out of files that live in memory (`open_memory`); no drive took part.
    pub memory_bytes: u64,
    /// Of `bytes_read`, those that went round the page cache.
    pub direct_bytes: u64,
    /// Of `bytes_read`, those that came by mapped huge pages.
    pub mapped_bytes: u64,
    /// Of `bytes_read`, those that went through memory of the service's own, because the request
    /// was not aligned or had a deadline.
    pub copied_bytes: u64,
    /// Of `reads`, those into memory that the ring has registered.
    pub registered_reads: u64,
    /// Reads that failed once and were tried again.
    pub retries: u64,
    /// Operations that were given up before they began.
    pub cancelled: u64,
    /// Most operations that the system had at once.
    pub depth_peak: u64,
}

/// File I/O for weights and for plugins. One id space: an id that a [`crate::RootHost`] gave to its
/// plugin is valid here too. Callable from any thread, at once.
pub trait Storage: Send + Sync {
    /// Opens a file. Opening a path twice gives two ids. *Errors* NotFound, Busy, OutOfSpace, Io;
    /// the message names the path.
    fn open(&self, path: &Path, how: OpenHow) -> Result<FileId>;
    /// A read-only file whose bytes are in memory already. `name` is for messages.
    fn open_memory(&self, name: &str, bytes: &'static [u8]) -> Result<FileId>;
    /// Ends an id. Operations under way finish; an unknown id is ignored.
    fn close(&self, file: FileId);
    /// Length of a file in bytes. *Errors* NotFound (no such id), Io.
    fn bytes(&self, file: FileId) -> Result<u64>;
    /// How a file's bytes are reached. *Errors* NotFound (no such id).
    fn facts(&self, file: FileId) -> Result<FileFacts>;
    /// Whether a file that was opened to be read is still what it was then. *Errors* Damaged: it
    /// was cut, written to or replaced under its name since, and says which; NotFound (no such id,
    /// or the name is gone), Io.
    fn unchanged(&self, file: FileId) -> Result<()>;
    /// Says that many reads will go to ranges of this memory, so that the service may pin it once
    /// instead of once a read. Best effort; it is pinned until nobody holds the region or a lease
    /// of it.
    fn register(&self, region: &Arc<Region>);
    /// Starts reads and returns at once. Of one priority they are served in the order of their
    /// asking. A read that fails is tried once more before it is an error.
    fn fill(&self, fills: Vec<Fill>, priority: Priority) -> Filling;
    /// Names and lengths in bytes of the regular files in a directory, sorted. *Errors* NotFound,
    /// Io.
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>>;
    /// Reads all, in any order, many in flight, as [`Priority::Urgent`]; blocks until all are done
    /// or `within` has passed. Sets every `done`; answers the first error among them. A buffer
    /// whose `done` is an error holds no promise, and is not written after the call returned.
    /// *Errors* NotFound (no such id), Damaged (the file ends before the request does: file,
    /// offset, asked and got are named, no zeros are made up), Io, Timeout. `Duration::MAX` waits
    /// for ever and spares a copy.
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()>;
    /// Writes all; past the end it extends the file. Until a `sync`, a power cut leaves any sectors
    /// of them. *Errors* NotFound, Invalid (opened to read), OutOfSpace, Io, Timeout: any part may
    /// be in the file, or, after Timeout, may still come.
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()>;
    /// What was written to these files before the call, and the names of those that were created,
    /// is durable when it returns. *Errors* Io: nothing written since the last sync is, and the
    /// file can never be synced again under this id.
    fn sync(&self, files: &[FileId]) -> Result<()>;
    /// Replaces the file at `path` by `bytes`, whole or not at all, durable when it returns.
    /// *Errors* OutOfSpace, Io.
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<()>;
    /// Cuts (or extends with zeros) a file to a length in bytes; durable with a sync. *Errors* as
    /// writes.
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()>;
    /// Removes a file; an open id of it stays readable. *Errors* NotFound, Io.
    fn remove(&self, path: &Path) -> Result<()>;
    /// What moved so far.
    fn counters(&self) -> Counters;
    /// What really moves the bytes, for the report: `io_uring`, `pread-pool` or, without
    /// threads, `pread`.
    fn path_kind(&self) -> &'static str;
}
