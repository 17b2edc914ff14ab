//! A device over the border: buffers and fences as numbers, op lists as words.
#![allow(unsafe_code)]

use crate::border::{Foreign, Object, border, cross};
use crate::guard::{Handle, Poison, enter, expose, retire};
use crate::host::{HostObject, borrow, lend};
use crate::lists::Lists;
use crate::trail::Maker;
use crate::views::{fences_in, fences_out};
use crate::wire::{AbiResult, duration, kind_word, nanos, read_doc, unknown, word_kind, write_doc};
use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RSlice, RVec};
use kvern_contract::*;
use std::sync::Arc;
use std::time::Duration;

/// Host memory.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct SpanRow {
    pub address: u64,
    pub bytes: u64,
}

impl SpanRow {
    fn out(span: HostSpan) -> Self {
        SpanRow { address: span.address as u64, bytes: span.bytes }
    }

    fn span(self) -> HostSpan {
        HostSpan { address: self.address as usize, bytes: self.bytes }
    }
}

/// Whether an op runs: `yes` 1, with its workspace.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct SupportRow {
    pub workspace_bytes: u64,
    pub yes: u32,
    pub reserved: u32,
}

/// Bytes to move.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct CopyRow {
    pub from_offset: u64,
    pub to_offset: u64,
    pub bytes: u64,
    pub from: u32,
    pub to: u32,
}

impl CopyRow {
    fn out(range: &CopyRange) -> Self {
        CopyRow {
            from_offset: range.from.offset,
            to_offset: range.to.offset,
            bytes: range.bytes,
            from: range.from.buffer.0,
            to: range.to.buffer.0,
        }
    }

    fn range(&self) -> CopyRange {
        CopyRange {
            from: Slice { buffer: Buffer(self.from), offset: self.from_offset },
            to: Slice { buffer: Buffer(self.to), offset: self.to_offset },
            bytes: self.bytes,
        }
    }
}

/// A fence's state. `code` 0 pending, 1 done, 2 failed with an error's kind.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct StateRow {
    pub code: u32,
    pub error: u32,
}

/// A device on the plugin's side, with the lists it knows.
pub struct DeviceSide {
    device: Box<dyn DeviceBackend>,
    lists: Lists,
}

border! {
    /// A device, as the host's side calls it.
    DeviceTable, DeviceTableRef, DeviceTableFields, DeviceOperations,
        &mut DeviceSide, enter, retire::<DeviceSide>, "device/drop";
    "device/describe" describe() -> RVec<u8> = |side| {
        write_doc("device/describe", &side.device.describe()).map(RVec::from)
    };
    "device/open" open(spec: RSlice<'_, u8>, host: HostObject) -> () = |side| {
        let host = borrow(host);
        side.device.open(&read_doc("device/open", spec.as_slice())?, host)
    };
    "device/supports" supports(words: RSlice<'_, u32>) -> SupportRow = |side| {
        let support = side.device.supports(&Op::take(&mut words.as_slice())?);
        Ok(match support {
            Support::No => SupportRow { workspace_bytes: 0, yes: 0, reserved: 0 },
            Support::Yes { workspace_bytes } => SupportRow { workspace_bytes, yes: 1, reserved: 0 },
        })
    };
    "device/alloc" alloc(bytes: u64, space: u32) -> u32 = |side| {
        let space = match space {
            0 => Space::Device,
            1 => Space::Staging,
            n => return Err(unknown("device/alloc", "memory space", n)),
        };
        side.device.alloc(bytes, space).map(|buffer| buffer.0)
    };
    "device/import" import(memory: SpanRow) -> ROption<u32> = |side| {
        Ok(side.device.import(memory.span())?.map(|buffer| buffer.0).into())
    };
    "device/span" span(buffer: u32) -> ROption<SpanRow> = |side| {
        Ok(side.device.span(Buffer(buffer)).map(SpanRow::out).into())
    };
    "device/free" free(buffer: u32) -> () = |side| {
        side.device.free(Buffer(buffer));
        Ok(())
    };
    "device/adapt" adapt(weight: RSlice<'_, u32>) -> RVec<u32> = |side| {
        let weight = take_weight(weight.as_slice())?;
        Ok(put_weight(&side.device.adapt(&weight)?).into())
    };
    "device/copy" copy(queue: u32, copies: RSlice<'_, CopyRow>, after: RSlice<'_, u64>) -> u64
        = |side| {
        let copies: Vec<_> = copies.as_slice().iter().map(CopyRow::range).collect();
        side.device.copy(Queue(queue), &copies, fences_in(after)).map(|fence| fence.0)
    };
    "device/submit" submit(queue: u32, words: RSlice<'_, u32>, after: RSlice<'_, u64>) -> u64
        = |side| {
        let ops = side.lists.ops(words.as_slice())?;
        side.device.submit(Queue(queue), ops, fences_in(after)).map(|fence| fence.0)
    };
    "device/wait" wait(fence: u64, deadline: u64) -> StateRow = |side| {
        Ok(match side.device.wait(Fence(fence), duration(deadline))? {
            FenceState::Pending => StateRow { code: 0, error: 0 },
            FenceState::Done => StateRow { code: 1, error: 0 },
            FenceState::Failed(kind) => StateRow { code: 2, error: kind_word(Some(kind)) },
        })
    };
    "device/usage" usage() -> RVec<u8> = |side| {
        write_doc("device/usage", &side.device.usage()).map(RVec::from)
    };
}

