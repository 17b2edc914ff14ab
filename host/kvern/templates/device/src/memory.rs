//! Buffers: memory of our own, or the host's. The only unsafe code is here, and every range is
//! checked before it is a slice.

use crate::refuse;
use kvern_abi::contract::*;
use std::collections::BTreeMap;

/// Alignment of buffers: a page, so that the drive may read into them directly.
pub const ALIGN: usize = 4096;

struct Held {
    address: usize,
    bytes: u64,
    space: Space,
    /// What it lies in, if that is our own.
    own: Option<Vec<u8>>,
    /// The last fence when it was freed.
    freed: Option<u64>,
}

/// All buffers.
#[derive(Default)]
pub struct Memory {
    held: BTreeMap<u32, Held>,
    last: u32,
    /// The most that `alloc` may give, in bytes.
    pub budget: u64,
    usage: DeviceUsage,
}

impl Memory {
    fn insert(&mut self, held: Held) -> Buffer {
        self.last += 1;
        self.held.insert(self.last, held);
        Buffer(self.last)
    }

    /// Counts what our own buffers hold, and its peak.
    fn count(&mut self) {
        let sum = |space| {
            let own = self.held.values().filter(|held| held.own.is_some() && held.space == space);
            own.map(|held| held.bytes).sum()
        };
        let (device, staging) = (sum(Space::Device), sum(Space::Staging));
        self.usage.device_bytes = device;
        self.usage.staging_bytes = staging;
        self.usage.device_peak_bytes = self.usage.device_peak_bytes.max(device);
    }

    pub fn usage(&self) -> DeviceUsage {
        self.usage.clone()
    }

    pub fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        let free = self.budget - self.usage.device_bytes - self.usage.staging_bytes;
        let mut own = Vec::new();
        let there = bytes <= free && own.try_reserve_exact(bytes as usize + ALIGN).is_ok();
        if !there {
            return refuse(ErrorKind::OverBudget, format!("{bytes} bytes, and {free} are free"));
        }
        own.resize(bytes as usize + ALIGN, 0);
        let address = own.as_ptr().addr().next_multiple_of(ALIGN);
        let buffer = self.insert(Held { address, bytes, space, own: Some(own), freed: None });
        self.count();
        Ok(buffer)
    }

    pub fn import(&mut self, HostSpan { address, bytes }: HostSpan) -> Result<Buffer> {
        let end = (address as u64).checked_add(bytes);
        if address == 0 || end.is_none_or(|end| end > isize::MAX as u64) {
            return refuse(ErrorKind::Invalid, format!("{bytes} bytes at {address:#x}"));
        }
        Ok(self.insert(Held { address, bytes, space: Space::Staging, own: None, freed: None }))
    }

    /// Where a buffer is; nowhere once it is freed.
    pub fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        let held = self.held.get(&buffer.0).filter(|held| held.freed.is_none());
        held.map(|held| HostSpan { address: held.address, bytes: held.bytes })
    }

    /// It stays for lists up to the fence `issued`, which may name it.
    pub fn free(&mut self, buffer: Buffer, issued: u64) {
        if let Some(held) = self.held.get_mut(&buffer.0) {
            held.freed.get_or_insert(issued);
        }
    }

    /// Gives back what was freed before the list of the fence `next` came.
    pub fn reap(&mut self, next: u64) {
        self.held.retain(|_, held| held.freed.is_none_or(|fence| fence >= next));
        self.count();
    }

    /// The address of a place with so many bytes. *Errors* Invalid.
    fn find(&self, at: Slice, bytes: u64) -> Result<usize> {
        let end = at.offset.checked_add(bytes);
        match self.held.get(&at.buffer.0) {
            Some(held) if end.is_some_and(|end| end <= held.bytes) => {
                Ok(held.address + at.offset as usize)
            }
            _ => refuse(ErrorKind::Invalid, format!("{bytes} bytes at {at:?} are not there")),
        }
    }

    /// Bytes of a place. *Errors* Invalid.
    pub fn bytes(&self, at: Slice, bytes: u64) -> Result<&[u8]> {
        let address = self.find(at, bytes)?;
        // SAFETY: the range lies in a buffer: our own, which lives as long as its entry, or the
        // host's, which outlives `free`. The host leaves it alone while work on it is queued, and
        // we write it through `&mut self` alone.
        Ok(unsafe { std::slice::from_raw_parts(address as *const u8, bytes as usize) })
    }

    /// Bytes of a place, to be written. *Errors* Invalid.
    pub fn bytes_mut(&mut self, at: Slice, bytes: u64) -> Result<&mut [u8]> {
        let address = self.find(at, bytes)?;
        // SAFETY: as above, and `&mut self` makes this the only slice of any buffer.
        Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes as usize) })
    }

    /// Words of a place. *Errors* Invalid.
    pub fn words(&self, at: Slice, count: u64) -> Result<Vec<u32>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let words = self.bytes(at, count.saturating_mul(4))?.chunks_exact(4);
        Ok(words.map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
    }

    /// Floats of a place. *Errors* Invalid.
    pub fn floats(&self, at: Slice, count: u64) -> Result<Vec<f32>> {
        Ok(self.words(at, count)?.into_iter().map(f32::from_bits).collect())
    }

    /// Floats of a place, or `otherwise` where there is no such operand. *Errors* Invalid.
    pub fn floats_or(&self, at: Slice, count: u64, otherwise: f32) -> Result<Vec<f32>> {
        if at.buffer == Buffer(0) {
            return Ok(vec![otherwise; count as usize]);
        }
        self.floats(at, count)
    }

    /// Writes floats. *Errors* Invalid.
    pub fn write(&mut self, at: Slice, values: &[f32]) -> Result<()> {
        let to = self.bytes_mut(at, 4 * values.len() as u64)?.chunks_exact_mut(4);
        to.zip(values).for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
        Ok(())
    }
}

/// The place `bytes` further on; past the end of everything, if there is none.
pub fn on(at: Slice, bytes: u64) -> Slice {
    Slice { offset: at.offset.saturating_add(bytes), ..at }
}
