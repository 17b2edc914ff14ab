//! Counters at the place where bytes move.

use crate::service::Counters;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks, whatever a panicking holder left: every value behind these locks is whole between two
/// statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long at least one of a kind of operation was under way.
#[derive(Default)]
struct Union {
    running: u32,
    since: Option<Instant>,
    total: Duration,
    /// When the last one was answered.
    answered: Option<Instant>,
}

/// Bytes, calls and busy time of one direction.
#[derive(Default)]
pub(crate) struct Flow {
    bytes: AtomicU64,
    calls: AtomicU64,
    busy: Mutex<Union>,
}
impl Flow {
    /// An operation is with the system from now on.
    pub(crate) fn begin(&self) {
        let mut busy = lock(&self.busy);
        busy.running += 1;
        if busy.running == 1 {
            busy.since = Some(Instant::now());
        }
    }
    /// The system has answered it; `moved` bytes, or `None` for an error.
    pub(crate) fn end(&self, moved: Option<usize>) {
        {
            let mut busy = lock(&self.busy);
            let now = Instant::now();
            busy.answered = Some(now);
            busy.running -= 1;
            if busy.running == 0
                && let Some(since) = busy.since.take()
            {
                busy.total += now.duration_since(since);
            }
        }
        self.calls.fetch_add(1, Relaxed);
        self.bytes.fetch_add(moved.unwrap_or(0) as u64, Relaxed);
    }
    /// Runs one operation that answers how many bytes moved.
    pub(crate) fn run<E>(&self, operation: impl FnOnce() -> Result<usize, E>) -> Result<usize, E> {
        self.begin();
        let moved = operation();
        self.end(moved.as_ref().ok().copied());
        moved
    }
    /// Whether the system has no operation.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.busy).running == 0
    }
    fn time(&self) -> Duration {
        let busy = lock(&self.busy);
        busy.total + busy.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// All counters of a service.
#[derive(Default)]
pub(crate) struct Meter {
    pub(crate) read: Flow,
    pub(crate) write: Flow,
    pub(crate) syncs: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
    pub(crate) direct_bytes: AtomicU64,
    pub(crate) mapped_bytes: AtomicU64,
    pub(crate) copied_bytes: AtomicU64,
    pub(crate) registered_reads: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    /// Operations that the system has now.
    pub(crate) depth: AtomicU64,
    pub(crate) depth_peak: AtomicU64,
}
impl Meter {
    /// How long the system has answered no read and no write; for ever where it never has.
    pub(crate) fn quiet(&self) -> Duration {
        let last = lock(&self.read.busy).answered.max(lock(&self.write.busy).answered);
        last.map_or(Duration::MAX, |at| at.elapsed())
    }
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            bytes_read: self.read.bytes.load(Relaxed),
            bytes_written: self.write.bytes.load(Relaxed),
            reads: self.read.calls.load(Relaxed),
            writes: self.write.calls.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            read_time: self.read.time(),
            write_time: self.write.time(),
            memory_bytes: self.memory_bytes.load(Relaxed),
            direct_bytes: self.direct_bytes.load(Relaxed),
            mapped_bytes: self.mapped_bytes.load(Relaxed),
            copied_bytes: self.copied_bytes.load(Relaxed),
            registered_reads: self.registered_reads.load(Relaxed),
            retries: self.retries.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            depth_peak: self.depth_peak.load(Relaxed),
        }
    }
}
