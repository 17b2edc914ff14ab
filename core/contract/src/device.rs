//! Who does the arithmetic: lists of ops over opaque buffers, ordered by queues and fences.

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
/// Where a buffer lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u32)]
pub enum Space {
    Device = 0,  // the device's own; on a CPU the same as staging
    Staging = 1, // host memory that the device copies from, page-aligned, fit for O_DIRECT
}
/// Host memory by address: the engine's one module for frames makes slices of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostSpan {
    pub address: usize,
    pub bytes: u64,
}
/// Form of a weight as stored: row-major `[out][in]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(u32)]
pub enum WeightEncoding {
    #[default]
    None = 0, // no weight
    Bf16 = 1,
    F16 = 2,
    F32 = 3,
    Int8 = 4,  // int8 with an f32 scale a row of `out`
    Mxfp4 = 5, // E2M1 nibbles, low first, with an E8M0 scale for 32 values of `in`
}
/// Part of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slice {
    pub buffer: Buffer,
    pub offset: u64,
}
/// A matrix, where it is and how to read it, or a stack of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weight {
    pub data: Slice,
    pub scales: Slice, // values, and scales where the encoding has them apart
    pub encoding: WeightEncoding,
    pub outputs: u32,
    pub inputs: u32, // form, rows, columns
    /// 0 as stored; 1 as stored, but `[in][out]` (gpt-oss's experts in bf16); else a packing that `adapt` chose
    /// and only this device reads.
    pub layout: u32,
    /// Bytes from one of a stack to the next, in `data` and in `scales`: as in a cache with an expert a frame.
    /// 0: they follow one another.
    pub stride: u64,
}
/// Bytes to move between buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRange {
    pub from: Slice,
    pub to: Slice,
    pub bytes: u64,
}
/// Whether an op runs here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    No, // refuse the model by the op's name
    /// It does, with this much beside its operands for the largest row count of `DeviceSpec`.
    Yes {
        workspace_bytes: u64,
    },
}
/// State of a fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceState {
    Done,              // everything before it is done and visible
    Pending,           // the deadline came first
    Failed(ErrorKind), // work before it failed: what it wrote is garbage, and so is what waits for it
}

/// What the manifest must equal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceDescription {
    pub name: String,
    pub version: String,
    pub kind: String,  // `cpu`, `cuda`, `mps`
    pub unified: bool, // a buffer of either space can be read and written through `span`
    pub align: u32,
    pub queues: u32,
    pub kv: Vec<KvEncoding>,
    pub weights: Vec<WeightEncoding>,
    pub row_invariant: bool, // a row's bits do not depend on the rows beside it, nor on how many there are
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
    pub compute: ComputeDtype,
    pub threads: u32,
    pub budget_bytes: u64,
    pub rows: u32,
    pub options: Options,
}
/// Counters; bytes allocated and their peak, a space each, and time that queues were busy.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DeviceUsage {
    pub device_bytes: u64,
    pub device_peak_bytes: u64,
    pub reserved_bytes: Option<u64>,
    pub reserved_peak_bytes: Option<u64>, // null where nothing reserves
    pub staging_bytes: u64,
    pub ops: u64,
    pub busy: Duration,
}

/// A backend. One engine thread calls it. Nothing but `wait` blocks on work.
pub trait DeviceBackend: Send {
    /// Who it is. *Plugin*: starts nothing. *Cost* once a load.
    fn describe(&self) -> DeviceDescription;
    /// Starts workers, at most `threads - 1`: the waiter is the other. *Errors* Unsupported, OverBudget.
    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()>;
    /// Whether an op with these parameters runs; buffers in it are none. *Cost* once an op and model.
    fn supports(&self, op: &Op) -> Support;
    /// New memory, zeroed, aligned. *Errors* OverBudget. *Cost* never inside a step.
    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer>;
    /// Host memory as a buffer, no copy; `None` where it cannot. *Caller*: the memory outlives `free`.
    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>>;
    /// A buffer's memory, where the host can reach it. *Caller*: touches a byte only when no unwaited fence
    /// covers work on it.
    fn span(&self, buffer: Buffer) -> Option<HostSpan>;
    /// Gives memory back once the last fence that uses it is reached.
    fn free(&mut self, buffer: Buffer);
    /// Repacks a weight that stays; the answer may be the argument. *Caller*: frees the old one.
    fn adapt(&mut self, weight: &Weight) -> Result<Weight>;
    /// Queues copies behind `after`. *Errors* Invalid (out of range), before anything moves.
    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence>;
    /// Queues ops, in order, behind `after`. *Caller*: operands do not overlap except where an op says so.
    /// *Plugin*: checks every range and table entry before it reads through it. *Errors* Unsupported, Invalid:
    /// nothing ran. *Cost* a few times a layer.
    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence>;
    /// Waits; the caller becomes a worker. *Errors* none but Panicked: failure is a state.
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState>;
    /// Counters. *Plugin*: without synchronising.
    fn usage(&self) -> DeviceUsage;
}
