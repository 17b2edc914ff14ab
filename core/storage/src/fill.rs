//! Reads into memory that the service itself holds until the system is done with it: a caller may
//! give up at any time, and no byte is written to memory that somebody else has meanwhile.

use crate::meter::{Meter, lock};
use crate::region::Lease;
use kvern_contract::{Error, ErrorKind, FileId, Result};
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

/// A read of a filling.
struct Read {
    file: Arc<str>,
    offset: u64,
    answer: Option<Result<Lease>>,
}

/// An operation that the system has not answered.
struct UnderWay {
    /// The read that it is a part of, and where in the file it starts.
    read: usize,
    offset: u64,
    since: Instant,
}

struct State {
    reads: Vec<Read>,
    left: usize,
    under_way: Vec<UnderWay>,
    /// When the last read was answered.
    ended: Option<Instant>,
}
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    given_up: AtomicBool,
    /// Where the service counts what the system answers.
    meter: Arc<Meter>,
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
    /// When the reads were asked for.
    pub fn began(&self) -> Instant {
        self.began
    }
    /// From the start to the last answer, or to now while one is missing.
    pub fn took(&self) -> Duration {
        let ended = lock(&self.shared.state).ended;
        ended.unwrap_or_else(Instant::now).duration_since(self.began)
    }
}

/// The service's half of one [`Fill`]. Dropped without an answer, it answers Internal.
pub(crate) struct FillTicket {
    shared: Arc<Shared>,
    index: usize,
    answered: bool,
}

impl Filling {
    /// A filling of these reads (file and offset of each) and a ticket for each, in order.
    pub(crate) fn new(
        reads: impl IntoIterator<Item = (Arc<str>, u64)>,
        meter: Arc<Meter>,
    ) -> (Filling, Vec<FillTicket>) {
        let read = |(file, offset)| Read { file, offset, answer: None };
        let reads: Vec<Read> = reads.into_iter().map(read).collect();
        let count = reads.len();
        let state = State { reads, left: count, under_way: Vec::new(), ended: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            given_up: AtomicBool::new(false),
            meter,
        });
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
    /// [`crate::Storage::read_batch`], and Timeout, which names file and offset, once the system
    /// has had a read for longer than `within`, or once it has had none of them and has answered
    /// nobody for so long since they were asked for. A queue that moves is no fault of a drive,
    /// however slow. A read that failed keeps its lease until the system is done with it.
    pub fn wait(self, within: Duration) -> Vec<Result<Lease>> {
        let mut state = lock(&self.shared.state);
        while state.left > 0 {
            if let Some(text) = self.late(&state, within) {
                let error = Error::new(ErrorKind::Timeout, "storage/read", text);
                state.left = 0;
                return answers(&mut state, &error);
            }
            // Nobody wakes a waiter for a deadline: look again often enough.
            let slice = (within / 4).clamp(Duration::from_millis(1), Duration::from_secs(1));
            let waited = self.shared.changed.wait_timeout(state, slice);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let text = "a read was answered twice";
        answers(&mut state, &Error::new(ErrorKind::Internal, "storage/read", text))
    }

    /// What has taken longer than `within`, if something has: an operation that the system keeps,
    /// or, where it has none of these reads, all of them, while it answers nobody else either.
    fn late(&self, state: &State, within: Duration) -> Option<String> {
        let seconds = within.as_secs_f64();
        if let Some(one) = state.under_way.iter().min_by_key(|one| one.since) {
            let (file, offset) = (&state.reads.get(one.read)?.file, one.offset);
            return (one.since.elapsed() > within).then(|| {
                format!(
                    "a read of {file} at offset {offset} was not answered within {seconds} s; \
                     check the drive"
                )
            });
        }
        let Read { file, offset, .. } = state.reads.iter().find(|read| read.answer.is_none())?;
        let quiet = self.began.elapsed().min(self.shared.meter.quiet());
        (quiet > within).then(|| {
            format!(
                "a read of {file} at offset {offset} waits behind others, and none was answered \
                 within {seconds} s; check the drive"
            )
        })
    }
}

/// The answers that came, and `missing` for each that did not.
fn answers(state: &mut State, missing: &Error) -> Vec<Result<Lease>> {
    let reads = state.reads.iter_mut();
    reads.map(|read| read.answer.take().unwrap_or_else(|| Err(missing.clone()))).collect()
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.shared.given_up.store(true, Ordering::Relaxed);
    }
}

