//! The reference behind the device's trait: every op, on one thread, inside `wait`.
//!
//! It is no plugin. The suite is tried on it, with every op there is, and so are the mutants.

use super::memory::{peek, poke};
use super::reference::{Image, supported, writes};
use kvern_contract::*;
use kvern_storage::Region;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ALIGN: u32 = 4096;
const QUEUES: u32 = 2;

struct Held {
    span: HostSpan,
    space: Space,
    /// Memory of the device's own; none where it was imported.
    own: Option<Arc<Region>>,
    /// It goes when this fence is reached.
    freed: Option<u64>,
}

enum Work {
    Ops(Vec<Op>),
    Copies(Vec<CopyRange>),
}

struct List {
    fence: u64,
    queue: Queue,
    after: Vec<u64>,
    work: Work,
}

/// The scalar device. Create it, `open` it once.
#[derive(Default)]
pub struct ScalarDevice {
    spec: Option<DeviceSpec>,
    buffers: BTreeMap<u32, Held>,
    last: u32,
    lists: VecDeque<List>,
    issued: u64,
    failed: BTreeMap<u64, ErrorKind>,
    usage: DeviceUsage,
}

fn refuse<T>(kind: ErrorKind, call: &str, line: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, &format!("device/{call}"), line))
}

impl ScalarDevice {
    fn insert(&mut self, span: HostSpan, space: Space, own: Option<Arc<Region>>) -> Buffer {
        self.last += 1;
        if own.is_some() {
            self.count(space, |held| *held += span.bytes);
        }
        self.buffers.insert(self.last, Held { span, space, own, freed: None });
        Buffer(self.last)
    }

    fn count(&mut self, space: Space, change: impl Fn(&mut u64)) {
        let usage = &mut self.usage;
        change(match space {
            Space::Device => &mut usage.device_bytes,
            Space::Staging => &mut usage.staging_bytes,
        });
        usage.device_peak_bytes = usage.device_peak_bytes.max(usage.device_bytes);
    }

    fn accept(&mut self, queue: Queue, after: &[Fence], work: Work) -> Result<Fence> {
        if self.spec.is_none() || queue.0 >= QUEUES || after.iter().any(|f| f.0 > self.issued) {
            return refuse(ErrorKind::Invalid, "submit", "not open, no such queue, or no fence");
        }
        self.issued += 1;
        let after = after.iter().map(|fence| fence.0).collect();
        self.lists.push_back(List { fence: self.issued, queue, after, work });
        Ok(Fence(self.issued))
    }

    /// Whether a place is there. *Errors* Invalid.
    fn check(&self, at: Slice, bytes: u64) -> Result<()> {
        let held = self.buffers.get(&at.buffer.0).filter(|held| held.freed.is_none());
        let end = at.offset.checked_add(bytes);
        match held.zip(end).is_some_and(|(held, end)| end <= held.span.bytes) {
            true => Ok(()),
            false => refuse(ErrorKind::Invalid, "copy", format!("{bytes} bytes at {at:?}")),
        }
    }

    /// All of a list or nothing: it runs on copies of the buffers.
    fn run(&mut self, work: &Work) -> Result<()> {
        let mut image = Image::default();
        for (number, held) in &self.buffers {
            let mut bytes = vec![0; held.span.bytes as usize];
            peek(held.span, 0, &mut bytes)?;
            image.buffers.insert(*number, bytes);
        }
        let mut changed = Vec::new();
        match work {
            Work::Ops(ops) => {
                for op in ops {
                    let all = writes(op, &image)?;
                    image.apply(&all)?;
                    changed.extend(all.iter().map(|w| (w.to, w.value.bytes().len() as u64)));
                    self.usage.ops += 1;
                }
            }
            Work::Copies(copies) => {
                for CopyRange { from, to, bytes } in copies {
                    let moved = image.bytes(*from, *bytes)?.to_vec();
                    let at = to.offset as usize;
                    if let Some(buffer) = image.buffers.get_mut(&to.buffer.0) {
                        buffer[at..at + moved.len()].copy_from_slice(&moved);
                    }
                    changed.push((*to, *bytes));
                }
            }
        }
        // Runs of bytes of one buffer are one call each.
        let mut ranges: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (at, bytes) in changed {
            let range = ranges.entry(at.buffer.0).or_insert((u64::MAX, 0));
            *range = (range.0.min(at.offset), range.1.max(at.offset + bytes));
        }
        for (buffer, (from, to)) in ranges {
            let slice = Slice { buffer: Buffer(buffer), offset: from };
            let span = self.buffers.get(&buffer).map(|held| held.span);
            if let Some(span) = span {
                poke(span, from, image.bytes(slice, to - from)?)?;
            }
        }
        Ok(())
    }

