//! Buffers: host memory that was given, borrowed, or holds a kept tensor.
//!
//! An id is never used twice. A freed buffer is closed to new work at once, and goes when the last
//! fence that was out at that time is reached.
#![allow(unsafe_code)]

use crate::fault::invalid;
use crate::limits::{ALIGN, STAGING_ALIGN};
use crate::region::Region;
use candle_core::Tensor;
use kvern_contract::{Buffer, Error, ErrorKind, HostSpan, Result, Slice, Space};
use std::alloc::Layout;
use std::collections::HashMap;

/// What stands behind an id.
enum Holding {
    /// Memory of the device's own: what the allocator gave, to be given back.
    Owned { base: *mut u8, layout: Layout },
    /// Memory of the host's.
    Borrowed,
    /// An f32 tensor `[out][in]`; it has no bytes of its own to address.
    Kept(Tensor),
}

// SAFETY: `base` is an allocation that this value alone frees; the rest is Send by itself.
unsafe impl Send for Holding {}
// SAFETY: nothing is reached through `base` but by the one who drops it.
unsafe impl Sync for Holding {}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Holding::Owned { base, layout } = self {
            // SAFETY: `alloc` got `base` with this layout, and a holding is dropped once.
            unsafe { std::alloc::dealloc(*base, *layout) };
        }
    }
}

struct Entry {
    region: Region,
    space: Space,
    charged: u64,
    freed: Option<u64>,
    holding: Holding,
}

/// All buffers and their counters.
#[derive(Default)]
pub struct Memory {
    entries: HashMap<u32, Entry>,
    last: u32,
    /// Most bytes in both spaces, which are one memory here; 0 before `open`.
    pub budget_bytes: u64,
    /// Bytes in device space, kept tensors included, and their peak.
    pub device_bytes: u64,
    /// The largest that `device_bytes` has been.
    pub device_peak_bytes: u64,
    /// Bytes in staging space.
    pub staging_bytes: u64,
}

fn over(asked: u64, free: u64) -> Error {
    let text = format!("asked for {asked} bytes with {free} bytes of the budget free");
    Error::new(ErrorKind::OverBudget, "device/alloc", text)
}

impl Memory {
    /// Bytes that may still be taken.
    pub fn free_bytes(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.device_bytes.saturating_add(self.staging_bytes))
    }

    fn insert(&mut self, region: Region, space: Space, charged: u64, holding: Holding) -> Buffer {
        match space {
            Space::Device => self.device_bytes += charged,
            Space::Staging => self.staging_bytes += charged,
        }
        self.device_peak_bytes = self.device_peak_bytes.max(self.device_bytes);
        self.last += 1;
        self.entries.insert(self.last, Entry { region, space, charged, freed: None, holding });
        Buffer(self.last)
    }

    fn id_left(&self) -> Result<()> {
        if self.last == u32::MAX {
            return Err(Error::new(
                ErrorKind::OverBudget,
                "device/alloc",
                "buffer ids are used up",
            ));
        }
        Ok(())
    }

    /// Zeroed memory whose untouched pages cost nothing. *Errors* OverBudget.
    pub fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        self.id_left()?;
        if bytes > self.free_bytes() {
            return Err(over(bytes, self.free_bytes()));
        }
        let align = if space == Space::Staging { STAGING_ALIGN } else { ALIGN };
        // The system hands out fresh zero pages for an alignment of 16; a larger one would touch
        // them all.
        let layout = bytes
            .max(1)
            .checked_add(align - 1)
            .and_then(|total| usize::try_from(total).ok())
            .and_then(|total| Layout::from_size_align(total, 16).ok())
            .ok_or_else(|| over(bytes, self.free_bytes()))?;
        // SAFETY: the layout's size is at least 1.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() {
            return Err(over(bytes, self.free_bytes()));
        }
        let address = base.wrapping_add(base.align_offset(align as usize));
        // SAFETY: `align - 1` bytes beyond `bytes` were asked for, so the aligned range lies
        // inside; it lives until the entry is reaped, which is after the last queued use.
        let region = unsafe { Region::new(address, bytes) };
        Ok(self.insert(region, space, bytes, Holding::Owned { base, layout }))
    }

    /// The host's memory, not copied; `None` where it is no range of addresses.
    pub fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        self.id_left()?;
        let end = (memory.address as u64).checked_add(memory.bytes);
        if memory.address == 0 || end.is_none_or(|end| end > isize::MAX as u64) {
            return Ok(None);
        }
        // SAFETY: the contract has the caller keep the memory until after `free`.
        let region = unsafe { Region::new(memory.address as *mut u8, memory.bytes) };
        Ok(Some(self.insert(region, Space::Device, 0, Holding::Borrowed)))
    }

    /// Keeps an f32 tensor `[out][in]`. *Errors* OverBudget, when ids are used up.
    pub fn keep(&mut self, tensor: Tensor) -> Result<Buffer> {
        self.id_left()?;
        let charged = 4 * tensor.elem_count() as u64;
        Ok(self.insert(Region::empty(), Space::Device, charged, Holding::Kept(tensor)))
    }

    fn entry(&self, buffer: Buffer, fresh: bool) -> Result<&Entry> {
        let open = |entry: &&Entry| !(fresh && entry.freed.is_some());
        self.entries
            .get(&buffer.0)
            .filter(open)
            .ok_or_else(|| invalid(format!("buffer {} is not there", buffer.0)))
    }

    /// Where the host finds a buffer; nothing for a kept tensor.
    pub fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        let entry = self.entry(buffer, true).ok()?;
        let (address, bytes) = (entry.region.address() as usize, entry.region.bytes());
        (!matches!(entry.holding, Holding::Kept(_))).then_some(HostSpan { address, bytes })
    }

    /// `bytes` bytes of a slice. With `fresh`, a freed buffer is none. *Errors* Invalid.
    pub fn region(&self, slice: Slice, bytes: u64, fresh: bool) -> Result<Region> {
        self.entry(slice.buffer, fresh)?.region.part(slice.offset, bytes)
    }

    /// Everything from a slice to its buffer's end. *Errors* Invalid.
    pub fn rest(&self, slice: Slice, fresh: bool) -> Result<Region> {
        let region = self.entry(slice.buffer, fresh)?.region;
        region.part(slice.offset, region.bytes().saturating_sub(slice.offset))
    }

    /// A kept tensor. *Errors* Invalid.
    pub fn kept(&self, buffer: Buffer, fresh: bool) -> Result<&Tensor> {
        match &self.entry(buffer, fresh)?.holding {
            Holding::Kept(tensor) => Ok(tensor),
            _ => Err(invalid(format!("buffer {} holds no adapted weight", buffer.0))),
        }
    }

    /// Closes a buffer to new work; it goes with `reap` of `fence`.
    pub fn free(&mut self, buffer: Buffer, fence: u64) {
        if let Some(entry) = self.entries.get_mut(&buffer.0) {
            entry.freed.get_or_insert(fence);
        }
    }

    /// Gives back what was freed at or before a reached fence.
    pub fn reap(&mut self, reached: u64) {
        let (mut device, mut staging) = (0, 0);
        self.entries.retain(|_, entry| {
            let gone = entry.freed.is_some_and(|fence| fence <= reached);
            if gone {
                match entry.space {
                    Space::Device => device += entry.charged,
                    Space::Staging => staging += entry.charged,
                }
            }
            !gone
        });
        self.device_bytes -= device;
        self.staging_bytes -= staging;
    }
}
