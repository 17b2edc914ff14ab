//! The one queue of pieces that weights and KV share, and who waits for them: batches and fills.
//! Whatever moves bytes takes from it, threads or a ring.
//!
//! A piece of a batch writes either into memory of its own, which the batch's caller copies from
//! while it still waits, or straight into the caller's memory; then the caller waits without a
//! deadline, so that no write comes late. A piece of a fill writes into a lease that its job holds
//! until the last piece has answered, whoever still waits.
#![allow(unsafe_code)]

use crate::files::{OpenFile, Way};
use crate::fill::{FillTicket, Priority};
use crate::meter::{Meter, lock};
use crate::pace::Pace;
use crate::region::Lease;
use kvern_contract::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

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

/// One fill on its way: the lease stays here until its last piece has answered.
pub(crate) struct Job {
    path: String,
    state: Mutex<JobState>,
}
struct JobState {
    lease: Option<Lease>,
    ticket: Option<FillTicket>,
    left: usize,
    fault: Option<Error>,
}
impl Job {
    /// A fill of as many pieces as `cut` makes of its lease.
    pub(crate) fn start(
        mut lease: Lease,
        ticket: FillTicket,
        file: &Arc<OpenFile>,
        offset: u64,
        cuts: &[(usize, usize, Way)],
    ) -> Vec<(Piece, Owner)> {
        let address = lease.as_mut_ptr();
        let state =
            JobState { lease: Some(lease), ticket: Some(ticket), left: cuts.len(), fault: None };
        let path = file.path().display().to_string();
        let job = Arc::new(Job { path, state: Mutex::new(state) });
        let piece = |&(at, bytes, way): &(usize, usize, Way)| {
            // SAFETY: the caller's cuts lie inside the lease and do not overlap; the lease, and so
            // the memory, stays in the job until every piece has answered.
            let address = unsafe { address.add(at) };
            let task = Task::ReadLeased(Lent { address, bytes });
            let offset = offset.saturating_add(at as u64);
            let piece = Piece { file: file.clone(), way, offset, request: 0, at, task };
            (piece, Owner::Fill(Share { job: job.clone(), answered: false }))
        };
        cuts.iter().map(piece).collect()
    }
}

/// A piece's share of its job; answers exactly once.
pub(crate) struct Share {
    job: Arc<Job>,
    answered: bool,
}
impl Share {
    fn answer(&mut self, done: Result<()>) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        let mut state = lock(&self.job.state);
        state.left -= 1;
        state.fault = state.fault.take().or(done.err());
        if state.left > 0 {
            return;
        }
        let (lease, ticket) = (state.lease.take(), state.ticket.take());
        let fault = state.fault.take();
        drop(state);
        if let (Some(lease), Some(ticket)) = (lease, ticket) {
            ticket.answer(fault.map_or(Ok(lease), Err));
        }
    }
}
impl Drop for Share {
    fn drop(&mut self) {
        self.answer(Err(dropped()));
    }
}

/// Who is told of a piece's end.
pub(crate) enum Owner {
    /// A batch.
    Batch(Ticket),
    /// A fill.
    Fill(Share),
}
impl Owner {
    /// Whether nobody waits any more, so that what has not begun need not.
    pub(crate) fn is_given_up(&self) -> bool {
        match self {
            // A given-up batch has owned pieces only, and nobody to answer.
            Owner::Batch(ticket) => ticket.batch.given_up.load(Relaxed),
            Owner::Fill(share) => {
                lock(&share.job.state).ticket.as_ref().is_none_or(FillTicket::is_given_up)
            }
        }
    }
    /// The system has the piece from now on.
    pub(crate) fn began(&self, piece: &Piece) {
        if let Owner::Fill(share) = self
            && let Some(ticket) = &lock(&share.job.state).ticket
        {
            let what = || format!("a read of {} at offset {}", share.job.path, piece.offset);
            ticket.began(piece.offset, what());
        }
    }
    /// The system has answered it.
    pub(crate) fn answer(mut self, piece_offset: u64, done: Result<Option<Vec<u8>>>) {
        match &mut self {
            Owner::Batch(ticket) => ticket.answer(done),
            Owner::Fill(share) => {
                if let Some(ticket) = &lock(&share.job.state).ticket {
                    ticket.ended(piece_offset);
                }
                share.answer(done.map(|_| ()));
            }
        }
    }
}

fn dropped() -> Error {
    Error::new(ErrorKind::Internal, "storage/worker", "the service dropped the operation")
}

/// A piece on its way; answers its batch exactly once, even when a worker unwinds.
pub(crate) struct Ticket {
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
        self.answer(Err(dropped()));
    }
}

#[derive(Default)]
struct Waiting {
    /// By priority, each first come, first served.
    pieces: [VecDeque<(Piece, Owner)>; 3],
    stopped: bool,
}
impl Waiting {
    fn pop(&mut self) -> Option<(Piece, Owner)> {
        self.pieces.iter_mut().find_map(VecDeque::pop_front)
    }
}

