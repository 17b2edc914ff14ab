//! Attention over pages: a partial of each page alone, folded in ascending position.
//!
//! A few pages are computed side by side, in a batch of products that are one for each page and kv
//! head, for all rows and query heads of it.

use super::fold::{Partial, State};
use super::pages::{Form, Page, Pages, Sight, entries};
use super::{Operands, stray};
use crate::fault::{candle, invalid};
use crate::limits::{PAGES, TILE};
use crate::region::Region;
use crate::tile::tensor;
use candle_core::{D, Device, Tensor};
use kvern_contract::{Buffer, Op, PAGE_TOKENS, Result};
use rayon::prelude::*;

const TOKENS: usize = PAGE_TOKENS as usize;

/// The op with its memory found.
struct Attention {
    q: Region,
    out: Option<Region>,
    state: Option<Region>,
    entries: Option<Region>,
    masks: Option<Region>,
    pool: Option<Region>,
    sinks: Option<Vec<f32>>,
    heads: usize,
    form: Form,
    scale: f64,
    softcap: f64,
    sight: Sight,
    first: bool,
    last: bool,
}

/// A `SpanEntry`.
struct Span {
    row: u32,
    rows: u32,
    position: u32,
    entry: u32,
    entries: u32,
}

/// Runs `Attention`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Attention { spans, sequences, .. } = *op else { return Err(stray(op)) };
    let spans = operands.words(spans, sequences, 8)?;
    let attention = Attention::bind(op, operands)?;
    if operands.dry {
        return Ok(());
    }
    for sequence in 0..u64::from(sequences) {
        let words = spans.read::<u32>(32 * sequence, 8)?;
        let [row, rows, position, entry, entries, ..] = words[..] else {
            return Err(invalid("a span entry is cut short"));
        };
        attention.sequence(&Span { row, rows, position, entry, entries })?;
    }
    Ok(())
}

impl Attention {
    fn bind(op: &Op, operands: &Operands<'_>) -> Result<Self> {
        let Op::Attention { q, out, state, entries, masks, pool, sinks, first, last, .. } = *op
        else {
            return Err(stray(op));
        };
        let Op::Attention { heads, kv_heads, key_dim, value_dim, scale, softcap, .. } = *op else {
            return Err(stray(op));
        };
        let Op::Attention { window, keep, causal, .. } = *op else { return Err(stray(op)) };
        let state = operands.rest_if_any(state)?;
        if state.is_none() && !(first && last) {
            return Err(invalid("attention in parts has no state to carry"));
        }
        let sinks = (sinks.buffer != Buffer(0) && first).then(|| operands.words(sinks, heads, 1));
        let sinks = sinks.transpose()?;
        let read = |sinks: Region| sinks.read(0, heads as usize);
        Ok(Attention {
            q: operands.rest(q)?,
            out: if last { Some(operands.rest(out)?) } else { None },
            state,
            entries: operands.rest_if_any(entries)?,
            masks: operands.rest_if_any(masks)?,
            pool: operands.rest_if_any(pool)?,
            sinks: if operands.dry { None } else { sinks.map(read).transpose()? },
            heads: heads as usize,
            form: Form {
                heads: kv_heads as usize,
                key: key_dim as usize,
                value: value_dim as usize,
            },
            scale: f64::from(scale),
            softcap: f64::from(softcap),
            sight: Sight { causal, window, keep },
            first,
            last,
        })
    }

    /// The floats of a span's rows, `each` a head.
    fn rows(&self, of: &Region, span: &Span, each: usize) -> Result<Region> {
        let row = 4 * self.heads as u64 * each as u64;
        let bytes = |rows: u32| u64::from(rows).saturating_mul(row);
        of.part(bytes(span.row), bytes(span.rows))
    }

    fn sequence(&self, span: &Span) -> Result<()> {
        let (rows, value) = (span.rows as usize, self.form.value);
        let queries = self.rows(&self.q, span, self.form.key)?;
        let out = self.out.map(|out| self.rows(&out, span, value)).transpose()?;
        let carried = self.state.map(|state| self.rows(&state, span, 2 + value)).transpose()?;
        let mut state = match (&carried, self.first) {
            (Some(carried), false) => State::read(carried, rows, self.heads, value)?,
            _ => State::fresh(rows, self.heads, value, self.sinks.as_deref()),
        };
        if rows > 0 && span.entries > 0 {
            let table = self.entries.ok_or_else(|| invalid("pages without their entries"))?;
            let pages = entries(&table, span.entry, span.entries)?;
            self.history(span, &queries, &pages, &mut state)?;
        }
        if let Some(carried) = &carried {
            state.write(carried)?;
        }
        match out.filter(|_| self.last) {
            Some(out) => out.write(0, &state.answer()),
            None => Ok(()),
        }
    }

