//! Pieces: one operation each, the memory that it moves, and how a thread moves it.
//!
//! A piece of a batch writes either into memory of its own, which the batch's caller copies from
//! while it still waits, or straight into the caller's memory; then the caller waits without a
//! deadline, so that no write comes late. A piece of a fill writes into a lease that its job holds
//! until the last piece has answered, whoever still waits.
#![allow(unsafe_code)]

use crate::files::{OpenFile, Way};
use crate::meter::Meter;
use kvern_contract::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Most bytes of one operation through the page cache, which holds all that is under way.
pub(crate) const CACHED_BYTES: usize = 512 << 10;

/// Memory of a caller that waits until every piece of its batch is done.
pub(crate) struct Lent {
    pub(crate) address: *mut u8,
    pub(crate) bytes: usize,
}
// SAFETY: the memory is reached by one piece alone, on one thread at a time; the caller that lent
// it waits.
unsafe impl Send for Lent {}

/// Bytes of a caller that waits until every piece of its batch is done.
pub(crate) struct Shown {
    pub(crate) address: *const u8,
    pub(crate) bytes: usize,
}
// SAFETY: only read, and the caller that showed it waits.
unsafe impl Send for Shown {}

/// What a piece does.
pub(crate) enum Task {
    /// Reads into memory of the piece's own, handed to the batch.
    ReadOwned { bytes: usize },
    /// Reads into the caller's memory.
    ReadLent(Lent),
    /// Reads into the lease of the fill that the piece belongs to.
    ReadLeased(Lent),
    /// Writes bytes of its own.
    WriteOwned(Vec<u8>),
    /// Writes the caller's bytes.
    WriteShown(Shown),
}
impl Task {
    /// A read into the caller's memory.
    ///
    /// # Safety
    /// `into` is neither touched nor freed by anybody else until the batch of this piece is done.
    pub(crate) unsafe fn read_lent(into: &mut [u8]) -> Self {
        Task::ReadLent(Lent { address: into.as_mut_ptr(), bytes: into.len() })
    }
    /// A write of the caller's bytes.
    ///
    /// # Safety
    /// `from` is neither changed nor freed until the batch of this piece is done.
    pub(crate) unsafe fn write_shown(from: &[u8]) -> Self {
        Task::WriteShown(Shown { address: from.as_ptr(), bytes: from.len() })
    }
}
/// One operation of at most a piece's length.
pub(crate) struct Piece {
    pub(crate) file: Arc<OpenFile>,
    pub(crate) way: Way,
    pub(crate) offset: u64,
    pub(crate) request: usize,
    pub(crate) at: usize,
    pub(crate) task: Task,
}
impl Piece {
    /// Whether bytes come rather than go.
    pub(crate) fn reads(&self) -> bool {
        !matches!(self.task, Task::WriteOwned(_) | Task::WriteShown(_))
    }
    /// Bytes that it moves.
    pub(crate) fn bytes(&self) -> usize {
        match &self.task {
            Task::ReadOwned { bytes } => *bytes,
            Task::ReadLent(lent) | Task::ReadLeased(lent) => lent.bytes,
            Task::WriteOwned(bytes) => bytes.len(),
            Task::WriteShown(shown) => shown.bytes,
        }
    }
}
/// Moves a piece on this thread; `own` is memory of its own, where it reads into such.
pub(crate) fn run(piece: Piece, mut own: Vec<u8>, meter: &Meter) -> Result<Option<Vec<u8>>> {
    let Piece { file, way, offset, task, .. } = piece;
    match task {
        Task::ReadOwned { .. } => {
            file.read_by(way, meter, offset, &mut own)?;
            meter.copied_bytes.fetch_add(own.len() as u64, Relaxed);
            Ok(Some(own))
        }
        Task::ReadLent(lent) | Task::ReadLeased(lent) => {
            // SAFETY: `read_lent`'s caller keeps the memory alive and untouched until this piece
            // has answered; a leased piece's job does.
            let into = unsafe { std::slice::from_raw_parts_mut(lent.address, lent.bytes) };
            file.read_by(way, meter, offset, into)?;
            Ok(None)
        }
        Task::WriteOwned(bytes) => {
            file.write(meter, offset, &bytes)?;
            Ok(None)
        }
        Task::WriteShown(shown) => {
            // SAFETY: `write_shown`'s caller keeps the bytes alive and unchanged until this piece
            // has answered.
            let bytes = unsafe { std::slice::from_raw_parts(shown.address, shown.bytes) };
            file.write(meter, offset, bytes)?;
            Ok(None)
        }
    }
}
