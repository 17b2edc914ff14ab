//! Products of rows with weights, and what follows them.
//!
//! Few rows: weights are read once, widened in registers. Many rows: `panel`. Both give the same
//! bits.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Body, LANES, Lanes};
use super::panel::{self, Four, HEIGHT, OUTPUTS, Rows};
use super::{math, product};
use crate::exec::Worker;
use crate::task::{Linear, Need, Part};
use kvern_contract::Epilogue;

/// Most groups that a worker takes at once, so that none waits long for the last.
const CHUNK: usize = 16;
/// Floats of the sums of a group, for the rows of a block.
const SUMS: usize = HEIGHT * OUTPUTS;

/// Scratch of a product: a panel's, and the sums of both sides of a gated pair.
pub(crate) const NEED: Need = Need { own: panel::NEED + 2 * SUMS, shared: 0 };

/// Groups of four outputs.
fn groups(part: &Part) -> usize {
    part.outputs.div_ceil(OUTPUTS)
}

/// A worker's part of a product. The caller has a checked task and scratch of `NEED`.
#[inline(always)]
pub(crate) unsafe fn linear<V: Lanes>(task: &Linear, worker: &Worker<'_>) {
    if task.rows == 0 {
        return;
    }
    let outs = task.outs();
    let all: usize = outs.iter().map(groups).sum();
    let chunk = worker.share(all, 6).min(CHUNK);
    let chunks: usize = outs.iter().map(|part| groups(part).div_ceil(chunk)).sum();
    // Blocks of rows of about one height.
    let height = task.rows.div_ceil(task.rows.div_ceil(HEIGHT)).next_multiple_of(V::ROWS);
    let height = height.min(HEIGHT);
    let blocks = task.rows.div_ceil(height);
    while let Some(range) = worker.next(chunks * blocks, 1) {
        let (mut unit, block) = (range.start / blocks, range.start % blocks);
        let mut index = 0;
        while unit >= groups(&outs[index]).div_ceil(chunk) {
            unit -= groups(&outs[index]).div_ceil(chunk);
            index += 1;
        }
        let rows = (block * height, task.rows.min((block + 1) * height));
        let end = groups(&outs[index]).min((unit + 1) * chunk);
        for group in unit * chunk..end {
            let place = Place { index, group, next: group + 1 < end, rows };
            place.product::<V>(task, worker.own);
        }
    }
}

/// A group of a part's outputs, for a block of rows.
struct Place {
    index: usize,
    group: usize,
    /// The same worker goes on with the next group.
    next: bool,
    rows: (usize, usize),
}

impl Place {
    #[inline(always)]
    unsafe fn product<V: Lanes>(&self, task: &Linear, scratch: *mut f32) {
        let (top, bottom) = self.rows;
        let rows =
            Rows { x: task.x.add(top * task.inputs), inputs: task.inputs, count: bottom - top };
        let sums = [scratch.add(panel::NEED), scratch.add(panel::NEED + SUMS)];
        let sides = if task.gated() { 2 } else { 1 };
        for (side, &sum) in sums.iter().enumerate().take(sides) {
            let part = self.part(task, side);
            let weights = four(part, self.group, task.inputs);
            // One tile of rows takes every weight once as it is; more would widen it anew.
            if task.rows > V::ROWS {
                let after = match (side + 1 < sides, self.next) {
                    (true, _) => Some(four(self.part(task, side + 1), self.group, task.inputs)),
                    (false, true) => Some(four(self.part(task, 0), self.group + 1, task.inputs)),
                    (false, false) => None,
                };
                panel::sums::<V>(weights, rows, after, scratch, sum);
            } else {
                streamed::<V>(weights, rows, sum);
            }
            if !part.bias.is_null() {
                for o in 0..OUTPUTS {
                    let bias = part.bias.add(output(part, self.group, o)).read_unaligned();
                    for row in 0..rows.count {
                        *sum.add(row * OUTPUTS + o) += bias;
                    }
                }
            }
        }
        if !matches!(task.epilogue, Epilogue::None | Epilogue::Add) {
            let values = rows.count * OUTPUTS;
            V::call(Activate { epilogue: task.epilogue, a: sums[0], b: sums[1], values });
        }
        self.store(task, sums[0]);
    }