fn put_weight(weight: &Weight) -> Vec<u32> {
    let mut words = Vec::new();
    weight.put(&mut words);
    words
}

fn take_weight(mut words: &[u32]) -> Result<Weight> {
    let message = "a weight came with an unknown encoding or cut short";
    Weight::take(&mut words).ok_or_else(|| Error::new(ErrorKind::Invalid, "device/adapt", message))
}

/// A device on its way to the host.
pub type DeviceObject = Object<DeviceTableRef>;

/// Puts a plugin's device behind the border.
pub fn expose_device(device: Box<dyn DeviceBackend>) -> DeviceObject {
    let side = Box::new(DeviceSide { device, lists: Lists::default() });
    Object { handle: expose(side, Arc::<Poison>::default()), table: DeviceTable::REF }
}

/// A plugin's device. Its description was read once, when it was opened.
pub struct ForeignDevice {
    border: Foreign<DeviceTableRef>,
    description: DeviceDescription,
    /// The words of the list under way; kept for its room.
    words: Vec<u32>,
}

impl ForeignDevice {
    /// Takes a device over and asks who it is. *Errors* Panicked, Invalid: its description.
    pub fn new(object: DeviceObject, maker: Maker) -> Result<Self> {
        let border = Foreign::new(object, maker);
        let doc = cross!(&border, describe)?;
        let description = read_doc("device/describe", &doc)?;
        Ok(ForeignDevice { border, description, words: Vec::new() })
    }
}

impl DeviceBackend for ForeignDevice {
    fn describe(&self) -> DeviceDescription {
        self.description.clone()
    }

    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()> {
        let spec = write_doc("device/open", spec)?;
        cross!(&self.border, open, RSlice::from_slice(&spec), lend(host))
    }

    /// No for an op that the plugin's epoch does not know, and from a plugin that panicked.
    fn supports(&self, op: &Op) -> Support {
        let mut words = Vec::new();
        op.put(&mut words);
        match cross!(&self.border, supports, RSlice::from_slice(&words)) {
            Ok(row) if row.yes != 0 => Support::Yes { workspace_bytes: row.workspace_bytes },
            _ => Support::No,
        }
    }

    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        cross!(&self.border, alloc, bytes, space as u32).map(Buffer)
    }

    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        let buffer = cross!(&self.border, import, SpanRow::out(memory))?;
        Ok(buffer.into_option().map(Buffer))
    }

    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        let span = cross!(&self.border, span, buffer.0).ok()?;
        span.into_option().map(SpanRow::span)
    }

    fn free(&mut self, buffer: Buffer) {
        let _ = cross!(&self.border, free, buffer.0);
    }

    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        let words = put_weight(weight);
        take_weight(&cross!(&self.border, adapt, RSlice::from_slice(&words))?)
    }

    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        let rows: Vec<_> = copies.iter().map(CopyRow::out).collect();
        cross!(&self.border, copy, queue.0, RSlice::from_slice(&rows), fences_out(after)).map(Fence)
    }

    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        self.words.clear();
        ops.iter().for_each(|op| op.put(&mut self.words));
        let words = RSlice::from_slice(&self.words);
        cross!(&self.border, submit, queue.0, words, fences_out(after)).map(Fence)
    }

    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        let within = nanos(deadline);
        let state = cross!(&self.border, wait within within, fence.0, within)?;
        match state.code {
            0 => Ok(FenceState::Pending),
            1 => Ok(FenceState::Done),
            2 => Ok(FenceState::Failed(word_kind(state.error))),
            n => Err(unknown("device/wait", "fence state", n)),
        }
    }

    fn usage(&self) -> DeviceUsage {
        let doc = cross!(&self.border, usage);
        doc.and_then(|doc| read_doc("device/usage", &doc)).unwrap_or_default()
    }
}
