//! Scores of a page: products as Linear's, of every query with every token.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Bf16, Body, F16, F32, Lanes, Stored};
use super::page::{Queries, Side, TOKENS};
use super::product;
use crate::task::Dtype;
use std::marker::PhantomData;

/// Rows that will be read soon.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    data: *const u8,
    four: usize, // bytes of four rows
}

impl Ahead {
    /// The rows of a side, at `data`.
    pub fn of(side: &Side, data: *const u8) -> Ahead {
        Ahead { data, four: 4 * side.dim * side.dtype.map_or(1, product::width) }
    }
}

/// Products of every query with every token that anyone sees, and of their neighbours of four.
#[inline(always)]
pub(crate) unsafe fn scores<V: Lanes>(
    queries: &Queries<'_>,
    k: Side,
    all: u64,
    many: bool,
    soon: [Ahead; 2],
    out: *mut f32,
) {
    let mut i = 0;
    while i < queries.count() {
        let rows = V::ROWS.min(queries.count() - i);
        match rows {
            1 => tile::<V, 1>(queries, k, all, many, soon, i, out),
            2 if V::ROWS > 1 => tile::<V, 2>(queries, k, all, many, soon, i, out),
            3 if V::ROWS > 2 => tile::<V, 3>(queries, k, all, many, soon, i, out),
            4 if V::ROWS > 3 => tile::<V, 4>(queries, k, all, many, soon, i, out),
            5 if V::ROWS > 4 => tile::<V, 5>(queries, k, all, many, soon, i, out),
            _ if V::ROWS > 5 => tile::<V, 6>(queries, k, all, many, soon, i, out),
            _ => {}
        }
        i += rows;
    }
}

#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize>(
    queries: &Queries<'_>,
    k: Side,
    all: u64,
    many: bool,
    soon: [Ahead; 2],
    i: usize,
    out: *mut f32,
) {
    let mut x = [queries.q; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = queries.at(i + r, k.dim);
    }
    let soon = if i == 0 { Some(soon) } else { None };
    let out = out.add(i * TOKENS);
    let (data, dim) = (k.data, k.dim);
    if many {
        V::call(Scores::<F32, R, true> { x, data, dim, all, soon, out, form: PhantomData });
        return;
    }
    match k.dtype.unwrap_or(Dtype::F32) {
        Dtype::Bf16 => {
            V::call(Scores::<Bf16, R, false> { x, data, dim, all, soon, out, form: PhantomData })
        }
        Dtype::F16 => {
            V::call(Scores::<F16, R, false> { x, data, dim, all, soon, out, form: PhantomData })
        }
        Dtype::F32 => {
            V::call(Scores::<F32, R, false> { x, data, dim, all, soon, out, form: PhantomData })
        }
    }
}

/// Products of `R` queries with a page, one body: a call for each four tokens would cost as much
/// as they do. `TILED`: K lies in a cache.
struct Scores<W, const R: usize, const TILED: bool> {
    x: [*const f32; R],
    data: *const u8,
    dim: usize,
    all: u64,
    soon: Option<[Ahead; 2]>,
    out: *mut f32, // rows of `TOKENS`
    form: PhantomData<W>,
}

impl<W: Stored, const R: usize, const TILED: bool> Body for Scores<W, R, TILED> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Scores { x, data, dim: k, all, soon, out, form } = self;
        let stride = k * W::BYTES;
        for four in 0..TOKENS / 4 {
            if all >> (four * 4) & 15 == 0 {
                continue;
            }
            for ahead in soon.iter().flatten() {
                product::prefetch(ahead.data.wrapping_add(four * ahead.four), ahead.four);
            }
            let first = data.add(four * 4 * stride);
            let w = [first, first.add(stride), first.add(2 * stride), first.add(3 * stride)];
            let sums = match TILED {
                true => product::Tiled { x, w, k }.run::<V>(),
                false => product::Streamed::<W, R> { x, w, k, form }.run::<V>(),
            };
            for (r, sum) in sums.iter().enumerate() {
                out.add(r * TOKENS + four * 4).cast::<[f32; 4]>().write_unaligned(*sum);
            }
        }
    }
}
