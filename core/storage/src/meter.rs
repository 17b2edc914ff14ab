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
}

/// Bytes, calls and busy time of one direction.
#[derive(Default)]
pub(crate) struct Flow {
    bytes: AtomicU64,
    calls: AtomicU64,
    busy: Mutex<Union>,
}
impl Flow {
    /// Runs one operation that answers how many bytes moved.
    pub(crate) fn run<E>(&self, operation: impl FnOnce() -> Result<usize, E>) -> Result<usize, E> {
        {
            let mut busy = lock(&self.busy);
            busy.running += 1;
            if busy.running == 1 {
                busy.since = Some(Instant::now());
            }
        }
        let moved = operation();
        {
            let mut busy = lock(&self.busy);
            busy.running -= 1;
            if busy.running == 0
                && let Some(since) = busy.since.take()
            {
                busy.total += since.elapsed();
            }
        }
        self.calls.fetch_add(1, Relaxed);
        if let Ok(bytes) = &moved {
            self.bytes.fetch_add(*bytes as u64, Relaxed);
        }
        moved
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
}
impl Meter {
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
            ..Counters::default()
        }
    }
}