    /// The part of a side.
    #[inline(always)]
    fn part<'a>(&self, task: &'a Linear, side: usize) -> &'a Part {
        &task.parts[if side == 0 { self.index } else { 1 }]
    }

    #[inline(always)]
    unsafe fn store(&self, task: &Linear, sums: *const f32) {
        let part = &task.parts[self.index];
        let stored = OUTPUTS.min(part.outputs - self.group * OUTPUTS);
        for row in self.rows.0..self.rows.1 {
            let from = sums.add((row - self.rows.0) * OUTPUTS);
            let to = part.out.add(row * part.outputs + self.group * OUTPUTS);
            for o in 0..stored {
                let mut value = *from.add(o);
                if task.epilogue == Epilogue::Add {
                    value += to.add(o).read_unaligned();
                }
                to.add(o).write_unaligned(value);
            }
        }
    }
}

/// An output of a group; beyond the last it is the last again, and not stored.
#[inline(always)]
fn output(part: &Part, group: usize, o: usize) -> usize {
    (group * OUTPUTS + o).min(part.outputs - 1)
}

/// A group's weights as they lie.
#[inline(always)]
fn four(part: &Part, group: usize, inputs: usize) -> Four {
    let stride = inputs * product::width(part.dtype);
    let at = [0, 1, 2, 3].map(|o| part.weight.wrapping_add(output(part, group, o) * stride));
    Four { at, dtype: part.dtype }
}

/// The sums of few rows.
#[inline(always)]
unsafe fn streamed<V: Lanes>(weights: Four, rows: Rows, out: *mut f32) {
    for row in (0..rows.count).step_by(V::ROWS) {
        let (x, out) = (rows.x.add(row * rows.inputs), out.add(row * OUTPUTS));
        match V::ROWS.min(rows.count - row) {
            1 => tile::<V, 1>(weights, x, rows.inputs, out),
            2 if V::ROWS > 1 => tile::<V, 2>(weights, x, rows.inputs, out),
            3 if V::ROWS > 2 => tile::<V, 3>(weights, x, rows.inputs, out),
            4 if V::ROWS > 3 => tile::<V, 4>(weights, x, rows.inputs, out),
            5 if V::ROWS > 4 => tile::<V, 5>(weights, x, rows.inputs, out),
            _ if V::ROWS > 5 => tile::<V, 6>(weights, x, rows.inputs, out),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize>(
    weights: Four,
    first: *const f32,
    inputs: usize,
    out: *mut f32,
) {
    let mut x = [first; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = first.add(r * inputs);
    }
    let sums = product::streamed::<V, R>(weights.dtype, x, weights.at, inputs);
    out.cast::<[[f32; OUTPUTS]; R]>().write_unaligned(sums);
}

/// Applies the epilogue to values in `a`, and where it is gated to those in `b`; both are as long
/// as whole vectors.
struct Activate {
    epilogue: Epilogue,
    a: *mut f32,
    b: *const f32,
    values: usize,
}

impl Body for Activate {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for at in (0..self.values).step_by(LANES) {
            let v = V::load(self.a.add(at));
            let v = match self.epilogue {
                Epilogue::Silu | Epilogue::SiluGated => math::silu(v),
                Epilogue::Gelu => math::gelu(v),
                Epilogue::GeluTanh | Epilogue::GeluTanhGated => math::gelu_tanh(v),
                Epilogue::None | Epilogue::Clamped | Epilogue::Add => v,
            };
            let v = match self.epilogue {
                Epilogue::SiluGated | Epilogue::GeluTanhGated => v.mul(V::load(self.b.add(at))),
                _ => v,
            };
            v.store(self.a.add(at));
        }
    }
}