/// What a look into the queue finds.
pub(crate) enum Next {
    /// A piece.
    Work(Piece, Owner),
    /// Nothing now.
    Empty,
    /// Nothing any more.
    Stopped,
}

/// The queue of pieces.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// Told of each arrival, where the mover sleeps elsewhere than on `arrived`.
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pace: Pace,
    /// Memory of finished reads, used again: fresh memory costs more than the copy out of it.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Most buffers that wait to be used again; with pieces of 1 MiB, 8 MiB.
const SPARE_BUFFERS: usize = 8;

impl Queue {
    /// A queue whose reads start at most at this rate.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Queue { pace: Pace::new(bytes_per_second), ..Queue::default() }
    }
    /// Calls `bell` at each arrival from now on.
    pub(crate) fn tell(&self, bell: impl Fn() + Send + Sync + 'static) {
        let _once = self.bell.set(Box::new(bell));
    }
    /// Queues the pieces of one batch.
    pub(crate) fn submit(&self, pieces: Vec<Piece>) -> Arc<Batch> {
        let batch = Arc::new(Batch::default());
        lock(&batch.progress).left = pieces.len();
        let owned = pieces.into_iter().map(|piece| {
            let (request, at) = (piece.request, piece.at);
            let ticket = Ticket { batch: batch.clone(), request, at, answered: false };
            (piece, Owner::Batch(ticket))
        });
        self.push(owned.collect(), Priority::Urgent);
        batch
    }
    /// Queues pieces.
    pub(crate) fn push(&self, pieces: Vec<(Piece, Owner)>, priority: Priority) {
        let count = pieces.len();
        lock(&self.waiting).pieces[priority as usize].extend(pieces);
        match (self.bell.get(), count) {
            (_, 0) => {}
            (Some(bell), _) => bell(),
            (None, 1) => self.arrived.notify_one(),
            (None, _) => self.arrived.notify_all(),
        }
    }
    /// Takes the memory of a read back, once its bytes were copied.
    pub(crate) fn recycle(&self, own: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_BUFFERS {
            spare.push(own);
        }
    }
    /// Lets the movers go once the queue is empty.
    pub(crate) fn stop(&self) {
        lock(&self.waiting).stopped = true;
        self.arrived.notify_all();
        if let Some(bell) = self.bell.get() {
            bell();
        }
    }
    /// The next piece that somebody waits for, without waiting for one; keeps the pace of reads.
    pub(crate) fn look(&self, meter: &Meter) -> Next {
        loop {
            let mut waiting = lock(&self.waiting);
            let Some((piece, owner)) = waiting.pop() else {
                return if waiting.stopped { Next::Stopped } else { Next::Empty };
            };
            drop(waiting);
            if let Some((piece, owner)) = self.admit(piece, owner, meter) {
                return Next::Work(piece, owner);
            }
        }
    }
    /// Drops what nobody waits for, and holds reads to the pace.
    fn admit(&self, piece: Piece, owner: Owner, meter: &Meter) -> Option<(Piece, Owner)> {
        if owner.is_given_up() {
            meter.cancelled.fetch_add(1, Relaxed);
            return None;
        }
        if piece.reads() {
            self.pace.wait(piece.bytes() as u64);
        }
        Some((piece, owner))
    }
    /// Takes pieces until the queue is stopped.
    pub(crate) fn work(&self, meter: &Meter) {
        loop {
            let mut waiting = lock(&self.waiting);
            let (piece, owner) = loop {
                if let Some(next) = waiting.pop() {
                    break next;
                }
                if waiting.stopped {
                    return;
                }
                waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            };
            drop(waiting);
            self.finish(piece, owner, meter);
        }
    }
    /// Takes pieces until there are none.
    pub(crate) fn drain(&self, meter: &Meter) {
        while let Next::Work(piece, owner) = self.look(meter) {
            self.move_now(piece, owner, meter);
        }
    }
    fn finish(&self, piece: Piece, owner: Owner, meter: &Meter) {
        if let Some((piece, owner)) = self.admit(piece, owner, meter) {
            self.move_now(piece, owner, meter);
        }
    }
    /// Memory for a read of its own.
    pub(crate) fn memory(&self, bytes: usize) -> Vec<u8> {
        let mut own = lock(&self.spare).pop().unwrap_or_default();
        own.resize(bytes, 0);
        own
    }
    /// Moves a piece on this thread.
    pub(crate) fn move_now(&self, piece: Piece, owner: Owner, meter: &Meter) {
        owner.began(&piece);
        let offset = piece.offset;
        let own = match piece.task {
            Task::ReadOwned { bytes } => self.memory(bytes),
            _ => Vec::new(),
        };
        let depth = meter.depth.fetch_add(1, Relaxed) + 1;
        meter.depth_peak.fetch_max(depth, Relaxed);
        let done = run(piece, own, meter);
        meter.depth.fetch_sub(1, Relaxed);
        owner.answer(offset, done);
    }
}

fn run(piece: Piece, mut own: Vec<u8>, meter: &Meter) -> Result<Option<Vec<u8>>> {
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
