//! Sums of many rows with four outputs.
//!
//! A panel is four outputs by a block of inputs, widened to f32 once and packed, so that it stays
//! in the first-level cache while all rows pass over it; the sums of a block wait in scratch for
//! the next one. (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", with
//! the sums of `product`: lanes that wait in memory are the lanes that went there, so the bits are
//! those of one pass.)
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]
// Register tiles: an index names a row or an output in several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::lanes::{Body, LANES, Lanes, Register};
use super::product;
use crate::task::Dtype;

/// Most rows that pass over a panel: their sums wait in the second-level cache.
pub(crate) const HEIGHT: usize = 96;
/// Outputs of a panel.
pub(crate) const OUTPUTS: usize = 4;
/// Floats of scratch.
pub(crate) const NEED: usize = OUTPUTS * PITCH + HEIGHT * OUTPUTS * LANES;

/// Most inputs of a panel: it, and as much of a tile of rows, stay in 32 KiB.
const BLOCK: usize = 640;
/// Floats from one output of a panel to the next; no power of two, which would share few sets of
/// the cache.
const PITCH: usize = BLOCK + LANES;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Four outputs as they lie.
#[derive(Clone, Copy)]
pub(crate) struct Four {
    pub at: [*const u8; OUTPUTS],
    pub dtype: Dtype,
}

/// Rows one behind the other.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub x: *const f32,
    pub inputs: usize,
    /// At most `HEIGHT`.
    pub count: usize,
}

/// The sums of `product` of every row with four outputs, four a row to `out`. What is read after
/// these, if that is known, is asked for meanwhile. The caller has the features of `V`, what the
/// arguments say, and scratch of `NEED`.
#[inline(always)]
pub(crate) unsafe fn sums<V: Lanes>(
    weights: Four,
    rows: Rows,
    after: Option<Four>,
    scratch: *mut f32,
    out: *mut f32,
) {
    let (panel, waiting) = (scratch, scratch.add(OUTPUTS * PITCH));
    let block = rows.inputs.div_ceil(rows.inputs.div_ceil(BLOCK)).next_multiple_of(LANES);
    for from in (0..rows.inputs).step_by(block) {
        let inputs = block.min(rows.inputs - from);
        let width = product::width(weights.dtype);
        for (o, at) in weights.at.iter().enumerate() {
            let to = panel.add(o * PITCH);
            if !inputs.is_multiple_of(LANES) {
                V::zero().store(to.add(inputs / LANES * LANES));
            }
            product::widen::<V>(weights.dtype, at.add(from * width), to, inputs);
        }
        let left = rows.inputs - from - inputs;
        let ahead = match (left, after) {
            (0, Some(after)) => Ahead::of(after, 0, block.min(rows.inputs)),
            (0, None) => Ahead::of(weights, 0, 0),
            _ => Ahead::of(weights, from + inputs, block.min(left)),
        };
        V::call(Pass { panel, waiting, rows, from, inputs, ahead });
    }
    V::call(Fold { waiting, rows: rows.count, out });
}

/// Memory that will be read soon.
#[derive(Clone, Copy)]
struct Ahead {
    at: [*const u8; OUTPUTS],
    lines: usize, // of each
}

impl Ahead {
    fn of(weights: Four, from: usize, inputs: usize) -> Ahead {
        let width = product::width(weights.dtype);
        let at = weights.at.map(|at| at.wrapping_add(from * width));
        Ahead { at, lines: (inputs * width).div_ceil(LINE) }
    }

    /// Asks for so many lines from `line` on, counted over all outputs.
    #[inline(always)]
    fn ask(&self, line: usize, count: usize) {
        for line in line..(line + count).min(OUTPUTS * self.lines) {
            let at = self.at[line / self.lines].wrapping_add(line % self.lines * LINE);
            product::prefetch(at, LINE);
        }
    }
}

/// All rows over one panel.
struct Pass {
    panel: *const f32,
    waiting: *mut f32, // rows by outputs by lanes
    rows: Rows,
    from: usize,
    inputs: usize,
    ahead: Ahead,
}

impl Body for Pass {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let count = self.rows.count;
        let share = (OUTPUTS * self.ahead.lines).div_ceil(count.div_ceil(V::ROWS));
        for (index, row) in (0..count).step_by(V::ROWS).enumerate() {
            self.ahead.ask(index * share, share);
            match V::ROWS.min(count - row) {
                1 => self.tile::<V, 1>(row),
                2 if V::ROWS > 1 => self.tile::<V, 2>(row),
                3 if V::ROWS > 2 => self.tile::<V, 3>(row),
                4 if V::ROWS > 3 => self.tile::<V, 4>(row),
                5 if V::ROWS > 4 => self.tile::<V, 5>(row),
                _ if V::ROWS > 5 => self.tile::<V, 6>(row),
                _ => {}
            }
        }
    }
}

