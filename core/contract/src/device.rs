//! Who does the arithmetic: lists of ops over opaque buffers, ordered by queues and fences.

mod memory;
mod weight;

pub use {memory::*, weight::*};

use crate::host::HostRef;
use crate::op::Op;
use crate::types::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

ids! {
    /// Memory that the device gave; 0 is none.
    Buffer(u32);
    /// Work in order; queue 0 computes, others may copy beside it.
    Queue(u32);
    /// A point in a queue's order; 0 is reached. Of one queue they ascend; unique over all.
    Fence(u64);
}

/// Whether an op runs here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It does not: the model is refused by the op's name.
    No,
    /// It does.
    Yes {
        /// Memory beside its operands, in bytes, for the largest row count of [`DeviceSpec`].
        workspace_bytes: u64,
    },
}

/// State of a fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceState {
    /// Everything before it is done and visible.
    Done,
    /// The deadline came first.
    Pending,
    /// Work before it failed: what it wrote is garbage, and so is what waits for it.
    Failed(ErrorKind),
}

/// What the manifest must equal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// The plugin's name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// `cpu`, `cuda`, `mps`.
    pub kind: String,
    /// A buffer of either space can be read and written through `span`.
    pub unified: bool,
    /// Alignment of every buffer, in bytes.
    pub align: u32,
    /// Queues there are, queue 0 included.
    pub queues: u32,
    /// Encodings of KV pages that it reads; which of them it writes, `supports` says.
    pub kv: Vec<KvEncoding>,
    /// Encodings of weights that it reads.
    pub weights: Vec<WeightEncoding>,
    /// A row's bits do not depend on the rows beside it, nor on how many there are.
    pub row_invariant: bool,
    /// Defaults, every known name.
    pub options: Options,
}

/// What activations and sums are computed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ComputeDtype {
    /// Whatever the device does fastest within its own error bounds.
    Auto,
    /// The exact mode: f32 activations, f32 sums, and `row_invariant` where it is declared.
    F32,
}

/// What a device opens with.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// What to compute in.
    pub compute: ComputeDtype,
    /// Threads that may compute at once, the waiter included.
    pub threads: u32,
    /// Most memory that `alloc` may give, in bytes.
    pub budget_bytes: u64,
    /// Most rows of one op.
    pub rows: u32,
    /// The manifest's options with the operator's changes.
    pub options: Options,
}

/// Counters: bytes allocated and their peak, a space each, and time that queues were busy.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DeviceUsage {
    /// Bytes allocated in [`Space::Device`] now.
    pub device_bytes: u64,
    /// The most there were.
    pub device_peak_bytes: u64,
    /// Bytes that the device's own allocator holds; null where nothing reserves.
    pub reserved_bytes: Option<u64>,
    /// The most there were; null where nothing reserves.
    pub reserved_peak_bytes: Option<u64>,
    /// Bytes allocated in [`Space::Staging`] now.
    pub staging_bytes: u64,
    /// Ops run since `open`.
    pub ops: u64,
    /// Time that queues were busy since `open`.
    pub busy: Duration,
}

/// A backend. One engine thread calls it. Nothing but `wait` blocks on work.
///
/// It owns its worker threads and its buffers, and nothing else: no files, no model, no history.
pub trait DeviceBackend: Send {
    /// Says who it is.
    ///
    /// # Plugin must
    /// Start nothing, and answer the same every time.
    ///
    /// # Cost
    /// Once a load.
    fn describe(&self) -> DeviceDescription;

    /// Starts workers, at most `threads - 1`: the waiter is the other.
    ///
    /// # Caller guarantees
    /// It is called once, before all that follow.
    ///
    /// # Plugin must
    /// Keep to `spec`'s threads, budget and rows until it is dropped.
    ///
    /// # Errors
    /// Invalid (an option), Unsupported, OverBudget.
    ///
    /// # Cost
    /// Once an instance.
    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()>;

    /// Says whether an op with these parameters runs.
    ///
    /// # Caller guarantees
    /// Buffers in it are none: only parameters count.
    ///
    /// # Plugin must
    /// Run what it said yes to.
    ///
    /// # Cost
    /// Once an op and model, before weights are loaded.
    fn supports(&self, op: &Op) -> Support;

    /// Gives new memory of `bytes`, zeroed, aligned.
    ///
    /// # Errors
    /// OverBudget.
    ///
    /// # Cost
    /// Never inside a step.
    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer>;

    /// Makes host memory a buffer, without a copy; `None` where it cannot.
    ///
    /// # Caller guarantees
    /// The memory outlives `free`, and is touched as [`span`](DeviceBackend::span) allows.
    ///
    /// # Errors
    /// Invalid.
    ///
    /// # Cost
    /// Once a region of frames or weights, never inside a step.
    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>>;

    /// Says where a buffer's memory is, if the host can reach it.
    ///
    /// # Caller guarantees
    /// It touches a byte only when no unwaited fence covers work on it.
    ///
    /// # Plugin must
    /// Keep the address until `free`.
    ///
    /// # Cost
    /// Once a buffer.
    fn span(&self, buffer: Buffer) -> Option<HostSpan>;

    /// Gives memory back once the last fence that uses it is reached.
    ///
    /// # Caller guarantees
    /// No later call names the buffer.
    ///
    /// # Cost
    /// Once a buffer.
    fn free(&mut self, buffer: Buffer);

    /// Repacks a weight that stays; the answer may be the argument.
    ///
    /// # Caller guarantees
    /// It frees the old one if the answer is another.
    ///
    /// # Plugin must
    /// Give the products of the weight as stored. Streamed weights are used as stored and never
    /// come here.
    ///
    /// # Errors
    /// Invalid, OverBudget.
    ///
    /// # Cost
    /// Once a resident weight.
    fn adapt(&mut self, weight: &Weight) -> Result<Weight>;

    /// Queues copies behind `after`.
    ///
    /// # Caller guarantees
    /// Ranges of one call do not overlap.
    ///
    /// # Plugin must
    /// Check every range before anything moves.
    ///
    /// # Errors
    /// Invalid (out of range): nothing moved.
    ///
    /// # Cost
    /// A few times a step.
    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence>;

    /// Queues ops, in order, behind `after`.
    ///
    /// # Caller guarantees
    /// Operands do not overlap except where an op says so.
    ///
    /// # Plugin must
    /// Check every range and table entry before it reads through it.
    ///
    /// # Errors
    /// Unsupported, Invalid: nothing ran.
    ///
    /// # Cost
    /// A few times a layer.
    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence>;

    /// Waits until the fence is reached or `deadline` has passed; the caller becomes a worker.
    ///
    /// # Plugin must
    /// Return `Done` only when everything before the fence is done and visible through `span`.
    ///
    /// # Errors
    /// None but Panicked: failure is a state.
    ///
    /// # Cost
    /// A few times a step.
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState>;

    /// Reads the counters.
    ///
    /// # Plugin must
    /// Do so without synchronising.
    ///
    /// # Cost
    /// A few times a request.
    fn usage(&self) -> DeviceUsage;
}
