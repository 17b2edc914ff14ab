//! Sums of products: the one definition that Linear and attention's scores share.
//!
//! For a row x and an output w: sixteen accumulators from zero, fused multiply-adds over k
//! ascending in steps of sixteen, the last step with zeros beyond the end, then the tree of
//! `Lanes::sum`.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Bf16, Body, F16, F32, LANES, Lanes, Stored};
use crate::task::Dtype;
use std::marker::PhantomData;

/// Bytes of a number.
pub(crate) fn width(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 | Dtype::F16 => 2,
        Dtype::F32 => 4,
    }
}

/// `R` rows by four outputs of length `k`, read once from memory: one output after another, so
/// that a core sees one stream. The caller has `k` numbers behind every pointer.
#[inline(always)]
pub(crate) unsafe fn streamed<V: Lanes, const R: usize>(
    dtype: Dtype,
    x: [*const f32; R],
    w: [*const u8; 4],
    k: usize,
) -> [[f32; 4]; R] {
    match dtype {
        Dtype::Bf16 => V::call(Streamed::<Bf16, R> { x, w, k, form: PhantomData }),
        Dtype::F16 => V::call(Streamed::<F16, R> { x, w, k, form: PhantomData }),
        Dtype::F32 => V::call(Streamed::<F32, R> { x, w, k, form: PhantomData }),
    }
}

/// The body of `streamed`, for those that run it within their own.
pub(crate) struct Streamed<W, const R: usize> {
    pub x: [*const f32; R],
    pub w: [*const u8; 4],
    pub k: usize,
    pub form: PhantomData<W>,
}

impl<W: Stored, const R: usize> Body for Streamed<W, R> {
    type Out = [[f32; 4]; R];

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> [[f32; 4]; R] {
        let Streamed { x, w, k, .. } = self;
        let mut acc = [[V::zero(); 4]; R];
        for o in 0..4 {
            let sums = sums::<V, W, R, 1>(x, [w[o]], k);
            for r in 0..R {
                acc[r][o] = sums[r][0];
            }
        }
        let mut out = [[0f32; 4]; R];
        for r in 0..R {
            out[r] = V::sum4(acc[r]);
        }
        out
    }
}

/// The same sums over outputs in f32 that lie in a cache: four outputs at once, for the fewest
/// reads a product. For those that run it within their own.
pub(crate) struct Tiled<const R: usize> {
    pub x: [*const f32; R],
    pub w: [*const u8; 4],
    pub k: usize,
}

impl<const R: usize> Body for Tiled<R> {
    type Out = [[f32; 4]; R];

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> [[f32; 4]; R] {
        let Tiled { x, w, k } = self;
        let mut out = [[0f32; 4]; R];
        if V::WIDE {
            let acc = sums::<V, F32, R, 4>(x, w, k);
            for r in 0..R {
                out[r] = V::sum4(acc[r]);
            }
        } else {
            let low = sums::<V, F32, R, 2>(x, [w[0], w[1]], k);
            let high = sums::<V, F32, R, 2>(x, [w[2], w[3]], k);
            for r in 0..R {
                out[r] = V::sum4([low[r][0], low[r][1], high[r][0], high[r][1]]);
            }
        }
        out
    }
}

/// The accumulators of a register tile.
#[inline(always)]
unsafe fn sums<V: Lanes, W: Stored, const R: usize, const O: usize>(
    x: [*const f32; R],
    w: [*const u8; O],
    k: usize,
) -> [[V; O]; R] {
    let mut acc = [[V::zero(); O]; R];
    let mut at = 0;
    while at + LANES <= k {
        let mut ws = [V::zero(); O];
        for o in 0..O {
            ws[o] = W::load(w[o].add(at * W::BYTES));
        }
        for r in 0..R {
            let xs = V::load(x[r].add(at));
            for o in 0..O {
                acc[r][o] = xs.fma(ws[o], acc[r][o]);
            }
        }
        at += LANES;
    }
    if at < k {
        let mut ws = [V::zero(); O];
        for o in 0..O {
            ws[o] = W::load_part(w[o].add(at * W::BYTES), k - at);
        }
        for r in 0..R {
            let xs = V::load_part(x[r].add(at), k - at);
            for o in 0..O {
                acc[r][o] = xs.fma(ws[o], acc[r][o]);
            }
        }
    }
    acc
}

/// Widens `n` numbers. The caller has them at `from`, and room for as many floats at `to`.
#[inline(always)]
pub(crate) unsafe fn widen<V: Lanes>(dtype: Dtype, from: *const u8, to: *mut f32, n: usize) {
    V::call(Widen { dtype, from, to, n });
}

/// Arguments of `widen`.
struct Widen {
    dtype: Dtype,
    from: *const u8,
    to: *mut f32,
    n: usize,
}

impl Body for Widen {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        match self.dtype {
            Dtype::Bf16 => widen_from::<V, Bf16>(self.from, self.to, self.n),
            Dtype::F16 => widen_from::<V, F16>(self.from, self.to, self.n),
            Dtype::F32 => widen_from::<V, F32>(self.from, self.to, self.n),
        }
    }
}

#[inline(always)]
unsafe fn widen_from<V: Lanes, W: Stored>(from: *const u8, to: *mut f32, n: usize) {
    let mut at = 0;
    while at + LANES <= n {
        W::load::<V>(from.add(at * W::BYTES)).store(to.add(at));
        at += LANES;
    }
    if at < n {
        W::load_part::<V>(from.add(at * W::BYTES), n - at).store_part(to.add(at), n - at);
    }
}

/// Asks for the cache lines of `bytes` bytes; any address will do.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8, bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(at).cast()) }
    }
}
