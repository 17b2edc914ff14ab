//! One file an op: find its operands, then let candle compute.

mod attention;
mod embed;
mod fold;
mod linear;
mod map;
mod norm;
mod pages;
mod rope;
mod rows;
mod top;

use crate::fault::unsupported;
use crate::memory::Memory;
use crate::region::Region;
use crate::shape;
use candle_core::Tensor;
use kvern_contract::{Buffer, Op, Result, Slice};

/// Where an op finds its memory.
pub struct Operands<'a> {
    memory: &'a Memory,
    /// Only look whether the ranges are there: nothing is read or written.
    dry: bool,
}

impl<'a> Operands<'a> {
    /// For a look at submission: freed buffers are refused.
    pub fn dry(memory: &'a Memory) -> Self {
        Operands { memory, dry: true }
    }

    /// For the work itself.
    pub fn wet(memory: &'a Memory) -> Self {
        Operands { memory, dry: false }
    }

    /// `bytes` bytes; none of buffer 0 is nothing. *Errors* Invalid.
    pub fn region(&self, slice: Slice, bytes: u64) -> Result<Region> {
        if bytes == 0 && slice.buffer == Buffer(0) {
            return Ok(Region::empty());
        }
        self.memory.region(slice, bytes, self.dry)
    }

    /// `count` times `each` numbers of four bytes. *Errors* Invalid.
    pub fn words(&self, slice: Slice, count: u32, each: u64) -> Result<Region> {
        let bytes = u64::from(count).checked_mul(each).and_then(|n| n.checked_mul(4));
        self.region(slice, bytes.unwrap_or(u64::MAX))
    }

    /// All from a slice on. *Errors* Invalid.
    pub fn rest(&self, slice: Slice) -> Result<Region> {
        self.memory.rest(slice, self.dry)
    }

    /// All from a slice on, or nothing for buffer 0. *Errors* Invalid.
    pub fn rest_if_any(&self, slice: Slice) -> Result<Option<Region>> {
        (slice.buffer != Buffer(0)).then(|| self.rest(slice)).transpose()
    }

    /// A kept tensor. *Errors* Invalid.
    pub fn kept(&self, buffer: Buffer) -> Result<Tensor> {
        self.memory.kept(buffer, self.dry).cloned()
    }
}

/// Runs an op, or with dry operands only checks it. *Errors* Unsupported, Invalid, Internal.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    shape::check(op)?;
    match op {
        Op::Embed { .. } => embed::run(op, operands),
        Op::Norm { .. } => norm::run(op, operands),
        Op::Linear { .. } => linear::run(op, operands),
        Op::RopeWrite { .. } => rope::run(op, operands),
        Op::Attention { .. } => attention::run(op, operands),
        Op::Map { .. } => map::run(op, operands),
        Op::Rows { .. } => rows::run(op, operands),
        Op::Top { .. } => top::run(op, operands),
        other => Err(stray(other)),
    }
}

/// An op that came to a file which is not its own.
fn stray(op: &Op) -> kvern_contract::Error {
    unsupported(format!("{} does not run on candle", op.name()))
}
