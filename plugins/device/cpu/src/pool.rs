//! The worker threads: one wake-up a list, a brief wait for the next one, then sleep.

use crate::exec::{Barrier, Job};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work keeps its core.
const IDLE: Duration = Duration::from_micros(50);

#[derive(Default)]
struct Desk {
    job: Option<Arc<Job>>,
    asleep: usize,
    closed: bool,
}

struct Shared {
    /// Counts jobs, and the closing; changes under the desk's lock.
    ticket: AtomicU64,
    desk: Mutex<Desk>,
    bell: Condvar,
    barrier: Barrier,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing under the lock can panic half done.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, change: impl FnOnce(&mut Desk)) {
        let mut desk = self.desk();
        change(&mut desk);
        self.ticket.fetch_add(1, Ordering::Release);
        if desk.asleep > 0 {
            self.bell.notify_all();
        }
    }

    /// Waits for a ticket after `seen`, a little awake, then asleep.
    fn wait(&self, seen: u64) -> u64 {
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                let ticket = self.ticket.load(Ordering::Acquire);
                if ticket != seen {
                    return ticket;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > IDLE {
                break;
            }
        }
        let mut desk = self.desk();
        while self.ticket.load(Ordering::Acquire) == seen {
            desk.asleep += 1;
            desk = self.bell.wait(desk).unwrap_or_else(PoisonError::into_inner);
            desk.asleep -= 1;
        }
        self.ticket.load(Ordering::Acquire)
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            let desk = self.desk();
            if desk.closed {
                return;
            }
            let job = desk.job.clone();
            drop(desk);
            if let Some(job) = job {
                job.run(&self.barrier, index);
            }
        }
    }
}

/// Threads beside the caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `workers - 1` threads. *Errors* the system's.
    pub fn start(workers: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            desk: Mutex::default(),
            bell: Condvar::new(),
            barrier: Barrier::new(workers),
        });
        let mut pool = Pool { shared, threads: Vec::new() };
        for index in 1..workers {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kvern-cpu-{index}");
            let builder = std::thread::Builder::new().name(name);
            pool.threads.push(builder.spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// Runs a list to its end; the caller is worker 0.
    pub fn run(&self, job: &Arc<Job>) {
        // Without a barrier in it, nothing would keep the workers and the next list apart.
        if job.tasks.is_empty() {
            return;
        }
        if !self.threads.is_empty() {
            self.shared.announce(|desk| desk.job = Some(Arc::clone(job)));
        }
        job.run(&self.shared.barrier, 0);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.announce(|desk| desk.closed = true);
        for thread in self.threads.drain(..) {
            // A worker's panics are caught where they happen; there is nothing to learn here.
            let _ = thread.join();
        }
    }
}
