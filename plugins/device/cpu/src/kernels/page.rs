//! One page against some queries: a partial (m, l, a) for each, computed from that page alone.
//!
//! Scores are products as Linear's (`product`), then scale and softcap. m is the largest seen
//! score. l adds the four vectors of exp(s - m), unseen tokens as zero, then the tree. a adds
//! exp(s - m) v over seen tokens in row order, a fused multiply-add each; an unseen row is never
//! multiplied. int8 pages are first q * scale, in f32.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Bf16, Body, F16, F32, I8, LANES, Lanes, Stored};
use super::scores::{Ahead, scores};
use super::{math, product};
use crate::task::Dtype;
use std::marker::PhantomData;

/// Tokens of a page.
pub(crate) const TOKENS: usize = 64;

/// K or V of one kv head in a page: rows of `dim` numbers.
#[derive(Clone, Copy)]
pub(crate) struct Side {
    pub data: *const u8,
    /// `None`: int8 under `scales`.
    pub dtype: Option<Dtype>,
    pub scales: *const f32,
    /// Steps through the scales, from token to token and from channel to channel.
    pub token: usize,
    pub channel: usize,
    pub dim: usize,
}

/// Queries that share a kv head: `rows` rows of `group` heads.
pub(crate) struct Queries<'a> {
    pub q: *const f32, // of the first row's first head
    pub row: usize,    // floats from row to row; heads follow one another
    pub group: usize,
    /// Which tokens each row sees; as many as there are rows.
    pub seen: &'a [u64],
    pub scale: f32,
    pub softcap: f32,
}

impl Queries<'_> {
    pub fn count(&self) -> usize {
        self.seen.len() * self.group
    }
    pub fn at(&self, i: usize, dim: usize) -> *const f32 {
        self.q.wrapping_add(i / self.group * self.row + i % self.group * dim)
    }
    fn seen(&self, i: usize) -> u64 {
        self.seen[i / self.group]
    }
}

/// Where partials `[row][head of the group][2 + value_dim]` go.
pub(crate) struct Partials {
    pub to: *mut f32,
    pub row: usize, // floats from row to row
}

impl Partials {
    pub fn at(&self, i: usize, group: usize, value_dim: usize) -> *mut f32 {
        self.to.wrapping_add(i / group * self.row + i % group * (2 + value_dim))
    }
}

/// Floats of scratch for so many queries.
pub(crate) fn scratch(queries: usize, key_dim: usize, value_dim: usize) -> usize {
    TOKENS * (key_dim + value_dim + queries)
}

/// Computes the partials of queries that see anything; the others' are left alone. `next` is where
/// K of the page after this one starts, or anything. The caller has a whole page behind both
/// sides, queries of `k.dim`, room for the partials, and `scratch`.
#[inline(always)]
pub(crate) unsafe fn partials<V: Lanes>(
    queries: &Queries<'_>,
    k: Side,
    v: Side,
    next: *const u8,
    to: &Partials,
    scratch: *mut f32,
) {
    let all = queries.seen.iter().fold(0, |all, seen| all | seen);
    let many = queries.count() > V::ROWS;
    let wide_v = scratch.add(TOKENS * k.dim);
    let weights = wide_v.add(TOKENS * v.dim);
    // A page is too short a stream for the core to foresee: what comes next is asked for during
    // the scores.
    let soon = [Ahead::of(&v, v.data), Ahead::of(&k, next)];
    let k = plain::<V>(k, all, many, scratch);
    scores::<V>(queries, k, all, many, soon, weights);
    for i in 0..queries.count() {
        if queries.seen(i) != 0 {
            let head = to.at(i, queries.group, v.dim);
            let (seen, scores) = (queries.seen(i), weights.add(i * TOKENS));
            let (scale, softcap) = (queries.scale, queries.softcap);
            V::call(Weigh { seen, scale, softcap, scores, partial: head });
        }
    }
    let v = plain::<V>(v, all, many, wide_v);
    match v.dtype.unwrap_or(Dtype::F32) {
        Dtype::Bf16 => values::<V, Bf16>(queries, v, weights, to),
        Dtype::F16 => values::<V, F16>(queries, v, weights, to),
        Dtype::F32 => values::<V, F32>(queries, v, weights, to),
    }
}

