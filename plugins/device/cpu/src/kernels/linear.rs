//! Products of rows with weights, and what follows them.
//!
//! Few rows: weights are read once, widened in registers. Many rows: a panel of outputs is widened
//! once into scratch that stays in the second-level cache, and every tile of rows runs over it.
//! Both give the same bits.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{Body, LANES, Lanes};
use super::{math, product};
use crate::exec::Worker;
use crate::task::{Dtype, Linear, Need, Part};
use kvern_contract::Epilogue;

/// Up to so many rows, widening in registers costs less than a panel.
const DIRECT_ROWS: usize = 8;
/// Outputs of a register tile.
const TILE: usize = 4;
/// Inputs from which on a panel takes more of the cache.
const LONG: usize = 8192;
/// Rows below which a panel is not split: widening it anew must stay cheap.
const SPLIT_ROWS: usize = 96;
/// Most rows of a register tile, over all instruction sets.
const ROWS_MAX: usize = 6;

/// Floats of all panels of a worker: 272 KiB, for powers of two with their pitch, or twice as
/// many, where that would be a few outputs.
fn panel(inputs: usize) -> usize {
    if inputs < LONG { 68 * 1024 } else { 136 * 1024 }
}

/// Floats from one output of a panel to the next.
fn pitch(inputs: usize) -> usize {
    inputs.next_multiple_of(LANES) + LANES
}

/// Groups of four outputs in a panel of one weight, of which there are `sides`.
fn panel_groups(inputs: usize, sides: usize) -> usize {
    (panel(inputs) / (pitch(inputs) * sides * TILE)).clamp(1, 16)
}

/// Scratch for products of this many inputs.
pub(crate) fn need(inputs: usize) -> Need {
    Need { own: panel(inputs).max(pitch(inputs).saturating_mul(2 * TILE)), shared: 0 }
}

/// Outputs in a form that tiles read: the weight itself, or a widened panel of it.
#[derive(Clone, Copy)]
struct Source {
    data: *const u8,
    dtype: Dtype,
    stride: usize, // bytes
    /// In f32, in a cache.
    panel: bool,
}

/// Rows and groups that a tile loop covers; groups are those of the part.
struct Block {
    rows: (usize, usize),
    groups: (usize, usize),
}

/// A worker's part of a product. The caller has a checked task and scratch of `need`.
#[inline(always)]
pub(crate) unsafe fn linear<V: Lanes>(task: &Linear, worker: &Worker<'_>) {
    if task.rows == 0 {
        return;
    }
    let many = task.rows > DIRECT_ROWS;
    let sides = if task.gated() { 2 } else { 1 };
    let outs = task.outs();
    let groups = |part: &Part| part.outputs.div_ceil(TILE);
    let all: usize = outs.iter().map(groups).sum();
    let chunk = match many {
        true => panel_groups(task.inputs, sides).min(worker.share(all, 4)),
        false => worker.share(all, 6),
    };
    let chunks: usize = outs.iter().map(|part| groups(part).div_ceil(chunk)).sum();
    // Few outputs and many rows: split the rows too, so that the workers end together.
    let splits = if many { (16 * worker.workers).div_ceil(chunks.max(1)) } else { 1 };
    let height = task.rows.div_ceil(splits).max(SPLIT_ROWS).next_multiple_of(LANES * 3);
    let splits = task.rows.div_ceil(height);
    while let Some(range) = worker.next(chunks * splits, 1) {
        let (mut unit, split) = (range.start / splits, range.start % splits);
        let mut index = 0;
        while unit >= groups(&outs[index]).div_ceil(chunk) {
            unit -= groups(&outs[index]).div_ceil(chunk);
            index += 1;
        }
        let from = unit * chunk;
        let block = Block {
            rows: (split * height, task.rows.min((split + 1) * height)),
            groups: (from, groups(&outs[index]).min(from + chunk)),
        };
        let mut sources = [stored(&task.parts[index], task.inputs); 2];
        if sides == 2 {
            sources[1] = stored(&task.parts[1], task.inputs);
        }
        if many {
            let side = panel_groups(task.inputs, sides) * TILE * pitch(task.inputs);
            for (s, source) in sources.iter_mut().take(sides).enumerate() {
                *source = widened::<V>(task, index, *source, &block, worker.own.add(s * side));
            }
        }
        tiles::<V>(task, index, &sources, &block);
    }
}

/// A weight as it lies.
fn stored(part: &Part, inputs: usize) -> Source {
    let stride = inputs * product::width(part.dtype);
    Source { data: part.weight, dtype: part.dtype, stride, panel: false }
}

/// A block's outputs in f32, seen as if the whole weight lay there.
#[inline(always)]
unsafe fn widened<V: Lanes>(
    task: &Linear,
    index: usize,
    source: Source,
    block: &Block,
    panel: *mut f32,
) -> Source {
    if matches!(source.dtype, Dtype::F32) {
        // As it lies it serves as well.
        return Source { panel: true, ..source };
    }
    let (first, pitch) = (block.groups.0 * TILE, pitch(task.inputs));
    let end = task.parts[index].outputs.min(block.groups.1 * TILE);
    for output in first..end {
        let from = source.data.add(output * source.stride);
        product::widen::<V>(source.dtype, from, panel.add((output - first) * pitch), task.inputs);
    }
    let stride = pitch * 4;
    let data = panel.cast::<u8>().cast_const().wrapping_sub(first * stride);
    Source { data, dtype: Dtype::F32, stride, panel: true }
}

