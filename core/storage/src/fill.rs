//! Reads into memory that the service itself holds until the system is done with it: a caller may
//! give up at any time, and no byte is written to memory that somebody else has meanwhile.

use crate::meter::lock;
use crate::region::Lease;
use crate::service::Storage;
use kvern_contract::{Error, ErrorKind, FileId, FileRead, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is served first, while more waits than the drive takes at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Priority {
    /// Somebody waits for it now: a page of KV, a row of an embedding.
    Urgent,
    /// The next weights of the sweep.
    #[default]
    Next,
    /// Nobody waits for it.
    Background,
}

/// One read. The lease's length is the length of the read.
pub struct Fill {
    /// From which file.
    pub file: FileId,
    /// From where, in bytes.
    pub offset: u64,
    /// To where. It goes to the drive as it is where `offset`, address and length are multiples of
    /// the file's [`crate::FileFacts::align`]; elsewhere through memory of the service's own.
    pub into: Lease,
}

#[derive(Default)]
struct State {
    answers: Vec<Option<Result<Lease>>>,
    left: usize,
    /// Since when the system has had each operation that it has not answered, and what it is.
    under_way: Vec<(u64, Instant, String)>,
    /// When the last read was answered.
    ended: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    given_up: AtomicBool,
}

/// Reads that were started. Dropped, it gives them up: what has not begun is not read; what has is
/// finished by the system into its lease, which then ends.
pub struct Filling {
    shared: Arc<Shared>,
    began: Instant,
}

/// How long a [`Filling`] took; it can be read after the filling was waited for.
pub struct FillClock {
    shared: Arc<Shared>,
    began: Instant,
}

impl FillClock {
    /// From the start to the last answer, or to now while one is missing.
    pub fn took(&self) -> Duration {
        let ended = lock(&self.shared.state).ended;
        ended.unwrap_or_else(Instant::now).duration_since(self.began)
    }
}

/// The service's half of one [`Fill`]. Dropped without an answer, it answers Internal.
pub struct FillTicket {
    shared: Arc<Shared>,
    index: usize,
    answered: bool,
}

impl Filling {
    /// A filling of `count` reads and a ticket for each, in order.
    pub fn new(count: usize) -> (Filling, Vec<FillTicket>) {
        let shared = Arc::new(Shared::default());
        {
            let mut state = lock(&shared.state);
            state.answers.resize_with(count, || None);
            state.left = count;
        }
        let ticket = |index| FillTicket { shared: Arc::clone(&shared), index, answered: false };
        let tickets = (0..count).map(ticket).collect();
        (Filling { shared, began: Instant::now() }, tickets)
    }

    /// A clock that started with the reads, and stops with the last answer.
    pub fn clock(&self) -> FillClock {
        FillClock { shared: Arc::clone(&self.shared), began: self.began }
    }

    /// Gives up what has not begun, as a drop does; a wait then ends with what has.
    pub fn give_up(&self) {
        self.shared.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether every read has its answer.
    pub fn is_done(&self) -> bool {
        lock(&self.shared.state).left == 0
    }

    /// Waits for all, and gives each lease back, in order. *Errors*, one a read: those of
    /// [`crate::Storage::read_batch`], and Timeout, which names file and offset, for a read that
    /// was with the system for longer than `within` (waiting in the queue does not count). A read
    /// that failed keeps its lease until the system is done with it.
    pub fn wait(self, within: Duration) -> Vec<Result<Lease>> {
        let mut state = lock(&self.shared.state);
        while state.left > 0 {
            let now = Instant::now();
            let oldest = state.under_way.iter().min_by_key(|(_, since, _)| *since);
            if let Some((_, _, what)) =
                oldest.filter(|(_, since, _)| now.duration_since(*since) > within)
            {
                let text = format!(
                    "{what} was not answered within {} s; check the drive",
                    within.as_secs_f64()
                );
                let error = Error::new(ErrorKind::Timeout, "storage/read", text);
                state.left = 0;
                let answers = state.answers.iter_mut();
                return answers.map(|a| a.take().unwrap_or_else(|| Err(error.clone()))).collect();
            }
            // Nobody wakes a waiter for a deadline: look again often enough.
            let slice = (within / 4).clamp(Duration::from_millis(1), Duration::from_secs(1));
            let waited = self.shared.changed.wait_timeout(state, slice);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let text = "a read was answered twice";
        let gone = || Err(Error::new(ErrorKind::Internal, "storage/read", text));
        state.answers.iter_mut().map(|a| a.take().unwrap_or_else(gone)).collect()
    }
}
impl Drop for Filling {
    fn drop(&mut self) {
        self.shared.given_up.store(true, Ordering::Relaxed);
    }
}

impl FillTicket {
    /// Whether nobody waits any more: what has not begun need not.
    pub fn is_given_up(&self) -> bool {
        self.shared.given_up.load(Ordering::Relaxed)
    }
    /// The system has an operation of this read from now on; `what` names file and offset, `key`
    /// is the service's own.
    pub fn began(&self, key: u64, what: String) {
        lock(&self.shared.state).under_way.push((key, Instant::now(), what));
    }
    /// The system has answered it.
    pub fn ended(&self, key: u64) {
        lock(&self.shared.state).under_way.retain(|(k, ..)| *k != key);
    }
    /// Answers the read, once.
    pub fn answer(mut self, done: Result<Lease>) {
        self.put(done);
    }
    fn put(&mut self, done: Result<Lease>) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        let late = {
            let mut state = lock(&self.shared.state);
            match (state.left, state.answers.get_mut(self.index)) {
                // Nobody waits any more: the lease ends here.
                (0, _) | (_, None) => Some(done),
                (_, Some(answer)) => {
                    *answer = Some(done);
                    state.left -= 1;
                    if state.left == 0 {
                        state.ended = Some(Instant::now());
                    }
                    None
                }
            }
        };
        drop(late);
        self.shared.changed.notify_all();
    }
}
impl Drop for FillTicket {
    fn drop(&mut self) {
        let text = "the service dropped the read";
        self.put(Err(Error::new(ErrorKind::Internal, "storage/read", text)));
    }
}

/// Reads one after another on the caller's thread: for storages in memory.
pub(crate) fn at_once(storage: &dyn Storage, fills: Vec<Fill>) -> Filling {
    let (filling, tickets) = Filling::new(fills.len());
    for (ticket, fill) in tickets.into_iter().zip(fills) {
        let Fill { file, offset, mut into } = fill;
        let mut read = [FileRead { file, offset, into: &mut into, done: Ok(()) }];
        let done = storage.read_batch(&mut read, Duration::MAX);
        ticket.answer(done.map(|()| into));
    }
    filling
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    #[test]
    fn leases_come_back_in_the_order_of_their_reads_with_an_error_for_each_that_failed() {
        let region = Region::new(4096).unwrap();
        let (filling, mut tickets) = Filling::new(2);
        assert!(!filling.is_done());
        let second = tickets.pop().unwrap();
        let first = tickets.pop().unwrap();
        second.answer(Err(Error::new(ErrorKind::Io, "t", "no")));
        first.answer(region.lend(64, 64));
        assert!(filling.is_done());
        let got = filling.wait(Duration::from_secs(9));
        assert_eq!(got[0].as_ref().unwrap().offset(), 64);
        assert_eq!(got[1].as_ref().err().unwrap().kind, ErrorKind::Io);
    }

    #[test]
    fn a_read_that_the_system_keeps_is_named_and_its_memory_stays_lent() {
        let region = Region::new(4096).unwrap();
        let lease = region.lend(0, 4096).unwrap();
        let (filling, mut tickets) = Filling::new(1);
        let ticket = tickets.pop().unwrap();
        ticket.began(7, "the file f at offset 4096".into());
        let got = filling.wait(Duration::from_millis(3));
        let error = got[0].as_ref().err().unwrap();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(error.message.contains("the file f at offset 4096"), "{}", error.message);
        assert!(region.lend(0, 1).is_err());
        assert!(ticket.is_given_up());
        ticket.answer(Ok(lease));
        assert!(region.lend(0, 1).is_ok(), "what comes late ends its lease");
    }

    #[test]
    fn a_dropped_ticket_is_an_answer() {
        let (filling, tickets) = Filling::new(1);
        drop(tickets);
        let got = filling.wait(Duration::from_secs(9));
        assert_eq!(got[0].as_ref().err().unwrap().kind, ErrorKind::Internal);
    }
}
