//! Threads that sleep in the kernel: a queue of pieces, and the batches that wait for them.
//!
//! A piece writes either into memory of its own, which the batch's caller copies from while it
//! still waits, or straight into the caller's memory; then the caller waits without a deadline, so
//! that no write comes late.
#![allow(unsafe_code)]

use crate::files::OpenFile;
use crate::meter::{Meter, lock};
use kvern_contract::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Memory of a caller that waits until every piece of its batch is done.
pub(crate) struct Lent {
    address: *mut u8,
    bytes: usize,
}
// SAFETY: the memory is reached by one piece alone, on one thread at a time; the caller that lent
// it waits.
unsafe impl Send for Lent {}

/// Bytes of a caller that waits until every piece of its batch is done.
pub(crate) struct Shown {
    address: *const u8,
    bytes: usize,
}
// SAFETY: only read, and the caller that showed it waits.
unsafe impl Send for Shown {}

/// What a piece does.
pub(crate) enum Task {
    /// Reads into memory of the piece's own, handed to the batch.
    ReadOwned { bytes: usize },
    /// Reads into the caller's memory.
    ReadLent(Lent),
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

/// A piece's answer: which request it belongs to, where in the request, and the bytes if they are
/// its own.
pub(crate) struct Answer {
    pub(crate) request: usize,
    pub(crate) at: usize,
    pub(crate) done: Result<Option<Vec<u8>>>,
}

#[derive(Default)]
struct Progress {
    answers: Vec<Answer>,
    left: usize,
}

/// Pieces that one caller waits for.
#[derive(Default)]
pub(crate) struct Batch {
    progress: Mutex<Progress>,
    changed: Condvar,
    given_up: AtomicBool,
}
impl Batch {
    /// Answers that came since the last call, waiting for at least one; `None` when all came
    /// before, or at `until`.
    pub(crate) fn next(&self, until: Option<Instant>) -> Option<Vec<Answer>> {
        let mut progress = lock(&self.progress);
        loop {
            if !progress.answers.is_empty() {
                return Some(std::mem::take(&mut progress.answers));
            }
            if progress.left == 0 {
                return None;
            }
            progress = match until {
                None => self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let now = Instant::now();
                    if now >= until {
                        return None;
                    }
                    let waited = self.changed.wait_timeout(progress, until - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
    /// Pieces that nobody has begun are dropped; what comes late goes nowhere.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }
}

/// One operation of at most a piece's length.
pub(crate) struct Piece {
    pub(crate) file: Arc<OpenFile>,
    pub(crate) offset: u64,
    pub(crate) request: usize,
    pub(crate) at: usize,
    pub(crate) task: Task,
}

/// A piece on its way; answers its batch exactly once, even when a worker unwinds.
struct Ticket {
    batch: Arc<Batch>,
    request: usize,
    at: usize,
    answered: bool,
}
impl Ticket {
    fn answer(&mut self, done: Result<Option<Vec<u8>>>) {
        if !std::mem::replace(&mut self.answered, true) {
            let mut progress = lock(&self.batch.progress);
            progress.left -= 1;
            progress.answers.push(Answer { request: self.request, at: self.at, done });
            self.batch.changed.notify_all();
        }
    }
}
impl Drop for Ticket {
    fn drop(&mut self) {
        let text = "the worker dropped the operation";
        self.answer(Err(Error::new(ErrorKind::Internal, "storage/worker", text)));
    }
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<(Piece, Ticket)>,
    stopped: bool,
}

/// The queue of pieces; first come, first served.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// Memory of finished reads, used again: fresh memory costs more than the copy out of it.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Most buffers that wait to be used again; with pieces of 1 MiB, 8 MiB.
const SPARE_BUFFERS: usize = 8;

impl Queue {
    /// Queues the pieces of one batch.
    pub(crate) fn submit(&self, pieces: Vec<Piece>) -> Arc<Batch> {
        let batch = Arc::new(Batch::default());
        lock(&batch.progress).left = pieces.len();
        let count = pieces.len();
        let mut waiting = lock(&self.waiting);
        for piece in pieces {
            let (request, at) = (piece.request, piece.at);
            let ticket = Ticket { batch: batch.clone(), request, at, answered: false };
            waiting.pieces.push_back((piece, ticket));
        }
        drop(waiting);
        if count > 1 {
            self.arrived.notify_all();
        } else {
            self.arrived.notify_one();
        }
        batch
    }
    /// Takes the memory of a read back, once its bytes were copied.
    pub(crate) fn recycle(&self, own: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_BUFFERS {
            spare.push(own);
        }
    }
    /// Lets the workers go once the queue is empty.
    pub(crate) fn stop(&self) {
        lock(&self.waiting).stopped = true;
        self.arrived.notify_all();
    }
    /// Takes pieces until the queue is stopped.
    pub(crate) fn work(&self, meter: &Meter) {
        loop {
            let mut waiting = lock(&self.waiting);
            let next = loop {
                if let Some(next) = waiting.pieces.pop_front() {
                    break next;
                }
                if waiting.stopped {
                    return;
                }
                waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            };
            drop(waiting);
            self.finish(next, meter);
        }
    }
    /// Takes pieces until there are none.
    pub(crate) fn drain(&self, meter: &Meter) {
        loop {
            let next = lock(&self.waiting).pieces.pop_front();
            let Some(next) = next else { return };
            self.finish(next, meter);
        }
    }
    fn finish(&self, (piece, mut ticket): (Piece, Ticket), meter: &Meter) {
        // A given-up batch has owned pieces only, and nobody to answer.
        if !ticket.batch.given_up.load(Relaxed) {
            let spare = match piece.task {
                Task::ReadOwned { .. } => lock(&self.spare).pop().unwrap_or_default(),
                _ => Vec::new(),
            };
            let done = run(piece, spare, meter);
            ticket.answer(done);
        }
    }
}

fn run(piece: Piece, mut own: Vec<u8>, meter: &Meter) -> Result<Option<Vec<u8>>> {
    let Piece { file, offset, task, .. } = piece;
    match task {
        Task::ReadOwned { bytes } => {
            own.resize(bytes, 0);
            file.read(meter, offset, &mut own)?;
            Ok(Some(own))
        }
        Task::ReadLent(lent) => {
            // SAFETY: `read_lent`'s caller keeps the memory alive and untouched until this piece
            // has answered.
            let into = unsafe { std::slice::from_raw_parts_mut(lent.address, lent.bytes) };
            file.read(meter, offset, into)?;
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
