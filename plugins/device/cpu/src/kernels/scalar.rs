//! The lanes as an array: the reference that the vector paths equal bit by bit, and the path of a
//! CPU without them.
#![allow(unsafe_code)]

use super::lanes::{Body, LANES, Lanes, Register, half_to_f32};

/// Sixteen floats.
#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

macro_rules! each {
    ($i:ident => $value:expr) => {{
        let mut out = [0f32; LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        Scalar(out)
    }};
}

/// Folds halves: i with i + 8, i + 4, i + 2, i + 1.
#[inline(always)]
fn tree(mut v: [f32; LANES], fold: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] = fold(v[i], v[i + half]);
        }
    }
    v[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// A vector is one register.
impl Register for Scalar {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller keeps the promise of the same method of `Lanes`.
        unsafe { <Self as Lanes>::zero() }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller keeps the promise of the same method of `Lanes`.
        unsafe { <Self as Lanes>::load(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller keeps the promise of the same method of `Lanes`.
        unsafe { Lanes::store(self, p) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller keeps the promise of the same method of `Lanes`.
        unsafe { Lanes::fma(self, b, c) }
    }
}

impl Lanes for Scalar {
    type Register = Scalar;
    const ROWS: usize = 1;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Scalar([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has sixteen floats at `p`.
        Scalar(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has room for sixteen floats at `p`.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        // SAFETY: the caller has sixteen bf16 at `p`.
        let words = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each!(i => f32::from_bits(u32::from(words[i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller has sixteen f16 at `p`.
        let words = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each!(i => half_to_f32(words[i]))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self {
        // SAFETY: the caller has sixteen bytes at `p`.
        let bytes = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        each!(i => f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        each!(i => self.0[i].mul_add(b.0[i], c.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        each!(i => self.0[i] + b.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        each!(i => self.0[i] - b.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        each!(i => self.0[i] * b.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        each!(i => self.0[i] / b.0[i])
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        each!(i => larger(self.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        each!(i => if self.0[i] < b.0[i] { self.0[i] } else { b.0[i] })
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        each!(i => f32::from_bits(((self.0[i] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn less(self, b: Self) -> u16 {
        let mut mask = 0;
        for i in 0..LANES {
            mask |= u16::from(self.0[i] < b.0[i]) << i;
        }
        mask
    }
    #[inline(always)]
    unsafe fn select(mask: u16, a: Self, b: Self) -> Self {
        each!(i => if mask >> i & 1 == 1 { a.0[i] } else { b.0[i] })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        tree(self.0, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn peak(self) -> f32 {
        tree(self.0, larger)
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4] {
        v.map(|x| tree(x.0, |a, b| a + b))
    }
    #[inline(never)]
    unsafe fn call<B: Body>(body: B) -> B::Out {
        // SAFETY: the caller keeps the body's promise; scalars need no features.
        unsafe { body.run::<Scalar>() }
    }
}
