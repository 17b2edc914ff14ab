//! Sums of products: the one definition that Linear and attention's scores share.
//!
//! For a row x and an output w: sixteen accumulators from zero, fused multiply-adds over k ascending in steps
//! of sixteen, the last step with zeros beyond the end, then the tree of `Lanes::sum`.
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

/// `R` rows by four outputs of length `k`; a prefetch runs `ahead` bytes before the reads of `w`. The caller has
/// `k` numbers behind every pointer.
#[inline(always)]
pub(crate) unsafe fn four<V: Lanes, const R: usize>(
    dtype: Dtype,
    x: [*const f32; R],
    w: [*const u8; 4],
    k: usize,
    ahead: usize,
) -> [[f32; 4]; R] {
    match dtype {
        Dtype::Bf16 => V::call(Quad::<Bf16, R> { x, w, k, ahead, form: PhantomData }),
        Dtype::F16 => V::call(Quad::<F16, R> { x, w, k, ahead, form: PhantomData }),
        Dtype::F32 => V::call(Quad::<F32, R> { x, w, k, ahead, form: PhantomData }),
    }
}

/// Arguments of `four`, in one form.
struct Quad<W, const R: usize> {
    x: [*const f32; R],
    w: [*const u8; 4],
    k: usize,
    ahead: usize,
    form: PhantomData<W>,
}

impl<W: Stored, const R: usize> Body for Quad<W, R> {
    type Out = [[f32; 4]; R];

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> [[f32; 4]; R] {
        let Quad { x, w, k, ahead, .. } = self;
        let mut out = [[0f32; 4]; R];
        if V::WIDE || R == 1 {
            let acc = sums::<V, W, R, 4>(x, w, k, ahead);
            for r in 0..R {
                out[r] = V::sum4(acc[r]);
            }
        } else {
            let low = sums::<V, W, R, 2>(x, [w[0], w[1]], k, ahead);
            let high = sums::<V, W, R, 2>(x, [w[2], w[3]], k, ahead);
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
    ahead: usize,
) -> [[V; O]; R] {
    let mut acc = [[V::zero(); O]; R];
    let mut at = 0;
    while at + LANES <= k {
        let mut ws = [V::zero(); O];
        for o in 0..O {
            let p = w[o].add(at * W::BYTES);
            V::prefetch(p.wrapping_add(ahead));
            ws[o] = W::load(p);
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
