//! The lanes in one AVX-512 register (F, BW, DQ and VL).
//!
//! Methods are inlined into `call`, which has the features.
#![allow(unsafe_code)]
// Every body is one intrinsic or a few, under the one promise of `Lanes`: stated there, not at
// each line.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Body, LANES, Lanes, Register};
use std::arch::x86_64::*;

/// One zmm.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// A vector is one register.
impl Register for Avx512 {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> Self {
        <Self as Lanes>::zero()
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        <Self as Lanes>::load(p)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        Lanes::store(self, p)
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Lanes::fma(self, b, c)
    }
}

impl Lanes for Avx512 {
    type Register = Avx512;
    const ROWS: usize = 6;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Avx512(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx512(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm512_storeu_ps(p, self.0)
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        Avx512(_mm512_maskz_loadu_ps((1u16 << (n % LANES)) - 1, p))
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        _mm512_mask_storeu_ps(p, (1u16 << (n % LANES)) - 1, self.0)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self {
        Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Avx512(_mm512_fmadd_ps(self.0, b.0, c.0))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Avx512(_mm512_add_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Avx512(_mm512_sub_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Avx512(_mm512_mul_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Avx512(_mm512_div_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Avx512(_mm512_max_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Avx512(_mm512_min_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        let whole = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
        Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(whole)))
    }
    #[inline(always)]
    unsafe fn less(self, b: Self) -> u16 {
        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0)
    }
    #[inline(always)]
    unsafe fn select(mask: u16, a: Self, b: Self) -> Self {
        Avx512(_mm512_mask_blend_ps(mask, b.0, a.0))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let (low, high) = (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
        let v = _mm256_add_ps(low, high);
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn peak(self) -> f32 {
        let (low, high) = (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
        let v = _mm256_max_ps(low, high);
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4] {
        // A step of the tree for two vectors at once: halves of both side by side, then one
        // addition.
        let [a, b, c, d] = [v[0].0, v[1].0, v[2].0, v[3].0];
        let ab =
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let cd =
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        let four = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(ab, cd),
            _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        );
        let four = _mm512_add_ps(four, _mm512_permute_ps::<0x4e>(four));
        let four = _mm512_add_ps(four, _mm512_permute_ps::<0xb1>(four));
        let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        let mut out = [0f32; 4];
        let packed = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, four));
        _mm_storeu_ps(out.as_mut_ptr(), packed);
        out
    }
    #[inline(always)]
    unsafe fn call<B: Body>(body: B) -> B::Out {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,popcnt"
        )]
        #[inline(never)]
        unsafe fn apart<B: Body>(body: B) -> B::Out {
            body.run::<Avx512>()
        }
        apart(body)
    }
}
