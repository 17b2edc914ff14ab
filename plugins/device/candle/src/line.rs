//! Work in line, and how far it got.
//!
//! 1. Fences count up from 1; a job is run after every job with a lower fence, so what it waits for
//!    is behind it.
//! 2. When a job fails, so do all that were in line behind it: they would compute on garbage. Later
//!    jobs run, but not behind a fence that failed.

use crate::limits::FAILURES;
use kvern_contract::{CopyRange, ErrorKind, Fence, FenceState, Op};
use std::collections::{BTreeMap, VecDeque};

/// What a job does.
pub enum Work {
    /// Copies, in order.
    Copies(Vec<CopyRange>),
    /// Ops, in order.
    Ops(Vec<Op>),
}

/// Work between two fences.
pub struct Job {
    /// Reached when it is done.
    pub fence: u64,
    /// What it does.
    pub work: Work,
    /// Pieces of the work that are done.
    pub done: usize,
    after: Vec<u64>,
}

/// The queue.
#[derive(Default)]
pub struct Line {
    jobs: VecDeque<Job>,
    issued: u64,
    reached: u64,
    failed: BTreeMap<u64, ErrorKind>,
}

impl Line {
    /// The last fence given out.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// The last fence reached.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// Puts work in line and names its fence.
    pub fn push(&mut self, work: Work, after: &[Fence]) -> Fence {
        self.issued += 1;
        let after = after.iter().map(|fence| fence.0).collect();
        self.jobs.push_back(Job { fence: self.issued, work, done: 0, after });
        Fence(self.issued)
    }

    /// How a fence stands.
    pub fn state(&self, fence: Fence) -> FenceState {
        match self.failed.get(&fence.0) {
            Some(kind) => FenceState::Failed(*kind),
            None if fence.0 > self.issued => FenceState::Failed(ErrorKind::Invalid),
            None if fence.0 > self.reached => FenceState::Pending,
            None => FenceState::Done,
        }
    }

    /// The job whose turn it is, and why it cannot run if it waited for one that failed.
    pub fn head(&mut self) -> Option<(&mut Job, Option<ErrorKind>)> {
        let job = self.jobs.front_mut()?;
        let kind = job.after.iter().find_map(|fence| self.failed.get(fence)).copied();
        Some((job, kind))
    }

    /// The head is done.
    pub fn finish(&mut self) {
        if let Some(job) = self.jobs.pop_front() {
            self.reached = job.fence;
        }
    }

    /// The head failed, and with it all that is in line.
    pub fn fail(&mut self, kind: ErrorKind) {
        for job in self.jobs.drain(..) {
            self.failed.insert(job.fence, kind);
            self.reached = job.fence;
        }
        while self.failed.len() > FAILURES {
            self.failed.pop_first();
        }
    }
}