/// The side in a form that products read: as it is, or the rows that anyone sees in f32.
#[inline(always)]
unsafe fn plain<V: Lanes>(side: Side, all: u64, many: bool, wide: *mut f32) -> Side {
    if side.dtype.is_some_and(|dtype| !many || matches!(dtype, Dtype::F32)) {
        return side;
    }
    for token in 0..TOKENS {
        // Scores are taken by four tokens.
        if all >> (token / 4 * 4) & 15 == 0 {
            continue;
        }
        let to = wide.add(token * side.dim);
        if let Some(dtype) = side.dtype {
            let bytes = product::width(dtype);
            product::widen::<V>(dtype, side.data.add(token * side.dim * bytes), to, side.dim);
            continue;
        }
        let from = side.data.add(token * side.dim);
        let mut at = 0;
        while at < side.dim {
            let n = LANES.min(side.dim - at);
            let q: V =
                if n == LANES { I8::load(from.add(at)) } else { I8::load_part(from.add(at), n) };
            let scales = side.scales.add(token * side.token);
            let scale = super::norm::read::<V>(scales, side.channel, at, n);
            super::norm::write(q.mul(scale), to, 1, at, n);
            at += n;
        }
    }
    Side { data: wide.cast::<u8>(), dtype: Some(Dtype::F32), ..side }
}

/// Scores into weights exp(s - m), in place, and m and l into the partial.
struct Weigh {
    seen: u64,
    scale: f32,
    softcap: f32,
    scores: *mut f32,
    partial: *mut f32,
}

impl Body for Weigh {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Weigh { seen, scale, softcap, scores, partial } = self;
        let lowest = V::splat(f32::NEG_INFINITY);
        let mut top = lowest;
        let mut s = [lowest; 4];
        for (part, s) in s.iter_mut().enumerate() {
            let mut v = V::load(scores.add(part * LANES)).mul(V::splat(scale));
            if softcap > 0.0 {
                let cap = V::splat(softcap);
                v = cap.mul(math::tanh(v.div(cap)));
            }
            *s = V::select((seen >> (part * LANES)) as u16, v, lowest);
            top = top.max(*s);
        }
        let m = top.peak();
        // Scores that are all minus infinity weigh nothing, instead of what infinities leave of
        // each other.
        let base = V::splat(if m == f32::NEG_INFINITY { 0.0 } else { m });
        let mut l = V::zero();
        for (part, s) in s.iter().enumerate() {
            let p = math::exp(s.sub(base));
            let p = V::select((seen >> (part * LANES)) as u16, p, V::zero());
            p.store(scores.add(part * LANES));
            l = l.add(p);
        }
        partial.write_unaligned(m);
        partial.add(1).write_unaligned(l.sum());
    }
}

/// Sums of weighted rows of V. Neighbours that see the same share its reads.
#[inline(always)]
unsafe fn values<V: Lanes, W: Stored>(
    queries: &Queries<'_>,
    v: Side,
    weights: *const f32,
    to: &Partials,
) {
    let mut i = 0;
    while i < queries.count() {
        let seen = queries.seen(i);
        let mut rows = 1;
        while rows < V::ROWS && i + rows < queries.count() && queries.seen(i + rows) == seen {
            rows += 1;
        }
        if seen != 0 {
            match rows {
                1 => channels::<V, W, 1>(queries, v, weights, to, i),
                2 if V::ROWS > 1 => channels::<V, W, 2>(queries, v, weights, to, i),
                3 if V::ROWS > 2 => channels::<V, W, 3>(queries, v, weights, to, i),
                4 if V::ROWS > 3 => channels::<V, W, 4>(queries, v, weights, to, i),
                5 if V::ROWS > 4 => channels::<V, W, 5>(queries, v, weights, to, i),
                _ if V::ROWS > 5 => channels::<V, W, 6>(queries, v, weights, to, i),
                _ => {}
            }
        }
        i += rows;
    }
}

