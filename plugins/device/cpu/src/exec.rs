//! How a list runs: every worker walks it in step, pass by pass, with a barrier behind each.
//!
//! Whatever fails, the barriers stay: a failed list is walked to its end without work, so no
//! worker waits for one that left. The numbers of passes that depend on tables are planned by
//! worker 0 and read by the others behind a barrier of their own.
//!
//! A list may pause behind any task, where worker 0 has said so before the task's last barrier: all
//! leave there, and it goes on from the next task when it is run again.
#![allow(unsafe_code)]

use crate::kernels::{self, Isa};
use crate::task::{Plan, Task};
use kvern_contract::ErrorKind;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Turns of a waiting worker before it lets others have the core: tens of microseconds.
const SPINS: u32 = 1000;

/// Where all workers of a list meet.
pub(crate) struct Barrier {
    workers: usize,
    arrived: AtomicUsize,
    round: AtomicU64,
}

impl Barrier {
    /// A barrier for so many.
    pub fn new(workers: usize) -> Self {
        Barrier { workers, arrived: AtomicUsize::new(0), round: AtomicU64::new(0) }
    }

    /// Returns when all have come; what they wrote before is visible after.
    pub fn meet(&self) {
        if self.workers == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round + 1, Ordering::Release);
            return;
        }
        let mut turns = 0;
        while self.round.load(Ordering::Acquire) == round {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                // Another worker lost its core: it needs one to arrive.
                std::thread::yield_now();
            }
        }
    }
}

/// A list that is running.
pub(crate) struct Job {
    pub tasks: Vec<Task>,
    pub isa: Isa,
    pub workers: usize,
    /// One for each worker, of `Need::own` floats.
    pub own: Vec<*mut f32>,
    pub shared: *mut f32,
    plan: UnsafeCell<Plan>,
    /// Of four passes in a row each has its own, so that one can be reset while none uses it.
    counters: [AtomicUsize; 4],
    failed: AtomicU32,
    /// By task: whether all leave behind it. Each is set once at most, and never taken back.
    pauses: Box<[AtomicBool]>,
    /// The task that is next, and the pass that it begins with; worker 0's while nobody runs.
    next: AtomicUsize,
    turn: AtomicUsize,
}

// SAFETY: scratch is split between workers by index, the plan is written by worker 0 alone between
// barriers.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

/// What a kernel sees of the worker that runs it.
pub(crate) struct Worker<'a> {
    pub workers: usize,
    pub phase: usize,
    pub plan: Plan,
    pub own: *mut f32,
    pub shared: *mut f32,
    counter: &'a AtomicUsize,
}

impl Worker<'_> {
    /// The next `chunk` of `total` units that nobody took; bits never depend on who takes what.
    pub fn next(&self, total: usize, chunk: usize) -> Option<Range<usize>> {
        let from = self.counter.fetch_add(chunk, Ordering::Relaxed);
        (from < total).then(|| from..total.min(from.saturating_add(chunk)))
    }

    /// A chunk that gives each worker a few turns, so that a slow one holds the others up little.
    pub fn share(&self, total: usize, turns: usize) -> usize {
        total.div_ceil(self.workers * turns).max(1)
    }
}

fn kind_of(word: u32) -> Option<ErrorKind> {
    match word {
        0 => None,
        w if w == ErrorKind::Invalid as u32 => Some(ErrorKind::Invalid),
        w if w == ErrorKind::Panicked as u32 => Some(ErrorKind::Panicked),
        _ => Some(ErrorKind::Internal),
    }
}

impl Job {
    /// A list with what it runs on. `own` has a pointer for each worker, as long as the tasks need.
    pub fn new(tasks: Vec<Task>, isa: Isa, own: Vec<*mut f32>, shared: *mut f32) -> Self {
        Job {
            pauses: tasks.iter().map(|_| AtomicBool::new(false)).collect(),
            next: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            tasks,
            isa,
            workers: own.len(),
            own,
            shared,
            plan: UnsafeCell::new(Plan::default()),
            counters: Default::default(),
            failed: AtomicU32::new(0),
        }
    }

    /// Whether all of it has been walked.
    pub fn is_over(&self) -> bool {
        self.next.load(Ordering::Acquire) >= self.tasks.len()
    }

    /// Why it failed, if it did. Final once the last barrier is passed.
    pub fn failure(&self) -> Option<ErrorKind> {
        kind_of(self.failed.load(Ordering::Acquire))
    }

    fn fail(&self, kind: ErrorKind) {
        self.failed.store(kind as u32, Ordering::Release);
    }

    /// The plan of a task, made by worker 0; no passes when it or anything before it failed.
    fn plan(&self, task: &Task) -> Plan {
        if self.failure().is_some() {
            return Plan::default();
        }
        match catch_unwind(AssertUnwindSafe(|| kernels::plan(task, self.workers))) {
            Ok(Ok(plan)) => plan,
            Ok(Err(kind)) => {
                self.fail(kind);
                Plan::default()
            }
            Err(_) => {
                self.fail(ErrorKind::Panicked);
                Plan::default()
            }
        }
    }

    /// Walks the list as worker `index`, from where it paused; all workers must. Worker 0 pauses it
    /// behind the task that runs at `until`.
    pub fn run(&self, barrier: &Barrier, index: usize, until: Option<Instant>) {
        let mut turn = self.turn.load(Ordering::Acquire);
        let first = self.next.load(Ordering::Acquire);
        for (at, task) in self.tasks.iter().enumerate().skip(first) {
            if index == 0 && until.is_some_and(|until| Instant::now() >= until) {
                self.pauses[at].store(true, Ordering::Release);
            }
            let plan = if kernels::planned(task) {
                if index == 0 {
                    let plan = self.plan(task);
                    // SAFETY: the others read it only between the barrier below and the task's
                    // last one, and this worker has passed the last one of the task before.
                    unsafe { *self.plan.get() = plan };
                }
                barrier.meet();
                // SAFETY: worker 0 wrote it before the barrier and writes again only after all
                // passed the task's last barrier, or, where it has no passes, after the next one.
                unsafe { *self.plan.get() }
            } else {
                Plan { phases: 1, ..Plan::default() }
            };
            for phase in 0..plan.phases {
                if index == 0 {
                    // Last used two passes ago, by workers who have all met since.
                    self.counters[(turn + 2) % 4].store(0, Ordering::Relaxed);
                }
                let worker = Worker {
                    workers: self.workers,
                    phase,
                    plan,
                    own: self.own[index],
                    shared: self.shared,
                    counter: &self.counters[turn % 4],
                };
                if self.failure().is_none()
                    && catch_unwind(AssertUnwindSafe(|| kernels::run(self.isa, task, &worker)))
                        .is_err()
                {
                    self.fail(ErrorKind::Panicked);
                }
                barrier.meet();
                turn += 1;
            }
            if plan.phases == 0 {
                // Nobody may still read this plan when worker 0 writes the next.
                barrier.meet();
            }
            // Said before the barrier that all have passed, so that all read the same.
            if self.pauses[at].load(Ordering::Acquire) || at + 1 == self.tasks.len() {
                if index == 0 {
                    self.turn.store(turn, Ordering::Release);
                    self.next.store(at + 1, Ordering::Release);
                }
                return;
            }
        }
    }
}
