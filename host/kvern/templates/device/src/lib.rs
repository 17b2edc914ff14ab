//! `__NAME__`: a device in plain Rust, on one thread. It runs all that a llama needs, and says no
//! to the rest.
//!
//! - `lib.rs`: lists of ops in a line, run by whoever waits for them
//! - [`memory`]: buffers, and every range checked before it is read or written
//! - [`ops`]: rows, norms, products, maps
//! - [`attention`]: rope, K and V into pages, and queries against them

mod attention;
mod memory;
mod ops;

use kvern_abi::contract::*;
use memory::Memory;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The device. `open` it once.
#[derive(Default)]
pub struct Device {
    memory: Memory,
    /// Lists that wait for somebody who waits for them, oldest first.
    lists: VecDeque<List>,
    /// The last fence that was given out.
    issued: u64,
    /// Fences whose work failed.
    failed: BTreeMap<u64, ErrorKind>,
    ops: u64,
    busy: Duration,
}

struct List {
    fence: Fence,
    after: Vec<Fence>,
    work: Work,
}

enum Work {
    Ops(Vec<Op>),
    Copies(Vec<CopyRange>),
}

/// An error of one line.
fn refuse<T>(kind: ErrorKind, line: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, "device/__NAME__", line))
}

impl Device {
    fn push(&mut self, queue: Queue, after: &[Fence], work: Work) -> Result<Fence> {
        if queue != Queue(0) || after.iter().any(|fence| fence.0 > self.issued) {
            return refuse(ErrorKind::Invalid, "no such queue, or a fence that never was");
        }
        self.issued += 1;
        let fence = Fence(self.issued);
        self.lists.push_back(List { fence, after: after.to_vec(), work });
        Ok(fence)
    }

    /// Runs the oldest list. A failure takes with it all that is in line behind it.
    fn run_one(&mut self) {
        let Some(list) = self.lists.pop_front() else { return };
        let start = Instant::now();
        let before = list.after.iter().find_map(|fence| self.failed.get(&fence.0).copied());
        let ran = match before {
            Some(kind) => refuse(kind, "what it waits for failed"),
            None => self.run(&list.work),
        };
        if let Err(error) = ran {
            self.failed.insert(list.fence.0, error.kind);
            self.failed.extend(self.lists.drain(..).map(|list| (list.fence.0, error.kind)));
        }
        self.busy += start.elapsed();
        let next = self.lists.front().map_or(u64::MAX, |list| list.fence.0);
        self.memory.reap(next);
    }

    fn run(&mut self, work: &Work) -> Result<()> {
        match work {
            Work::Ops(list) => {
                for op in list {
                    ops::run(op, &mut self.memory)?;
                    self.ops += 1;
                }
            }
            Work::Copies(copies) => {
                for CopyRange { from, to, bytes } in copies {
                    let moved = self.memory.bytes(*from, *bytes)?.to_vec();
                    self.memory.bytes_mut(*to, *bytes)?.copy_from_slice(&moved);
                }
            }
        }
        Ok(())
    }

    fn is_pending(&self, fence: Fence) -> bool {
        self.lists.iter().any(|list| list.fence == fence)
    }
}

impl DeviceBackend for Device {
    fn describe(&self) -> DeviceDescription {
        DeviceDescription {
            name: "__NAME__".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kind: "cpu".into(),
            unified: true,
            align: memory::ALIGN as u32,
            queues: 1,
            kv: vec![KvEncoding::F32, KvEncoding::Bf16],
            weights: vec![WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32],
            // Every sum goes over one row alone, in one order.
            row_invariant: true,
            options: Options::new(),
        }
    }

    fn open(&mut self, spec: &DeviceSpec, _host: HostRef) -> Result<()> {
        known_options(&spec.options, "device/open", &Options::new())?;
        self.memory.budget = spec.budget_bytes;
        Ok(())
    }

    fn supports(&self, op: &Op) -> Support {
        match ops::supported(op) {
            Ok(()) => Support::Yes { workspace_bytes: 0 },
            Err(_) => Support::No,
        }
    }

    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        self.memory.alloc(bytes, space)
    }

    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        self.memory.import(memory).map(Some)
    }

    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        self.memory.span(buffer)
    }

    fn free(&mut self, buffer: Buffer) {
        self.memory.free(buffer, self.issued);
        let next = self.lists.front().map_or(u64::MAX, |list| list.fence.0);
        self.memory.reap(next);
    }

    /// Weights are read as stored.
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        Ok(*weight)
    }

    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        for CopyRange { from, to, bytes } in copies {
            self.memory.bytes(*from, *bytes)?;
            self.memory.bytes(*to, *bytes)?;
        }
        self.push(queue, after, Work::Copies(copies.to_vec()))
    }

    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        ops.iter().try_for_each(ops::supported)?;
        self.push(queue, after, Work::Ops(ops.to_vec()))
    }

    /// Runs lists up to the fence, one at least.
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        let start = Instant::now();
        if fence.0 > self.issued {
            return Ok(FenceState::Failed(ErrorKind::Invalid));
        }
        while self.is_pending(fence) {
            self.run_one();
            if self.is_pending(fence) && start.elapsed() >= deadline {
                return Ok(FenceState::Pending);
            }
        }
        Ok(self.failed.get(&fence.0).map_or(FenceState::Done, |kind| FenceState::Failed(*kind)))
    }

    fn usage(&self) -> DeviceUsage {
        DeviceUsage { ops: self.ops, busy: self.busy, ..self.memory.usage() }
    }
}

kvern_abi::export_device_backend!(Device);
