//! The carried state of attention: partials of pages fold into (m, l, a) in ascending position.

use crate::region::Region;
use crate::tile::values;
use candle_core::Tensor;
use kvern_contract::Result;

/// m, l and a of rows and heads, f32 `[row][head][2 + value_dim]`.
pub struct State {
    all: Vec<f32>,
    heads: usize,
    width: usize,
}

/// Partials of some rows over some pages.
pub struct Partial {
    /// Largest scores, `[kv head][row][query head of it][page]`; minus infinity where nothing is
    /// seen.
    pub largest: Tensor,
    /// Sums of exponentials, alike.
    pub sums: Tensor,
    /// Weighted values, `[kv head][page][row][query head of it][value]`.
    pub values: Tensor,
}

impl State {
    /// Before any page: from the sinks f32 `[head]` where there are some.
    pub fn fresh(rows: usize, heads: usize, value_dim: usize, sinks: Option<&[f32]>) -> Self {
        let width = 2 + value_dim;
        let mut all = vec![0.0; rows * heads * width];
        for (i, state) in all.chunks_exact_mut(width).enumerate() {
            let sink = sinks.and_then(|sinks| sinks.get(i % heads)).copied();
            if let [m, l, ..] = state {
                (*m, *l) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
            }
        }
        State { all, heads, width }
    }

    /// As an earlier op left it. *Errors* Invalid.
    pub fn read(from: &Region, rows: usize, heads: usize, value_dim: usize) -> Result<Self> {
        let width = 2 + value_dim;
        Ok(State { all: from.read(0, rows * heads * width)?, heads, width })
    }

    /// For a later op. *Errors* Invalid.
    pub fn write(&self, to: &Region) -> Result<()> {
        to.write(0, &self.all)
    }

    /// a / l, f32 `[row][head][value]`; zero where nothing was seen.
    pub fn answer(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.all.len());
        for state in self.all.chunks_exact(self.width) {
            let (head, a) = state.split_at(2);
            let l = head.last().copied().unwrap_or(0.0);
            out.extend(a.iter().map(|a| if l == 0.0 { 0.0 } else { a / l }));
        }
        out
    }

    /// Folds the pages of a partial, one after another, into the rows from `row` on. *Errors*
    /// Internal.
    pub fn fold(&mut self, row: usize, partial: &Partial) -> Result<()> {
        let (largest, sums) = (&partial.largest, &partial.sums);
        values(largest, |largest| {
            values(sums, |sums| {
                values(&partial.values, |all| {
                    let pages = partial.values.dims().get(1).copied().unwrap_or(0);
                    let group = partial.values.dims().get(3).copied().unwrap_or(0);
                    let rows = partial.values.dims().get(2).copied().unwrap_or(0);
                    self.fold_all(row, (rows, group, pages), largest, sums, all);
                    Ok(())
                })
            })
        })
    }

    fn fold_all(
        &mut self,
        row: usize,
        (rows, group, pages): (usize, usize, usize),
        largest: &[f32],
        sums: &[f32],
        all: &[f32],
    ) {
        let value = self.width - 2;
        let partials = largest.iter().zip(sums).zip(all.chunks_exact(value));
        for (i, ((m, l), a)) in partials.enumerate() {
            // The pages of a kv head follow one another in ascending position.
            let (kv, r, j) = (i / (pages * rows * group), i / group % rows, i % group);
            let at = ((row + r) * self.heads + kv * group + j) * self.width;
            if let Some(state) = self.all.get_mut(at..at + self.width) {
                fold(state, *m, *l, a);
            }
        }
    }
}

/// Folds one partial into one state. A page where nothing is seen folds nothing.
fn fold(state: &mut [f32], m: f32, l: f32, a: &[f32]) {
    let [old_m, old_l, carried @ ..] = state else { return };
    if m == f32::NEG_INFINITY {
        return;
    }
    let top = old_m.max(m);
    let (old, new) = ((*old_m - top).exp(), (m - top).exp());
    *old_m = top;
    *old_l = *old_l * old + l * new;
    carried.iter_mut().zip(a).for_each(|(carried, a)| *carried = *carried * old + a * new);
}
