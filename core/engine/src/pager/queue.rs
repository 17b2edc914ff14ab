//! Calls to a store that have not begun. They are the host's: a store that is given up gets none of
//! them, and the frames that they lend come home at once, however long its own call hangs.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Calls in the order in which they were asked.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    calls: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        let state = State { calls: VecDeque::new(), closed: false };
        Queue { state: Mutex::new(state), changed: Condvar::new() }
    }
    /// Adds a call; a closed queue drops it.
    pub(super) fn push(&self, call: T) {
        let mut state = self.lock();
        if !state.closed {
            state.calls.push_back(call);
            self.changed.notify_one();
        }
    }
    /// The next call, waited for; `None` once the queue is closed and empty.
    pub(super) fn next(&self) -> Option<T> {
        let mut state = self.lock();
        while state.calls.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.calls.pop_front()
    }
    /// Takes no more; what is there is still done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
    /// Takes no more, and drops what has not begun.
    pub(super) fn abandon(&self) {
        let calls = std::mem::take(&mut self.lock().calls);
        drop(calls);
        self.close();
    }
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_storage::{Lease, Region};
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    #[test]
    fn a_lost_instance_gets_no_further_call_and_their_frames_come_home_at_once() {
        let region = Region::new(4096).expect("memory");
        let queue: Arc<Queue<Lease>> = Arc::new(Queue::new());
        let ((begun, hangs), (release, hung)) = (channel(), channel());
        let calls = Arc::clone(&queue);
        let worker = std::thread::spawn(move || {
            let mut done = 0;
            while let Some(lease) = calls.next() {
                begun.send(()).expect("the test waits");
                hung.recv().expect("the test releases");
                drop(lease);
                done += 1;
            }
            done
        });
        queue.push(region.lend(0, 64).expect("a frame"));
        queue.push(region.lend(64, 64).expect("another"));
        hangs.recv().expect("the first call has begun");
        assert!(region.lend(64, 64).is_err(), "the second waits with its frame");
        queue.abandon();
        assert!(region.lend(64, 64).is_ok(), "what has not begun comes home");
        assert!(region.lend(0, 64).is_err(), "what hangs keeps its frame");
        queue.push(region.lend(128, 64).expect("a third"));
        assert!(region.lend(128, 64).is_ok(), "nothing is taken any more");
        release.send(()).expect("the call hangs");
        assert_eq!(worker.join().expect("it ends"), 1);
        assert!(region.lend(0, 64).is_ok());
    }

    #[test]
    fn a_closed_queue_still_gives_what_it_has() {
        let queue = Queue::new();
        queue.push(1);
        queue.push(2);
        queue.close();
        queue.push(3);
        assert_eq!([queue.next(), queue.next(), queue.next()], [Some(1), Some(2), None]);
    }
}
