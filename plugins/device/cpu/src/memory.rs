//! Buffers: who owns which bytes, and whether a place lies inside them.
//!
//! Memory is taken with `alloc_zeroed`, so that untouched pages of a large buffer cost nothing,
//! and aligned by hand, because an aligned zeroed allocation would touch it all.
#![allow(unsafe_code)]

use kvern_contract::{Buffer, Error, ErrorKind, HostSpan, Result, Slice, Space};
use std::alloc::Layout;

/// Alignment of buffers: a page, so that the drive may read into staging directly.
pub(crate) const ALIGN: usize = 4096;
const SLOT_BITS: u32 = 20;
const GENERATIONS: u32 = 1 << (32 - SLOT_BITS);

struct Region {
    /// What was taken from the allocator, and how; none for foreign memory.
    block: Option<(*mut u8, Layout)>,
    address: usize,
    bytes: u64,
    space: Space,
}

// SAFETY: a region is an address; whoever holds it decides who reads and writes.
unsafe impl Send for Region {}

impl Region {
    /// New zeroed memory; `None`: the system has none.
    fn zeroed(bytes: u64, space: Space) -> Option<Region> {
        let size = usize::try_from(bytes).ok()?.max(1).checked_add(ALIGN)?;
        let layout = Layout::from_size_align(size, 16).ok()?;
        // SAFETY: the layout's size is not zero.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        let address = (block as usize).next_multiple_of(ALIGN);
        (!block.is_null()).then_some(Region { block: Some((block, layout)), address, bytes, space })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some((block, layout)) = self.block {
            // SAFETY: `block` came from `alloc_zeroed` with this layout and is given back once.
            unsafe { std::alloc::dealloc(block, layout) }
        }
    }
}

/// Room for numbers that no task keeps. From a page's start, so that no vector is on two lines.
#[derive(Default)]
pub(crate) struct Scratch(Option<Region>);

impl Scratch {
    /// Room for so many floats, as numbers or zeros; `None`: the system has none.
    pub fn grow(&mut self, floats: usize) -> Option<*mut f32> {
        let bytes = u64::try_from(floats).ok()?.checked_mul(4)?;
        if self.0.as_ref().is_none_or(|region| region.bytes < bytes) {
            self.0 = None;
            self.0 = Some(Region::zeroed(bytes, Space::Device)?);
        }
        self.0.as_ref().map(|region| region.address as *mut f32)
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    region: Option<Region>,
}

/// All buffers of a device.
#[derive(Default)]
pub(crate) struct Memory {
    slots: Vec<Slot>,
    vacant: Vec<usize>,
    /// Freed while work was pending; they go when it is done.
    leaving: Vec<Region>,
    budget: u64,
    used: [u64; 2],
    peak: u64,
}

impl Memory {
    /// An empty memory under a budget in bytes, over both spaces.
    pub fn new(budget: u64) -> Self {
        Memory { budget, ..Memory::default() }
    }

    /// Bytes allocated for the device, their peak, and bytes of staging.
    pub fn usage(&self) -> (u64, u64, u64) {
        (self.used[0], self.peak, self.used[1])
    }

    /// New zeroed memory. *Errors* OverBudget, also when the system has none.
    pub fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        let held = self.used[0] + self.used[1];
        let refuse = |why: &str| {
            let line = format!("{bytes} bytes {why}; {held} of {} are in use", self.budget);
            Err(Error::new(ErrorKind::OverBudget, "device/alloc", line))
        };
        if bytes > self.budget.saturating_sub(held) {
            return refuse("do not fit the budget");
        }
        let Some(region) = Region::zeroed(bytes, space) else {
            return refuse("were refused by the system");
        };
        let buffer = self.insert(region)?;
        self.used[space as usize] += bytes;
        self.peak = self.peak.max(self.used[0]);
        Ok(buffer)
    }

    /// Foreign memory as a buffer; it counts against no budget.
    pub fn import(&mut self, memory: HostSpan) -> Result<Buffer> {
        let end = u64::try_from(memory.address).ok().and_then(|a| a.checked_add(memory.bytes));
        if memory.address == 0 || end.is_none_or(|end| end > isize::MAX as u64) {
            let line = format!("{} bytes at {:#x} are no memory", memory.bytes, memory.address);
            return Err(Error::new(ErrorKind::Invalid, "device/import", line));
        }
        let HostSpan { address, bytes } = memory;
        self.insert(Region { block: None, address, bytes, space: Space::Staging })
    }