    fn history(
        &self,
        span: &Span,
        queries: &Region,
        pages: &[Page],
        state: &mut State,
    ) -> Result<()> {
        let pool = self.pool.ok_or_else(|| invalid("pages without a pool"))?;
        let rows = span.rows as usize;
        // Scores of `height` rows over `some` pages fill a tile at most.
        let most = (TILE / (self.heads * TOKENS)).max(1);
        let height = rows.min(most);
        let some = (most / height).clamp(1, PAGES);
        let gather = |few: &[Page]| Pages::gather(few, &pool, self.masks.as_ref(), self.form);
        for run in pages.chunk_by(|a, b| a.encoding == b.encoding) {
            for few in run.chunks(some) {
                let pages = gather(few)?;
                if pages.finite {
                    self.attend(span, queries, &pages, height, state)?;
                    continue;
                }
                // A product with an unseen infinity is no number: then a row gets values of its
                // own, where that page is concerned and no other.
                for one in few.chunks(1) {
                    let page = gather(one)?;
                    let height = if page.finite { height } else { 1 };
                    self.attend(span, queries, &page, height, state)?;
                }
            }
        }
        Ok(())
    }

    /// Folds a few pages into all rows, `height` rows at a time for each worker.
    fn attend(
        &self,
        span: &Span,
        queries: &Region,
        pages: &Pages,
        height: usize,
        state: &mut State,
    ) -> Result<()> {
        let rows = span.rows as usize;
        let starts: Vec<usize> = (0..rows).step_by(height).collect();
        for starts in starts.chunks(rayon::current_num_threads()) {
            let partials = starts.par_iter().map(|row| {
                let count = height.min(rows - row);
                self.partial(queries, span.position, *row, count, pages)
            });
            let partials = partials.collect::<Result<Vec<_>>>()?;
            for (row, partial) in starts.iter().zip(&partials) {
                state.fold(*row, partial)?;
            }
        }
        Ok(())
    }

    /// What `rows` rows of a sequence from `row` on make of some pages.
    fn partial(
        &self,
        queries: &Region,
        position: u32,
        row: usize,
        rows: usize,
        pages: &Pages,
    ) -> Result<Partial> {
        let (kv, group) = (self.form.heads, self.heads / self.form.heads);
        let each = self.heads * self.form.key;
        let q = queries.read((4 * row * each) as u64, rows * each)?;
        let seen = pages.seen(u64::from(position) + row as u64, rows, self.sight);
        let q = tensor(q, (rows, kv, group, self.form.key))?;
        let values = match &seen {
            Some(seen) if !pages.finite => pages.values_seen(seen)?,
            _ => pages.values.clone(),
        };
        let shape = (kv, rows, pages.count(), TOKENS);
        let seen = seen.map(|seen| Tensor::from_vec(seen, shape, &Device::Cpu)).transpose();
        seen.and_then(|seen| self.compute(&q, &pages.keys, &values, seen)).map_err(candle)
    }

    /// `q` `[row][kv head][query head of it][key]`, keys `[kv head * page][64][key]`, values alike,
    /// seen `[kv head][row][page][64]`. Every page has products of its own, all of one shape, so
    /// that its bits do not depend on the pages beside it.
    fn compute(
        &self,
        q: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        seen: Option<Tensor>,
    ) -> candle_core::Result<Partial> {
        let (rows, kv, group, key) = q.dims4()?;
        let pages = keys.dim(0)? / kv;
        let queries = q.transpose(0, 1)?.contiguous()?.reshape((kv, 1, rows * group, key))?;
        let queries = queries.broadcast_as((kv, pages, rows * group, key))?.contiguous()?;
        let queries = queries.reshape((kv * pages, rows * group, key))?;
        let mut scores = (queries.matmul(&keys.t()?)? * self.scale)?;
        if self.softcap != 0.0 {
            scores = ((scores / self.softcap)?.tanh()? * self.softcap)?;
        }
        if let Some(seen) = seen {
            let wide = (kv, pages, rows, group, TOKENS);
            let seen = seen.transpose(1, 2)?.unsqueeze(3)?.broadcast_as(wide)?;
            let none = Tensor::new(f32::NEG_INFINITY, &Device::Cpu)?.broadcast_as(wide)?;
            let masked = seen.where_cond(&scores.reshape(wide)?, &none)?;
            scores = masked.reshape((kv * pages, rows * group, TOKENS))?;
        }
        let largest = scores.max_keepdim(D::Minus1)?;
        // Where nothing is seen, any finite stand-in makes all exponentials zero.
        let weights = scores.broadcast_sub(&largest.maximum(f32::MIN)?)?.exp()?;
        let sums = weights.sum_keepdim(D::Minus1)?;
        let values = weights.matmul(values)?;
        let values = values.reshape((kv, pages, rows, group, self.form.value))?;
        Ok(Partial { largest, sums, values })
    }
}
