//! The one queue of pieces that weights and KV share, by priority. Whatever moves bytes takes from
//! it, threads or a ring.

use crate::fill::Priority;
use crate::meter::{Meter, lock};
use crate::owner::{Batch, Owner};
use crate::pace::Pace;
use crate::piece::{Piece, Task, run};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Waiting {
    /// By priority, each first come, first served.
    pieces: [VecDeque<(Piece, Owner)>; 3],
    stopped: bool,
}
impl Waiting {
    /// The next piece that somebody waits for and that may begin. Urgent reads count for the pace
    /// and do not wait for it.
    fn next(&mut self, pace: &Pace, meter: &Meter) -> Next {
        let mut later = None;
        for (priority, pieces) in self.pieces.iter_mut().enumerate() {
            while let Some((piece, owner)) = pieces.pop_front() {
                if owner.is_given_up() {
                    meter.cancelled.fetch_add(1, Relaxed);
                    continue;
                }
                if piece.reads() {
                    let now = Instant::now();
                    let pause = pace.pause(now);
                    if !pause.is_zero() && priority != Priority::Urgent as usize {
                        pieces.push_front((piece, owner));
                        later = Some(pause);
                        break;
                    }
                    pace.begin(piece.bytes() as u64, now);
                }
                return Next::Work(piece, owner);
            }
        }
        match (later, self.stopped) {
            (Some(pause), _) => Next::Later(pause),
            (None, true) => Next::Stopped,
            (None, false) => Next::Empty,
        }
    }
}

/// What a look into the queue finds.
pub(crate) enum Next {
    /// A piece.
    Work(Piece, Owner),
    /// Reads that may begin in so long.
    Later(Duration),
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
    /// Of all queues of a service.
    pace: Arc<Pace>,
    /// Memory of finished reads, used again: fresh memory costs more than the copy out of it.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Most buffers that wait to be used again; with pieces of 1 MiB, 8 MiB.
const SPARE_BUFFERS: usize = 8;

impl Queue {
    /// A queue whose reads start at this pace.
    pub(crate) fn new(pace: Arc<Pace>) -> Self {
        Queue { pace, ..Queue::default() }
    }
    /// Calls `bell` at each arrival from now on.
    pub(crate) fn tell(&self, bell: impl Fn() + Send + Sync + 'static) {
        let _once = self.bell.set(Box::new(bell));
    }
    /// Queues the pieces of one batch.
    pub(crate) fn submit(&self, pieces: Vec<Piece>) -> Arc<Batch> {
        let (batch, owned) = Batch::of(pieces);
        self.push(owned, Priority::Urgent);
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
    /// The next piece, without waiting for one.
    pub(crate) fn look(&self, meter: &Meter) -> Next {
        lock(&self.waiting).next(&self.pace, meter)
    }
    /// Takes pieces until the queue is stopped.
    pub(crate) fn work(&self, meter: &Meter) {
        let mut waiting = lock(&self.waiting);
        loop {
            waiting = match waiting.next(&self.pace, meter) {
                Next::Stopped => return,
                Next::Empty => self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Next::Later(pause) => {
                    let waited = self.arrived.wait_timeout(waiting, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Work(piece, owner) => {
                    drop(waiting);
                    self.move_now(piece, owner, meter);
                    lock(&self.waiting)
                }
            };
        }
    }
    /// Takes pieces until there are none.
    pub(crate) fn drain(&self, meter: &Meter) {
        loop {
            match self.look(meter) {
                Next::Work(piece, owner) => self.move_now(piece, owner, meter),
                Next::Later(pause) => std::thread::sleep(pause),
                Next::Empty | Next::Stopped => return,
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{OpenFile, Way};

    fn read(request: usize, bytes: usize) -> Piece {
        let file = Arc::new(OpenFile::memory("m", &[0; 64]));
        let task = Task::ReadOwned { bytes };
        Piece { file, way: Way::Cached, offset: 0, request, at: 0, task }
    }

    fn queued(queue: &Queue, priority: Priority, request: usize) -> Arc<Batch> {
        let (batch, owned) = Batch::of(vec![read(request, 60)]);
        queue.push(owned, priority);
        batch
    }

    fn next(queue: &Queue) -> Option<usize> {
        match queue.look(&Meter::default()) {
            Next::Work(piece, _) => Some(piece.request),
            _ => None,
        }
    }

    #[test]
    fn urgent_pieces_go_first_then_those_of_a_priority_as_they_came() {
        let queue = Queue::default();
        let order = [Priority::Background, Priority::Next, Priority::Next, Priority::Urgent];
        let batches: Vec<_> = (0..4).map(|i| queued(&queue, order[i], i)).collect();
        let taken: Vec<_> = std::iter::from_fn(|| next(&queue)).collect();
        assert_eq!(taken, [3, 1, 2, 0]);
        drop(batches);
    }

    #[test]
    fn urgent_reads_do_not_wait_for_the_pace_and_others_do() {
        let queue = Queue::new(Arc::new(Pace::new(Some(1))));
        let _kept = [Priority::Next, Priority::Next, Priority::Urgent, Priority::Urgent]
            .into_iter()
            .enumerate()
            .map(|(i, priority)| queued(&queue, priority, i))
            .collect::<Vec<_>>();
        // A minute is paid for with each.
        assert_eq!([next(&queue), next(&queue)], [Some(2), Some(3)]);
        assert!(matches!(queue.look(&Meter::default()), Next::Later(pause) if !pause.is_zero()));
        queue.stop();
        assert!(matches!(queue.look(&Meter::default()), Next::Later(_)), "what waits is served");
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_and_counted() {
        let (queue, meter) = (Queue::default(), Meter::default());
        let batch = queued(&queue, Priority::Next, 0);
        batch.give_up();
        assert!(matches!(queue.look(&meter), Next::Empty));
        assert_eq!(meter.cancelled.load(Relaxed), 1);
    }
}
