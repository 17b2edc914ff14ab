//! What the host gives a plugin. A plugin says what to move; the host decides how.

use crate::types::*;
use std::sync::Arc;
use std::time::Duration;

/// The host, as a plugin sees it; cheap to clone, usable from threads of the plugin's own.
pub type HostRef = Arc<dyn Host>;
/// How to open a file under the plugin's root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    Read,  // it must be there
    Write, // created if absent, its name durable with its first sync; one writer
}
/// One read of a batch. Filled whole, or `done` says why not: there are no short reads.
pub struct FileRead<'a> {
    pub file: FileId,
    pub offset: u64,
    pub into: &'a mut [u8], // to where; aligned to `StoreSpec::io_align` it may go to the drive directly
    pub done: Result<()>,   // the host's answer
}
/// One write of a batch; past the end it extends the file.
pub struct FileWrite<'a> {
    pub file: FileId,
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Services for the instance's life: once the host gives it up, every call answers Timeout and does nothing.
pub trait Host: Send + Sync {
    /// Opens `name` (one path component) under the root. *Errors* NotFound, Busy, Io.
    fn open(&self, name: &str, how: Open) -> Result<FileId>;
    /// Ends an id. The host holds the file for an `At` that `load` has returned.
    fn close(&self, file: FileId);
    /// Names and lengths under the root, sorted: what recovery starts from. *Errors* Io.
    fn list(&self) -> Result<Vec<(String, u64)>>;
    /// Reads all, in any order, many in flight; blocks. *Errors* in each read; Timeout for the rest.
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()>;
    /// Writes all; until a sync, a power cut leaves any sectors of them, old or new, in any order, and a length
    /// without bytes. *Errors* OutOfSpace, Io, Timeout: any may be on disk.
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()>;
    /// What was written to these files is durable when it returns. *Errors* Io: nothing since the last sync is.
    fn sync(&self, files: &[FileId]) -> Result<()>;
    /// Replaces `name` by `bytes`, whole or not at all, durable when it returns; of several writers one wins,
    /// whole. *Errors* as writes.
    fn publish(&self, name: &str, bytes: &[u8]) -> Result<()>;
    /// Cuts the file; durable with a sync. *Errors* Io.
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()>;
    /// Removes `name`; an open id of it stays readable. *Errors* NotFound, Io.
    fn remove(&self, name: &str) -> Result<()>;
    /// Asks for memory before it is used. *Errors* OverBudget.
    fn reserve(&self, bytes: u64) -> Result<()>;
    /// Gives memory back; never more than reserved.
    fn release(&self, bytes: u64);
    /// Records that `name` took `took`; feeds the report. *Cost* any rate below one a page.
    fn event(&self, name: &str, took: Duration, bytes: u64);
    /// A line for the log; level 1 error to 5 trace.
    fn log(&self, level: u32, line: &str);
    /// Monotonic time since the host started.
    fn now(&self) -> Duration;
}