    fn insert(&mut self, region: Region) -> Result<Buffer> {
        let slot = match self.vacant.pop() {
            Some(slot) => slot,
            None if self.slots.len() < 1 << SLOT_BITS => {
                self.slots.push(Slot { generation: 1, region: None });
                self.slots.len() - 1
            }
            None => {
                let line = format!("{} buffers are alive; free some", self.slots.len());
                return Err(Error::new(ErrorKind::OverBudget, "device/alloc", line));
            }
        };
        self.slots[slot].region = Some(region);
        Ok(Buffer(self.slots[slot].generation << SLOT_BITS | slot as u32))
    }

    fn slot(&self, buffer: Buffer) -> Option<usize> {
        let slot = (buffer.0 & ((1 << SLOT_BITS) - 1)) as usize;
        let found = self.slots.get(slot)?;
        (found.generation == buffer.0 >> SLOT_BITS && found.region.is_some()).then_some(slot)
    }

    fn region(&self, buffer: Buffer) -> Option<&Region> {
        self.slots[self.slot(buffer)?].region.as_ref()
    }

    /// Forgets a buffer. With work pending its memory stays until `settle`.
    pub fn free(&mut self, buffer: Buffer, pending: bool) {
        let Some(slot) = self.slot(buffer) else { return };
        let entry = &mut self.slots[slot];
        // 0 is no generation: with slot 0 it would be the buffer that is none.
        entry.generation = (entry.generation + 1) % GENERATIONS;
        entry.generation += u32::from(entry.generation == 0);
        self.vacant.push(slot);
        if let Some(region) = entry.region.take() {
            if pending {
                self.leaving.push(region);
            } else {
                self.release(region);
            }
        }
    }

    /// Gives back what was freed meanwhile; nothing is pending.
    pub fn settle(&mut self) {
        while let Some(region) = self.leaving.pop() {
            self.release(region);
        }
    }

    fn release(&mut self, region: Region) {
        if region.block.is_some() {
            self.used[region.space as usize] -= region.bytes;
        }
    }

    /// Where a buffer lies.
    pub fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        self.region(buffer).map(|r| HostSpan { address: r.address, bytes: r.bytes })
    }

    /// A place, and how many bytes of its buffer follow it; `None` outside of any buffer.
    pub fn reach(&self, place: Slice) -> Option<(*mut u8, u64)> {
        let region = self.region(place.buffer)?;
        let rest = region.bytes.checked_sub(place.offset)?;
        let address = region.address.checked_add(usize::try_from(place.offset).ok()?)?;
        Some((address as *mut u8, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_within_its_budget() {
        let mut memory = Memory::new(10_000);
        let a = memory.alloc(6000, Space::Device).unwrap();
        let span = memory.span(a).unwrap();
        assert_eq!((span.address % ALIGN, span.bytes), (0, 6000));
        // SAFETY: the buffer is 6000 bytes long and nobody else has it.
        let bytes = unsafe { std::slice::from_raw_parts(span.address as *const u8, 6000) };
        assert!(bytes.iter().all(|b| *b == 0));
        let error = memory.alloc(4001, Space::Staging).unwrap_err();
        assert_eq!(error.kind, ErrorKind::OverBudget);
        let b = memory.alloc(4000, Space::Staging).unwrap();
        assert_eq!(memory.usage(), (6000, 6000, 4000));
        memory.free(a, false);
        memory.free(b, true);
        assert_eq!(memory.usage(), (0, 6000, 4000));
        memory.settle();
        assert_eq!(memory.usage(), (0, 6000, 0));
        assert_eq!(memory.alloc(u64::MAX, Space::Device).unwrap_err().kind, ErrorKind::OverBudget);
    }

    #[test]
    fn a_freed_buffer_is_never_found_again() {
        let mut memory = Memory::new(1 << 20);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let buffer = memory.alloc(1, Space::Device).unwrap();
            assert!(buffer.0 != 0 && seen.insert(buffer.0));
            memory.free(buffer, false);
            assert!(memory.span(buffer).is_none());
            memory.free(buffer, false);
        }
        assert!(memory.reach(Slice::default()).is_none());
    }

    #[test]
    fn a_place_past_the_end_is_nowhere() {
        let mut memory = Memory::new(100);
        let buffer = memory.alloc(100, Space::Device).unwrap();
        assert_eq!(memory.reach(Slice { buffer, offset: 100 }).unwrap().1, 0);
        assert!(memory.reach(Slice { buffer, offset: 101 }).is_none());
        assert!(memory.import(HostSpan { address: 0, bytes: 1 }).is_err());
        assert!(memory.import(HostSpan { address: 64, bytes: u64::MAX }).is_err());
    }
}