impl FillTicket {
    /// Whether nobody waits any more: what has not begun need not.
    pub(crate) fn is_given_up(&self) -> bool {
        self.shared.given_up.load(Ordering::Relaxed)
    }
    /// The system has an operation of this read, at `offset` in its file, from now on.
    pub(crate) fn began(&self, offset: u64) {
        let one = UnderWay { read: self.index, offset, since: Instant::now() };
        lock(&self.shared.state).under_way.push(one);
    }
    /// The system has answered it.
    pub(crate) fn ended(&self, offset: u64) {
        let other = |one: &UnderWay| (one.read, one.offset) != (self.index, offset);
        lock(&self.shared.state).under_way.retain(other);
    }
    /// Answers the read, once.
    pub(crate) fn answer(mut self, done: Result<Lease>) {
        self.put(done);
    }
    fn put(&mut self, done: Result<Lease>) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        let late = {
            let mut state = lock(&self.shared.state);
            match (state.left, state.reads.get_mut(self.index)) {
                // Nobody waits any more: the lease ends here.
                (0, _) | (_, None) => Some(done),
                (_, Some(read)) => {
                    read.answer = Some(done);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    const LONG: Duration = Duration::from_secs(9);

    /// A filling of reads at offset 0 of files `f0`, `f1`, ...
    fn filling(count: usize, meter: &Arc<Meter>) -> (Filling, Vec<FillTicket>) {
        Filling::new((0..count).map(|i| (format!("f{i}").into(), 0)), meter.clone())
    }

    #[test]
    fn leases_come_back_in_the_order_of_their_reads_with_an_error_for_each_that_failed() {
        let region = Region::new(4096).unwrap();
        let (filling, mut tickets) = filling(2, &Arc::default());
        assert!(!filling.is_done());
        let second = tickets.pop().unwrap();
        let first = tickets.pop().unwrap();
        second.answer(Err(Error::new(ErrorKind::Io, "t", "no")));
        first.answer(region.lend(64, 64));
        assert!(filling.is_done());
        let got = filling.wait(LONG);
        assert_eq!(got[0].as_ref().unwrap().offset(), 64);
        assert_eq!(got[1].as_ref().err().unwrap().kind, ErrorKind::Io);
    }

    #[test]
    fn a_read_that_the_system_keeps_is_named_and_its_memory_stays_lent() {
        let region = Region::new(4096).unwrap();
        let lease = region.lend(0, 4096).unwrap();
        let (filling, mut tickets) = filling(1, &Arc::default());
        let ticket = tickets.pop().unwrap();
        ticket.began(4096);
        let got = filling.wait(Duration::from_millis(3));
        let error = got[0].as_ref().err().unwrap();
        assert_eq!(error.kind, ErrorKind::Timeout);
        let text = "a read of f0 at offset 4096 was not answered within 0.003 s; check the drive";
        assert_eq!(error.message, text);
        assert!(region.lend(0, 1).is_err());
        assert!(ticket.is_given_up());
        ticket.answer(Ok(lease));
        assert!(region.lend(0, 1).is_ok(), "what comes late ends its lease");
    }

    #[test]
    fn reads_at_one_offset_of_two_files_are_told_apart() {
        let (filling, tickets) = filling(2, &Arc::default());
        tickets.iter().for_each(|ticket| ticket.began(0));
        tickets[0].ended(0);
        let got = filling.wait(Duration::from_millis(3));
        let text = got[1].as_ref().err().unwrap().to_string();
        assert!(text.contains("a read of f1 at offset 0"), "{text}");
    }

    #[test]
    fn a_read_that_waits_behind_a_drive_that_answers_nobody_is_named() {
        let meter = Arc::new(Meter::default());
        let (filling, tickets) = filling(2, &meter);
        let mut tickets = tickets.into_iter();
        tickets.next().unwrap().answer(Err(Error::new(ErrorKind::Io, "t", "no")));
        let got = filling.wait(Duration::from_millis(3));
        let error = got[1].as_ref().err().unwrap();
        assert_eq!(error.kind, ErrorKind::Timeout);
        let text = "a read of f1 at offset 0 waits behind others, and none was answered within \
                    0.003 s; check the drive";
        assert_eq!(error.message, text);
    }

    #[test]
    fn a_read_that_waits_while_others_are_answered_is_not_late() {
        let meter = Arc::new(Meter::default());
        let (mut filling, tickets) = filling(1, &meter);
        filling.began = Instant::now() - Duration::from_secs(60);
        let late = |filling: &Filling| filling.late(&lock(&filling.shared.state), LONG);
        assert!(late(&filling).is_some());
        meter.read.begin();
        meter.read.end(Some(1));
        assert_eq!(late(&filling), None);
        // Once the system has it, others do not count.
        tickets[0].began(0);
        lock(&filling.shared.state).under_way[0].since = filling.began;
        assert!(late(&filling).is_some());
    }

    #[test]
    fn a_dropped_ticket_is_an_answer() {
        let (filling, tickets) = filling(1, &Arc::default());
        drop(tickets);
        let got = filling.wait(LONG);
        assert_eq!(got[0].as_ref().err().unwrap().kind, ErrorKind::Internal);
    }
}
