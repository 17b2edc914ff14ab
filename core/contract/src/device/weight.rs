//! A weight: a matrix, where it lies, and how its bytes are read.

use super::Slice;
use serde::{Deserialize, Serialize};

/// Form of a weight as stored: row-major `[out][in]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(u32)]
pub enum WeightEncoding {
    /// No weight.
    #[default]
    None = 0,
    /// The upper half of an f32.
    Bf16 = 1,
    /// IEEE binary16.
    F16 = 2,
    /// IEEE binary32.
    F32 = 3,
    /// int8 with an f32 scale a row of `out`: scales f32 `[out]`.
    Int8 = 4,
    /// MXFP4 (OCP Microscaling Formats, 1.0): E2M1 nibbles, low first, with an E8M0 scale for 32
    /// values of `in`: data u8 `[out][in / 2]`, scales u8 `[out][in / 32]`.
    Mxfp4 = 5,
}

/// A matrix, where it is and how to read it, or a stack of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weight {
    /// The values.
    pub data: Slice,
    /// The scales, where the encoding has them apart.
    pub scales: Slice,
    /// Form of the values.
    pub encoding: WeightEncoding,
    /// Rows of the matrix: values that come out.
    pub outputs: u32,
    /// Columns of the matrix: values that go in.
    pub inputs: u32,
    /// 0 as stored; 1 as stored, but `[in][out]` (gpt-oss's experts in bf16); else a packing that
    /// `adapt` chose and only this device reads.
    pub layout: u32,
    /// Bytes from one of a stack to the next, in `data` and in `scales`: as in a cache with an
    /// expert a frame. 0: they follow one another.
    pub stride: u64,
}
