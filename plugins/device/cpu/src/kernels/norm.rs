//! Norms of groups, with weight, bias and gate.
//!
//! Sums are of sixteen lanes and one tree; then 1 / sqrt(mean + eps) by IEEE operations. `out` may
//! be `x`: a group is read to its end before it is written, and then element by element.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{LANES, Lanes};
use super::{math, product};
use crate::exec::Worker;
use crate::task::{Norm, Strided};
use kvern_contract::NormKind;

/// Sixteen values, or the first `n`, of a group that starts at `p`.
#[inline(always)]
pub(crate) unsafe fn read<V: Lanes>(p: *const f32, step: usize, at: usize, n: usize) -> V {
    match (step, n) {
        (0, LANES) => V::splat(p.read_unaligned()),
        // Lanes beyond the end are zero, here too.
        (0, _) => {
            let mut lanes = [0f32; LANES];
            lanes[..n].fill(p.read_unaligned());
            V::load(lanes.as_ptr())
        }
        (_, LANES) => V::load(p.add(at)),
        _ => V::load_part(p.add(at), n),
    }
}

/// The reverse; of a step of 0 the one value is the first.
#[inline(always)]
pub(crate) unsafe fn write<V: Lanes>(v: V, p: *mut f32, step: usize, at: usize, n: usize) {
    match (step, n) {
        (0, _) => v.store_part(p, 1),
        (_, LANES) => v.store(p.add(at)),
        _ => v.store_part(p.add(at), n),
    }
}

/// A worker's part. The caller has a checked task.
#[inline(always)]
pub(crate) unsafe fn norm<V: Lanes>(task: &Norm, worker: &Worker<'_>) {
    let units = task.rows * task.groups;
    while let Some(range) = worker.next(units, worker.share(units, 4)) {
        for unit in range {
            group::<V>(task, unit / task.groups, unit % task.groups);
        }
    }
}

/// Sum of (x - mean)^2 over a group.
#[inline(always)]
unsafe fn squares<V: Lanes>(x: &Strided, p: *const f32, width: usize, mean: f32) -> f32 {
    let mut acc = V::zero();
    let mut at = 0;
    while at < width {
        let n = LANES.min(width - at);
        let mut v = read::<V>(p, x.step, at, n);
        if mean != 0.0 {
            // Lanes beyond the end must stay zero.
            let inside = if n == LANES { u16::MAX } else { (1 << n) - 1 };
            v = V::select(inside, v.sub(V::splat(mean)), V::zero());
        }
        acc = v.fma(v, acc);
        at += n;
    }
    acc.sum()
}

#[inline(always)]
unsafe fn group<V: Lanes>(task: &Norm, row: usize, group: usize) {
    let (x, out) = (task.x.start(row, group), task.out.start(row, group));
    let (width, count) = (task.width, task.width as f32);
    let mut mean = 0.0;
    if task.kind == NormKind::Layer {
        let mut acc = V::zero();
        let mut at = 0;
        while at < width {
            let n = LANES.min(width - at);
            acc = acc.add(read::<V>(x, task.x.step, at, n));
            at += n;
        }
        mean = acc.sum() / count;
    }
    let squares = squares::<V>(&task.x, x, width, mean);
    let power = if task.kind == NormKind::L2 { squares } else { squares / count };
    let factor = V::splat(1.0 / (power + task.eps).sqrt());
    let mut at = 0;
    while at < width {
        let n = LANES.min(width - at);
        let mut v = read::<V>(x, task.x.step, at, n).sub(V::splat(mean)).mul(factor);
        if let Some((weight, dtype)) = task.weight {
            let mut w = [0f32; LANES];
            product::widen::<V>(dtype, weight.add(at * product::width(dtype)), w.as_mut_ptr(), n);
            let mut w = V::load(w.as_ptr());
            if task.kind == NormKind::RmsPlusOne {
                w = w.add(V::splat(1.0));
            }
            v = v.mul(w);
        }
        if !task.bias.is_null() {
            v = v.add(read::<V>(task.bias, 1, at, n));
        }
        if let Some(gate) = &task.gate {
            v = v.mul(math::silu(read::<V>(gate.start(row, group), gate.step, at, n)));
        }
        write(v, out, task.out.step, at, n);
        at += n;
    }
}