/// All tiles of a block. A panel stays while rows pass by; a stream is read once, so its rows wait.
#[inline(always)]
unsafe fn tiles<V: Lanes>(task: &Linear, index: usize, sources: &[Source; 2], block: &Block) {
    let ((top, bottom), (left, right)) = (block.rows, block.groups);
    if sources[0].panel {
        for row in (top..bottom).step_by(V::ROWS) {
            for group in left..right {
                rows::<V>(task, index, sources, (row, bottom), group);
            }
        }
    } else {
        for group in left..right {
            for row in (top..bottom).step_by(V::ROWS) {
                rows::<V>(task, index, sources, (row, bottom), group);
            }
        }
    }
}

/// The tile of a group that starts at a row and ends before another.
#[inline(always)]
unsafe fn rows<V: Lanes>(
    task: &Linear,
    index: usize,
    sources: &[Source; 2],
    (row, bottom): (usize, usize),
    group: usize,
) {
    match V::ROWS.min(bottom - row) {
        1 => tile::<V, 1>(task, index, sources, row, group),
        2 if V::ROWS > 1 => tile::<V, 2>(task, index, sources, row, group),
        3 if V::ROWS > 2 => tile::<V, 3>(task, index, sources, row, group),
        4 if V::ROWS > 3 => tile::<V, 4>(task, index, sources, row, group),
        5 if V::ROWS > 4 => tile::<V, 5>(task, index, sources, row, group),
        _ if V::ROWS > 5 => tile::<V, 6>(task, index, sources, row, group),
        _ => {}
    }
}

#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize>(
    task: &Linear,
    index: usize,
    sources: &[Source; 2],
    row: usize,
    group: usize,
) {
    let outputs = task.parts[index].outputs;
    let mut x = [task.x; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = task.x.add((row + r) * task.inputs);
    }
    // Outputs beyond the last are the last again, and not stored.
    let output = |o: usize| (group * TILE + o).min(outputs - 1);
    let mut sums = [[[0f32; 4]; R]; 2];
    for side in 0..if task.gated() { 2 } else { 1 } {
        let source = &sources[side];
        let mut w = [source.data; TILE];
        for (o, w) in w.iter_mut().enumerate() {
            *w = source.data.wrapping_add(output(o) * source.stride);
        }
        let mut sum = match source.panel {
            true => product::tiled::<V, R>(x, w, task.inputs),
            false => product::streamed::<V, R>(source.dtype, x, w, task.inputs),
        };
        let bias = if side == 0 { task.parts[index].bias } else { task.parts[1].bias };
        if !bias.is_null() {
            for o in 0..TILE {
                let b = bias.add(output(o)).read_unaligned();
                for sum in &mut sum {
                    sum[o] += b;
                }
            }
        }
        sums[side] = sum;
    }
    let [mut sum, second] = sums;
    if !matches!(task.epilogue, Epilogue::None | Epilogue::Add) {
        activate::<V, R>(task.epilogue, &mut sum, &second);
    }
    let stored = TILE.min(outputs - group * TILE);
    for (r, sum) in sum.iter().enumerate() {
        let out = task.parts[index].out.add((row + r) * outputs + group * TILE);
        for (o, value) in sum.iter().enumerate().take(stored) {
            let to = out.add(o);
            let before =
                if task.epilogue == Epilogue::Add { Some(to.read_unaligned()) } else { None };
            to.write_unaligned(before.map_or(*value, |before| before + value));
        }
    }
}

/// Applies the epilogue to a tile, through memory: lanes are sixteen wide, a row of the tile is
/// four.
#[inline(always)]
unsafe fn activate<V: Lanes, const R: usize>(
    epilogue: Epilogue,
    sum: &mut [[f32; 4]; R],
    second: &[[f32; 4]; R],
) {
    let mut flat =
        Activate { epilogue, vectors: (R * TILE).div_ceil(LANES), a: [0.0; FLAT], b: [0.0; FLAT] };
    for r in 0..R {
        for o in 0..TILE {
            flat.a[r * TILE + o] = sum[r][o];
            flat.b[r * TILE + o] = second[r][o];
        }
    }
    let values = V::call(flat);
    for r in 0..R {
        for o in 0..TILE {
            sum[r][o] = values[r * TILE + o];
        }
    }
}

/// Values of the largest tile, in whole vectors.
const FLAT: usize = (ROWS_MAX * TILE).next_multiple_of(LANES);

/// The values of a tile, and of the tile beside it where the epilogue is gated.
struct Activate {
    epilogue: Epilogue,
    vectors: usize,
    a: [f32; FLAT],
    b: [f32; FLAT],
}

impl Body for Activate {
    type Out = [f32; FLAT];

    #[inline(always)]
    unsafe fn run<V: Lanes>(mut self) -> [f32; FLAT] {
        for at in (0..self.vectors * LANES).step_by(LANES) {
            let v = V::load(self.a.as_ptr().add(at));
            let v = match self.epilogue {
                Epilogue::Silu | Epilogue::SiluGated => math::silu(v),
                Epilogue::Gelu => math::gelu(v),
                Epilogue::GeluTanh | Epilogue::GeluTanhGated => math::gelu_tanh(v),
                Epilogue::None | Epilogue::Clamped | Epilogue::Add => v,
            };
            let v = match self.epilogue {
                Epilogue::SiluGated | Epilogue::GeluTanhGated => {
                    v.mul(V::load(self.b.as_ptr().add(at)))
                }
                _ => v,
            };
            v.store(self.a.as_mut_ptr().add(at));
        }
        self.a
    }
}
