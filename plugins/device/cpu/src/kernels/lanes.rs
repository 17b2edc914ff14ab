//! Sixteen virtual f32 lanes: what every kernel is written in, once, for all instruction sets.
//!
//! Every operation is one IEEE operation a lane (or exact), and the two reductions are fixed
//! trees, so the three implementations agree on every bit. Only NaN payloads may differ.
//!
//! All methods are unsafe for the same two reasons: the CPU must have what the implementation is
//! named after, and pointers must be good for as many values as the method says. Loads and stores
//! need no alignment.
#![allow(unsafe_code)]

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// As many lanes as one register has: what the innermost loops keep their sums in.
pub(crate) trait Register: Copy {
    /// How many; they divide `LANES`.
    const LANES: usize;

    unsafe fn zero() -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// self * b + c, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
}

/// A vector of sixteen f32.
pub(crate) trait Lanes: Copy {
    /// What a vector is made of.
    type Register: Register;
    /// Rows of the largest register tile: rows by four outputs of accumulators, and what they
    /// multiply, fit in the registers.
    const ROWS: usize;
    /// Whether four accumulators a row fit for `ROWS` rows; otherwise two.
    const WIDE: bool;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Sixteen bf16, widened.
    unsafe fn load_bf16(p: *const u8) -> Self;
    /// Sixteen f16, widened.
    unsafe fn load_f16(p: *const u8) -> Self;
    /// Sixteen i8, as numbers.
    unsafe fn load_i8(p: *const u8) -> Self;
    /// self * b + c, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// self > b ? self : b, so `b` where either is NaN.
    unsafe fn max(self, b: Self) -> Self;
    /// self < b ? self : b, so `b` where either is NaN.
    unsafe fn min(self, b: Self) -> Self;
    /// 2 to the power of whole numbers in -126..=127.
    unsafe fn pow2(self) -> Self;
    /// A bit a lane: self < b.
    unsafe fn less(self, b: Self) -> u16;
    /// `a` where the bit is set, `b` elsewhere.
    unsafe fn select(mask: u16, a: Self, b: Self) -> Self;
    /// The tree over lanes: i and i + 8, i + 4, i + 2, i + 1.
    unsafe fn sum(self) -> f32;
    /// The same tree with `max`.
    unsafe fn peak(self) -> f32;
    /// Four sums by the same tree.
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4];
    /// Runs `body` as a function of its own, compiled with the features of these lanes: without
    /// such seams each kernel would be copied into every place that uses it.
    unsafe fn call<B: Body>(body: B) -> B::Out;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller keeps the trait's promise.
        unsafe { Self::splat(0.0) }
    }

    /// The first `n` lanes from memory, zero beyond; n < 16.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut lanes = [0f32; LANES];
        // SAFETY: the caller has n floats at `p`, and n fits the array.
        unsafe {
            std::ptr::copy_nonoverlapping(p.cast::<u8>(), lanes.as_mut_ptr().cast(), n * 4);
            Self::load(lanes.as_ptr())
        }
    }

    /// The first `n` lanes to memory; n < 16.
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut lanes = [0f32; LANES];
        // SAFETY: the caller has room for n floats at `p`, and n fits the array.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr().cast::<u8>(), p.cast::<u8>(), n * 4);
        }
    }
}

/// Work over lanes with its arguments; see `Lanes::call`.
pub(crate) trait Body {
    /// What it answers.
    type Out;
    /// Does it. The caller has the features of `V`, and keeps the promise of whoever made the body.
    unsafe fn run<V: Lanes>(self) -> Self::Out;
}

/// A form in which weights and pages hold numbers; widening to f32 is exact.
pub(crate) trait Stored: Copy {
    /// Bytes of one.
    const BYTES: usize;
    /// Sixteen of them.
    unsafe fn load<V: Lanes>(p: *const u8) -> V;
    /// The first `n` of sixteen, zero beyond; n < 16.
    #[inline(always)]
    unsafe fn load_part<V: Lanes>(p: *const u8, n: usize) -> V {
        let mut bytes = [0u8; LANES * 4];
        // SAFETY: the caller has n of them at `p`; sixteen of at most four bytes fit.
        unsafe {
            std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), n * Self::BYTES);
            Self::load(bytes.as_ptr())
        }
    }
}

macro_rules! stored { ($($(#[$d:meta])* $name:ident $bytes:literal $load:ident;)*) => { $(
    $(#[$d])*
    #[derive(Clone, Copy)]
    pub(crate) struct $name;
    impl Stored for $name {
        const BYTES: usize = $bytes;
        #[inline(always)]
        unsafe fn load<V: Lanes>(p: *const u8) -> V {
            // SAFETY: the caller keeps the promise of the same method of `Lanes`.
            unsafe { V::$load(p.cast()) }
        }
    }
)* } }
stored! {
    /// The upper half of an f32.
    Bf16 2 load_bf16;
    /// IEEE half precision.
    F16 2 load_f16;
    /// As it is.
    F32 4 load;
    /// A signed byte, before its scale.
    I8 1 load_i8;
}

/// Widens a half, exactly.
pub(crate) fn half_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(h >> 10) & 31, u32::from(h & 0x3ff));
    let magnitude = match (exponent, fraction) {
        (0, f) => (f as f32 * (1.0 / 16_777_216.0)).to_bits(),
        (31, 0) => 0x7f80_0000,
        (31, f) => 0x7fc0_0000 | f << 13,
        (e, f) => (e + 112) << 23 | f << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Rounds to half precision, half to even.
pub(crate) fn f32_to_half(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, a) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    let magnitude = match a {
        0x7f80_0001.. => 0x7e00,
        0x477f_f000.. => 0x7c00,
        // Below 2^-14 the result counts units of 2^-24: adding 2^23 rounds to a whole number of
        // them.
        ..0x3880_0000 => {
            let units = f32::from_bits(a) * 16_777_216.0 + 8_388_608.0;
            (units.to_bits() & 0x7f_ffff) as u16
        }
        _ => ((a + 0xfff + (a >> 13 & 1) - 0x3800_0000) >> 13) as u16,
    };
    sign | magnitude
}

/// Rounds to bf16, half to even; NaN stays NaN.
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_widening_and_rounding() {
        for h in 0..=u16::MAX {
            let x = half_to_f32(h);
            if x.is_nan() {
                assert!(half_to_f32(f32_to_half(x)).is_nan());
            } else {
                assert_eq!(f32_to_half(x), h);
            }
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        for h in 0..0x7bffu16 {
            let (low, high) = (half_to_f32(h), half_to_f32(h + 1));
            let even = if h & 1 == 0 { h } else { h + 1 };
            assert_eq!(f32_to_half((low + high) / 2.0), even, "between {low} and {high}");
        }
        assert_eq!(f32_to_half(65519.99), 0x7bff);
        assert_eq!(f32_to_half(65520.0), 0x7c00);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert!(f32::from_bits(u32::from(f32_to_bf16(f32::from_bits(0x7f80_0001))) << 16).is_nan());
    }
}
