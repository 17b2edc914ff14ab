//! Memory for KV pages: frames of one size in one region, and a ring of them apart for pages that
//! only pass through. A cyclic scan defeats any recency order, so what is kept is kept for good and
//! the rest streams through the ring.

use kvern_contract::{Error, ErrorKind, Result};
use kvern_storage::{Budget, Lease, Region};
use std::sync::Arc;

/// A frame's number.
pub(crate) type Frame = u32;

/// All frames of an engine.
pub(crate) struct Frames {
    region: Arc<Region>,
    bytes: usize,
    /// Frames that pages may keep; the ring's follow them.
    kept: u32,
    fresh: u32,
    free: Vec<Frame>,
    ring_total: usize,
    ring: Vec<Frame>,
    budget: Arc<Budget>,
}

impl Frames {
    /// `kept` frames that pages keep and `ring` that they pass through, of `bytes` each. A kept
    /// frame is touched, and reserved, when it is first used. *Errors* OverBudget.
    pub(crate) fn new(kept: u32, ring: u32, bytes: usize, budget: Arc<Budget>) -> Result<Self> {
        let total = (kept as usize + ring as usize) * bytes;
        budget.reserve("kv frames", u64::from(ring) * bytes as u64)?;
        Ok(Frames {
            region: Region::new(total.max(1))?,
            bytes,
            kept,
            fresh: 0,
            free: Vec::new(),
            ring_total: ring as usize,
            ring: (kept..kept + ring).rev().collect(),
            budget,
        })
    }
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }
    /// Where a frame starts in the region.
    pub(crate) fn offset(&self, frame: Frame) -> u64 {
        u64::from(frame) * self.bytes as u64
    }
    /// Frames that can be had without taking one from a page.
    pub(crate) fn available(&self) -> u32 {
        self.free.len() as u32 + (self.kept - self.fresh)
    }
    /// Frames that pages may keep.
    pub(crate) fn kept(&self) -> u32 {
        self.kept
    }
    /// A frame, zeroed; `None` when all are taken, or the budget has no room for another.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>> {
        if let Some(frame) = self.free.pop() {
            self.lend(frame)?.fill(0);
            return Ok(Some(frame));
        }
        if self.fresh == self.kept {
            return Ok(None);
        }
        if self.budget.reserve("kv frames", self.bytes as u64).is_err() {
            return Ok(None);
        }
        self.fresh += 1;
        Ok(Some(self.fresh - 1))
    }
    pub(crate) fn give(&mut self, frame: Frame) {
        self.free.push(frame);
    }
    /// Exclusive use of a frame's memory. *Errors* Busy while somebody has it.
    pub(crate) fn lend(&self, frame: Frame) -> Result<Lease> {
        self.region.lend(self.offset(frame) as usize, self.bytes)
    }
    /// Pages that pass through at once, at most: half of the ring, so that the next ones load while
    /// the device reads these.
    pub(crate) fn batch(&self) -> usize {
        (self.ring_total / 2).max(1)
    }
    /// Frames that the ring misses: lost calls have them.
    pub(crate) fn ring_misses(&self) -> usize {
        self.ring_total - self.ring.len().min(self.ring_total)
    }
    /// Whether every page of every session has a frame to stay in.
    pub(crate) fn all_stay(&self) -> bool {
        self.ring_total == 0
    }
    /// Frames of the ring, fewer than asked when others are out.
    pub(crate) fn take_ring(&mut self, count: usize) -> Vec<Frame> {
        let at = self.ring.len().saturating_sub(count);
        self.ring.split_off(at)
    }
    pub(crate) fn give_ring(&mut self, frames: impl IntoIterator<Item = Frame>) {
        self.ring.extend(frames);
    }
    /// What to say when nothing is left.
    pub(crate) fn exhausted(&self, need: &str) -> Error {
        let text = format!(
            "all {} frames of {} bytes are in use and {need}: raise --kv-budget, or choose a \
             strategy with a store",
            self.kept, self.bytes
        );
        Error::new(ErrorKind::OverBudget, "kv/page", text)
    }
}