impl Pass {
    /// `R` rows by four outputs in registers, a register's lanes after another's: what is read for
    /// a product is fewest so.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize>(&self, row: usize) {
        let whole = self.inputs / LANES * LANES;
        let stride = self.rows.inputs;
        let x = self.rows.x.add(row * stride + self.from);
        let waiting = self.waiting.add(row * OUTPUTS * LANES);
        let mut rest = [[0f32; LANES]; R];
        if whole < self.inputs {
            for (r, rest) in rest.iter_mut().enumerate() {
                let part = V::load_part(x.add(r * stride + whole), self.inputs - whole);
                part.store(rest.as_mut_ptr());
            }
        }
        for lane in (0..LANES).step_by(V::Register::LANES) {
            let mut sums = [[V::Register::zero(); OUTPUTS]; R];
            if self.from > 0 {
                for r in 0..R {
                    for o in 0..OUTPUTS {
                        let at = waiting.add((r * OUTPUTS + o) * LANES + lane);
                        sums[r][o] = V::Register::load(at);
                    }
                }
            }
            for at in (lane..whole).step_by(LANES) {
                let mut xs = [V::Register::zero(); R];
                for r in 0..R {
                    xs[r] = V::Register::load(x.add(r * stride + at));
                }
                for o in 0..OUTPUTS {
                    let w = V::Register::load(self.panel.add(o * PITCH + at));
                    for r in 0..R {
                        sums[r][o] = xs[r].fma(w, sums[r][o]);
                    }
                }
            }
            if whole < self.inputs {
                for o in 0..OUTPUTS {
                    let w = V::Register::load(self.panel.add(o * PITCH + whole + lane));
                    for r in 0..R {
                        let xs = V::Register::load(rest[r].as_ptr().add(lane));
                        sums[r][o] = xs.fma(w, sums[r][o]);
                    }
                }
            }
            for r in 0..R {
                for o in 0..OUTPUTS {
                    sums[r][o].store(waiting.add((r * OUTPUTS + o) * LANES + lane));
                }
            }
        }
    }
}

/// The tree over the lanes of every sum.
struct Fold {
    waiting: *const f32,
    rows: usize,
    out: *mut f32,
}

impl Body for Fold {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for row in 0..self.rows {
            let mut lanes = [V::zero(); OUTPUTS];
            for (o, lanes) in lanes.iter_mut().enumerate() {
                *lanes = V::load(self.waiting.add((row * OUTPUTS + o) * LANES));
            }
            let to = self.out.add(row * OUTPUTS).cast::<[f32; OUTPUTS]>();
            to.write_unaligned(V::sum4(lanes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, avx2::Avx2, avx512::Avx512, scalar::Scalar};
    use super::*;

    /// Sums of a panel beside those of the definition.
    #[derive(Clone, Copy)]
    struct Both<'a> {
        weights: &'a [f32],
        x: &'a [f32],
        inputs: usize,
        count: usize,
    }

    impl Body for Both<'_> {
        type Out = [Vec<[f32; OUTPUTS]>; 2];

        unsafe fn run<V: Lanes>(self) -> Self::Out {
            let Both { weights, x, inputs, count } = self;
            let at = [0, 1, 2, 3].map(|o| weights[o * inputs..].as_ptr().cast());
            let (rows, dtype) = (Rows { x: x.as_ptr(), inputs, count }, Dtype::F32);
            // Whoever had the scratch before leaves anything there.
            let mut scratch = vec![f32::NAN; NEED];
            let mut got = vec![[0f32; OUTPUTS]; count];
            let out = got.as_mut_ptr().cast();
            sums::<V>(Four { at, dtype }, rows, None, scratch.as_mut_ptr(), out);
            let one = |row: &[f32]| product::streamed::<V, 1>(dtype, [row.as_ptr()], at, inputs)[0];
            [got, x.chunks_exact(inputs).take(count).map(one).collect()]
        }
    }

    #[test]
    fn a_panel_gives_the_sums_of_the_definition_for_any_number_of_inputs_and_rows() {
        let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
        // Parts of a vector, one block of inputs, and several.
        for inputs in [1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 40] {
            let numbers = |count: usize| (0..(count * inputs) as u32).map(number).collect();
            let (weights, x): (Vec<f32>, Vec<f32>) = (numbers(OUTPUTS), numbers(HEIGHT));
            for count in (1..=13).chain([HEIGHT]) {
                let both = Both { weights: &weights, x: &x, inputs, count };
                for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
                    if !isa.here() {
                        continue;
                    }
                    // SAFETY: this CPU has the features; weights and rows are as long as is said.
                    let [got, want] = unsafe {
                        match isa {
                            Isa::Scalar => Scalar::call(both),
                            Isa::Avx2 => Avx2::call(both),
                            Isa::Avx512 => Avx512::call(both),
                        }
                    };
                    let bits = |sums: &[[f32; OUTPUTS]]| -> Vec<u32> {
                        sums.iter().flatten().map(|sum| sum.to_bits()).collect()
                    };
                    assert_eq!(bits(&got), bits(&want), "{count} rows of {inputs}, {isa:?}");
                }
            }
        }
    }
}
