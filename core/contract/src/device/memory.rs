//! Places: the spaces of memory, parts of buffers, and bytes that move between them.

use super::Buffer;
use serde::{Deserialize, Serialize};

/// Where a buffer lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u32)]
pub enum Space {
    /// The device's own; on a CPU the same as staging.
    Device = 0,
    /// Host memory that the device copies from, page-aligned, fit for O_DIRECT.
    Staging = 1,
}

/// Host memory by address: the engine's one module for frames makes slices of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostSpan {
    /// Address of the first byte.
    pub address: usize,
    /// Length in bytes.
    pub bytes: u64,
}

/// Part of a buffer: from `offset` on, as long as the op that names it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slice {
    /// Which buffer; 0 is none.
    pub buffer: Buffer,
    /// Its first byte in the buffer.
    pub offset: u64,
}

/// Bytes to move between buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRange {
    /// From where.
    pub from: Slice,
    /// To where.
    pub to: Slice,
    /// How many.
    pub bytes: u64,
}
