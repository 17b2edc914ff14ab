//! What the host gives a plugin. A plugin says what to move; the host decides how.

use crate::types::*;
use std::sync::Arc;
use std::time::Duration;

/// The host, as a plugin sees it; cheap to clone, usable from threads of the plugin's own.
pub type HostRef = Arc<dyn Host>;

/// How to open a file under the plugin's root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// It must be there.
    Read,
    /// Created if absent, its name durable with its first sync; one writer.
    Write,
}

/// One read of a batch. Filled whole, or `done` says why not: there are no short reads.
pub struct FileRead<'a> {
    /// From which file.
    pub file: FileId,
    /// From where, in bytes.
    pub offset: u64,
    /// To where; its length is the length of the read. Aligned to `StoreSpec::io_align` it may go
    /// to the drive directly.
    pub into: &'a mut [u8],
    /// The host's answer.
    pub done: Result<()>,
}

/// One write of a batch; past the end it extends the file.
pub struct FileWrite<'a> {
    /// To which file.
    pub file: FileId,
    /// To where, in bytes.
    pub offset: u64,
    /// What.
    pub bytes: &'a [u8],
}

/// Services for the instance's life: once the host gives it up, every call answers Timeout and does
/// nothing.
///
/// Here the plugin is the caller. Names are one path component under the root that the host opened
/// for it.
pub trait Host: Send + Sync {
    /// Opens `name` under the root.
    ///
    /// # Caller guarantees
    /// `name` is one path component.
    ///
    /// # Errors
    /// NotFound, Busy, Io.
    fn open(&self, name: &str, how: Open) -> Result<FileId>;

    /// Ends an id. The host holds the file for an `At` that `load` has returned.
    fn close(&self, file: FileId);

    /// Names and lengths in bytes under the root, sorted: what recovery starts from.
    ///
    /// # Errors
    /// Io.
    fn list(&self) -> Result<Vec<(String, u64)>>;

    /// Reads all, in any order, many in flight; blocks until done or until `within` has passed.
    ///
    /// # Errors
    /// In each read's `done`; Timeout for the rest.
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()>;

    /// Writes all. Until a sync, a power cut leaves any sectors of them, old or new, in any order,
    /// and a length without bytes.
    ///
    /// # Errors
    /// OutOfSpace, Io, Timeout: any of the writes may be on disk.
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()>;

    /// What was written to these files is durable when it returns.
    ///
    /// # Errors
    /// Io: nothing since the last sync is durable.
    fn sync(&self, files: &[FileId]) -> Result<()>;

    /// Replaces `name` by `bytes`, whole or not at all, durable when it returns; of several writers
    /// one wins, whole.
    ///
    /// # Errors
    /// As [`write_batch`](Host::write_batch).
    fn publish(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Cuts the file to `bytes`; durable with a sync.
    ///
    /// # Errors
    /// Io.
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()>;

    /// Removes `name`; an open id of it stays readable.
    ///
    /// # Errors
    /// NotFound, Io.
    fn remove(&self, name: &str) -> Result<()>;

    /// Asks for memory before it is used.
    ///
    /// # Errors
    /// OverBudget.
    fn reserve(&self, bytes: u64) -> Result<()>;

    /// Gives memory back.
    ///
    /// # Caller guarantees
    /// Never more than reserved.
    fn release(&self, bytes: u64);

    /// Records that `name` took `took` and moved `bytes`; feeds the report.
    ///
    /// # Cost
    /// Any rate below one a page.
    fn event(&self, name: &str, took: Duration, bytes: u64);

    /// A line for the log; level 1 error, 2 warning, 3 information, 4 debugging, 5 trace.
    fn log(&self, level: u32, line: &str);

    /// Monotonic time since the host started.
    fn now(&self) -> Duration;
}