    fn run_one(&mut self) {
        let Some(list) = self.lists.pop_front() else { return };
        let before = list.after.iter().find_map(|fence| self.failed.get(fence)).copied();
        let start = Instant::now();
        let kind = before.or_else(|| self.run(&list.work).err().map(|error| error.kind));
        self.usage.busy += start.elapsed();
        if let Some(kind) = kind {
            // With it what was queued behind it so far.
            self.failed.insert(list.fence, kind);
            let behind = self.lists.iter().filter(|other| other.queue == list.queue);
            self.failed.extend(behind.map(|other| (other.fence, kind)));
            self.lists.retain(|other| other.queue != list.queue);
        }
        self.reap();
    }

    fn is_pending(&self, fence: u64) -> bool {
        self.lists.iter().any(|list| list.fence == fence)
    }

    fn reap(&mut self) {
        let first = self.lists.iter().map(|list| list.fence).min().unwrap_or(u64::MAX);
        let gone = |held: &Held| held.freed.is_some_and(|fence| fence < first);
        let ids: Vec<u32> =
            self.buffers.iter().filter(|(_, held)| gone(held)).map(|(id, _)| *id).collect();
        for held in ids.iter().filter_map(|id| self.buffers.remove(id)).collect::<Vec<_>>() {
            if held.own.is_some() {
                self.count(held.space, |bytes| *bytes -= held.span.bytes);
            }
        }
    }
}

impl DeviceBackend for ScalarDevice {
    fn describe(&self) -> DeviceDescription {
        let all = [Granularity::Page, Granularity::Channel, Granularity::Token];
        let int8 =
            all.iter().flat_map(|key| all.map(|value| KvEncoding::Int8 { key: *key, value }));
        let plain = [KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16];
        use WeightEncoding::*;
        DeviceDescription {
            name: "scalar".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kind: "cpu".into(),
            unified: true,
            align: ALIGN,
            queues: QUEUES,
            kv: plain.into_iter().chain(int8).collect(),
            weights: vec![Bf16, F16, F32, Int8, Mxfp4],
            row_invariant: true,
            options: Options::new(),
        }
    }

    fn open(&mut self, spec: &DeviceSpec, _host: HostRef) -> Result<()> {
        known_options(&spec.options, "device/open", &Options::new())?;
        self.spec = Some(spec.clone());
        Ok(())
    }

    fn supports(&self, op: &Op) -> Support {
        match supported(op) {
            Ok(()) => Support::Yes { workspace_bytes: 0 },
            Err(_) => Support::No,
        }
    }

    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        let budget = self.spec.as_ref().map_or(0, |spec| spec.budget_bytes);
        let held = self.usage.device_bytes + self.usage.staging_bytes;
        if bytes > budget.saturating_sub(held) {
            let line = format!("{bytes} bytes, {held} of {budget} are in use");
            return refuse(ErrorKind::OverBudget, "alloc", line);
        }
        let region = Region::new(bytes as usize)?;
        Ok(self.insert(region.span(), space, Some(region)))
    }

    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        let end = (memory.address as u64).checked_add(memory.bytes);
        if memory.address == 0 || end.is_none_or(|end| end > isize::MAX as u64) {
            return refuse(ErrorKind::Invalid, "import", format!("{memory:?} is no memory"));
        }
        Ok(Some(self.insert(memory, Space::Staging, None)))
    }

    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        let held = self.buffers.get(&buffer.0).filter(|held| held.freed.is_none());
        held.map(|held| held.span)
    }

    fn free(&mut self, buffer: Buffer) {
        if let Some(held) = self.buffers.get_mut(&buffer.0) {
            held.freed.get_or_insert(self.issued);
        }
        self.reap();
    }

    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        Ok(*weight)
    }

    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        for CopyRange { from, to, bytes } in copies {
            self.check(*from, *bytes)?;
            self.check(*to, *bytes)?;
        }
        self.accept(queue, after, Work::Copies(copies.to_vec()))
    }

    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        ops.iter().try_for_each(supported)?;
        self.accept(queue, after, Work::Ops(ops.to_vec()))
    }

    /// Lists run in the order in which they came, over all queues.
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        let start = Instant::now();
        if fence.0 > self.issued {
            return Ok(FenceState::Failed(ErrorKind::Invalid));
        }
        while self.is_pending(fence.0) {
            self.run_one();
            if self.is_pending(fence.0) && start.elapsed() >= deadline {
                return Ok(FenceState::Pending);
            }
        }
        Ok(self.failed.get(&fence.0).map_or(FenceState::Done, |kind| FenceState::Failed(*kind)))
    }

    fn usage(&self) -> DeviceUsage {
        self.usage.clone()
    }
}
