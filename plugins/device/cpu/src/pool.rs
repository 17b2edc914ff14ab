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
                job.run(&self.barrier, index, None);
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

    /// Runs a list to its end, or until it pauses at `until`, behind one task at least; the caller
    /// is worker 0.
    pub fn run(&self, job: &Arc<Job>, until: Option<Instant>) {
        // Without a barrier in it, nothing would keep the workers and the next list apart.
        if job.is_over() {
            return;
        }
        if !self.threads.is_empty() {
            self.shared.announce(|desk| desk.job = Some(Arc::clone(job)));
        }
        job.run(&self.shared.barrier, 0, until);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::task::{Attention, Map, Strided, Task};
    use kvern_contract::{ErrorKind, MapKind};
    use std::ptr::{null, null_mut};

    /// A task that `check` would refuse: without kv heads, its plan divides by zero.
    fn broken() -> Task {
        Task::Attention(Attention {
            q: null(),
            out: null_mut(),
            state: null_mut(),
            rows: 0,
            spans: null(),
            sequences: 0,
            entries: null(),
            entry_count: 0,
            masks: null(),
            mask_count: 0,
            pool: null(),
            pool_bytes: 0,
            sinks: null(),
            heads: 1,
            kv_heads: 0,
            key_dim: 1,
            value_dim: 1,
            scale: 1.0,
            softcap: 0.0,
            window: 0,
            keep: 0,
            causal: true,
            first: true,
            last: true,
        })
    }

    fn double(values: &mut [f32]) -> Task {
        let all = Strided { at: values.as_mut_ptr(), row: 0, group: 0, step: 1 };
        let (width, kind) = (values.len(), MapKind::Scale);
        let (rows, groups, scalar) = (1, 1, 2.0);
        Task::Map(Map { a: all, b: all, out: all, kind, rows, groups, width, scalar })
    }

    #[test]
    fn a_panic_fails_its_list_and_the_workers_go_on() {
        for workers in 1..=3 {
            let pool = Pool::start(workers).unwrap();
            let mut values = vec![1f32; 9000];
            let mut run = |broken: Option<Task>| {
                let tasks = broken.into_iter().chain([double(&mut values)]).collect();
                let own = vec![null_mut(); workers];
                let job = Arc::new(Job::new(tasks, Isa::Scalar, own, null_mut()));
                pool.run(&job, None);
                job.failure()
            };
            assert_eq!(run(None), None);
            assert_eq!(run(Some(broken())), Some(ErrorKind::Panicked));
            assert_eq!(run(None), None);
            assert!(values.iter().all(|v| *v == 4.0), "the failed list computed nothing");
        }
    }

    #[test]
    fn a_list_pauses_behind_each_task_and_goes_on_where_it_was() {
        for workers in 1..=3 {
            let pool = Pool::start(workers).unwrap();
            let mut values = vec![1f32; 9000];
            let tasks = (0..200).map(|_| double(&mut values[..])).collect();
            let own = vec![null_mut(); workers];
            let job = Arc::new(Job::new(tasks, Isa::Scalar, own, null_mut()));
            let (mut runs, mut sums) = (0, Vec::new());
            while !job.is_over() {
                pool.run(&job, (runs < 100).then(Instant::now));
                sums.push(values[8999]);
                runs += 1;
                if runs <= 100 {
                    values.iter_mut().for_each(|v| *v /= 2.0);
                }
            }
            assert_eq!((runs, job.failure()), (101, None), "a task a run, then the rest");
            assert!(sums[..100].iter().all(|sum| *sum == 2.0));
            assert!(values.iter().all(|v| *v == 2f32.powi(100)));
        }
    }

    #[test]
    fn workers_wake_for_a_list_after_they_slept() {
        let pool = Pool::start(2).unwrap();
        let mut values = vec![1f32; 9000];
        for _ in 0..5 {
            std::thread::sleep(10 * IDLE);
            let tasks = vec![double(&mut values)];
            let own = vec![null_mut(); 2];
            pool.run(&Arc::new(Job::new(tasks, Isa::Scalar, own, null_mut())), None);
        }
        assert!(values.iter().all(|v| *v == 32.0));
    }
}
