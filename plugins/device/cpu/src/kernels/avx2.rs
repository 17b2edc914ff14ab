//! The lanes in two AVX registers (AVX2, FMA and F16C).
//!
//! Methods are inlined into `call`, which has the features.
#![allow(unsafe_code)]
// Every body is one intrinsic or a few, under the one promise of `Lanes`: stated there, not at
// each line.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Body, Lanes, Register};
use std::arch::x86_64::*;

/// Lanes 0 to 7, and 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// All bits of a lane, from one bit a lane.
#[inline(always)]
unsafe fn spread(mask: u16) -> __m256 {
    let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    let mask = _mm256_and_si256(_mm256_set1_epi32(i32::from(mask)), bits);
    _mm256_castsi256_ps(_mm256_cmpeq_epi32(mask, bits))
}

/// One ymm.
#[derive(Clone, Copy)]
pub(crate) struct Ymm(__m256);

impl Register for Ymm {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Ymm(_mm256_setzero_ps())
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Ymm(_mm256_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm256_storeu_ps(p, self.0);
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Ymm(_mm256_fmadd_ps(self.0, b.0, c.0))
    }
}

impl Lanes for Avx2 {
    type Register = Ymm;
    const ROWS: usize = 3;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm256_storeu_ps(p, self.0);
        _mm256_storeu_ps(p.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
        Avx2(
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
        )
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        Avx2(
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())),
        )
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self {
        let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
        let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
        Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Avx2(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias);
        let high = _mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias);
        Avx2(
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
        )
    }
    #[inline(always)]
    unsafe fn less(self, b: Self) -> u16 {
        let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, b.0));
        let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self.1, b.1));
        (low | high << 8) as u16
    }
    #[inline(always)]
    unsafe fn select(mask: u16, a: Self, b: Self) -> Self {
        Avx2(
            _mm256_blendv_ps(b.0, a.0, spread(mask)),
            _mm256_blendv_ps(b.1, a.1, spread(mask >> 8)),
        )
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let v = _mm256_add_ps(self.0, self.1);
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn peak(self) -> f32 {
        let v = _mm256_max_ps(self.0, self.1);
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4] {
        let a = _mm256_add_ps(v[0].0, v[0].1);
        let b = _mm256_add_ps(v[1].0, v[1].1);
        let c = _mm256_add_ps(v[2].0, v[2].1);
        let d = _mm256_add_ps(v[3].0, v[3].1);
        // A step of the tree for two vectors at once: halves of both side by side, then one
        // addition.
        let ab = _mm256_add_ps(
            _mm256_permute2f128_ps::<0x20>(a, b),
            _mm256_permute2f128_ps::<0x31>(a, b),
        );
        let cd = _mm256_add_ps(
            _mm256_permute2f128_ps::<0x20>(c, d),
            _mm256_permute2f128_ps::<0x31>(c, d),
        );
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let four = _mm256_add_ps(
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)),
        );
        let four = _mm256_add_ps(
            _mm256_shuffle_ps::<0x88>(four, four),
            _mm256_shuffle_ps::<0xdd>(four, four),
        );
        let (ac, bd) = (_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four));
        let mut out = [0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm_unpacklo_ps(ac, bd));
        out
    }
    #[inline(always)]
    unsafe fn call<B: Body>(body: B) -> B::Out {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        unsafe fn apart<B: Body>(body: B) -> B::Out {
            body.run::<Avx2>()
        }
        apart(body)
    }
}
