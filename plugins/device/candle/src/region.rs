//! A checked range of host memory. Bytes are copied in and out; no reference into it is ever made.
//!
//! 1. A region is made by `memory` alone, from memory that outlives every queued use of it.
//! 2. Everything read or written through it is checked against its length.
//! 3. Numbers may lie at any byte offset.
#![allow(unsafe_code)]

use crate::fault::invalid;
use kvern_contract::Result;

/// Numbers that any bytes are.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: an integer without padding.
unsafe impl Plain for u8 {}
// SAFETY: an integer without padding.
unsafe impl Plain for u32 {}
// SAFETY: an integer without padding.
unsafe impl Plain for u64 {}
// SAFETY: any 32 bits are an f32.
unsafe impl Plain for f32 {}
// SAFETY: a transparent u16.
unsafe impl Plain for half::f16 {}
// SAFETY: a transparent u16.
unsafe impl Plain for half::bf16 {}

/// Address and length.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    address: *mut u8,
    bytes: u64,
}

// SAFETY: a region is an address; who writes where at one time is decided by the ops, which write
// disjoint parts.
unsafe impl Send for Region {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Region {}

impl Region {
    /// A region over `bytes` bytes from `address`.
    ///
    /// # Safety
    /// The memory is valid for reads and writes for as long as the region and its parts are used.
    pub unsafe fn new(address: *mut u8, bytes: u64) -> Self {
        Region { address, bytes }
    }

    /// No bytes at all.
    pub fn empty() -> Self {
        Region { address: std::ptr::dangling_mut(), bytes: 0 }
    }

    /// Its first byte.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `bytes` bytes from `at`. *Errors* Invalid when they do not fit.
    pub fn part(&self, at: u64, bytes: u64) -> Result<Region> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.bytes => {}
            _ => {
                return Err(invalid(format!(
                    "{bytes} bytes at {at} do not fit in a range of {} bytes",
                    self.bytes
                )));
            }
        }
        // `at` fits in a usize: it lies within memory that exists.
        Ok(Region { address: self.address.wrapping_add(at as usize), bytes })
    }

    /// Appends `count` numbers that lie from byte `at` on. *Errors* Invalid.
    pub fn append<T: Plain>(&self, at: u64, count: usize, to: &mut Vec<T>) -> Result<()> {
        let from = self.part(at, (count as u64).saturating_mul(size_of::<T>() as u64))?;
        to.reserve(count);
        let room = to.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `part` checked the source, `reserve` made room, and a fresh vector overlaps
        // nothing.
        unsafe { std::ptr::copy_nonoverlapping(from.address, room, from.bytes as usize) };
        // SAFETY: `count` more values were just written, and any bits are a value of T.
        unsafe { to.set_len(to.len() + count) };
        Ok(())
    }

    /// `count` numbers from byte `at` on. *Errors* Invalid.
    pub fn read<T: Plain>(&self, at: u64, count: usize) -> Result<Vec<T>> {
        let mut values = Vec::new();
        self.append(at, count, &mut values)?;
        Ok(values)
    }

    /// Writes numbers from byte `at` on. *Errors* Invalid.
    pub fn write<T: Plain>(&self, at: u64, values: &[T]) -> Result<()> {
        let to = self.part(at, size_of_val(values) as u64)?;
        // SAFETY: `part` checked the target; the source is a live slice of the plugin's own heap.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr().cast(), to.address, to.bytes as usize)
        };
        Ok(())
    }

    /// Copies all of `from` here; they may overlap. *Errors* Invalid when the lengths differ.
    pub fn copy_from(&self, from: &Region) -> Result<()> {
        if self.bytes != from.bytes {
            return Err(invalid(format!("copying {} bytes into {}", from.bytes, self.bytes)));
        }
        // SAFETY: both ranges are live for their whole length, and `copy` allows overlap.
        unsafe { std::ptr::copy(from.address, self.address, self.bytes as usize) };
        Ok(())
    }
}
