//! Who waits for pieces: batches, whose caller waits, and fills, whose memory waits.
#![allow(unsafe_code)]

use crate::files::{OpenFile, Way};
use crate::fill::FillTicket;
use crate::meter::lock;
use crate::piece::{Lent, Piece, Task};
use crate::region::Lease;
use kvern_contract::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

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
    /// A batch of these pieces, each with its owner.
    pub(crate) fn of(pieces: Vec<Piece>) -> (Arc<Self>, Vec<(Piece, Owner)>) {
        let batch = Arc::new(Batch::default());
        lock(&batch.progress).left = pieces.len();
        let owned = pieces.into_iter().map(|piece| {
            let (request, at) = (piece.request, piece.at);
            let ticket = Ticket { batch: batch.clone(), request, at, answered: false };
            (piece, Owner::Batch(ticket))
        });
        let owned = owned.collect();
        (batch, owned)
    }
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

/// One fill on its way: the lease stays here until its last piece has answered.
pub(crate) struct Job {
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
        let job = Arc::new(Job { state: Mutex::new(state) });
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
                let state = lock(&share.job.state);
                // Once a piece has failed the others are of no use.
                let failed = state.fault.is_some();
                failed || state.ticket.as_ref().is_none_or(FillTicket::is_given_up)
            }
        }
    }
    /// The system has the piece from now on.
    pub(crate) fn began(&self, piece: &Piece) {
        if let Owner::Fill(share) = self
            && let Some(ticket) = &lock(&share.job.state).ticket
        {
            ticket.began(piece.offset);
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
    Error::new(ErrorKind::Internal, "storage/queue", "the service dropped the operation")
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