#[inline(always)]
unsafe fn channels<V: Lanes, W: Stored, const R: usize>(
    queries: &Queries<'_>,
    v: Side,
    weights: *const f32,
    to: &Partials,
    i: usize,
) {
    let seen = queries.seen(i);
    let (mut p, mut a) = ([weights; R], [to.to; R]);
    for r in 0..R {
        p[r] = weights.add((i + r) * TOKENS);
        a[r] = to.at(i + r, queries.group, v.dim).add(2);
    }
    let mut at = 0;
    if V::WIDE {
        while at + 4 * LANES <= v.dim {
            V::call(Sums::<W, R, 4> { seen, p, v, at, n: LANES, a, form: PhantomData });
            at += 4 * LANES;
        }
    }
    while at + 2 * LANES <= v.dim {
        V::call(Sums::<W, R, 2> { seen, p, v, at, n: LANES, a, form: PhantomData });
        at += 2 * LANES;
    }
    while at < v.dim {
        let n = LANES.min(v.dim - at);
        V::call(Sums::<W, R, 1> { seen, p, v, at, n, a, form: PhantomData });
        at += LANES;
    }
}

/// `C` vectors of channels from `at`, the last of `n` lanes.
struct Sums<W, const R: usize, const C: usize> {
    seen: u64,
    p: [*const f32; R],
    v: Side,
    at: usize,
    n: usize,
    a: [*mut f32; R],
    form: PhantomData<W>,
}

impl<W: Stored, const R: usize, const C: usize> Body for Sums<W, R, C> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Sums { seen, p, v, at, n, a, .. } = self;
        let mut acc = [[V::zero(); C]; R];
        let mut rest = seen;
        while rest != 0 {
            let token = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let row = v.data.add((token * v.dim + at) * W::BYTES);
            let mut vs = [V::zero(); C];
            for (c, v) in vs.iter_mut().enumerate() {
                let from = row.add(c * LANES * W::BYTES);
                *v = if n == LANES { W::load(from) } else { W::load_part(from, n) };
            }
            for r in 0..R {
                let weight = V::splat(p[r].add(token).read_unaligned());
                for c in 0..C {
                    acc[r][c] = weight.fma(vs[c], acc[r][c]);
                }
            }
        }
        for (a, sums) in a.iter().zip(&acc) {
            for (c, sum) in sums.iter().enumerate() {
                super::norm::write(*sum, *a, 1, at + c * LANES, n);
            }
        }
    }
}

/// Folds a partial into the carried state; both `[2 + value_dim]`.
pub(crate) struct Fold {
    pub state: *mut f32,
    pub partial: *const f32,
    pub value_dim: usize,
}

impl Body for Fold {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Fold { state, partial, value_dim } = self;
        let (m0, l0) = (state.read_unaligned(), state.add(1).read_unaligned());
        let (m1, l1) = (partial.read_unaligned(), partial.add(1).read_unaligned());
        let m = if m1 > m0 { m1 } else { m0 };
        let base = if m == f32::NEG_INFINITY { 0.0 } else { m };
        let mut f = [0f32; LANES];
        (f[0], f[1]) = (m0 - base, m1 - base);
        math::exp(V::load(f.as_ptr())).store(f.as_mut_ptr());
        state.write_unaligned(m);
        state.add(1).write_unaligned(l0 * f[0] + l1 * f[1]);
        let (carried, new) = (V::splat(f[0]), V::splat(f[1]));
        let (state, partial) = (state.add(2), partial.add(2));
        let mut at = 0;
        while at < value_dim {
            let n = LANES.min(value_dim - at);
            let a = super::norm::read::<V>(state, 1, at, n).mul(carried);
            let a = super::norm::read::<V>(partial, 1, at, n).fma(new, a);
            super::norm::write(a, state, 1, at, n);
            at += n;
        }
    }
}
